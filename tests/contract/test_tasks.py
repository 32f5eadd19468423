"""The tasks that boot a kernel, called as a user calls them."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pexpect
import psutil
import pytest

from kmt import runs
from kmt.commands import watching

pytestmark = pytest.mark.host_only

ROOT = Path(__file__).parents[2]
KERNEL = "6.1"


def inv(*words, **more):
    return subprocess.run(
        [sys.executable, "-m", "invoke", *words], cwd=ROOT, capture_output=True, text=True, **more
    )  # fmt: skip


def test_exec_forwards_input_output_and_status():
    script = "cat; uname -r; pwd; echo to the other stream >&2; exit 7"
    done = inv("kmt.exec", KERNEL, "--", "sh", "-c", script, input="from here\n")
    first, release, where = done.stdout.splitlines()
    assert (first, where, done.returncode) == ("from here", str(ROOT), 7), done.stderr
    assert release.startswith(f"{KERNEL}.")
    assert "to the other stream" in done.stderr


def test_exec_says_how_a_signal_ended_the_command():
    assert inv("kmt.exec", KERNEL, "--", "sh", "-c", "kill -TERM $$", stdin=subprocess.DEVNULL).returncode == 143


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["kmt.exec", "6.1"], 4, "no command"),
        (["kmt.exec", "6.1,5.10", "--", "true"], 4, "name one kernel"),
        (["kmt.exec", "6.l", "--", "true"], 4, "6.1"),
        (["kmt.shell", "6.1"], 4, "needs a terminal"),
        (["kmt.shell", "6.1", "--backend=quemu"], 4, ""),
        (["kmt.start", "--kernels", "9.99"], 4, "9.99"),
        (["kmt.start", "--dry-run", "--backend=quemu"], 4, "did you mean 'qemu'"),
        (["kmt.logs", "no-such-kernel"], 4, "no-such-kernel"),
        (["kmt.stop", "--run=no-such-run"], 4, "no-such-run"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_status(words, status, said):
    done = inv(*words, stdin=subprocess.DEVNULL)
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_dry_run_prints_commands_and_boots_nothing():
    before = {run.record.id for run in runs.seen()}
    done = inv("kmt.start", "--dry-run", "--kernels", KERNEL)
    lines = done.stdout.splitlines()
    assert lines[-2] == f"# {KERNEL}"
    assert re.search(r"qemu-system-x86_64 .*-kernel \S+ .*-append ", lines[-1])
    assert {run.record.id for run in runs.seen() if run.record.cwd == str(ROOT)} <= before


def test_shell_is_a_console_with_the_project_in_it():
    child = pexpect.spawn(
        sys.executable, ["-m", "invoke", "kmt.shell", KERNEL], cwd=str(ROOT), dimensions=(31, 99), encoding="utf-8",
        timeout=120,
    )  # fmt: skip
    child.expect("leaves, so does the end")
    child.sendline("uname -r; pwd; stty size; wc -c <inv")
    said = (rf"{re.escape(KERNEL)}\.\S+", re.escape(str(ROOT)), "31 99", str((ROOT / "inv").stat().st_size), "")
    child.expect(r"\r+\n".join(said))
    child.sendline("echo begun; sleep 1000")
    child.expect(r"[\r\n]begun")
    while child.expect(["# ", pexpect.TIMEOUT], timeout=2):  # the shell may not have come to its sleep yet
        child.sendintr()
    child.sendline("exit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


def test_the_demo_is_a_live_table_on_our_terminal_until_we_leave():
    child = pexpect.spawn(
        sys.executable, ["-m", "invoke", "kmt.start", "--demo", "--kernels", KERNEL], cwd=str(ROOT), timeout=300,
        dimensions=(40, 200), encoding="utf-8",
    )  # fmt: skip
    child.expect("leaves")
    child.expect(r"tracer \(CO-RE.* buffer\)")
    child.expect(r"closed after \d")
    child.send("\x1d")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.fixture
def long_run(tmp_path):
    """A run in another terminal whose one test has begun."""
    (tmp_path / "test_long.py").write_text("import time\ndef test_long(): time.sleep(1000)\n")
    command = [sys.executable, "-m", "pytest", "--kernel", KERNEL, "-p", "kmt.report.live", "-p", "no:cacheprovider"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        yield process, str(tmp_path)
        process.kill()


def test_a_run_of_another_terminal_is_seen_read_and_stopped(long_run):
    process, where = long_run
    for line in process.stdout:
        if "testing" in line:
            break
    (run,) = [r for r in runs.seen() if r.alive and r.record.cwd == where]
    assert re.search(rf"{KERNEL} +testing", watching.status())
    assert re.search("kmt: (ready|goes on)", "".join(watching.logs(KERNEL, run.record.id)))
    guest = psutil.Process(process.pid).children(recursive=True)
    assert any(p.name().startswith("qemu") for p in guest)
    watching.stop(run.record.id)
    said = process.stdout.read()
    assert process.wait(60) == 2, said
    assert re.search(rf"{KERNEL} .*6\.1\.", said), said
    end = time.monotonic() + 10
    while any(p.is_running() for p in guest) and time.monotonic() < end:
        time.sleep(0.1)
    assert [p for p in guest if p.is_running()] == []
    assert runs.find(run.record.id).state == "ended 2"
