"""Kernels that nobody has touched, in whole runs that go wrong."""

import json
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.host_only


@pytest.fixture
def project(tmp_path):
    root = tmp_path / "project"
    root.mkdir()
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\ntestpaths = ['.']\n")
    return root


def write(root, text, name="test_theirs.py"):
    (root / name).write_text(textwrap.dedent(text))


def run(root, *words):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--kernel-json=out.json", *words]
    done = subprocess.run([*command, "--kernel", "6.12"], cwd=root, capture_output=True, text=True, timeout=900)
    assert "INTERNALERROR" not in done.stdout + done.stderr
    return done, json.loads((root / "out.json").read_text())["kernels"][0]


def outcomes(kernel):
    return {test["id"].split("::")[1]: test["outcome"] for test in kernel["tests"]}


LEAVES = """
    import pathlib, os
    import pytest
    HOSTNAME = pathlib.Path("/proc/sys/kernel/domainname")

    def touch():
        assert HOSTNAME.read_text().strip() != "touched"
        HOSTNAME.write_text("touched")
        pathlib.Path(os.environ["KMT_ARTIFACTS"], "same name").write_text(os.environ["PYTEST_CURRENT_TEST"])
"""


@pytest.mark.parametrize("snapshots", ["on", "off"])
def test_a_panic_is_an_error_of_its_test_alone(project, snapshots):
    write(
        project,
        LEAVES
        + """
    @pytest.mark.pristine
    def test_panics():
        touch()
        pathlib.Path("/proc/sysrq-trigger").write_text("c")

    @pytest.mark.pristine
    def test_after():
        touch()

    def test_usual():
        assert HOSTNAME.read_text().strip() != "touched"
    """,
    )
    done, kernel = run(project, f"--kernel-snapshots={snapshots}")
    assert outcomes(kernel) == {"test_panics": "error", "test_after": "passed", "test_usual": "passed"}
    assert (done.returncode, kernel["outcome"]) == (6, "panic")
    assert kernel["reason"].startswith("1 of 3 guests: ")
    assert "sysrq" in done.stdout


def test_a_whole_module_may_have_a_kernel_of_its_own(project):
    for name in ("a", "b"):
        write(
            project,
            LEAVES
            + """
    def test_touches(): touch()
    def test_sees_it(): assert HOSTNAME.read_text().strip() == "touched"
    """,
            f"test_{name}.py",
        )
    done, kernel = run(project, "--kernel-fresh=module")
    assert "4 passed" in done.stdout
    assert kernel["guests"] == 2
    done, kernel = run(project, "--kernel-fresh=test")
    assert "2 failed, 2 passed" in done.stdout
    assert kernel["guests"] == 4


def test_a_module_that_ends_its_session_while_it_is_collected_costs_only_its_own_tests(project):
    write(project, LEAVES + "    @pytest.mark.pristine\n    def test_touches(): touch()\n", "test_a.py")
    write(project, LEAVES + "    @pytest.mark.pristine\n    def test_touches_too(): touch()\n"
          "    if 'KMT_GUEST' in os.environ: os._exit(7)\n", "test_b.py")  # fmt: skip
    done, kernel = run(project)
    assert outcomes(kernel) == {"test_touches": "passed", "test_touches_too": "error"}
    assert "ended with status 7" in done.stdout


def test_what_only_one_side_sees_is_an_error_here_too(project):
    write(
        project,
        LEAVES
        + """
    pytestmark = pytest.mark.pristine
    def test_one(): touch()
    def test_two(): touch()
    if "KMT_GUEST" in os.environ:
        def test_guests_alone(): pass
    else:
        def test_hosts_alone(): pass
    """,
    )
    done, _ = run(project)
    assert "2 passed, 2 errors" in done.stdout
    assert "the host collected it and the guest did not" in done.stdout
    assert "collected in the guest and not on the host" in done.stdout
