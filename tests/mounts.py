"""Real faults of a file system: directories hidden from one thread."""

import contextlib
import ctypes
import errno
import os
import time
from pathlib import Path

CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000


@contextlib.contextmanager
def hidden(*directories):
    """Empty directories over these, for this thread only: in a mount namespace of its own."""
    libc = ctypes.CDLL(None, use_errno=True)

    def done(status, what):
        if status:
            raise OSError(ctypes.get_errno(), what)

    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    at = os.open(".", os.O_RDONLY)
    try:
        done(libc.unshare(CLONE_NEWNS), "unshare")
        done(libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "mount")
        for directory in directories:
            if Path(directory).is_dir():
                done(libc.mount(b"none", directory.encode(), b"tmpfs", 0, None), directory)
        yield
    finally:
        # EINVAL: a thread that began meanwhile shares this one's directories; one that was joined may still be ending.
        for _ in range(1000):
            if not (status := libc.setns(before, CLONE_NEWNS)) or ctypes.get_errno() != errno.EINVAL:
                break
            time.sleep(0.01)
        done(status, "setns")
        os.fchdir(at)
        os.close(at)
        os.close(before)
