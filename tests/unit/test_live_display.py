"""The display around real pytest sessions; what a kernel would do is played by a conftest."""

import os
import subprocess
import sys

import pexpect
import pytest

CONFTEST = """
import pytest, time
from kmt import hooks
from kmt.report import summary
from kmt.results import KernelResult

def pytest_addoption(parser): parser.addoption("--kernel", action="append")
def pytest_addhooks(pluginmanager): pluginmanager.add_hookspecs(hooks)

def pytest_collection_modifyitems(items):
    for item in items: item.kmt_kernel = "6.1"

@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session):
    say = session.config.hook.pytest_kmt_progress
    say(kernel="6.1", phase="booting", detail="tcg")
    time.sleep(0.4)
    say(kernel="6.1", phase="booting", detail="tcg, still")
    say(kernel="6.1", phase="testing", detail="2 tests")
    time.sleep(0.4)
    result = yield
    say(kernel="6.1", phase="done", detail="")
    session.config.hook.pytest_kmt_finished(results=[KernelResult("6.1")])
    return result

def pytest_runtest_logreport(report): CONFIG[0].hook.pytest_kmt_report(kernel="6.1", report=report)
CONFIG = []
def pytest_configure(config): CONFIG.append(config)

def pytest_terminal_summary(terminalreporter): summary.write(terminalreporter, [KernelResult("6.1")], [])
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_x.py").write_text("def test_good(): pass\n\ndef test_bad(): assert 1 == 2\n")
    return tmp_path


def command(*more):
    return [sys.executable, "-m", "pytest", "-p", "no:kmt", "-p", "kmt.report.live", "--kernel", "6.1", *more]


def test_off_a_terminal_each_phase_and_each_failure_is_a_line(project):
    done = subprocess.run(command(), cwd=project, capture_output=True, text=True)
    said = [line.partition("] ")[2] for line in done.stdout.splitlines() if line.startswith("[")]
    assert said == [
        "6.1: booting (tcg)",
        "6.1: testing (2 tests)",
        "6.1: FAILED test_x.py::test_bad",
        "6.1: done",
    ]
    assert "[100%]" not in done.stdout
    assert "assert 1 == 2" in done.stdout
    assert done.stdout.index("= kernels =") < done.stdout.index("1 failed, 1 passed")
    assert done.returncode == 1


def test_on_a_terminal_a_kernel_is_one_line_that_changes(project):
    child = pexpect.spawn(command()[0], command()[1:], cwd=str(project), dimensions=(40, 100), encoding="utf-8")
    child.expect("booting tcg")
    child.expect("testing 2 tests +0/2")
    child.expect("assert 1 == 2")
    child.expect("1 failed.*1 passed")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 1


def test_ctrl_c_leaves_the_terminal_to_pytest(project):
    (project / "test_x.py").write_text("import time\ndef test_long(): time.sleep(30)\n")
    child = pexpect.spawn(command()[0], command()[1:], cwd=str(project), dimensions=(40, 100), encoding="utf-8")
    child.expect("testing 2 tests")
    child.sendintr()
    child.expect("KeyboardInterrupt")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 2


@pytest.mark.parametrize("more", [["--co", "-q"], ["-p", "no:terminal"]])
def test_it_stays_away_where_nothing_runs_or_nobody_reports(project, more):
    done = subprocess.run(command(*more), cwd=project, capture_output=True, text=True, env={**os.environ, "CI": "1"})
    assert ("booting" in done.stdout) is False
    assert "INTERNALERROR" not in done.stdout + done.stderr
