import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from kmt.errors import ConfigError
from kmt.run.tree import Tree, survey, write_tar


@pytest.fixture
def project(tmp_path):
    """A project with what projects have: spaces, links, a stray giant, ignored files, a deleted one."""
    root = tmp_path / "my project"
    root.mkdir()
    for name in ("a b.py", "sub/new\nline.txt", "ignored.log", "gone.py", "caf\u00e9.txt"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(name)
    (root / "link").symlink_to("a b.py")
    (root / "dangling").symlink_to("/nowhere")
    (root / ".gitignore").write_text("*.log\n")
    with (root / "stray.bin").open("wb") as file:
        file.truncate(200 << 20)
    return root


@pytest.fixture
def nobodys(monkeypatch):
    """A directory of a user that is not root, who this process is for a while: root may read everything."""
    us = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setenv("HOME", name)
        if us == 0:
            os.chown(name, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(us)


def members(tree):
    stream = io.BytesIO()
    write_tar(tree, stream)
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        return {m.name: m for m in tar}


@pytest.mark.parametrize("with_git", [True, False])
def test_what_travels(project, with_git):
    if with_git:
        for command in (["init", "-q"], ["add", "."]):
            subprocess.run(["git", *command], cwd=project, check=True)
    (project / "gone.py").unlink()
    tree = survey(project, 10)
    wanted = {"a b.py", "sub/new\nline.txt", "link", "dangling", ".gitignore", "caf\u00e9.txt"}
    assert set(tree.paths) == wanted | (set() if with_git else {"ignored.log"})
    assert tree.left_out == ("stray.bin (200 MiB is over the limit of 10 MiB)",)
    packed = members(tree)
    assert set(packed) == set(tree.paths)
    assert packed["link"].issym()
    assert packed["link"].linkname == "a b.py"


def test_a_project_within_a_larger_repository_sends_only_itself(project):
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    assert survey(project / "sub", 10).paths == ("new\nline.txt",)


def test_a_submodule_travels_with_what_holds_it(tmp_path):
    inner, outer = tmp_path / "libbpf", tmp_path / "outer"
    identity = ["-c", "user.name=x", "-c", "user.email=x@localhost", "-c", "protocol.file.allow=always"]
    for root in (inner, outer):
        root.mkdir()
        (root / "file.c").touch()
        for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
            subprocess.run(["git", *identity, *words], cwd=root, check=True)
    add = ["git", *identity, "submodule", "--quiet", "add", str(inner), "vendored"]
    subprocess.run(add, cwd=outer, check=True)
    assert set(survey(outer, 10).paths) == {".gitmodules", "file.c", "vendored/file.c"}
    subprocess.run(["git", "init", "-q", "nested"], cwd=outer, check=True)
    (outer / "nested" / "file.c").touch()
    assert survey(outer, 10).left_out == ("nested/ (a repository of its own that git does not list)",)


def test_a_git_that_refuses_is_said_and_not_worked_around(tmp_path):
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    with pytest.raises(ConfigError, match="not a git repository"):
        survey(tmp_path, 10)


def test_a_file_that_vanishes_in_between_is_no_error(project):
    tree = survey(project, 10)
    (project / "a b.py").unlink()
    assert "a b.py" not in members(tree)


def tracked(root):
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=root, check=True)


@pytest.mark.parametrize("with_git", [True, False])
def test_a_name_that_is_no_utf8_travels(tmp_path, with_git):
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("latin")
    (tmp_path / os.fsdecode(b"big\xe9")).write_bytes(b"x" * (2 << 20))
    if with_git:
        tracked(tmp_path)
    tree = survey(tmp_path, 1)
    assert tree.paths == (name,)
    assert set(members(tree)) == {name}
    assert tree.left_out == (r"big\udce9 (2 MiB is over the limit of 1 MiB)",)


def test_a_directory_that_is_a_file_now_is_like_a_deleted_one(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").touch()
    tracked(tmp_path)
    before = survey(tmp_path, 1)
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "a").touch()
    assert survey(tmp_path, 1) == Tree(tmp_path, ("a",), ())
    assert members(before) == {}


@pytest.mark.parametrize("with_git", [True, False])
def test_a_directory_that_may_not_be_read_stays_behind_and_is_named(nobodys, with_git):
    (nobodys / "closed").mkdir()
    (nobodys / "closed" / "file").touch()
    (nobodys / "open").touch()
    if with_git:
        tracked(nobodys)
    (nobodys / "closed").chmod(0)
    tree = survey(nobodys, 1)
    assert tree.paths == ("open",)
    assert tree.left_out == (
        ("closed/file (its directory is not readable)",) if with_git else ("closed (not readable)",)
    )
    (nobodys / "closed").chmod(0o755)


def test_caches_and_virtual_environments_stay_without_git(tmp_path):
    for name in (".venv/x.py", "__pycache__/x.pyc", "x.egg-info/y", "kept/x.py"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    assert survey(tmp_path, 10).paths == ("kept/x.py",)
