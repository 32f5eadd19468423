import re
from pathlib import Path

import pytest

from kmt import doctor, runs
from kmt.archive import mirror
from kmt.commands import cleaning
from kmt.errors import ConfigError
from kmt.paths import cache

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KMT_MIRROR", "file:/no/where")


def finding(what):
    return next(f for f in doctor.findings(ROOT) if f.what == what)


def test_every_check_has_its_line_and_the_status_says_whether_any_failed():
    text, status = doctor.examine(ROOT)
    lines = [line for line in text.splitlines() if re.match(r"(ok|NO|--) ", line)]
    assert [line[4:20].strip() for line in lines] == [
        "python", "packages", "qemu", "acceleration", "user namespaces", "mirror", "memory", "disk", "cache", "vagrant",
        "project",
    ]  # fmt: skip
    assert status == int(any(line.startswith("NO") for line in lines))


def test_packages_that_are_missing_are_named_with_the_command(tmp_path, monkeypatch):
    listed = tmp_path / "packages.txt"
    listed.write_text(
        "# a comment\nwidget-tools kmt-no-such-command turns things\ncoreutils ls lists\n"
        f"keys {tmp_path}/key* opens\nmap newuidmap maps\n"
    )
    (tmp_path / "keyring").touch()
    monkeypatch.setattr(doctor, "PACKAGES", listed)
    monkeypatch.setattr(doctor.os, "getuid", lambda: 0)
    found = finding("packages")
    assert (found.ok, found.mend) == (False, "apt-get install widget-tools")
    assert "widget-tools (turns things)" in found.said
    monkeypatch.setattr(doctor.os, "getuid", lambda: 1000)
    assert finding("packages").mend.startswith("sudo apt-get install widget-tools")


def test_a_qemu_that_is_missing_or_too_old_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_QEMU", "no-such-qemu")
    assert (finding("qemu").ok, "apt-get" in finding("qemu").mend) == (False, True)
    old = tmp_path / "qemu"
    old.write_text("#!/bin/sh\necho QEMU emulator version 2.11.1\n")
    old.chmod(0o755)
    monkeypatch.setenv("KMT_QEMU", str(old))
    assert "2.11" in finding("qemu").said


def test_a_machine_without_a_mirror_is_a_finding(monkeypatch):
    assert finding("mirror").ok or "keyring" in finding("mirror").said
    monkeypatch.delenv("KMT_MIRROR")
    monkeypatch.setattr(mirror, "known", lambda present, planned: None)
    assert (finding("mirror").ok, "KMT_MIRROR" in finding("mirror").mend) == (False, True)


def test_little_space_and_little_memory(monkeypatch):
    monkeypatch.setattr(doctor, "SPACE_MB", 10**9)
    monkeypatch.setattr(doctor, "MEMORY_MB", 10**9)
    assert (finding("disk").ok, "KMT_CACHE" in finding("disk").mend) == (False, True)
    assert (finding("memory").ok, "[tool.kmt] memory" in finding("memory").mend) == (False, True)


def test_rooms_of_older_versions_are_named_and_cleaned(tmp_path):
    old = tmp_path / "cache/v0/images"
    old.mkdir(parents=True)
    (old / "x").write_bytes(b"x" * 5_000_000)
    assert (finding("cache").ok, finding("cache").mend) == (None, "./inv kmt.clean")
    with runs.start([], []) as going_on:
        with runs.start([], []) as over:
            pass
        said = "\n".join(cleaning.clean())
        assert "v0 (5 MB)" in said
        assert not (tmp_path / "cache/v0").exists()
        assert not over.dir.exists()
        assert going_on.dir.exists()
    assert finding("cache").ok


def test_the_whole_cache_goes_but_never_under_a_run(tmp_path):
    with runs.start([], []) as run:
        with pytest.raises(ConfigError, match=f"run {run.id} goes on"):
            cleaning.clean(everything=True)
        assert run.dir.exists()
    cleaning.clean(everything=True)
    assert not (tmp_path / "cache").exists()


def test_a_wrong_configuration_is_a_finding(tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.kmt]\ncolour = 1\n")
    text, status = doctor.examine(tmp_path)
    assert (status, "colour" in text) == (1, True)


def test_what_vagrant_lacks_is_bad_only_where_it_is_the_backend(tmp_path, monkeypatch):
    listed = tmp_path / "packages-vagrant.txt"
    listed.write_text("vagrant-tools kmt-no-such-command manages\ncoreutils ls lists\n")
    monkeypatch.setattr(doctor, "FOR_VAGRANT", listed)
    monkeypatch.setattr(doctor.os, "getuid", lambda: 0)
    found = finding("vagrant")
    assert (found.ok, "only the backend vagrant" in found.said) == (None, True)
    assert found.mend == "apt-get install --no-install-recommends vagrant-tools"
    (tmp_path / "pyproject.toml").write_text('[tool.kmt]\nbackend = "vagrant"\n')
    found = next(f for f in doctor.findings(tmp_path) if f.what == "vagrant")
    assert (found.ok, "coreutils" in found.said) == (False, False)


def test_the_box_that_is_made_is_said(tmp_path, monkeypatch):
    listed = tmp_path / "packages-vagrant.txt"
    listed.write_text("coreutils ls lists\n")
    monkeypatch.setattr(doctor, "FOR_VAGRANT", listed)
    assert "no box yet" in finding("vagrant").said
    box = cache("vagrant", "boxes") / "kmt-1.box"
    box.write_bytes(bytes(3_000_000))
    assert (finding("vagrant").ok, "box 3 MB" in finding("vagrant").said) == (True, True)
