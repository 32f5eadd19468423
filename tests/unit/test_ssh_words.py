import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt import matrix
from kmt.backends.ssh_words import Facts, Target, facts, trouble
from kmt.errors import ConfigError, VmLostError, VmNeverStartedError
from kmt.guest import far
from kmt.matrix import Row

HERE = Path("/somewhere/kernels.toml")
BOARD = Target.of(Row("board", ssh="me@board:2222"))
SAID = {
    "python": "3.13.5",
    "release": "6.1",
    "machine": "x86_64",
    "uid": 0,
    "extension": ".so",
    "packages": {"pytest": "9"},
}


def row(text):
    (found,) = matrix.parse(f'[[kernel]]\nname = "board"\n{text}', HERE).rows
    return found


@pytest.mark.parametrize(
    ("ssh", "words", "known_as"),
    [
        ("board", ["ssh", "--", "board"], "board"),
        ("me@10.0.0.1:22", ["ssh", "-p", "22", "--", "me@10.0.0.1"], "10.0.0.1"),
        ("me@board.local:2222", ["ssh", "-p", "2222", "--", "me@board.local"], "[board.local]:2222"),
        ("me@[fe80::1%eth0]:24", ["ssh", "-p", "24", "--", "me@fe80::1%eth0"], "[fe80::1%eth0]:24"),
    ],
)
def test_an_address_is_what_ssh_takes(ssh, words, known_as):
    target = Target.of(row(f'ssh = "{ssh}"'))
    assert target.ssh() == words
    assert target.known_as == known_as
    assert target.python == ("python3",)


def test_files_are_relative_to_the_catalogue_and_python_is_words():
    found = row('ssh = "board"\nssh_config = "ssh.conf"\npython = "sudo -n \'/opt/my python\'"')
    target = Target.of(found)
    assert target.ssh()[:3] == ["ssh", "-F", "/somewhere/ssh.conf"]
    assert target.python == ("sudo", "-n", "/opt/my python")
    assert target.command("log")[-1].startswith("exec sudo -n '/opt/my python' -c 'import sys;")


def test_what_is_said_for_all_machines_loosens_no_check_of_keys_and_a_file_for_this_one_may():
    assert "StrictHostKeyChecking=yes" in BOARD.command("log")
    assert "StrictHostKeyChecking" not in " ".join(Target.of(row('ssh = "board"\nssh_config = "x"')).command("log"))


@given(st.text())
def test_no_address_becomes_an_option_or_a_second_word(text):
    quoted = json.dumps(text)
    try:
        found = row(f"ssh = {quoted}")
    except ConfigError:
        return
    words = Target.of(found).ssh() if found.ssh else ["--", "x"]
    assert words[-2] == "--"
    assert not words[-1].startswith("-")
    assert not set(words[-1]) & set(" \t\n'\"$;|&`\\/")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('ssh = "-oProxyCommand=x"', r"kernels\.toml:3: ssh must be like 'user@host' or 'user@host:22', not '-o"),
        ('ssh = "a b"', "ssh must be like"),
        ('ssh = "board:port"', "ssh must be like"),
        ('ssh = "board:65536"', "a port from 1 to 65535, not in :65536"),
        ('ssh = "board:0"', "a port from 1 to 65535"),
        (
            'ssh = "board"\nsuites = ["x"]\nseries = "6.1"',
            "a row with ssh has the kernel that runs there, and no suites",
        ),
        ('ssh = "board"\nimage = "x"', "and no image"),
        ('ssh = "board"\npython = "\'"', "python must be words as a shell takes them: No closing quotation"),
        ('python = "python3"', "python is for rows with ssh"),
        ('ssh_config = "x"', "ssh_config is for rows with ssh"),
        ("ssh = 3", "ssh must be a string"),
    ],
)
def test_a_row_that_makes_no_sense(text, said):
    with pytest.raises(ConfigError, match=said):
        row(text)


def test_facts_are_read_and_hostile_until_then():
    assert facts(json.dumps(SAID).encode(), BOARD) == Facts("3.13.5", "6.1", "x86_64", 0, ".so", {"pytest": "9"})
    for changes in ({"uid": "x"}, {"packages": 3}, {"python": "new"}, {"python": None}):
        with pytest.raises(VmNeverStartedError, match="what me@board:2222 says of itself makes no sense"):
            facts(json.dumps(SAID | changes).encode(), BOARD)
    for changes in (
        {"uid": float("inf")},
        {"python": "3.13\x1b[2J"},
        {"python": "3.13.5\n"},
        {"python": "3." + "1" * 99},
    ):
        with pytest.raises(VmNeverStartedError, match="makes no sense"):
            facts(json.dumps(SAID | changes).encode(), BOARD)
    assert facts(json.dumps(SAID | {"python": "3.14.0rc2+"}).encode(), BOARD).series == "3.14"
    for line in (b"", b"[]", b"\xff", b"{}", b"[" * 100_000):
        with pytest.raises(VmNeverStartedError, match="makes no sense"):
            facts(line, BOARD)


def test_an_old_python_is_named_with_the_way_out():
    with pytest.raises(VmNeverStartedError, match=r"has Python 3\.9\.2, and 3\.11 is the oldest .*python = "):
        facts(json.dumps(SAID | {"python": "3.9.2"}).encode(), BOARD)
    assert tuple(far.OLDEST.to_bytes(4)[:2]) == (3, 11)


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ("ssh: Could not resolve hostname board: Name or service not known", 255, "no machine is named me@board:2222"),
        ("ssh: connect to host board port 2222: No route to host", 255, "me@board:2222 cannot be reached"),
        ("ssh: connect to host board port 2222: Connection timed out", 255, "cannot be reached"),
        ("Received disconnect: Too many authentication failures", 255, "refuses our key"),
        ("Timeout, server board not responding.", 255, r"has stopped to answer \(did it crash"),
        ("client_loop: send disconnect: Broken pipe", 255, "the connection to me@board:2222 ended: client_loop"),
        ("", 255, "No space left"),
        ("", 126, "there is no python3 on me@board:2222"),
        ("", 3, r"ended with status 3: \[Errno 28\] No space left"),
    ],
)
def test_what_ssh_says_becomes_one_line(said, status, words):
    console = "kmt: [Errno 28] No space left on device\n"
    early = trouble(BOARD, said, console, status, began=False)
    assert isinstance(early, VmNeverStartedError)
    assert re.search(words, str(early))
    assert "\n" not in str(early)
    lost = trouble(BOARD, said, console, status, began=True)
    assert isinstance(lost, VmLostError)
    assert "\n" not in str(lost)


def test_what_a_jump_host_says_is_on_the_console_and_counts_only_where_ssh_itself_ended():
    console = "Host key verification failed.\n"
    assert "is not known here" in trouble(BOARD, "", console, 255, began=False).message
    assert "ended: Host key" in trouble(BOARD, "", console, 255, began=True).message
    assert "Host key verification" in trouble(BOARD, "", console, 3, began=False).message
    assert "ssh does not say why" in trouble(BOARD, "", "", 255, began=False).message
    refused = trouble(BOARD, "", "sh: python3: Permission denied\n", 126, began=False)
    assert refused.message.startswith("there is no python3")


def test_a_changed_key_is_never_taken_for_an_unknown_one():
    said = "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.\n"
    error = trouble(BOARD, said, "", 255, began=False)
    assert "not the one that is known" in error.message
    assert "ssh-keygen -R '[board]:2222'" in error.hint
