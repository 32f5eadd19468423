import pytest

from kmt import build, diagnostics, recipes, workloads
from kmt.config import Config
from kmt.errors import BuildError, ConfigError
from kmt.recipes import TARGETS


@pytest.fixture
def project(tmp_path):
    for name in ("bpf/a/one.bpf.c", "bpf/a/one.h", "bpf/b/two.bpf.c", "bpf/include/sub/types.h", "bpf/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"/* {name} */\n")
    return Config(tmp_path, sources=("bpf/*/*.bpf.c",), include=("bpf/include",))


def changed(config, **values):
    return Config(config.root, **{"sources": config.sources, "include": config.include, **values})


def test_the_command_line():
    words = recipes.core("bpf/a.bpf.c", include=["inc", "more"], target=TARGETS["x86_64"], debug=False)
    assert words[:3] == ["clang", "-target", "bpf"]
    assert {"-O2", "-g", "-D__TARGET_ARCH_x86", "-Iinc", "-Imore", "-I/usr/include/x86_64-linux-gnu"} <= set(words)
    assert "-DDEBUG=1" not in words
    assert words[-2:] == ["-c", "bpf/a.bpf.c"]


def test_the_debug_variant_differs_by_one_word():
    plain, debug = (recipes.core("a", include=[], target=TARGETS["aarch64"], debug=d) for d in (False, True))
    assert set(debug) - set(plain) == {"-DDEBUG=1"}
    assert "-D__TARGET_ARCH_arm64" in plain


def test_sources_and_headers_have_their_places(project):
    inputs = build.survey(project)
    assert set(inputs.sources) == {"one", "two"}
    assert set(inputs.runtime) == {
        "runtime/one.bpf.c", "runtime/one.h", "runtime/two.bpf.c", "runtime/include/sub/types.h",
    }  # fmt: skip
    assert inputs.runtime["runtime/two.bpf.c"] == b"/* bpf/b/two.bpf.c */\n"


def test_the_headers_of_libbpf_are_read_when_the_compiler_is_there(tmp_path):
    """It may have to be made first: nothing lies in an empty cache."""

    class Made:
        root = tmp_path / "root"

        def ensure_running(self):
            (self.root / "usr/include/bpf").mkdir(parents=True)
            (self.root / "usr/include/bpf/bpf_helpers.h").write_bytes(b"helpers")

    assert build._libbpf(Made()) == {"runtime/include/bpf/bpf_helpers.h": b"helpers"}


def test_a_project_without_sources_gets_an_empty_tree(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    built = build.build(Config(tmp_path))
    assert built.objects == {}
    assert sorted(p.name for p in built.dir.iterdir()) == ["co-re", "runtime"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"sources": ("src/*.bpf.c",)}, "'src/*.bpf.c' matches no file"),
        ({"sources": ("bpf/*.txt",)}, "notes.txt is not named NAME.bpf.c"),
        ({"sources": ("/etc/*",)}, "'/etc/*'"),
        ({"sources": ("",)}, "''"),
        ({"include": ("nowhere",)}, "there is no directory"),
    ],
)
def test_settings_that_are_off_are_named(project, values, said):
    with pytest.raises(ConfigError) as caught:
        build.survey(changed(project, **values))
    assert said in str(caught.value)
    assert "[tool.kmt]" in str(caught.value)


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (("src/*.c",), "[tool.kmt] workloads: 'src/*.c' matches no file"),
        (("bpf/a/*",), "[tool.kmt] workloads: {root}/bpf/a/one.bpf.c is no C program NAME.c"),
        (("bpf/notes.txt",), "[tool.kmt] workloads: {root}/bpf/notes.txt is no C program NAME.c"),
    ],
)
def test_workloads_are_c_programs(project, patterns, said):
    with pytest.raises(ConfigError) as caught:
        workloads.survey(changed(project, workloads=patterns))
    assert said.format(root=project.root) in str(caught.value)


def test_two_workloads_of_one_name_are_named(project):
    for room in ("a", "b"):
        (project.root / f"bpf/{room}/load.c").touch()
    with pytest.raises(BuildError, match=r"a/load\.c and .*b/load\.c would both be bin/load"):
        workloads.survey(changed(project, workloads=("bpf/*/load.c",)))


def test_a_workload_stands_by_itself():
    words = recipes.workload("a/load.c", "out", target=TARGETS["x86_64"])
    assert {"--target=x86_64-linux-gnu", "-static", "-Werror"} <= set(words)
    assert words[-3:] == ["-o", "out", "a/load.c"]


def test_two_sources_of_one_name_are_named(project):
    (project.root / "bpf/b/one.bpf.c").write_text("")
    with pytest.raises(BuildError, match=r"a/one\.bpf\.c and .*b/one\.bpf\.c would both be one\.o"):
        build.survey(project)


def test_two_headers_in_one_place_must_be_equal(project):
    (project.root / "bpf/b/one.h").write_text("/* bpf/a/one.h */\n")
    build.survey(project)
    (project.root / "bpf/b/one.h").write_text("other")
    with pytest.raises(BuildError, match=r"differ, and both would be runtime/one\.h"):
        build.survey(project)


def test_make_rules_are_read_with_their_escapes():
    text = "/out/x.o: bpf/a\\ b.bpf.c bpf/x.h \\\n  bpf/c\\#d$$.h\n"
    assert diagnostics.dependencies(text) == ["bpf/a b.bpf.c", "bpf/x.h", "bpf/c#d$.h"]


SAID = """\
In file included from bpf/x.bpf.c:3:
bpf/x.h:7:2: warning: unused variable 'w' [-Wunused-variable]
    7 |         int w;
      |             ^
bpf/x.bpf.c:12:9: error: use of undeclared identifier 'nope'
   12 |         return nope;
      |                ^
bpf/x.bpf.c:14:9: error: expected ';' after expression
   14 |         f()
      |            ^
bpf/x.bpf.c:10:1: note: something
1 warning and 2 errors generated.
"""


def test_the_compilers_errors_are_shown_with_their_lines_and_nothing_else():
    shown = diagnostics.explain(SAID, 1)
    assert shown.splitlines() == [line for n, line in enumerate(SAID.splitlines()) if 4 <= n <= 9]


def test_of_a_compiler_that_crashes_the_reason_is_shown_and_not_the_stack():
    said = "fatal error: error in backend: No space left\nPLEASE submit a bug report\nStack dump:\n #0 0x7f main\n"
    assert diagnostics.explain(said, 1) == "fatal error: error in backend: No space left"


def test_of_many_errors_the_first_are_shown_and_the_rest_counted():
    said = "".join(f"a.bpf.c:{n}:1: error: number {n}\n" for n in range(1, 10))
    shown = diagnostics.explain(said, 1)
    assert "number 3" in shown
    assert "number 4" not in shown
    assert shown.endswith("(and 6 more)")


@pytest.mark.parametrize("said", ["clang: error: unknown argument: '-x'\n", "fatal error: error in backend: no\n", ""])
def test_errors_without_a_place_are_shown_too(said):
    assert said.strip() in diagnostics.explain(said, 1)
    assert diagnostics.explain(said, 1)
