"""The warm-up, in processes of its own: what it loads stays, what it used is gone, and what does not go is found."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import kmt
from kmt.guest import throwaway
from kmt.guest.warm import NotCleanError, check

CODE = """
import json, os, sys, threading
from kmt_guest import fresh, warm
warm.ROOM, fresh.MACHINE_ID = sys.argv[1], sys.argv[1] + "-machine-id"
exec(sys.argv[2])
before = list(sys.path), dict(os.environ), os.getcwd()
said = warm.warm()
import hypothesis, gc
from hypothesis import configuration
print("\\n" + json.dumps({
    "said": said,
    "same": before == (list(sys.path), dict(os.environ), os.getcwd()),
    "throwaway": [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(warm.ROOM)],
    "caches": [p for p in sys.path_importer_cache if p.startswith(warm.ROOM)],
    "loaded": sorted({"pytest", "hypothesis.stateful", "_pytest.assertion.rewrite"} & set(sys.modules)),
    "profile": type(hypothesis.settings.default.database).__name__,
    "home": str(configuration.storage_directory().path),
    "frozen": gc.get_freeze_count() > 10000,
    "room": os.path.exists(warm.ROOM),
    "all": list(sys.modules),
}))
"""


def warmed(tmp_path, first=""):
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "kmt_guest").symlink_to(Path(kmt.__file__).parent / "guest")  # its name in a guest
    words = [sys.executable, "-BP", "-c", CODE, str(tmp_path / "room"), first]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "agent")}
    return subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


def test_what_is_loaded_stays_and_what_was_used_is_gone(tmp_path):
    done = warmed(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["said"]["status"] == 0
    assert said["loaded"] == ["_pytest.assertion.rewrite", "hypothesis.stateful", "pytest"]
    assert said["throwaway"] == said["caches"] == []
    assert said["same"]
    assert said["frozen"]
    assert not said["room"]
    assert said["profile"] != "HostDatabase"
    assert "room" not in said["home"]
    assert (tmp_path / "room-machine-id").read_text() == "0" * 32 + "\n"


def test_a_module_of_the_project_is_found(tmp_path):
    (tmp_path / "of_the_project.py").write_text("")
    done = warmed(tmp_path, f"sys.path.insert(0, {str(tmp_path)!r}); import of_the_project")
    assert done.returncode == 1
    assert f"NotCleanError: the module of_the_project of {tmp_path}/of_the_project.py is loaded" in done.stderr


def test_a_second_thread_is_found(tmp_path):
    done = warmed(tmp_path, "threading.Thread(target=threading.Event().wait, daemon=True).start()")
    assert done.returncode == 1
    assert "NotCleanError: 2 threads run" in done.stderr


def test_a_session_that_does_not_pass_is_no_warm_up(tmp_path):
    done = warmed(tmp_path, "from kmt_guest import throwaway; throwaway.PLAIN = 'def test_plain(): assert 0'")
    assert done.returncode == 1
    assert "NotCleanError: the throw-away session ended with status" in done.stderr


def test_everything_that_it_names_is_there():
    for text, ids in ((throwaway.PLAIN, throwaway.PLAIN_IDS), (throwaway.PROPERTIES, throwaway.PROPERTIES_IDS)):
        for name in ids:
            assert name.split("[")[0].split("::")[0] in text


def test_check_knows_whose_a_module_is():
    class Module:
        __file__ = "/opt/kmt/python-of-others/x.py"

    with pytest.raises(NotCleanError, match="the module x"):
        check({"x": Module()}, ["/opt/kmt/python"], 1)
    check({"x": Module(), "built in": sys}, ["/opt/kmt/python-of-others"], 1)


def test_modules_that_a_project_names_are_loaded(tmp_path):
    named = "whole = warm.warm; warm.warm = lambda: whole(['wave', 'plistlib'])"
    done = warmed(tmp_path, named)
    assert done.returncode == 0, done.stderr
    assert {"wave", "plistlib"} <= set(json.loads(done.stdout.splitlines()[-1])["all"])


def test_a_name_that_is_no_module_is_said(tmp_path):
    done = warmed(tmp_path, "whole = warm.warm; warm.warm = lambda: whole(['no_such_module'])")
    assert done.returncode == 1
    assert "No module named 'no_such_module'" in done.stderr
