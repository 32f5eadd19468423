"""How what counts in the kernel is sized, and taken out: off, read a last time, out, whatever is refused by then.

The object here is a stand-in that writes down what is done to it. Real ones: tests/kernel.
"""

from __future__ import annotations

import os
import ssl
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.ebpf import event_program
from harness.ebpf.error_telemetry import HELPER_ERRORS, MAP_ERRORS
from harness.ebpf.event_program import EventModule, EventProgram
from harness.ebpf.fallback import Stage
from harness.ebpf.live import LiveKernel
from harness.ebpf.loading import Loaded
from harness.ebpf.settings import BpfSettings
from harness.errors import AssetError, BpfError
from harness.kernel_api import LoadOptions, MapEdit
from harness.telemetry import Registry
from harness.watcher import program as libraries
from harness.watcher import tls
from harness.watcher.identity import FilePath, PathIdentifier
from kmt.simulator.lru import BATCH, Lru

SETTINGS = BpfSettings(Path("/none"), enable_ringbuffers=False)
MODULE = EventModule("module", ("first", "second"), "events", 8, 4096)


class Table(dict[bytes, bytes]):
    """A map; its object notes each reading, and may have lost the right to read."""

    def __init__(self, owner: Object, name: str) -> None:
        super().__init__()
        self.owner, self.name = owner, name

    def get(self, key: bytes, default: Any = None) -> Any:
        self.owner.done.append(f"read {self.name}")
        if self.owner.refuses:
            raise BpfError(f"lookup in map {self.name}", 1)
        return super().get(key)

    put = dict.__setitem__


class Object:
    """An object in the kernel, as far as it is closed."""

    programs = ("first", "second")

    def __init__(self) -> None:
        self.done: list[str] = []
        self.edits: Mapping[str, MapEdit] = {}
        self.refuses = False
        self.maps = {name: Table(self, name) for name in ("counters", MAP_ERRORS, HELPER_ERRORS)}
        self.maps["counters"][bytes(4)] = struct.pack("<5Q", 1, 2, 3, 4, 5)

    def buffer(self, name: str, pages: int) -> None: ...

    def attach(self, program: str) -> None: ...

    def detach(self, program: str) -> None:
        self.done.append(f"detach {program}")

    def attach_uprobe(self, program: str, file: str, offset: int) -> Object:
        return Place(self)

    def missed(self) -> int:
        return 7

    def close(self) -> None:
        self.done.append("close")


class Place(Object):
    """Where a uprobe was attached."""

    def __init__(self, owner: Object) -> None:
        self.owner = owner

    def close(self) -> None:
        self.owner.done.append("take off")


class Kernel(LiveKernel):
    def __init__(self, loaded: Object) -> None:
        super().__init__()
        self.loaded = loaded

    @property
    def cpus(self) -> int:
        return 64

    def load(self, name: str, image: bytes, options: LoadOptions) -> Any:
        self.loaded.edits = options.map_edits
        return self.loaded


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Object:
    """What every module loads here, by the first stage."""
    for module in (event_program, tls):
        monkeypatch.setattr(
            module, "load_module", lambda _k, _s, _m, start: Loaded(start(b"", LoadOptions()), Stage.CORE, None, ())
        )
    return Object()


def events(loaded: Object) -> EventProgram:
    return event_program.start(Kernel(loaded), SETTINGS, MODULE)


def probes(loaded: Object, metrics: Registry) -> tls.TlsProbes:
    """With a library that they are attached to."""
    assert ssl.OPENSSL_VERSION
    mapped = Path("/proc/self/maps").read_text().splitlines()
    path = next(line.split()[-1] for line in mapped if "/libssl" in line)
    probes = tls.TlsProbes(Kernel(loaded), SETTINGS, metrics=metrics)
    probes.activate(FilePath(PathIdentifier.of_file(path), path, os.getpid()))
    return probes


def test_a_program_counts_until_it_is_off_and_is_read_before_it_is_out(loaded: Object) -> None:
    program = events(loaded)
    loaded.done.clear()
    program.close()
    program.close()
    assert loaded.done[:3] == ["detach first", "detach second", "read counters"]
    assert loaded.done[-1] == "close"
    assert loaded.done.count("close") == 1
    assert (program.counted(), program.missed()) == (struct.pack("<5Q", 1, 2, 3, 4, 5), 7)


def test_tls_programs_are_off_before_they_are_read_and_read_before_they_are_out(loaded: Object) -> None:
    metrics = Registry()
    running = probes(loaded, metrics)
    loaded.done.clear()
    running.close()
    running.close()
    first = loaded.done.index("read counters")
    assert set(loaded.done[:first]) == {"take off"}
    assert loaded.done[-1] == "close"
    assert loaded.done.count("close") == 1
    assert [metric.value for metric in metrics.metrics()] == [1, 2, 3, 4, 5]


def test_programs_are_taken_out_though_their_counts_may_not_be_read(
    loaded: Object, caplog: pytest.LogCaptureFixture
) -> None:
    """By a process that has given CAP_BPF away, say."""
    program, running = events(loaded), probes(loaded, Registry())
    loaded.refuses = True
    program.close()
    assert loaded.done[-1] == "close"
    loaded.done.clear()
    running.close()
    assert loaded.done[-1] == "close"
    assert caplog.text.count("what was counted last cannot be read: lookup in map counters: EPERM") == 2


@pytest.mark.parametrize("ringbuffers", [True, False])
def test_calls_under_way_have_room_on_every_processor(loaded: Object, ringbuffers: bool) -> None:
    settings = replace(SETTINGS, enable_ringbuffers=ringbuffers)
    with libraries.start(Kernel(loaded), settings):
        assert loaded.edits["open_at_args"] == MapEdit(max_entries=64 * 256)
        assert ("shared_libraries" in loaded.edits) <= ringbuffers
    with tls.TlsProbes(Kernel(loaded), settings, processes=5, metrics=Registry()):
        assert loaded.edits == {"tls_calls": MapEdit(max_entries=64 * 256), "tls_traffic": MapEdit(max_entries=5)}


@pytest.mark.parametrize("cpus", [1, 2, 8, 9, 16, 64, 256])
def test_no_processor_drops_its_own_newest_call(cpus: int) -> None:
    """As the kernel's lists work, which hand a processor 128 free entries at a time."""
    for least in (libraries.CALLS, tls.CALLS):
        size = MapEdit.lru(cpus, least).max_entries
        assert size is not None
        assert size >= least
        assert dropped(size, cpus) == 0
    assert (dropped(1024, cpus) > 0) is (cpus > 8), "what it was, on more than 8"


def dropped(size: int, cpus: int) -> int:
    """Of two calls that begin on each processor."""
    gone: list[bytes] = []
    lru = Lru(size, cpus, gone.append, BATCH)
    for cpu in range(cpus):
        for call in range(2):
            lru.take(b"%d %d" % (cpu, call), cpu)
    return len(gone)


def test_an_object_of_another_version_is_refused_and_leaves_nothing(loaded: Object) -> None:
    for name in (HELPER_ERRORS, MAP_ERRORS):
        del loaded.maps[name]
        with pytest.raises(AssetError, match=rf"object module has no map .*{name}.*another version"):
            events(loaded)
        assert loaded.done == ["close"]
        loaded.done.clear()
