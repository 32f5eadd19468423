import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kmt import config, runs
from kmt.commands import guest, testing, watching, words
from kmt.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))


def test_words_behind_the_dashes_are_kept_as_they_are():
    argv = ["invoke", "kmt.exec", "6.1", "--", "sh", "-c", "echo 'a  b' -- c"]
    assert words.behind_dashes(argv) == ["sh", "-c", "echo 'a  b' -- c"]
    assert words.behind_dashes(["invoke", "kmt.start"]) == []


def test_kernels_are_lists_and_paths_are_the_users(monkeypatch):
    monkeypatch.setenv("KMT_CWD", "/some where")
    assert words.kernel_patterns(["5.10, 6.*", "./vmlinuz"]) == ["5.10", "6.*", "/some where/vmlinuz"]
    assert words.kernel_patterns(["/boot/vmlinuz"]) == ["/boot/vmlinuz"]


def test_what_a_task_starts_takes_paths_from_where_that_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CWD", "/some where")
    code = "import pathlib; from kmt.commands import words; pathlib.Path('said').write_text(str(words.user_path('x')))"
    assert testing.child([sys.executable, "-c", code], tmp_path) == 0
    assert (tmp_path / "said").read_text() == str(tmp_path / "x")


def test_options_become_those_of_pytest(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CWD", str(tmp_path))
    options = testing.Options(
        ["6.1,7.3"], "qemu", 2, "tcg", 30, "out/r.json", "j.xml", strict=True, args=["-k", "a b"]
    )  # fmt: skip
    assert testing.command(tmp_path, options, live=True)[1:] == [
        "-m", "pytest", "-p", "kmt.report.live", "--kernel", "6.1", "--kernel", "7.3", "--kernel-backend=qemu",
        "--kernel-jobs=2", "--kernel-accel=tcg", "--kernel-timeout=30", f"--kernel-json={tmp_path}/out/r.json",
        f"--junit-xml={tmp_path}/j.xml", "--kernel-strict", "-k", "a b",
    ]  # fmt: skip


def test_without_words_the_projects_kernels_run_and_nothing_else_is_said(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.kmt]\nkernels = ["5.10", "newest"]\n')
    argv = testing.command(tmp_path, testing.Options(), live=False)
    assert argv[1:] == ["-m", "pytest", "--kernel", "5.10", "--kernel", "newest"]


def test_every_option_exists_in_pytest():
    options = testing.Options(["6.1"], "qemu", 2, "tcg", 30, "r.json", "j.xml", strict=True)
    asked = {word.split("=")[0] for word in testing.command(ROOT, options, live=True) if word.startswith("--")}
    listed = subprocess.run([sys.executable, "-m", "pytest", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert asked - set(re.findall(r"--[a-z-]+", listed.stdout)) == set()


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 1),
        (1, 5, 1),
        (6, 7, 7),
        (0, 5, 0),
        (5, 0, 0),
        (5, 5, 5),
        (1, 6, 1),
        (6, 1, 1),
        (0, 6, 6),
        (0, 7, 7),
        (5, 6, 6),
        (5, 1, 1),
    ],
)
def test_two_runs_have_one_status(first, second, both):
    assert testing.merged(first, second) == both


def test_a_soak_has_parts_and_0_leaves_one_out(monkeypatch):
    ran = []
    monkeypatch.setattr(testing, "child", lambda argv, cwd, env=None: ran.append((argv[1:], env)) or len(ran) % 2)
    assert testing.soak(ROOT, ["6.1"], boots=3, rounds=4, processes=5) == 1
    (booting, _), (tests, env) = ran
    assert (booting[0], booting[1], booting[-1]) == ("benchmarks/boots.py", "--boots=3", "6.1")
    files = ["tests/kernel/test_rounds.py", "tests/kernel/test_watcher_live.py"]
    assert [word.partition("::")[0] for word in tests[-2:]] == files
    assert env == {"KMT_ROUNDS": "4", "KMT_PROCESSES": "5"}
    ran.clear()
    testing.soak(ROOT, ["6.1"], boots=0, rounds=0, processes=5)
    assert [(tests[-1].partition("::")[0], env) for tests, env in ran] == [(files[1], {"KMT_PROCESSES": "5"})]
    ran.clear()
    assert testing.soak(ROOT, ["6.1"], boots=0, rounds=0, processes=0) == 0
    assert ran == []


@pytest.mark.parametrize("variable", testing._SOAKED)
def test_what_is_soaked_is_there_and_knows_its_variable(variable):
    file, _, name = testing._SOAKED[variable].partition("::")
    source = (ROOT / file).read_text()
    assert f'"{variable}"' in source
    assert f"def {name or 'test_'}" in source
    assert variable in config.load(ROOT).env


def project(tmp_path, test):
    (tmp_path / "pyproject.toml").write_text('[tool.kmt]\nkernels = ["host"]\n')
    (tmp_path / "test_it.py").write_text(test)
    return tmp_path


def test_the_exit_status_is_pytests_own(tmp_path):
    root = project(tmp_path, "def test_it(): assert False\n")
    assert testing.child([sys.executable, "-m", "pytest", "-p", "no:kmt", "-q"], root) == 1
    assert testing.child(["sh", "-c", "kill -TERM $$"], root) == 128 + signal.SIGTERM


WAITING = """
import signal, sys
from pathlib import Path
from kmt.commands import testing
child = '''
import signal, sys, time
got = []
signal.signal(signal.SIGINT, lambda *a: got.append("int"))
signal.signal(signal.SIGTERM, lambda *a: got.append("term"))
print("ready", flush=True)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end: time.sleep(0.05)
print("got", *got, flush=True)
'''
testing.child([sys.executable, "-c", child, sys.argv[1]], Path("/"))
print("parent lives", flush=True)
"""


def test_signals_are_passed_on_once_when_there_is_no_terminal():
    command = [sys.executable, "-c", WAITING, "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        while_running = process.poll()
        assert process.stdout.read() == "got int\nparent lives\n"
    assert while_running is None


def test_a_terminals_ctrl_c_reaches_the_child_once():
    pid, fd = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", WAITING, "1"])
    said = b""
    while b"ready" not in said:
        said += os.read(fd, 1000)
    os.write(fd, b"\x03")
    try:
        while data := os.read(fd, 1000):
            said += data
    except OSError:  # EIO: all have closed the terminal
        pass
    os.waitpid(pid, 0)
    os.close(fd)
    assert b"got int\r\n" in said
    assert b"parent lives" in said


def test_status_shows_runs_kernel_by_kernel():
    assert watching.status() == "no runs yet"
    with runs.start(["6.1", "5.10"], []) as run:
        run.update("6.1", phase="booting", detail="tcg")
        run.update("5.10", phase="done", outcome="panic")
        text = watching.status()
        assert re.search(rf"{run.id} +running +{os.getpid()}", text)
        assert re.search(r"6\.1 +booting tcg +0\.\d s", text)
        assert re.search(r"5\.10 +panic", text)
        run.finish(6)
    assert "ended 6" in watching.status()


def test_status_forgets_old_runs_but_never_one_that_goes_on():
    with runs.start([], []) as alive:
        for _ in range(3):
            with runs.start([], []) as over:
                pass
        text = watching.status(1)
        assert (alive.id in text, over.id in text, text.count("killed")) == (True, True, 1)


def test_logs_are_those_of_the_latest_run_with_that_kernel():
    with pytest.raises(ConfigError):
        list(watching.logs("6.1"))
    with runs.start(["6.1"], []) as run:
        console = run.kernel_dir("6.1") / "console"
        console.write_bytes(b"Linux version\xff\n")
        run.update("6.1", console=console)
    with runs.start(["5.10"], []):
        assert "".join(watching.logs("6.1")) == "Linux version\N{REPLACEMENT CHARACTER}\n"
        with pytest.raises(ConfigError, match=r"no kernel .6\.2."):
            list(watching.logs("6.2"))


def test_following_ends_with_the_run():
    code = (
        "import time; from kmt import runs\n"
        "with runs.start(['6.1'], []) as run:\n"
        "    console = run.kernel_dir('6.1') / 'c'; console.write_text('one ')\n"
        "    run.update('6.1', console=console); print(flush=True)\n"
        "    time.sleep(0.5); console.open('a').write('two')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert "".join(watching.logs("6.1", follow=True)) == "one two"


def test_stop_without_a_run_says_so():
    assert watching.stop() == ["no run is going on"]
    with pytest.raises(ConfigError, match="no run 'x' going on"):
        watching.stop("x")


def test_a_project_without_a_demo_is_told_how_to_have_one(tmp_path):
    with pytest.raises(ConfigError, match=r"no demo .*\[tool.kmt\] demo = "):
        guest.demo(tmp_path, None)


def test_the_configuration_of_this_project_is_valid():
    assert config.load(ROOT).root == ROOT
