"""Which helpers are for programs under the GPL only: each kernel is asked for all of them, and so is what simulates it."""

import ctypes
import errno

import pytest

from kmt.simulator import inside
from kmt.simulator.uapi import GPL_ONLY, HELPERS

pytestmark = pytest.mark.thorough

KINDS = {"socket_filter": 1, "kprobe": 2, "sched_cls": 3, "tracepoint": 5, "xdp": 6, "perf_event": 7, "raw_tracepoint": 17}
"""``enum bpf_prog_type``: types that lend all of them but a handful."""
WORDS = "cannot call GPL-restricted function from non-GPL compatible program"


def test_the_same_helpers_are_for_the_gpl_only():
    said = set()
    for kind in KINDS.values():
        for number, name in enumerate(HELPERS[1:], 1):
            if WORDS in inside.load(kind, 0, 0, number, licence=b"Proprietary"):
                assert ctypes.get_errno() in (0, errno.EINVAL)
                said.add(name)
    assert len(said) > 20
    print(sorted(said - GPL_ONLY), sorted(GPL_ONLY - said))
    assert said <= GPL_ONLY
