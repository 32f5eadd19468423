"""Whole runs in real guests that go wrong: what is reported, what goes on, what is left."""

import json
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree

import psutil
import pytest
from machines import wait_for

pytestmark = pytest.mark.host_only

PANICS_ON_ONE = """
    import os, pathlib
    import pytest

    def test_before(kernel):
        root = pathlib.Path(__file__).parent
        assert (root / "link to it").read_text() == "linked"
        assert not (root / "stray.bin").exists()

    def test_panics(kernel):
        if kernel.name == "6.1":
            pathlib.Path("/proc/sysrq-trigger").write_text("c")

    def test_after():
        pathlib.Path(os.environ["KMT_ARTIFACTS"], "seen.txt").write_text("after")
"""


def pytest_in(root, *words, timeout=900):
    command = [sys.executable, "-m", "pytest", *words]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=timeout)


@pytest.fixture
def project(tmp_path):
    """A project with spaces, a link and a 200 MB stray in it, in git."""
    root = tmp_path / "a project with spaces"
    root.mkdir()
    (root / "pyproject.toml").write_text("[tool.pytest.ini_options]\ntestpaths = ['.']\n")
    (root / "linked.txt").write_text("linked")
    (root / "link to it").symlink_to("linked.txt")
    with (root / "stray.bin").open("wb") as file:
        file.truncate(200 << 20)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    return root


def write(root, text):
    (root / "test_theirs.py").write_text(textwrap.dedent(text))


def qemus(root):
    """QEMU processes of a run in this project: they have its directory as theirs."""
    found = psutil.process_iter(["name", "cwd"])
    return [p.pid for p in found if "qemu" in (p.info["name"] or "") and p.info["cwd"] == str(root)]


def test_a_panic_is_its_kernels_alone(project):
    write(project, PANICS_ON_ONE)
    done = pytest_in(project, "--kernel", "6.1,7.3", "--kernel-json=out.json", "--junitxml=out.xml")
    assert done.returncode == 6, done.stdout[-3000:]
    results = json.loads((project / "out.json").read_text())
    kernels = {kernel["name"]: kernel for kernel in results["kernels"]}
    died, lived = kernels["6.1"], kernels["7.3"]

    assert died["outcome"] == "panic"
    assert "sysrq" in died["reason"].lower()
    assert {t["id"].split("::")[1]: (t["outcome"], t["lost"]) for t in died["tests"]} == {
        "test_before": ("passed", False),
        "test_panics": ("error", True),
        "test_after": ("error", True),
    }
    assert (lived["outcome"], lived["counts"]["passed"]) == ("ok", 3)

    # The stray file is named, the console's end is shown, and in JUnit a lost guest is an error, not a failure.
    assert died["left_out"] == lived["left_out"] == ["stray.bin (200 MiB is over the limit of 10 MiB)"]
    assert "stray.bin" in done.stdout
    assert "console of 6.1" in done.stdout
    suite = ElementTree.parse(project / "out.xml").find("testsuite")
    assert (suite.get("failures"), int(suite.get("errors")) >= 2) == ("0", True)
    assert qemus(project) == []


def test_x_stops_the_other_kernels_at_once_and_loses_none(project):
    write(
        project,
        """
        import time
        def test_passes(): pass
        def test_fails_on_one(kernel):
            if kernel.name == "7.3":
                time.sleep(100000)
            assert kernel.name != "6.1"
        def test_after(): pass
        """,
    )
    words = ("--kernel", "6.1,7.3", "--kernel-jobs=2", "--kernel-json=out.json", "--junitxml=out.xml")
    done = pytest_in(project, "-x", *words)
    assert done.returncode == 1, done.stdout[-3000:]
    failed, stopped = json.loads((project / "out.json").read_text())["kernels"]
    assert (failed["outcome"], failed["counts"]["failed"], failed["not_run"]) == ("failed", 1, 1)
    assert stopped["outcome"] == "stopped"
    assert stopped["not_run"] == 3 - stopped["counts"]["passed"]
    assert f"7.3: stopped: the run was stopped; tests that did not run: {stopped['not_run']}" in done.stdout
    assert "lost" not in done.stdout
    assert ElementTree.parse(project / "out.xml").find("testsuite").get("errors") == "0"
    assert qemus(project) == []


def test_two_runs_at_once_do_not_meet(project):
    write(project, "def test_alone(kernel): assert kernel.name == '6.1'\n")
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--kernel", "6.1"]
    both = [subprocess.Popen(words, cwd=project, text=True, stdout=subprocess.PIPE) for _ in range(2)]
    wait_for(lambda: len(qemus(project)) == 2, 600)  # so that looking for them below is no empty gesture
    for process in both:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said
        assert "1 passed" in said
    assert qemus(project) == []


def test_a_hung_guest_is_given_up_at_its_deadline(project):
    write(
        project,
        """
        import time
        def test_quick(): pass
        def test_endless(): time.sleep(100000)
        """,
    )
    done = pytest_in(project, "--kernel", "6.1", "--kernel-timeout", "8", "--kernel-json=out.json")
    (kernel,) = json.loads((project / "out.json").read_text())["kernels"]
    assert (done.returncode, kernel["outcome"]) == (6, "hang")
    assert "--kernel-timeout" in kernel["hint"]
    assert "--kernel-timeout" in done.stdout


def test_an_unavailable_kernel_is_told_from_a_broken_one(project):
    write(project, "def test_one(): pass\n")
    done = pytest_in(project, "--kernel", "5.15")
    assert done.returncode == 6
    assert "5.15" in done.stdout
    assert "image" in done.stdout
    assert "Traceback" not in done.stdout
