"""The session that stands ready, in processes of its own: used once, and replaced by a fork when it is gone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import kmt

CODE = """
import json, os, signal, sys
from kmt_guest import ready
from kmt_guest.wire import Decoder, Kind

def request(name):
    (file := sys.argv[1] + f"/test_{name}.py")
    open(file, "w").write("import os\\ndef test_x(): print(os.getpid(), os.getppid(), warmed)\\n"
                          "import builtins; warmed = getattr(builtins, 'warmed', False)\\n")
    return {"root": sys.argv[1], "inifile": "", "files": [file], "ids": [f"test_{name}.py::test_x"], "options": [],
            "env": {"KMT_KERNEL": "k"}, "kernel": {"name": "k", "accelerator": "none"}, "accelerator": "none",
            "collect_only": False, "strict_skips": False}

def session(name):
    "What its test prints: its pid, whose child it is, whether it was warmed up before."
    child = ready.start(request(name))
    decoder, said = Decoder(), []
    while data := child.frames.recv(65536):
        for frame in decoder.feed(data):
            if frame.kind is Kind.STARTED:
                from kmt_guest.wire import pack
                child.frames.sendall(pack(Kind.HEARD))
            if frame.kind is Kind.REPORT and frame.body["report"]["when"] == "call":
                assert frame.body["report"]["outcome"] == "passed", frame.body
                said = frame.body["report"]["sections"][0][1].split()
    return {"pid": child.pid, "said": said, "status": child.end()}

def warm_up():
    import builtins
    builtins.warmed = True

exec(sys.argv[2])
"""
TWICE = """
ready.prepare(warm_up)
waiting = ready._waiting[0].pid
print(json.dumps([waiting, os.getpid(), session("a"), session("b")]))
"""
KILLED = """
ready.prepare(warm_up)
waiting = ready._waiting[0].pid
os.kill(waiting, signal.SIGKILL)
os.waitid(os.P_PID, waiting, os.WEXITED | os.WNOWAIT)
print(json.dumps([waiting, session("a")]))
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    print("no child is left")
"""


def run(tmp_path, script):
    (tmp_path / "agent").mkdir()
    (tmp_path / "project").mkdir()
    (tmp_path / "agent" / "kmt_guest").symlink_to(Path(kmt.__file__).parent / "guest")  # its name in a guest
    words = [sys.executable, "-BP", "-c", CODE, str(tmp_path / "project"), script]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "agent")}
    return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


def test_the_first_session_is_the_one_that_waits_and_those_after_it_are_forks(tmp_path):
    done = run(tmp_path, TWICE)
    assert done.returncode == 0, done.stdout + done.stderr
    waiting, ours, first, second = json.loads(done.stdout)
    assert first == {"pid": waiting, "said": [str(waiting), str(ours), "True"], "status": 0}
    assert second["pid"] != waiting
    assert second == {"pid": second["pid"], "said": [str(second["pid"]), str(ours), "False"], "status": 0}


def test_one_that_was_killed_while_it_waited_is_missed_by_nobody(tmp_path):
    done = run(tmp_path, KILLED)
    assert done.returncode == 0, done.stdout + done.stderr
    said, left = done.stdout.splitlines()
    waiting, session = json.loads(said)
    assert session["pid"] != waiting
    assert session["status"] == 0
    assert session["said"][-1] == "False"
    assert left == "no child is left"


def test_a_warm_up_that_fails_is_told_in_its_own_words(tmp_path):
    done = run(tmp_path, "ready.prepare(lambda: 1 // 0)")
    assert done.returncode == 1
    assert "ChildProcessError: the session that was to stand ready ended: Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr
