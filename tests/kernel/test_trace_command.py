"""``python -m harness trace`` in a guest: what a person, or a program that reads its lines, is told."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]


def start(*words):
    command = [sys.executable, "-m", "harness", "trace", "--seconds", "600", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--tracer", "fentry"], {"tracer": "fentry", "stage": "CO-RE", "btf": "default", "tried": ["CO-RE: won"]}),
        (["--stage", "prebuilt"], {"tracer": "kprobe", "stage": "prebuilt", "btf": None}),
    ],
    ids=["fentry", "prebuilt"],
)
@pytest.mark.requires("fentry")
def test_lines_of_json(words, wanted):
    """The second is the tracer of a machine without BTF or compiler: offsets of this very kernel, in an object."""
    command = start("--json", *words)
    started = json.loads(command.stdout.readline())
    assert started["event"] == "started", command.stderr.read()
    assert {key: started[key] for key in wanted} == wanted
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as accepted:
            client.sendall(b"x" * 1234)
            while len(accepted.recv(4096, socket.MSG_PEEK)) < 1234:
                pass
            accepted.recv(4096)
            accepted.sendall(b"y" * 99)
            client.recv(99)
    seen = []
    while len(seen) < 2:
        told = json.loads(command.stdout.readline())
        if told["pid"] == os.getpid() and str(port) in told["source"] + told["destination"]:
            seen.append(told)
    command.send_signal(2)
    rest = command.communicate(timeout=120)
    assert json.loads(rest[0].splitlines()[-1])["event"] == "stopped"
    assert (command.returncode, rest[1]) == (0, "")
    sent = {told["direction"]: (told["sent"], told["received"]) for told in seen}
    assert sent == {"outgoing": (1234, 99), "incoming": (99, 1234)}


@pytest.mark.requires("btf")
def test_a_table_off_a_terminal():
    command = subprocess.run(
        [sys.executable, "-m", "harness", "trace", "--seconds", "0.5"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "kprobe tracer (CO-RE, default BTF, " in command.stdout
    assert "fentry: not tried" in command.stdout
    assert command.stderr == ""


@pytest.mark.requires("btf")
def test_the_demo_shows_its_own_traffic():
    """What ``kmt.start --demo`` runs: connections that have closed, and the one that has not."""
    command = [sys.executable, "-m", "fixtures.workloads.demo", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "kprobe tracer (CO-RE, default BTF, " in done.stdout
    assert {"open", "closed"} <= set(done.stdout.split())
    assert done.stderr == ""
