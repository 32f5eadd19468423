"""The guest's image when something is wrong: words that help, and nothing left behind."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from kmt import config
from kmt.config import Config
from kmt.errors import ImageError
from kmt.roots import image

pytestmark = pytest.mark.host_only

ROOT = Path(__file__).parents[2]
BUILD = textwrap.dedent("""
    from pathlib import Path
    from kmt.roots import image
    from kmt.config import Config
    image.ensure(Config(Path()), lambda label, done, total: print(label, flush=True))
""")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def left_in(cache):
    """What lies in the room of images, half-made things too."""
    room = cache / "v1/images"
    return sorted(p.name for p in room.iterdir()) if room.is_dir() else []


def test_a_package_that_is_not_there_is_named(cache):
    with pytest.raises(ImageError) as caught:
        image.ensure(Config(ROOT, packages=("no-such-package-here",)))
    assert "Unable to locate package no-such-package-here" in str(caught.value)
    assert "[tool.kmt] packages" in caught.value.hint
    assert left_in(cache) == []


def test_a_requirement_without_a_wheel_is_named(tmp_path):
    pins = ["pytest==0.0.1.dev404"]
    done = subprocess.run(image.pip_command(tmp_path, "3.13", pins), capture_output=True, text=True, check=False)
    assert done.returncode
    assert "pytest==0.0.1.dev404" in str(image.pip_failure(done.stderr))


def test_a_mirror_that_is_down_is_said_to_be(cache, monkeypatch):
    monkeypatch.setenv("KMT_MIRROR", "http://127.0.0.1:1/debian")
    with pytest.raises(ImageError, match=r"127\.0\.0\.1") as caught:
        image.ensure(Config(ROOT))
    assert "apt-get update" in caught.value.hint
    assert left_in(cache) == []


def test_no_mmdebstrap_says_which_package_to_install(cache, monkeypatch):
    monkeypatch.setattr("kmt.proc.which", lambda program: None if program == "mmdebstrap" else f"/usr/bin/{program}")
    with pytest.raises(ImageError, match=r"mmdebstrap is not installed .*package mmdebstrap"):
        image.ensure(Config(ROOT))


def test_no_space_says_where_and_what_to_do(tmp_path):
    """On a file system of 24 MB, in a mount namespace of its own."""
    script = f"mount -t tmpfs -o size=24m tmpfs {tmp_path} && exec {sys.executable} -c '{BUILD}'"
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]
    done = subprocess.run(
        ["unshare", *user, "--mount", "sh", "-c", script],
        capture_output=True, text=True, check=False, env={**os.environ, "KMT_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 1
    assert "ImageError" in done.stderr
    assert f"free some space in {tmp_path}/cache, or set KMT_CACHE" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_a_build_that_is_cut_off_leaves_no_image_no_process_and_no_mount(cache, number):
    child = subprocess.Popen(
        [sys.executable, "-c", BUILD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
    )
    with child:
        for line in child.stdout:
            if "extracting archives" in line:
                break
        family = psutil.Process(child.pid).children(recursive=True)
        assert any("mmdebstrap" in " ".join(p.cmdline()) for p in family)
        child.send_signal(number)
    _, alive = psutil.wait_procs([p for p in family if _runs(p)], timeout=10)
    assert [p for p in alive if _runs(p)] == []
    assert str(cache) not in Path("/proc/self/mountinfo").read_text()
    left = left_in(cache)
    assert all(name.startswith(".") for name in left)
    if number == signal.SIGINT:
        assert left == []
    else:
        with pytest.raises(ImageError):  # the next build of that image begins by removing what a killed one left
            _fail_at_once(cache)
        assert left_in(cache) == []


def _runs(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _fail_at_once(cache):
    """Build with a mirror that refuses: the same image, for a mirror is no part of its name."""
    os.environ["KMT_MIRROR"] = "http://127.0.0.1:1/debian"
    try:
        image.ensure(Config(Path()))
    finally:
        del os.environ["KMT_MIRROR"]


def test_the_projects_own_image_is_what_its_manifest_says_and_is_made_once():
    settings = config.load(ROOT)
    made = image.ensure(settings)
    began = time.monotonic()
    before = made.stat().st_mtime_ns
    assert image.ensure(settings) == made
    assert made.stat().st_mtime_ns == before
    assert time.monotonic() - began < 5, "the second time builds nothing"
    record = image.manifest(made)
    assert record["sha256"] == hashlib.sha256(made.read_bytes()).hexdigest()
    assert record["python"]["pytest"] == pytest.__version__
    assert {"python3", "libbpf1", "python3-bpfcc"} <= set(record["debian"])
    assert json.dumps(record)
