"""Flakes and known failures, through real child sessions on the backend that needs no VM."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

pytestmark = pytest.mark.host_only

# What a test does at its first, second, ... attempt; where it is counted lies outside of the project.
FLAKY = """
    import os, signal
    from pathlib import Path
    import pytest

    COUNTS = Path({counts!r})

    def attempt(name):
        with (COUNTS / name).open("a") as file:
            file.write("x")
        return len((COUNTS / name).read_text())

    def test_passes():
        assert attempt("passes") == 1, "what passes never runs again"

    def test_flaky():
        assert attempt("flaky") > 1, "the first time"

    def test_fails():
        assert attempt("fails") > 99, "again"

    @pytest.fixture
    def broken():
        assert attempt("broken") > 2, "no set-up yet"

    def test_broken(broken):
        pass
"""
KILLER = """
    def test_kills_its_guest():
        if attempt("kills") == 1:
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)  # on this machine a guest's processes survive its agent

    def test_behind_it():
        assert attempt("behind") == 1
"""


@pytest.fixture
def flaky(project, tmp_path):
    counts = tmp_path / "counts"
    counts.mkdir()

    def run(*words, more=""):
        project.write(FLAKY.format(counts=str(counts)) + more)
        done = project.run("--kernel-json=out.json", "--junitxml=out.xml", *words)
        (kernel,) = json.loads((project.root / "out.json").read_text())["kernels"]
        said = {path.name: len(path.read_text()) for path in counts.iterdir()}
        return done, kernel, said

    return run


def test_nothing_runs_twice_unless_asked(flaky, project):
    done, kernel, attempts = flaky()
    assert done.returncode == 1
    assert set(attempts.values()) == {1}
    assert kernel["counts"] == {"passed": 1, "failed": 2, "skipped": 0, "error": 1}
    assert "retried" not in done.stdout


def test_each_retry_is_in_the_table_the_junit_file_and_the_results(flaky, project):
    done, kernel, attempts = flaky("--kernel-retries=2")
    assert done.returncode == 1, done.stdout
    assert attempts == {"passes": 1, "flaky": 2, "fails": 3, "broken": 3}
    assert "1 failed, 3 passed" in done.stdout
    tests = {test["id"].split("::")[1]: test for test in kernel["tests"]}
    first = "AssertionError: the first time"
    assert (tests["test_flaky"]["outcome"], tests["test_flaky"]["retries"][0].splitlines()[0]) == ("passed", first)
    assert [len(tests[f"test_{name}"]["retries"]) for name in ("passes", "fails", "broken")] == [0, 2, 2]
    assert kernel["guests"] == 3
    head = next(line for line in done.stdout.splitlines() if line.startswith("kernel ") and "retried" in line)
    row = done.stdout.splitlines()[done.stdout.splitlines().index(head) + 1]
    cells = dict(zip(re.split(r"  +", head), re.split(r"  +", row), strict=True))
    assert cells["retried"] == "3"
    assert f"host: run again 1 time, then passed: test_theirs.py::test_flaky: {first}" in done.stdout
    cases = {case.get("name"): case for case in ElementTree.parse(project.root / "out.xml").iter("testcase")}
    values = {p.get("name"): p.get("value") for p in cases["test_fails[host]"].iter("property")}
    assert values["retries"] == "2"
    assert values["retries 2"].startswith("AssertionError: again")
    assert "retries" not in {p.get("name") for p in cases["test_passes[host]"].iter("property")}


def test_tests_of_a_guest_that_was_lost_run_in_another_one(flaky):
    done, kernel, attempts = flaky("--kernel-retries=1", "-k", "kills or behind", more=KILLER)
    assert done.returncode == 0, done.stdout
    assert attempts["kills"] == 2
    assert attempts["behind"] == 1, "it had not begun when its guest was lost"
    assert kernel["outcome"] == "ok"
    (recovered,) = kernel["recovered"]
    assert recovered.startswith("guest 1: lost: ")
    assert f"host: made good by another guest: {recovered}" in done.stdout


CRASH = """
    def test_fails_then_ends_pytest():
        assert attempt("ends") > 1, "at first"
        os._exit(9)

    def test_behind_it():
        assert attempt("behind") == 1
"""


def test_pytest_that_ends_in_a_second_attempt_is_one_entry(flaky):
    done, kernel, attempts = flaky("--kernel-retries=1", "-k", "ends or behind", more=CRASH)
    assert done.returncode == 1, done.stdout
    entries = [(test["id"].split("::")[1], test["outcome"], test["lost"], test["cause"]) for test in kernel["tests"]]
    assert entries == [
        ("test_fails_then_ends_pytest", "error", True, "failed"),
        ("test_behind_it", "passed", False, ""),
    ]
    assert attempts["ends"] == 2


def test_a_first_attempt_that_ends_pytest_is_tried_again_and_so_are_the_tests_behind_it(flaky):
    more = CRASH.replace('assert attempt("ends") > 1, "at first"', 'if attempt("ends") > 1: return')
    done, kernel, attempts = flaky("--kernel-retries=1", "-k", "ends or behind", more=more)
    assert done.returncode == 0, done.stdout
    assert [(test["outcome"], len(test["retries"])) for test in kernel["tests"]] == [("passed", 1)] * 2
    assert attempts == {"ends": 2, "behind": 1}


def test_without_retries_the_same_guest_is_lost(flaky):
    done, kernel, _ = flaky("-k", "kills or behind", more=KILLER)
    assert (done.returncode, kernel["outcome"], kernel["recovered"]) == (6, "lost", [])


def test_a_run_that_is_stopped_says_the_failures_that_it_would_have_tried_again(flaky):
    done, kernel, attempts = flaky("--kernel-retries=1", "-x", "-k", "fails or flaky")
    assert done.returncode == 1
    assert "1 failed" in done.stdout
    assert {test["outcome"] for test in kernel["tests"]} >= {"failed"}
    assert attempts["fails"] == 2


# Known failures

EXPECTED = """
    [[expected]]
    test = "test_theirs.py::test_f*"
    kernels = "{kernels}"
    reason = "bug 7"
    until = {until}
"""


@pytest.mark.parametrize(
    ("kernels", "until", "status", "summary"),
    [
        ("*", "2999-01-01", 1, "1 passed, 2 xfailed, 1 error"),
        (">=2.6", "2999-01-01", 1, "1 passed, 2 xfailed, 1 error"),
        ("<2.6", "2999-01-01", 1, "2 failed, 1 passed, 1 error"),
        ("*", "2001-01-01", 1, "2 failed, 1 passed, 1 error"),
    ],
)
def test_expected_failures_fail_no_run_before_their_time(flaky, project, kernels, until, status, summary):
    (project.root / "pyproject.toml").write_text("[tool.kmt]\nexpected = 'known.toml'\n")
    project.write(EXPECTED.format(kernels=kernels, until=until), "known.toml")
    done, kernel, _ = flaky()
    assert (done.returncode, summary in done.stdout) == (status, True), done.stdout
    test = next(test for test in kernel["tests"] if test["id"].endswith("test_fails"))
    if "xfailed" in summary:
        assert (test["outcome"], test["expected"]) == ("skipped", f"bug 7 (until {until})")
        assert flaky("-k", "fails")[0].returncode == 0
    else:
        assert test["outcome"] == "failed"
        late = (
            "host: failed, though expected to fail: test_theirs.py::test_fails: bug 7 (until 2001-01-01, which is over)"
        )
        assert (late in done.stdout) == (kernels == "*")


def test_an_expected_failure_that_passes_is_said_and_fails_nothing(flaky, project):
    (project.root / "pyproject.toml").write_text("[tool.kmt]\nexpected = 'known.toml'\n")
    project.write(EXPECTED.format(kernels="*", until="2999-01-01").replace("test_f*", "test_passes"), "known.toml")
    done, _, _ = flaky("-k", "passes")
    assert done.returncode == 0
    assert "1 xpassed" in done.stdout
    assert "host: passed, though expected to fail: test_theirs.py::test_passes: bug 7" in done.stdout


def test_a_wrong_file_of_expected_failures_is_a_wrong_usage_that_names_it(project):
    (project.root / "pyproject.toml").write_text("[tool.kmt]\nexpected = 'known.toml'\n")
    project.write("def test_x(): pass\n")
    project.write("[[expected]]\ntest = 'x'\n", "known.toml")
    done = project.run()
    assert done.returncode == 4
    assert "known.toml: expected 1: kernels, reason, until: unknown or missing" in done.stderr


# The rate of a flake


def soak(project, *words):
    return subprocess.run(
        [sys.executable, "-m", "kmt", "soak", *words], cwd=project.root, capture_output=True, text=True, timeout=200
    )


def test_a_selection_is_repeated_and_its_failure_rate_said(flaky, project):
    flaky("-k", "passes")
    done = soak(project, "--kernels", "host", "--times", "3", "--", "-p", "no:cacheprovider", "-k", "flaky or broken")
    assert done.returncode == 1
    assert (
        "host: test_theirs.py::test_broken: 2 of 3 failed: 66.7% (20.8% to 93.9% with 95 % confidence)" in done.stdout
    )
    assert "host: test_theirs.py::test_flaky: 1 of 3 failed: 33.3%" in done.stdout
    assert "runs with a failed test: 2 of 3 failed" in done.stdout
    assert soak(project, "--kernels", "host", "--times", "1", "--", "-k", "flaky").returncode == 0


def test_a_soak_sees_the_flake_that_the_projects_own_retries_make_good(flaky, project):
    flaky("-k", "passes")
    (project.root / "pyproject.toml").write_text("[tool.kmt]\nretries = 2\n")
    done = soak(project, "--kernels", "host", "--times", "2", "--", "-p", "no:cacheprovider", "-k", "flaky")
    assert done.returncode == 1, done.stdout
    assert "host: test_theirs.py::test_flaky: 1 of 2 failed" in done.stdout


def test_a_test_that_ends_pytest_fails_its_soak(project):
    project.write("import os\ndef test_ends(): os._exit(9)\n")
    done = soak(project, "--kernels", "host", "--times", "2")
    assert done.returncode == 1, done.stdout
    assert "host: test_theirs.py::test_ends: 2 of 2 failed" in done.stdout


def test_a_run_without_results_ends_a_soak_aloud(project):
    project.write("def test_x(): pass\n")
    project.write(
        """
        import os
        from pathlib import Path

        def pytest_collection():
            begun = Path("begun")
            if begun.exists():
                os._exit(3)
            begun.touch()
        """,
        "conftest.py",
    )
    done = soak(project, "--kernels", "host", "--times", "9")
    assert done.returncode == 3, done.stdout
    last = "ended at run 2 of 9: it had exit status 3 and left no results, and is not counted"
    assert done.stdout.splitlines()[-1] == last


@pytest.mark.parametrize(
    ("words", "status"),
    [(["--times", "0"], 4), (["--kernels", "9.99"], 4), (["--kernels", "host", "--", "no_such.py"], 4)],
)
def test_a_soak_that_can_run_nothing_says_so_once(project, words, status):
    project.write("def test_x(): pass\n")
    done = soak(project, *words)
    assert done.returncode == status
    assert (done.stdout + done.stderr).lower().count("error: ") == 1


def test_a_soak_in_which_nothing_runs_is_no_success(project):
    project.write("def test_x(): pass\n")
    done = soak(project, "--kernels", "host", "--", "--collect-only")
    assert done.returncode == 5, done.stdout
    last = "ended at run 1 of 20: it had exit status 5 and left no results, and is not counted"
    assert done.stdout.splitlines()[-1] == last
