"""Two worlds to play situations in: the running kernel, and a simulated one. In both a program can be given orders.

An order (``fixtures/programs/maps.bpf.c``) is carried out by the program of ``maps`` at the next getpgid: 1 looks a key
up in the LRU hash, 2 puts it in, 3 and 4 report so many bytes of ``payload`` through the perf or the ring buffer.
"""

import ctypes
import errno
import os
import struct
from contextlib import contextmanager, nullcontext
from pathlib import Path

from harness.kernel_api import LoadOptions
from kmt.simulator.stores import Refused

ORDER = struct.Struct("<QQQq")
LRU = "an_lru_hash"
UNPRIVILEGED = Path("/proc/sys/kernel/unprivileged_bpf_disabled")
OBEY = "obey"
_CAPABILITY_VERSION_3 = 0x20080522
libc = ctypes.CDLL(None, use_errno=True)


class Real:
    """The running kernel, seen from one processor."""

    def __init__(self, kernel):
        self.kernel = kernel

    @contextmanager
    def loaded(self, name, image, edits):
        """The object, its program attached."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        try:
            options = LoadOptions([OBEY], {"process": os.getpid()}, edits)
            with self.kernel.load(name, image, options) as loaded:
                loaded.attach(OBEY)
                yield loaded
        finally:
            os.sched_setaffinity(0, before)

    def order(self, loaded, operation, key, size):
        """What the helper returned."""
        loaded.maps["orders"].put(bytes(4), ORDER.pack(operation, key, size, 0))
        libc.getpgid(0)
        *_, result = ORDER.unpack(loaded.maps["orders"].get(bytes(4)))
        loaded.maps["orders"].put(bytes(4), bytes(ORDER.size))
        return result

    @contextmanager
    def denied(self):
        """This thread without its capabilities, on a kernel that wants them, for as long as it is."""
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        had, none = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
        assert libc.capget(header, had) == 0
        none[1], none[4] = had[1], had[4]  # permitted: so that they can be had back
        allowed = UNPRIVILEGED.read_text()
        UNPRIVILEGED.write_text("2")
        assert libc.capset(header, none) == 0
        try:
            yield
        finally:
            assert libc.capset(header, had) == 0
            UNPRIVILEGED.write_text(allowed)


class Simulated:
    """A simulated kernel; who calls has made it one that denies."""

    def __init__(self, kernel):
        self.kernel = kernel

    @contextmanager
    def loaded(self, name, image, edits):
        with self.kernel.load(name, image, LoadOptions([OBEY], {"process": 1}, edits)) as loaded:
            loaded.attach(OBEY)
            yield loaded

    def order(self, loaded, operation, key, size):
        if operation in (3, 4):
            payload = loaded.maps["payload"].get(bytes(4))[:size]
            return loaded.inject("perf_events" if operation == 3 else "ring", payload)
        store, key = loaded.store(LRU), key.to_bytes(8, "little")
        if operation == 1:
            return -errno.ENOENT if store.lookup(key, 0) is None else 0
        try:
            store.update(key, size.to_bytes(8, "little"), 0)
        except Refused as refused:
            return -refused.code
        return 0

    def denied(self):
        return nullcontext()
