from dataclasses import replace
from pathlib import Path

import pytest

from kmt.errors import BuildError
from kmt.roots import compiler, rootfs

ROOT = Path("/cache/root")


def pairs(words, option):
    return {words[n + 1]: words[n + 2] for n, word in enumerate(words) if word == option}


def test_the_project_is_at_its_own_path_read_only_and_the_output_is_not():
    words = compiler.command(
        ROOT, ["clang", "x.c"], cwd=Path("/home/me/my project"), readable=[Path("/home/me/my project")],
        writable=[Path("/out")], headers=["linux-headers-6.1"],
    )  # fmt: skip
    assert pairs(words, "--bind") == {"/out": "/out"}
    readable = pairs(words, "--ro-bind")
    assert readable["/home/me/my project"] == "/home/me/my project"
    assert readable["/cache/root/usr/src/linux-headers-6.1"] == "/usr/src/linux-headers-6.1"
    assert words[words.index("--chdir") + 1] == "/home/me/my project"
    assert words[words.index("--") + 1 :] == ["clang", "x.c"]


def test_it_has_no_network_no_privileges_and_no_variables_of_ours_and_ends_with_us():
    words = compiler.command(ROOT, ["clang"])
    assert {"--unshare-net", "--unshare-pid", "--die-with-parent", "--clearenv", "--cap-drop"} <= set(words)


@pytest.mark.parametrize("path", ["/", "/usr", "/usr/lib", "/usr/lib/mine", "/etc/x", "/bin", "/tmp", "relative"])
def test_a_directory_that_would_hide_the_compiler_is_refused(path):
    with pytest.raises(BuildError, match="move the project"):
        compiler.command(ROOT, ["clang"], readable=[Path(path)])


@pytest.mark.parametrize(
    "path", ["/tmp/x", "/usr/src/mine", "/usr/local/src/x", "/opt/x", "/home", "/libx", "/var/tmp"]
)
def test_any_other_directory_is_taken(path):
    assert path in compiler.command(ROOT, ["clang"], writable=[Path(path)])


def test_the_name_changes_with_the_packages_and_with_nothing_else():
    recipe = rootfs.recipe()
    assert compiler.key(replace(recipe, compiler=recipe.compiler[::-1])) == compiler.key(recipe)
    assert compiler.key(replace(recipe, guest=(), python="3.14")) == compiler.key(recipe)
    assert compiler.key(replace(recipe, compiler=(*recipe.compiler, "gcc"))) != compiler.key(recipe)
    assert compiler.key(replace(recipe, suites=("forky",))) != compiler.key(recipe)


def test_libraries_are_those_that_a_guest_may_lack():
    said = (
        "/usr/lib/llvm-19/bin/llc:\n"
        "\tlinux-vdso.so.1 (0x00007f08a41e3000)\n"
        "\tlibLLVM.so.19.1 => /lib/x86_64-linux-gnu/libLLVM.so.19.1 (0x00007f089c400000)\n"
        "\tlibm.so.6 => /lib/x86_64-linux-gnu/libm.so.6 (0x00007f08a40be000)\n"
        "\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f089be0c000)\n"
        "\tlibmd.so.0 => /lib/x86_64-linux-gnu/libmd.so.0 (0x00007f089c283000)\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x00007f08a41e5000)\n"
    )
    assert compiler.libraries(said + said) == ["libLLVM.so.19.1", "libmd.so.0"]


def test_an_unknown_architecture_is_named_with_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path))
    with pytest.raises(BuildError, match=r"'vax'.*aarch64"):
        compiler.Compiler().prepare_cross_headers("vax")
