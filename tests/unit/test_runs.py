import json
import os
import signal
import subprocess
import sys

import pytest

from kmt import runs
from kmt.errors import ConfigError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "a cache"))


@pytest.fixture
def other_terminal():
    """A run in another process, which says ``ready`` and then waits; after SIGINT it finishes with status 2."""
    code = (
        "import sys, time; from kmt import runs\n"
        "with runs.start(['6.1'], ['pytest']) as run:\n"
        "    try:\n"
        "        print(run.id, flush=True)\n"
        "        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        run.finish(2)\n"
        "        print('interrupted', flush=True)\n"
        "        time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        yield process, process.stdout.readline().strip()
        process.kill()


def test_a_run_is_seen_while_it_lives_and_after():
    with runs.start(["6.1", "5.10"], ["pytest", "--kernel", "6.1"]) as run:
        run.update("6.1", phase="booting", detail="1 s", console=run.kernel_dir("6.1") / "console")
        [seen] = runs.seen()
        assert (seen.alive, seen.state, seen.record.pid) == (True, "running", os.getpid())
        assert seen.record.kernels["6.1"].phase == "booting"
        assert seen.record.kernels["5.10"].phase == "waiting"
        run.update("6.1", phase="testing")
        assert runs.seen()[0].record.kernels["6.1"].detail == ""
        assert runs.seen()[0].record.kernels["6.1"].console
        run.finish(1)
    [seen] = runs.seen()
    assert (seen.alive, seen.state) == (False, "ended 1")


def test_a_run_that_was_killed_says_so(other_terminal):
    process, run_id = other_terminal
    assert runs.find(run_id).alive
    process.kill()
    process.wait()
    assert runs.find(run_id).state == "killed"


def test_stop_asks_first_and_ends_then(other_terminal):
    process, run_id = other_terminal
    assert "asked to stop" in runs.stop(runs.find(alive=True))
    assert process.stdout.readline() == "interrupted\n"
    assert "ended" in runs.stop(runs.find(run_id))
    assert process.wait(10) == -signal.SIGTERM


def test_a_pid_that_another_process_has_now_gets_no_signal(other_terminal):
    process, run_id = other_terminal
    path = runs.find(run_id).dir / "run.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "created": record["created"] - 100}))
    with pytest.raises(runs.RunError, match="no process that could be told"):
        runs.stop(runs.find(run_id))
    assert process.poll() is None


def test_a_run_that_is_over_gets_no_signal():
    with runs.start([], []):
        pass
    with pytest.raises(runs.RunError, match="killed"):
        runs.stop(runs.find())


def test_only_the_last_runs_are_kept_and_never_a_live_one_removed(monkeypatch, other_terminal):
    monkeypatch.setattr(runs, "KEEP", 3)
    names = []
    for _ in range(6):
        with runs.start([], []) as run:
            names.append(run.id)
    left = {r.record.id for r in runs.seen()}
    assert left == {*names[-4:], other_terminal[1]}


def test_unreadable_records_are_passed_over():
    with runs.start([], []) as run:
        (run.dir.parent / "half").mkdir()
        (run.dir.parent / "half" / "run.json").write_text('{"id": ')
        (run.dir.parent / "older").mkdir()
        (run.dir.parent / "older" / "run.json").write_text('{"kernels": {"6.1": {"colour": 1}}}')
        assert [r.record.id for r in runs.seen()] == [run.id]


def test_finding_runs_by_a_beginning():
    with pytest.raises(ConfigError, match="there is no run"):
        runs.find()
    with runs.start([], []) as first, runs.start([], []) as second:
        assert runs.find(first.id).record.id == first.id
        assert runs.find().record.id == second.id
        with pytest.raises(ConfigError, match="no run 'zz'"):
            runs.find("zz")
        with pytest.raises(ConfigError, match="give more of it"):
            runs.find(first.id[:2])  # the month


def test_consoles_are_found_by_kernel():
    with runs.start(["6.1", "5.10"], []) as run:
        log = run.kernel_dir("6.1") / "console.log"
        log.write_text("Linux version")
        run.update("6.1", phase="booting", console=log)
        assert runs.console(runs.find(), "6.1") == log
        with pytest.raises(ConfigError, match="phase is 'waiting'"):
            runs.console(runs.find(), "5.10")
        with pytest.raises(ConfigError, match=r"it has 6\.1, 5\.10"):
            runs.console(runs.find(), "6.2")


@pytest.mark.parametrize("name", ["6.1", "5.15-simulated", "/boot/vmlinuz 1", "../../up", ".hidden", "a" * 300, "ядро"])
def test_every_kernel_name_has_a_directory_of_its_own(name):
    with runs.start([name], []) as run:
        path = run.kernel_dir(name)
        assert path.is_dir()
        assert path.parent == run.dir
        assert path == run.kernel_dir(name)
        assert path != run.kernel_dir("x" + name)


def test_no_room_for_the_register_is_a_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with runs.start([], []):
        pass
    monkeypatch.setattr(runs, "cache", lambda *_: tmp_path / "file")
    with pytest.raises(runs.RunError, match="Not a directory"), runs.start([], []):
        pass


def test_a_disk_that_fills_up_does_not_end_the_run():
    with runs.start(["6.1"], []) as run:
        run.dir.rename(run.dir.parent / "elsewhere")
        run.update("6.1", phase="done")
