"""A file system that cannot map files shared: FUSE with direct I/O, in a mount namespace of its own.

``unshare -m python tests/direct_io.py DIRECTORY`` mounts it there and prints what ``ram.check_place`` says of it.
Only what that asks for is served (linux/fuse.h, protocol 7.31): files are made, grow, and are empty.
"""

import ctypes
import errno
import os
import signal
import stat
import struct
import sys
import threading
from pathlib import Path

from kmt.errors import NoPlaceError
from kmt.snapshot import ram

FORGET, GETATTR, SETATTR, UNLINK, STATFS, RELEASE, FLUSH, INIT, CREATE = 2, 3, 4, 10, 17, 18, 25, 26, 35
DIRECT_IO, SIZE = 1 << 0, 1 << 3
PR_SET_PDEATHSIG = 1
FREE = struct.pack("<5Q4I24x", 1 << 30, 1 << 30, 1 << 30, 9, 9, 4096, 255, 4096, 0)


class Server:
    """Answers one request after the other; knows files by their number and their size."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}

    def attributes(self, node: int) -> bytes:
        kind = stat.S_IFDIR | 0o755 if node == 1 else stat.S_IFREG | 0o600
        times, owner = (0,) * 6, (os.getuid(), os.getgid(), 0, 4096, 0)
        return struct.pack("<3Q3Q3I7I", node, self.sizes.get(node, 0), 0, *times, kind, 1, *owner)

    def answer(self, operation: int, node: int, body: bytes) -> bytes | int:
        """What a request gets: bytes, or a number of errno."""
        if operation == INIT:
            return struct.pack("<4I2H2I2HI28x", 7, 31, 0, 0, 1, 1, 4096, 1, 1, 0, 0)
        if operation == STATFS:
            return FREE
        if operation == CREATE:
            new = len(self.sizes) + 2
            self.sizes[new] = 0
            return (
                struct.pack("<4Q2I", new, 1, 3600, 0, 0, 0)
                + self.attributes(new)
                + struct.pack("<QII", 1, DIRECT_IO, 0)
            )
        if operation == SETATTR and struct.unpack_from("<I", body)[0] & SIZE:
            self.sizes[node] = struct.unpack_from("<Q", body, 16)[0]
        if operation in (GETATTR, SETATTR):
            return struct.pack("<QII", 0, 0, 0) + self.attributes(node)
        if operation in (UNLINK, RELEASE, FLUSH):
            return b""
        return errno.ENOENT if operation == 1 else errno.ENOSYS

    def serve(self, fd: int) -> None:
        """Until the file system is gone."""
        while True:
            _, operation, unique, node = struct.unpack_from("<IIQQ", said := os.read(fd, 1 << 17))
            if operation == FORGET:
                continue
            found = self.answer(operation, node, said[40:])
            error, body = (-found, b"") if isinstance(found, int) else (0, found)
            os.write(fd, struct.pack("<IiQ", 16 + len(body), error, unique) + body)


def main() -> None:
    """Mount, ask, say."""
    place = Path(sys.argv[1])
    fd = os.open("/dev/fuse", os.O_RDWR)
    words = f"fd={fd},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"kmt", bytes(place), b"fuse", 0, words):
        raise OSError(ctypes.get_errno(), "mount")
    if (pid := os.fork()) == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        Server().serve(fd)
    threading.Timer(20, os._exit, [1]).start()  # nobody may hang in a file system that does not answer
    try:
        ram.check_place(place, 1 << 20)
        print("a good place")
    except NoPlaceError as error:
        print(error)
    os.kill(pid, signal.SIGKILL)
    os._exit(sys.stdout.flush() or 0)


if __name__ == "__main__":
    main()
