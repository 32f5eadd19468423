"""``python -m harness watch`` over a real process, its library and its traffic, with the debug endpoints beside it."""

import _thread
import json
import os
import re
import threading
import urllib.request
from contextlib import contextmanager

import pytest
from waiting import wait_for

from fixtures.workloads import tls as workload
from harness import cli
from harness.cli import watch
from harness.ebpf import core

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tls")
    workload.certificate(directory)
    return directory


@contextmanager
def moving(certificates, number):
    """A process that has libssl mapped, and moves so many bytes when it is told to: its pid and how to tell it."""
    workload.OpenSsl(certificates)
    go, tell = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(tell)
        while os.read(go, 1):
            ends = workload.OpenSsl(certificates)
            ends.write(number)
            ends.read(number)
        os._exit(0)
    os.close(go)
    try:
        yield pid, tell
    finally:
        os.close(tell)
        os.waitpid(pid, 0)


def watched(words, meanwhile):
    """Run the command until ``meanwhile``, in another thread, is done."""
    failed = []

    def run():
        try:
            meanwhile()
        except BaseException as error:
            failed.append(error)
        finally:
            _thread.interrupt_main()

    core.reset()
    thread = threading.Thread(target=run)
    thread.start()
    status = cli.main(["watch", *words])
    thread.join()
    if failed:
        raise failed[0]
    return status


def test_lines_of_a_process_its_library_and_its_traffic(bpf_dir, certificates, monkeypatch, tmp_path):
    lines = []
    monkeypatch.setattr("harness.cli.common.line", lambda **fields: lines.append(json.loads(json.dumps(fields))))

    def said(**wanted):
        return wait_for(lambda: next((one for one in list(lines) if wanted.items() <= one.items()), None))

    def of_libssl():
        return [one for one in list(lines) if one["event"] == "library" and "/libssl.so" in one["path"]]

    with moving(certificates, 1234) as (pid, tell):

        def meanwhile():
            library = wait_for(lambda: next((one for one in of_libssl() if pid in one["pids"]), None))
            os.write(tell, b"!")
            said(event="traffic", pid=pid, received=1234, sent=1234, ended=False)
            address = next(one for one in lines if one["event"] == "started")["debug"]
            with urllib.request.urlopen(f"http://{address}/debug/usm/traced_programs") as answer:
                traced = json.load(answer)
            assert [pid in one["PIDs"] for one in traced if one["FilePath"] == library["path"]] == [True]
            request = urllib.request.Request(f"http://{address}/debug/usm/detach-pid", method="POST")
            request.add_header("Authorization", "Bearer a secret")
            request.data = json.dumps({"pid": pid, "type": "native"}).encode()
            with urllib.request.urlopen(request) as answer:
                assert answer.read().decode() == f"native successfully detached PID {pid}\n"
            wait_for(lambda: pid not in of_libssl()[-1]["pids"])
            os.write(tell, b"!")

        (tmp_path / "token").write_text("a secret\n")
        words = ["--json", "--debug", "127.0.0.1:0", "--token-file", str(tmp_path / "token")]
        assert watched(words, meanwhile) == 0
    assert lines[0]["event"] == "started"
    assert lines[-1]["event"] == "stopped"
    assert lines[-1]["tls.lost"] == 0
    hits = [one for one in lines if one["event"] == "rule" and one["rule"] == r"libssl\.so"]
    assert (hits[-1]["activated"], hits[-1]["failed"]) == (1, 0)


def test_tables_of_the_same(bpf_dir, certificates, capsys, monkeypatch):
    """Off a terminal they come once, at the end; what is drawn meanwhile is listened to here."""
    monkeypatch.setenv("COLUMNS", "200")
    seen = []
    drawn = watch.drawn
    monkeypatch.setattr(watch, "drawn", lambda now, *more: (seen.append(now), drawn(now, *more))[1])
    with moving(certificates, 567) as (pid, tell):

        def meanwhile():
            wait_for(lambda: seen and any(pid in file.pids for file in seen[-1].files.values()))
            os.write(tell, b"!")
            wait_for(lambda: seen[-1].traffic.get(pid))

        assert watched([], meanwhile) == 0
    shown = capsys.readouterr().out
    for word in ("library", "/libssl.so", "process", "received", "567", r"libssl\.so"):
        assert word in shown
    assert re.search(r"registered [1-9]", shown)


def test_rules_of_ones_own(bpf_dir, monkeypatch):
    lines = []
    monkeypatch.setattr("harness.cli.common.line", lambda **fields: lines.append(fields))

    def meanwhile():
        wait_for(lambda: any("/libc.so" in one.get("path", "") for one in list(lines)))

    with moving_nothing() as pid:
        assert watched(["--json", "--rule", r"/libc\.so"], meanwhile) == 0
    assert any(pid in one.get("pids", ()) for one in lines)
    assert lines[0]["tls"] is None


@contextmanager
def moving_nothing():
    """A process."""
    wait, end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(end)
        os.read(wait, 1)
        os._exit(0)
    try:
        yield pid
    finally:
        os.close(end)
        os.waitpid(pid, 0)
