"""Compiling eBPF for real: what comes out, what a mistake looks like, and what is left when it is cut off."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
from elftools.elf.elffile import ELFFile

from kmt import build, paths
from kmt.config import Config
from kmt.errors import BuildError
from kmt.roots.compiler import Compiler, disk

pytestmark = pytest.mark.host_only

SOURCE = """\
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "limits.h"

SEC("socket")
int answer(struct __sk_buff *skb)
{
\treturn LIMIT;
}

char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own for objects; the compiler environment, half a minute's work, is this machine's."""
    Compiler().ensure_running()
    compilers = paths.cache("compilers")
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    paths.cache()
    (tmp_path / "cache/v1/compilers").symlink_to(compilers)
    return tmp_path / "cache/v1"


@pytest.fixture
def project(tmp_path, cache):
    root = tmp_path / "a project, with spaces"
    (root / "src").mkdir(parents=True)
    (root / "inc").mkdir()
    (root / "src/one.bpf.c").write_text(SOURCE)
    (root / "inc/limits.h").write_text("#define LIMIT 7\n")
    return Config(root, sources=("src/*.bpf.c",), include=("inc",))


def sections(path):
    with path.open("rb") as file:
        elf = ELFFile(file)
        return elf.header["e_machine"], {section.name for section in elf.iter_sections()}


@pytest.fixture
def load(project):
    """The project with a C program beside its eBPF."""
    (project.root / "src/load.c").write_text('#include <stdio.h>\nint main(void) { return puts("hello") < 0; }\n')
    return replace(project, workloads=("src/load.c",))


def test_a_workload_is_in_the_tree_and_runs_without_a_library(load):
    built = build.build(load)
    program = built.dir / "bin/load"
    with program.open("rb") as file:
        assert not any(segment.header.p_type == "PT_INTERP" for segment in ELFFile(file).iter_segments())
    assert subprocess.run([program], check=True, capture_output=True, text=True).stdout == "hello\n"
    assert oct(program.stat().st_mode & 0o777) == "0o755"
    assert oct((built.dir / "co-re/one.o").stat().st_mode & 0o777) == "0o644"


def test_a_change_of_a_workload_makes_another_tree_and_no_object_anew(load):
    before = build.build(load)
    source = load.root / "src/load.c"
    source.write_text(source.read_text().replace("hello", "hullo"))
    after = build.build(load)
    assert before.dir != after.dir
    assert before.identity == after.identity
    assert subprocess.run([after.dir / "bin/load"], check=True, capture_output=True).stdout == b"hullo\n"


def test_a_workload_alone_is_enough(load):
    built = build.build(replace(load, sources=(), include=()))
    assert built.objects == {}
    assert (built.dir / "bin/load").is_file()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int main(void) { return nope; }", r"src/load\.c does not compile:\n.*src/load\.c:1.*nope"),
        ("int main(void) { int unused; }", r"does not compile:\n.*unused"),
        ('#include "../inc/limits.h"\nint main(void) { return LIMIT; }', r"src/load\.c includes .*limits\.h"),
        ("int other(void) { return 0; }", r"does not compile:\n.*main"),
    ],
    ids=["mistake", "warning", "header", "no main"],
)
def test_a_workload_that_cannot_be_made_says_why(load, text, said):
    (load.root / "src/load.c").write_text(text)
    with pytest.raises(BuildError, match=f"(?s){said}"):
        build.build(load)


def test_an_object_has_code_and_btf_and_no_debug_information(project):
    built = build.build(project)
    assert set(built.objects) == {"one", "one-debug"}
    machine, names = sections(built.objects["one"])
    assert machine == "EM_BPF"
    assert {"socket", ".BTF", ".BTF.ext"} <= names
    assert not any(name.startswith(".debug") for name in names)


def test_the_tree_is_laid_out_as_guests_get_it(project):
    built = build.build(project)
    files = {str(p.relative_to(built.dir)) for p in built.dir.rglob("*") if p.is_file()}
    ours = {name for name in files if not name.startswith("runtime/include/bpf/")}
    assert ours == {
        "co-re/one.o", "co-re/one-debug.o", "runtime/one.bpf.c", "runtime/include/limits.h", "runtime/manifest.json",
    }  # fmt: skip
    assert "runtime/include/bpf/bpf_helpers.h" in files
    manifest = json.loads((built.dir / "runtime/manifest.json").read_text())
    digests = {f"runtime/{place}": digest for place, digest in manifest["files"].items()}
    assert digests == {
        name: hashlib.sha256((built.dir / name).read_bytes()).hexdigest()
        for name in files
        if name.startswith("runtime/") and name != "runtime/manifest.json"
    }
    assert all(p.stat().st_mode & 0o022 == 0 for p in built.dir.rglob("*")), "nobody else may change what is loaded"


def test_the_debug_variant_is_another_object(project):
    with (project.root / "src/one.bpf.c").open("a") as source:
        source.write('#ifdef DEBUG\nint chatty SEC(".data") = 1;\n#endif\n')
    built = build.build(project)
    assert ".data" in sections(built.objects["one-debug"])[1]
    assert ".data" not in sections(built.objects["one"])[1]


def test_equal_content_is_built_once_and_gives_equal_bytes_wherever_it_lies(project, tmp_path):
    built = build.build(project)
    stamps = {p: p.stat().st_mtime_ns for p in built.objects.values()}
    assert build.build(project) == built
    assert {p: p.stat().st_mtime_ns for p in built.objects.values()} == stamps
    project.root.rename(tmp_path / "elsewhere")
    moved = replace(project, root=tmp_path / "elsewhere")
    assert build.build(moved) == built
    before = built.objects["one"].read_bytes()
    for room in ("objects", "built"):
        subprocess.run(["rm", "-rf", paths.cache(room)], check=True)
    assert build.build(moved).objects["one"].read_bytes() == before


def test_any_changed_input_builds_anew(project):
    seen = {build.build(project).dir}
    (project.root / "inc/limits.h").write_text("#define LIMIT 8\n")
    seen.add(build.build(project).dir)
    (project.root / "src/one.bpf.c").write_text(SOURCE.replace("answer", "reply"))
    seen.add(build.build(project).dir)
    (project.root / "src/one.h").write_text("")
    seen.add(build.build(project).dir)
    assert len(seen) == 4


def test_a_mistake_is_shown_with_file_line_and_the_compilers_words(project):
    (project.root / "src/one.bpf.c").write_text(SOURCE.replace("return LIMIT;", "return nowhere;"))
    with pytest.raises(BuildError) as caught:
        build.build(project)
    lines = str(caught.value).splitlines()
    assert lines[0] == "src/one.bpf.c does not compile:"
    assert lines[1] == "src/one.bpf.c:8:9: error: use of undeclared identifier 'nowhere'"
    assert "return nowhere;" in lines[2]
    assert lines[3].strip("| ") == "^"
    assert len(lines) == 4
    assert caught.value.exit_status == 7


def test_a_mistake_in_a_header_names_the_header(project):
    (project.root / "inc/limits.h").write_text("#define LIMIT\nint broken(\n")
    with pytest.raises(BuildError, match=r"(?m)^inc/limits\.h:2:\d+: error: |^src/one\.bpf\.c:\d+:\d+: error: "):
        build.build(project)


def test_mistakes_in_several_sources_are_all_shown_and_good_ones_are_kept(project, cache):
    for name in ("two", "three"):
        (project.root / f"src/{name}.bpf.c").write_text(f"int {name} = missing_{name};\n")
    with pytest.raises(BuildError) as caught:
        build.build(project)
    for name in ("two", "three"):
        assert str(caught.value).count(f"missing_{name}'") == 1
    assert len(list((cache / "objects").glob("*.o"))) == 2, "one.o and one-debug.o"
    assert not list((cache / "built").glob("*")) if (cache / "built").is_dir() else True


def test_a_header_that_is_not_there_is_named(project):
    (project.root / "src/one.bpf.c").write_text('#include "gone.h"\n')
    with pytest.raises(BuildError, match=r"src/one\.bpf\.c:1:10: fatal error: 'gone\.h' file not found"):
        build.build(project)


def test_a_header_that_no_guest_would_get_is_an_error_here_not_there(project):
    (project.root / "common").mkdir()
    (project.root / "common/x.h").write_text("")
    (project.root / "src/one.bpf.c").write_text('#include "../common/x.h"\n' + SOURCE)
    with pytest.raises(BuildError, match="which no guest would get") as caught:
        build.build(project)
    assert "'common'" in caught.value.hint
    build.build(replace(project, include=("inc", "common")))


def test_an_include_directory_outside_the_project_works(project, tmp_path):
    (project.root / "inc").rename(tmp_path / "shared")
    built = build.build(replace(project, include=("../shared",)))
    assert (built.dir / "runtime/include/limits.h").read_text() == "#define LIMIT 7\n"


def test_the_compiler_sees_nothing_else_of_this_machine(project, tmp_path):
    compiler = Compiler()
    (tmp_path / "secret").write_text("x")
    seen = compiler.exec(["cat", str(tmp_path / "secret")], cwd=project.root, check=False)
    assert seen.status != 0
    assert compiler.exec(["cat", "inc/limits.h"], cwd=project.root).stdout == "#define LIMIT 7\n"
    assert compiler.exec(["touch", "inc/new.h"], cwd=project.root, check=False).status != 0
    network = compiler.exec(["sh", "-c", "cat /proc/net/dev | grep -v lo: | grep -c :"], check=False)
    assert network.stdout.strip() == "0"
    assert "KMT_CACHE" not in compiler.exec(["env"]).stdout


def test_an_environment_that_does_not_answer_is_not_running(cache, monkeypatch):
    compiler = Compiler()
    assert compiler.is_running()
    damaged = Compiler()
    damaged.home = cache / "damaged"
    damaged.home.mkdir()
    (damaged.home / "versions.json").write_text("{}")
    assert not damaged.is_running(), "its root is not there"


def test_no_bwrap_says_which_package_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path))
    monkeypatch.setattr("kmt.proc.which", lambda program: None)
    with pytest.raises(BuildError, match=r"no compiler environment could be made.*package bubblewrap"):
        Compiler().ensure_running()


def test_an_environment_that_cannot_be_made_is_a_build_error_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path))
    monkeypatch.setenv("KMT_MIRROR", "http://127.0.0.1:1/debian")
    compiler = Compiler()
    with pytest.raises(BuildError, match=r"127\.0\.0\.1") as caught:
        compiler.ensure_running()
    assert str(caught.value).startswith("no compiler environment could be made: ")
    assert "apt-get update" in caught.value.hint
    assert not compiler.is_running()
    assert list((tmp_path / "v1/compilers").iterdir()) == []
    compiler.remove()


def test_no_space_is_a_build_error_and_publishes_nothing(project, tmp_path):
    """Objects go to a file system of 8 kB, in a mount namespace of its own."""
    code = textwrap.dedent(f"""
        from pathlib import Path
        from kmt import build
        from kmt.config import Config
        try:
            build.build(Config(Path({str(project.root)!r}), sources=("src/*.bpf.c",), include=("inc",)))
        finally:
            print([str(p) for p in Path({str(tmp_path)!r}).glob("cache/v1/objects/*")])
    """)
    room = tmp_path / "cache/v1/objects"
    room.mkdir()
    (tmp_path / "code.py").write_text(code)
    script = f"mount -t tmpfs -o size=8k tmpfs {room} && exec {sys.executable} {tmp_path}/code.py"
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", *user, "--mount", "sh", "-c", script], capture_output=True, text=True, check=False
    )
    assert "BuildError" in done.stderr
    assert "No space left on device" in done.stderr
    assert done.stdout == "[]\n"


def test_a_build_that_is_interrupted_leaves_no_object_and_no_process(project, cache):
    # A source that takes clang minutes: nested macros that expand to a million additions.
    grow = "#define A0 x +\n" + "".join(f"#define A{n + 1} A{n} A{n} A{n} A{n}\n" for n in range(12))
    (project.root / "src/one.bpf.c").write_text(f"{grow}int f(int x) {{ return A12 1; }}\n")
    code = textwrap.dedent(f"""
        from pathlib import Path
        from kmt import build
        from kmt.config import Config
        build.build(Config(Path({str(project.root)!r}), sources=("src/*.bpf.c",), include=("inc",)))
    """)
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL, start_new_session=True)
    with child:
        until = time.monotonic() + 60
        while not _compiling(project) and time.monotonic() < until:
            time.sleep(0.05)
        assert _compiling(project), "clang is at it"
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        child.wait(30)
    assert not _compiling(project)
    assert list((cache / "objects").iterdir()) == []


def _compiling(project):
    found = subprocess.run(["pgrep", "-f", f"clang.*-MF {project.root.parent}"], capture_output=True, check=False)
    return found.returncode == 0


def test_kernel_headers_of_the_other_architecture_compile_against(cache):
    """As prebuilt objects are made: clang for arm64, then llc for eBPF."""
    compiler = Compiler()
    compiler.ensure_ready("aarch64")
    assert compiler.is_ready("aarch64")
    own, common = compiler.headers("aarch64")
    source = cache / "cross/offset.c"
    source.parent.mkdir()
    source.write_text(
        "#include <linux/sched.h>\nint offset(void) { return __builtin_offsetof(struct task_struct, comm); }\n"
    )
    resources = compiler.exec(["clang", "-print-resource-dir"]).stdout.strip()
    rooms = [f"{room}/{part}" for part in ("arch/arm64/include", "include") for room in (common, own)]
    rooms += [f"{own}/arch/arm64/include/generated"]
    rooms += [f"{common}/arch/arm64/include/uapi", f"{own}/arch/arm64/include/generated/uapi"]
    rooms += [f"{common}/include/uapi", f"{own}/include/generated/uapi"]
    forced = [f"{common}/include/linux/{name}.h" for name in ("compiler-version", "kconfig", "compiler_types")]
    flags = [
        *("--target=aarch64-linux-gnu", "-O2", "-g", "-w", "-std=gnu11", "-fms-extensions", "-nostdinc"),
        *("-D__KERNEL__", "-D__BPF_TRACING__", "-DKASAN_SHADOW_SCALE_SHIFT=3", '-DKBUILD_MODNAME="x"'),
        *("-isystem", f"{resources}/include", *(f"-I{room}" for room in rooms)),
        *(word for name in forced for word in ("-include", name)),
    ]
    compiler.exec(
        ["clang", *flags, "-emit-llvm", "-c", "offset.c", "-o", "offset.bc"],
        cwd=source.parent, writable=[source.parent],
    )  # fmt: skip
    compiler.exec(
        ["llc", "-march=bpf", "-filetype=obj", "offset.bc", "-o", "offset.o"],
        cwd=source.parent, writable=[source.parent],
    )  # fmt: skip
    assert sections(source.with_suffix(".o"))[0] == "EM_BPF"


def test_the_disk_for_guests_is_made_once(cache):
    first = disk()
    stamp = first.stat().st_mtime_ns
    assert disk() == first
    assert first.stat().st_mtime_ns == stamp
    assert first.read_bytes()[1024:1028] == b"\xe2\xe1\xf5\xe0", "the magic of erofs"
