"""What a support bundle holds, and what it never does."""

import json
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt import runs
from kmt.commands import reporting
from kmt.errors import ConfigError
from kmt.flare import gather, redact

SECRETS = {
    "https://me:hunter22@mirror.example/debian": "hunter22",
    "http://token1234@mirror.example/": "token1234",
    "ghp_0123456789abcdefghijABCDEF": "0123456789abcdef",
    "glpat-0123456789abcdefghij": "0123456789abcdef",
    "AKIA0123456789ABCDEF": "0123456789ABCDEF",
    "Authorization: Bearer abc.def-ghi_jkl": "abc.def",
    "Authorization: Basic bWU6aHVudGVyMjI=": "bWU6aHVudGVyMjI",
    "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl": "eyJzdWIi",
    'DB_PASSWORD="hunter22"': "hunter22",
    '{"api_key": "hunter22", "x": 1}': "hunter22",
    "?token=hunter22&x=1": "hunter22",
    "-----BEGIN RSA PRIVATE KEY-----\nhunter22\n-----END RSA PRIVATE KEY-----": "hunter22",
    "-----BEGIN PRIVATE KEY-----\nhunter22 and cut off": "hunter22",
    "AWS_SECRET_ACCESS_KEY=hunter22": "hunter22",
    "secret_key = hunter22": "hunter22",
    "X-API-Key: hunter22": "hunter22",
    "Authorization: token hunter22": "hunter22",
    '{"Authorization": "ApiKey hunter22"}': "hunter22",
    "run --password hunter22": "hunter22",
    "run --db-password 'hunter 22'": "hunter",
    '["run", "--api-key",\n "hunter22"]': "hunter22",
    "postgres://me:pa/hunter22@host/db": "hunter22",
    "postgres://me:pa@hunter22@host/db": "hunter22",
    "password=b'hunter22'": "hunter22",
    "password: 'a long hunter22'": "hunter22",
    r'password="a \"quoted\" hunter22"': "hunter22",
    '"token": ["hunter22"]': "hunter22",
    "\x1b[1mpassword:\x1b[0m hunter22": "hunter22",
    r"\u001b[1mpassword\u001b[0m: \u001b[32mhunter22": "hunter22",
    r'"{\"password\": \"hunter22\"}"': "hunter22",
    r'"{\\\"password\\\": \\\"a \\\\\\\" hunter22\\\"}"': "hunter22",
}


@pytest.mark.parametrize(("said", "secret"), SECRETS.items())
def test_what_looks_like_a_secret_is_taken_out_and_the_rest_stays(said, secret):
    made = redact.text(f"before {said} after", {})
    assert secret not in made
    assert redact.HIDDEN in made
    assert made.startswith("before ")
    assert made.endswith(" after") or "cut off" in said


def test_a_key_whose_begin_was_cut_off_is_taken_out_with_what_is_before_it():
    assert redact.text("hunter22\nhunter23\n-----END RSA PRIVATE KEY-----\nafter", {}) == "[redacted]\nafter"


@pytest.mark.parametrize(
    "said", ["a token bucket", "no password given", "http://a:80/b", "the secret is out", "tokens"]
)
def test_words_that_only_sound_like_it_stay(said):
    assert redact.text(said, {}) == said


NAMES = {"/home/ada": "~", "ada": "[user]", "analytical": "[machine]"}


def test_names_are_replaced_as_words():
    assert redact.text("/home/ada/x ada@analytical, adamant", NAMES) == "~/x [user]@[machine], adamant"
    assert redact.text(r"a\1b ada", {"ada": r"\1"}) == r"a\1b \1"


pieces = st.lists(st.sampled_from([*SECRETS, "plain", "\n", "ada", "/home/ada", "token", "=", ":", "x"]), max_size=6)


@given(pieces.map(" ".join) | pieces.map("".join) | st.text())
def test_redacting_twice_is_redacting_once(said):
    once = redact.text(said, NAMES)
    assert redact.text(once, NAMES) == once


def test_of_the_environment_only_what_is_on_the_list_leaves():
    environ = {"KMT_CACHE": "/x", "LANG": "C", "AWS_SECRET_ACCESS_KEY": "s", "GITHUB_TOKEN": "s", "HOME": "/home/ada"}
    assert redact.environment(environ) == {"KMT_CACHE": "/x", "LANG": "C"}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KMT_CWD", str(tmp_path))
    monkeypatch.setenv("KMT_MIRROR", "http://me:hunter22@mirror.example/debian")
    monkeypatch.setenv("MY_SECRET", "hunter23")
    root = tmp_path / "project"
    root.mkdir()
    (root / "pyproject.toml").write_text("[project]\nname = 'private'\n[tool.kmt]\nmemory = 512\n")
    for number in range(5):
        with runs.start(["6.1"], ["pytest", "--kernel", "6.1", "token=hunter24"]) as run:
            (run.kernel_dir("6.1") / "console.log").write_text(f"console {number} password: hunter25\n")
            (run.kernel_dir("6.1") / "core.elf").write_text("memory")
            (run.kernel_dir("6.1") / "\x1b[2J\udcff.log").write_text("an artefact")
            (run.kernel_dir("6.1") / "passwd.log").symlink_to("/etc/passwd")
            (run.dir / runs.RESULTS).write_text(json.dumps({"number": number}))
            run.finish(0)
    return root


def members(path):
    with tarfile.open(path) as archive:
        return {m.name.split("/", 1)[1]: archive.extractfile(m).read().decode() for m in archive.getmembers()}


def test_a_bundle_has_what_a_report_needs_and_no_secret(project, tmp_path):
    lines = reporting.flare(project, "bundle.tar.gz")
    held = members(tmp_path / "bundle.tar.gz")
    assert {
        "README",
        "versions.txt",
        "environment.txt",
        "doctor.txt",
        "configuration.json",
        "kernels.toml",
    } <= held.keys()
    assert lines[:-1] == list(held)
    assert json.loads(held["configuration.json"]) == {"memory": 512}
    assert "private" not in held["configuration.json"]
    assert all(name.isprintable() for name in held)
    assert [said for name, said in held.items() if r"\x1b[2J\udcff.log" in name] == ["an artefact"] * 3
    consoles = [said for name, said in held.items() if name.endswith("console.log")]
    assert [said.split()[1] for said in consoles] == ["4", "3", "2"]
    assert "not to be had: FileNotFoundError" in held["kernels.lock.json"]
    assert not [name for name in held if name.endswith(("core.elf", "passwd.log"))]
    everything = "\n".join(held.values())
    assert "hunter" not in everything
    assert "mirror.example" in held["environment.txt"]
    assert (tmp_path / "bundle.tar.gz").stat().st_mode & 0o077 == 0


def test_a_bundle_is_bounded_and_keeps_the_ends_of_files(project, tmp_path, monkeypatch):
    latest = runs.seen()[-1].dir / "6.1" / "console.log"
    latest.write_text("begin\n" + "x" * (2 * gather.MOST_BYTES) + "\nend\n")
    reporting.flare(project, "bundle.tar.gz")
    (said,) = (s for name, s in members(tmp_path / "bundle.tar.gz").items() if s.endswith("x\nend\n"))
    assert len(said) == gather.MOST_BYTES
    key = "-----BEGIN PRIVATE KEY-----\n" + "hunter26\n" * 100 + "-----END"
    latest.write_text(key + "x" * (gather.MOST_BYTES - 300) + "\n")
    reporting.flare(project, "bundle.tar.gz")
    assert "hunter26" not in "".join(members(tmp_path / "bundle.tar.gz").values())
    monkeypatch.setattr(gather, "MOST_TOTAL", 3000)
    lines = reporting.flare(project, "small.tar.gz")
    (left,) = (line for line in lines if line.startswith("left out, "))
    assert "kernels.toml" in left
    assert sum(map(len, members(tmp_path / "small.tar.gz").values())) <= 3000


@pytest.mark.parametrize(
    ("output", "said"), [("bundle.zip", "is a .tar.gz"), ("/proc/no/x.tar.gz", "name another file")]
)
def test_a_place_where_it_cannot_be_is_said(project, output, said):
    with pytest.raises(ConfigError, match=said):
        reporting.flare(project, output)


def test_a_broken_configuration_costs_its_pieces_only(project, tmp_path):
    (project / "pyproject.toml").write_text("[tool.kmt\n")
    reporting.flare(project, "bundle.tar.gz")
    held = members(tmp_path / "bundle.tar.gz")
    assert held["configuration.json"].startswith("not to be had: TOMLDecodeError")
    assert "python 3" in held["versions.txt"]
