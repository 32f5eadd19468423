"""A project that tells what a guest draws and knows of itself, for tests of snapshots and checkpoints."""

import json
from functools import partial

from kmt.guest.wire import Kind
from kmt.run.tree import Tree, write_tar

HOME = "/root/draws"
TEST = """
import json, os, platform, random, secrets, socket, tempfile, uuid
from pathlib import Path
from hypothesis import given, settings, strategies as st

SEEN = []


@settings(max_examples=20)
@given(st.binary(min_size=8, max_size=8))
def test_examples(value):
    SEEN.append(value.hex())


def test_draws(record_property):
    drawn = {
        "os.urandom": os.urandom(16).hex(),
        "getrandom": os.getrandom(16).hex(),
        "kernel uuid": Path("/proc/sys/kernel/random/uuid").read_text(),
        "uuid4": uuid.uuid4().hex,
        "uuid1": uuid.uuid1().hex,
        "random": random.random(),
        "secrets": secrets.token_hex(),
        "tempfile": tempfile.mkdtemp(),
        "hypothesis": SEEN,
        "host name": socket.gethostname(),
        "platform": platform.node(),
        "machine id": Path("/etc/machine-id").read_text(),
        "boot id": Path("/proc/sys/kernel/random/boot_id").read_text(),
    }
    record_property("drawn", json.dumps(drawn))


def test_never_asked_for():
    assert False
"""
WANTED = ["test_draws.py::test_examples", "test_draws.py::test_draws"]


def start(link, tmp_path, **more):
    """Send the project and begin its session."""
    (tmp_path / "test_draws.py").write_text(TEST)
    link.send_tar(HOME, partial(write_tar, Tree(tmp_path, ("test_draws.py",), ())))
    body = {
        **{"root": HOME, "inifile": "", "files": ["test_draws.py"], "ids": WANTED, "options": []},
        **{"env": {"KMT_ARTIFACTS": "/run/kmt/artifacts", "KMT_KERNEL": "x"}, "kernel": {"name": "x"}},
        **{"accelerator": "tcg", "collect_only": False, "strict_skips": False, **more},
    }
    link.send(Kind.PYTEST, body)
    return link.receive(Kind.COLLECTED).body


def drawn(link):
    """What a session that was started, or told to go on, drew; it ran what was asked for and passed."""
    ran, found = [], {}
    while True:
        frame = link.receive(Kind.STARTED, Kind.REPORT, Kind.OUTPUT, Kind.DATABASE, Kind.EXIT)
        if frame.kind is Kind.EXIT:
            assert (frame.body["status"], ran) == (0, WANTED)
            return found
        if frame.kind is Kind.DATABASE:
            link.send(Kind.EXAMPLES, {"values": []})
        elif frame.kind is Kind.REPORT and frame.body["report"]["when"] == "call":
            report = frame.body["report"]
            ran.append(report["nodeid"])
            found = {**found, **{key: json.loads(value) for key, value in report["user_properties"]}.get("drawn", {})}


def same(one, other):
    """The names of what two guests have in common."""
    assert one.keys() == other.keys()
    assert len(one["hypothesis"]) >= 10
    alike = {name for name in one if one[name] == other[name]}
    shared = set(one["hypothesis"]) & set(other["hypothesis"])
    # Hypothesis tries a few special values everywhere.
    return alike | ({"hypothesis examples"} if len(shared) > len(one["hypothesis"]) // 2 else set())
