"""A stranger's project: a wheel of ours in a clean environment, and the example project tested in a real kernel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.host_only

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "fixtures/example_project"


def run(*words, cwd):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST", "VIRTUAL_ENV", "COV"))}
    return subprocess.run(list(map(str, words)), cwd=cwd, env=clean, capture_output=True, text=True)


def succeed(*words, cwd):
    done = run(*words, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of what git knows, so that this checkout gets no build directory."""
    copy = tmp_path_factory.mktemp("source")
    names = succeed("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, names):
        target = copy / name
        if (ROOT / name).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target, follow_symlinks=False)
    succeed(sys.executable, "-m", "build", "--wheel", "--outdir", copy / "out", ".", cwd=copy)
    (built,) = (copy / "out").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The Python of a new environment that has the wheel and nothing of ours else."""
    room = tmp_path_factory.mktemp("clean")
    succeed(sys.executable, "-m", "venv", room / "venv", cwd=room)
    path = room / "venv/bin/python"
    succeed(path, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=room)
    return path


def test_the_wheel_carries_what_is_no_code(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "kmt/vms/kernels.toml",
        "kmt/vms/packages.txt",
        "kmt/vms/Vagrantfile",
        "kmt/vagrant/init.sh",
        "kmt/guest/init.sh",
        "kmt/profiles/6.1.json",
        "kmt/simulator/gates.toml",
        "kmt/py.typed",
        "harness/py.typed",
    ):
        assert name in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"kmt", "harness"}


def test_without_a_kernel_it_stays_out_of_the_way(python, tmp_path):
    (tmp_path / "test_x.py").write_text("def test_x(): pass\n")
    assert "1 passed" in succeed(python, "-m", "pytest", cwd=tmp_path)


def test_the_example_project_passes_in_a_real_kernel(python, tmp_path):
    project = shutil.copytree(EXAMPLE, tmp_path / "some project")
    said = succeed(python, "-m", "pytest", "--kernel", "6.1", "-p", "no:cacheprovider", cwd=project)
    assert "3 passed" in said
    head, row = next(
        (a, b) for a, b in zip(said.splitlines(), said.splitlines()[1:], strict=False) if a.startswith("kernel ")
    )
    assert "counted" in head
    assert row.startswith("6.1 ")
    assert row.rstrip().endswith("ok")


def test_the_examples_test_can_fail(python, tmp_path):
    """Its program counts one too few: the test sees it."""
    project = shutil.copytree(EXAMPLE, tmp_path / "broken")
    source = project / "bpf/tcp_counter.bpf.c"
    source.write_text(source.read_text().replace('SEC("kprobe/tcp_v4_connect")', 'SEC("kprobe/tcp_v6_connect")'))
    done = run(python, "-m", "pytest", "--kernel", "6.1", "-p", "no:cacheprovider", cwd=project)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 1 passed" in done.stdout


SIMULATED = """
import pytest
from harness.errors import FormatError
from harness.kernel_api import Feature, LoadOptions

def test_it_knows_what_5_15_has(kernel):
    assert kernel.release.startswith("5.15")
    assert (kernel.api.probe(Feature.RINGBUF), kernel.api.probe(Feature.KPROBE_MULTI)) == (True, False)

def test_what_is_no_object_is_refused_as_ever(kernel):
    with pytest.raises(FormatError):
        kernel.api.load("x", b"none", LoadOptions())

def test_of_a_machine(): raise AssertionError("it would run here")
"""


def test_a_simulated_kernel_comes_with_the_wheel(python, tmp_path):
    (tmp_path / "test_x.py").write_text(SIMULATED)
    said = succeed(python, "-m", "pytest", "--kernel", "5.15-simulated", "-p", "no:cacheprovider", cwd=tmp_path)
    assert "2 passed (simulated)" in said
    assert "1 not applicable" in said


def test_the_readme_shows_the_example_as_it_is():
    shown = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert shown.strip() in (EXAMPLE / "test_tcp_counter.py").read_text()
