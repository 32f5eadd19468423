"""The same situations in the running kernel and in the simulated one of its series: each step must come to the same.

Drawn are settings, faults, edits, calls and processes; compared are the stage that wins, error classes and numbers, the
sort of objection, values, events, losses and metrics. What is known to differ stands in ``known_differences.toml``.
Without more words these are the same few each time; ``KMT_SITUATIONS`` says how many others to look for, and then all
are counted before the test fails; ``differences.txt`` among the test's artifacts shows each. Another stage that wins
fails it in any case.
"""

import os
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import situations
from chain_faults import FAULTS, Spoilable, copied, without
from hypothesis import HealthCheck, given, settings
from worlds import Real, Simulated

from harness.ebpf.btf import SYSFS
from harness.ebpf.live import LiveKernel
from kmt.errors import CannotTellError
from kmt.simulator import gates, uapi
from kmt.simulator.derive import KernelFacts
from kmt.simulator.faults import Faults
from kmt.simulator.kernel import SimulatedKernel
from kmt.simulator.profile import recorded
from kmt.simulator.types import Types

pytestmark = [pytest.mark.thorough, pytest.mark.requires("btf", "root")]

SITUATIONS = int(os.environ.get("KMT_SITUATIONS", "0"))
KNOWN = Path(__file__).with_name("known_differences.toml")
WANTED = 0.995
DRAWN = (
    (situations.chains(FAULTS), 10),
    (situations.loads(), 15),
    (situations.uses(), 10),
    (situations.reports(), 6),
    (situations.chosen, 3),
    (situations.registered, 6),
)
"""Each with how many of fifty it is."""


class Rig:
    """Both worlds, and the tree of built programs that a situation finds."""

    def __init__(self, bpf_dir, room):
        self.bpf_dir, self.room = bpf_dir, room
        pristine = copied(bpf_dir, room / "bpf")
        (pristine / "garbage.btf").write_bytes(b"\x9f\xeb" + bytes(range(256)))
        self.tree = Spoilable(pristine, room / "spoilt")
        # The symbol table is written anew at each look, which takes an emulated guest a second and a half.
        self.live = LiveKernel(proc=room / "proc")
        self.live.proc_root.mkdir()
        (self.live.proc_root / "kallsyms").write_bytes(Path("/proc/kallsyms").read_bytes())
        self.release = os.uname().release
        self.types = Types.parse(SYSFS.read_bytes())
        self.series = ".".join(self.release.split(".")[:2])
        profiles = recorded()
        self.profile = profiles.get(self.series) or KernelFacts(self.series, profiles, gates.load())
        self.cpus = self.live.cpus
        self._kernels = {}

    def simulated(self, faults):
        """The simulated kernel with these faults; what it found out about objects it keeps."""
        if faults not in self._kernels:
            self._kernels[faults] = SimulatedKernel(
                self.profile, types=self.types, proc_root=Path("/proc"), faults=faults, cpus=self.cpus
            )
        return self._kernels[faults]

    def both(self, situation):
        """What came of it in the real world and in the simulated one: None where that cannot tell."""
        if not isinstance(situation, situations.Chain):
            return self._both(situation, self.bpf_dir, hidden=False)
        self.tree.restore()
        place = self.tree.place
        broken = zip(FAULTS.values(), situation.faults, strict=True)
        away = [directory for (spoil, _), how in broken if how for directory in spoil(place, how)]
        with without(away, self.release):
            return self._both(situation, place, hidden="/sys/kernel/btf" in away)

    def _both(self, situation, place, hidden):
        real = situation.play(Real(self.live), place)
        faults = Faults(no_btf=hidden, denied=getattr(situation, "denied", False))
        try:
            return real, situation.play(Simulated(self.simulated(faults)), place)
        except CannotTellError:
            return real, None


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    return Rig(Path(os.environ["KMT_BPF_DIR"]), tmp_path_factory.mktemp("differential"))


def known(series, situation):
    """Is it one that is known to differ?"""
    rows = tomllib.loads(KNOWN.read_text())["difference"]
    return any(series in row["kernels"] and row["situation"] in repr(situation) for row in rows)


def test_both_come_to_the_same(rig, record_property):
    tally, apart, winners = Counter(), [], []

    def compare(situation):
        real, simulated = rig.both(situation)
        same = "cannot tell" if simulated is None else real == simulated
        if same is False and known(rig.series, situation):
            same = "known"
        tally[same] += 1
        tally[type(situation).__name__, same] += 1
        if same is False:
            apart.append(shown(situation, real, simulated))
            if winner(real) != winner(simulated):
                winners.append(apart[-1])
        assert SITUATIONS or same is not False, apart[-1]

    for drawn, share in DRAWN:
        number = max(share, share * SITUATIONS // 50)
        few = settings(max_examples=number, derandomize=not SITUATIONS, suppress_health_check=list(HealthCheck))
        few(given(drawn)(compare))()
    compared = tally[True] + tally[False] + tally["known"]
    agreement = tally[True] / compared
    record_property("kmt.agreement", f"{agreement:.1%} of {compared}")
    record_property("kmt.untold", tally["cannot tell"])
    if apart:
        record_property("kmt.apart", len(apart))
        Path(os.environ["KMT_ARTIFACTS"], "differences.txt").write_text("\n\n".join(apart))
    assert not winners, "\n".join(winners)
    assert agreement >= WANTED, "\n".join([f"{agreement:.2%} of {compared}: {dict(tally)}", *apart[:40]])
    assert tally["cannot tell"] <= compared / 10


@pytest.mark.parametrize(
    ("enumeration", "prefix", "names"),
    [("bpf_func_id", "BPF_FUNC_", uapi.HELPERS), ("bpf_map_type", "BPF_MAP_TYPE_", uapi.MAP_TYPES)],
)
def test_numbers_mean_what_the_kernel_means(rig, enumeration, prefix, names):
    numbers = {name.removeprefix(prefix).lower(): number for name, number in rig.types.enumeration(enumeration).items()}
    shared = set(names) & numbers.keys()
    assert len(shared) >= 28
    assert {name: names.index(name) for name in shared} == {name: numbers[name] for name in shared}


def winner(steps):
    """The stage that won, if the situation is one of the fallback chain and any did."""
    started = next((step[1] for step in steps if step[0] == "start"), None)
    return started[0] if isinstance(started, tuple) else None


def shown(situation, real, simulated):
    """The first step that differs."""
    steps = list(zip(real, simulated, strict=False))
    at = next((n for n, (a, b) in enumerate(steps) if a != b), len(steps))
    return f"{situation}: step {at}\n  real:      {real[at:][:1]}\n  simulated: {simulated[at:][:1]}"
