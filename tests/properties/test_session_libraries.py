"""Rules of a session that are pushed again while processes hold what they matched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from proc_world import ProcWorld
from waiting import wait_for
from watcher_rig import Whole

from harness.ebpf.live import LiveKernel
from harness.ebpf.settings import BpfSettings
from harness.session.libraries import Libraries
from harness.session.settings import Watch
from harness.telemetry import Registry
from harness.watcher.registry import FileRegistry

KEPT = Watch(r"/libssl\.so")


@pytest.fixture
def world() -> Iterator[ProcWorld]:
    with ProcWorld() as world:
        for name in ("libssl.so.1", "libcrypto.so.1"):
            (world.files / name).touch()
        yield world


def test_a_library_whose_rule_is_pushed_again_is_counted_once(world: ProcWorld) -> None:
    metrics = Registry()
    libraries = Libraries(LiveKernel(), BpfSettings(Path("/none")), metrics)
    registry = FileRegistry("test", proc_root=str(world.root), metrics=metrics)
    whole = Whole(world, registry, tuple(libraries.rules((KEPT,))), metrics)
    world.begin(1)
    world.map(1, world.files / "libssl.so.1", "/libssl.so.1")
    world.map(1, world.files / "libcrypto.so.1", "/libcrypto.so.1")
    with whole.watcher:
        wait_for(lambda: whole.count("libraries") == 1)
        whole.watcher.set_rules(libraries.rules((Watch(r"/libcrypto\.so"), KEPT)))
        wait_for(lambda: whole.count("libraries") >= 2)
        whole.quiet()
        assert whole.count("libraries") == 2
        assert len(registry.traced()) == 2
        whole.watcher.set_rules(libraries.rules(()))
        wait_for(lambda: not registry.traced())
