"""A console that never stops: the disk, the memory, the processor and the guest all survive it."""

import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import guest, output, wait_for

from kmt.boot import consolelog
from kmt.boot.consolelog import CappedLog, Watch

pytestmark = pytest.mark.host_only

STOP = b"[    9.999999] Kernel panic - not syncing: at last\n"


@given(st.lists(st.binary(max_size=50)), st.integers(0, 100), st.integers(0, 100))
def test_the_log_keeps_both_ends_and_counts_the_rest(tmp_path_factory, pieces, head, tail):
    path = tmp_path_factory.mktemp("log") / "log"
    log = CappedLog(path, head=head, tail=tail)
    for piece in pieces:
        log.write(piece)
    log.close()
    whole, kept = b"".join(pieces), path.read_bytes()
    if len(whole) <= head + tail:
        assert kept == whole
    else:
        missing = b"\n[kmt: %d bytes of console left out here]\n" % (len(whole) - head - tail)
        assert kept == whole[:head] + missing + whole[len(whole) - tail :]


def test_a_full_disk_costs_the_log_only():
    log = CappedLog(Path("/dev/full"), head=100, tail=100)
    log.write(b"x" * 1000)
    log.flush()
    log.close()


@pytest.mark.parametrize("line", [b"y" * 79 + b"\n", b"y" * 80], ids=["lines", "no line breaks"])
def test_a_hundred_megabytes_at_once(tmp_path, monkeypatch, line):
    monkeypatch.setattr(consolelog, "HEAD", 1 << 20)
    monkeypatch.setattr(consolelog, "TAIL", 1 << 20)
    watch = Watch(tmp_path / "console.log")
    before = psutil.Process().memory_info().rss
    block = line * 10_000
    with open(watch.writing, "wb", buffering=0, closefd=False) as pipe:
        for _ in range(125):
            pipe.write(block)
        pipe.write(b"\n" + STOP)
    watch.started()
    watch.join(60)
    assert watch.console.panicked
    assert (tmp_path / "console.log").stat().st_size < (2 << 20) + 100
    assert (tmp_path / "console.log").read_bytes().endswith(STOP)
    assert psutil.Process().memory_info().rss - before < 64 << 20


def test_single_bytes_do_not_keep_the_reader_busy(tmp_path):
    watch = Watch(tmp_path / "console.log")
    everything, this_thread, begin = time.process_time(), time.thread_time(), time.monotonic()
    with open(watch.writing, "wb", buffering=0, closefd=False) as pipe:
        while time.monotonic() - begin < 2:
            pipe.write(b"z")
            time.sleep(0.0001)
    passed = time.monotonic() - begin
    reader = (time.process_time() - everything) - (time.thread_time() - this_thread)
    watch.started()
    watch.join(10)
    assert reader < passed / 4


def test_a_guest_that_floods_its_console_goes_on_working(tmp_path, monkeypatch):
    monkeypatch.setattr(consolelog, "HEAD", 64 << 10)
    monkeypatch.setattr(consolelog, "TAIL", 64 << 10)
    with guest(tmp_path) as (vm, link):
        flood = "while :; do cat /proc/kallsyms; done >/dev/console"
        output(link, "sh", "-c", f"setsid sh -c '{flood}' & sleep 1")  # time to leave this session
        wait_for(lambda: vm.console.stat().st_size >= 64 << 10)
        before = time.process_time(), time.monotonic()
        assert output(link, "echo", "still", "here") == (b"still here\n", 0)
        time.sleep(3)
        used, passed = time.process_time() - before[0], time.monotonic() - before[1]
        assert used < passed / 2
        assert vm.death() is None
        assert vm.console.stat().st_size <= 64 << 10
    assert 100 < vm.console.stat().st_size < (128 << 10) + 100
    assert b"bytes of console left out here" in vm.console.read_bytes()
