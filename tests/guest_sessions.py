"""A pytest session as a guest runs it, in a process of this machine: what it would send to the host."""

import json
import os
import subprocess
import sys

from kmt.guest.wire import Decoder

CODE = """
import json, sys
from kmt.guest.runner import run_pytest
from kmt.guest.wire import pack

class Channel:
    def __init__(self, file):
        self.file = file
    def send(self, kind, body):
        self.file.write(pack(kind, body))
    def wait(self, kind):
        pass
    def ask(self, body):
        return []

with open(sys.argv[1], "wb") as file:
    sys.exit(run_pytest(json.load(sys.stdin), Channel(file)))
"""


def told(tmp_path, text, conftest="", others=None, **more):
    """Run a file of tests as a guest does, and ``others``; the bodies of the frames that came of it, by kind."""
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "test_it.py").write_text(text)
    (tmp_path / "project" / "conftest.py").write_text(conftest)
    for name, content in (others or {}).items():
        (tmp_path / "project" / name).write_text(content)
    request = {
        "root": str(tmp_path / "project"),
        "files": ["test_it.py"],
        "options": [],
        "env": {"KMT_KERNEL": "x"},
        "kernel": {"name": "x"},
        "accelerator": "tcg",
        "strict_skips": False,
        **{"inifile": "", "ids": [], "collect_only": False, **more},
    }
    words = [sys.executable, "-c", CODE, str(tmp_path / "frames")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        words, input=json.dumps(request), env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "INTERNALERROR" not in done.stdout + done.stderr
    found = {}
    for frame in Decoder().feed((tmp_path / "frames").read_bytes()):
        found.setdefault(frame.kind, []).append(frame.body)
    return found
