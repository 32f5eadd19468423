"""The pipelines' own scripts, run as a runner would: a clean clone, the job's environment, one line after the other.

What installs system packages is left out (this machine has them), and the cache is one that an earlier job filled;
of the tests there is one small file.
"""

import json
import os
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from kmt.ci import plan
from kmt.paths import LAYOUT, cache

pytestmark = pytest.mark.host_only

ROOT = Path(__file__).parents[2]
KERNEL = "6.12"
ROOMS_OF_A_MACHINE = {"runs", "snapshots", "keepers"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clean clone with the cache that a runner restores; what is of one machine alone is not in it."""
    root = tmp_path_factory.mktemp("runner") / "checkout"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(root)], check=True)
    kept = root / plan.CACHE / LAYOUT
    kept.mkdir(parents=True)
    for room in cache().iterdir():
        if room.name not in ROOMS_OF_A_MACHINE:
            (kept / room.name).symlink_to(room)
    return root


def scripts(provider, root):
    """The commands of a test job, of its end, and of the verdict, without those for system packages."""
    if provider == "gitlab":
        document = yaml.safe_load((root / ".gitlab" / "kernels.yml").read_text())
        job, last = document["kernel"], document["verdict"]
        found = [job["before_script"] + job["script"], job["after_script"], last["before_script"] + last["script"]]
    else:
        document = yaml.safe_load((root / ".github" / "workflows" / "kernels.yml").read_text())
        steps = [[s["run"] for s in document["jobs"][n]["steps"] if "run" in s] for n in ("kernel", "verdict")]
        found = [steps[0][:-1], steps[0][-1:], steps[1]]
    return [[line for line in lines if "apt-get" not in line] for lines in found]


def shell(root, lines, **env):
    """As both providers do it: one shell that ends at the first command that fails."""
    home = root.parent / "home"
    home.mkdir(exist_ok=True)
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "PYENV_ROOT", "PIP_CACHE_DIR") if key in os.environ}
    return subprocess.run(
        ["sh", "-e", "-c", "\n".join(lines)], cwd=root, capture_output=True, text=True, timeout=900,
        env={**kept, "HOME": str(home), "CI": "true", "KERNEL": KERNEL, "PART": "1", **env},
    )  # fmt: skip


@pytest.mark.parametrize("provider", ["gitlab", "github"])
def test_a_job_and_the_verdict_over_it(clone, provider):
    job, after, verdict = scripts(provider, clone)
    done = shell(clone, job, PYTEST_ADDOPTS="tests/kernel/test_running_kernel.py")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    left = clone / plan.RESULTS / f"{KERNEL}-1"
    (kernel,) = json.loads((left / "results.json").read_text())["kernels"]
    assert (kernel["name"], kernel["outcome"]) == (KERNEL, "ok")
    assert kernel["counts"]["passed"] > 0
    assert len(list(ElementTree.parse(left / "junit.xml").iter("testcase"))) == len(kernel["tests"])
    assert "kmt: " in (left / KERNEL / "console.log").read_text()
    assert subprocess.run(["git", "status", "--porcelain"], cwd=clone, capture_output=True, text=True).stdout == ""
    assert shell(clone, after).returncode == 0
    assert {room.name for room in (clone / plan.CACHE / LAYOUT).iterdir()} & ROOMS_OF_A_MACHINE == set()
    done = shell(clone, verdict)
    assert done.returncode == 6, "four kernels' jobs have not run"
    assert kernel["release"] in done.stdout
    assert "5.10, part 1 of 1: its job left no results" in done.stdout
    mine = [line.replace("5.10,6.1,6.12,6.18,7.3", KERNEL) for line in verdict]
    assert mine != verdict
    assert "the host's tests: its job left no results" in shell(clone, mine).stdout
    assert shell(clone, [plan.host_tests()], PYTEST_ADDOPTS="tests/unit/test_hints.py").returncode == 0
    done = shell(clone, mine)
    assert done.returncode == 0, done.stdout + done.stderr
    (clone / plan.RESULTS / plan.HOST / plan.STATUS).unlink()
    assert (clone / plan.RESULTS / "junit.xml").is_file()


def test_lost_infrastructure_is_tried_again_and_a_failed_test_is_not(clone):
    """GitHub has no retries of its own: the job's script has them."""
    job = scripts("github", clone)[0]
    tests = job[-1].split("attempt=0", 1)[1]
    for status, attempts in ((6, 3), (1, 1), (0, 1)):
        log = clone.parent / f"attempts-{status}"
        python = clone.parent / f"python-{status}"
        python.write_text(f"#!/bin/sh\necho tried >>{log}\nexit {status}\n")
        python.chmod(0o755)
        done = shell(clone, ["attempt=0", tests.replace(".venv/bin/python", str(python))])
        assert (done.returncode, len(log.read_text().split())) == (status, attempts)
        assert done.stdout.count("::warning title=infrastructure was lost::") == attempts - 1
