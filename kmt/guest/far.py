"""The first program on a machine that is reached over SSH: says what is there, takes the agent in, leaves nothing.

It arrives as text on its own standard input, says one line of facts, is sent a tar (a line with its length before
it; length 0: the facts were all), and runs the agent of it, whose frames are all that comes after. Laws: everything
that is written lies in one new directory, which goes when this ends; whatever the agent started goes with it,
whether the host said goodbye or has vanished. Only where the line has three more words (name, random bytes in
hexadecimal, Unix time) is the machine all ours: it is made like any guest (``furnish.py``), and tests have its own
paths. Until it has seen the version it is written for any Python 3.6.
"""

import ctypes
import io
import json
import os
import platform
import select
import shutil
import signal
import sys
import sysconfig
import tarfile
import tempfile
import time
import traceback
from pathlib import Path

MARK = "kmt-far "
OLDEST = 0x030B0000
"""Python 3.11, as ``sys.hexversion`` has it."""
GRACE = 2.0
"""Seconds that the agent has to notice that the host has gone."""
PATIENCE = 5.0
"""Seconds for its processes to die; one that belongs to somebody else, or to a stuck kernel, may not."""
ENDING = (signal.SIGTERM, signal.SIGHUP)
"""What sshd, and whoever shuts the machine down, may send; both at once, too."""
_PR_SET_CHILD_SUBREAPER = 36
_POLLRDHUP = 0x2000


def main() -> int:
    """From the facts to the end of the agent. Its status; 0 when only the facts were wanted."""
    say_facts()
    told = sys.stdin.buffer.readline().decode().split()
    size = int(told[0]) if told else 0
    if not size:
        return 0
    os.umask(0o077)
    for number in ENDING:
        signal.signal(number, stop)
    room = ""
    try:
        room = tempfile.mkdtemp(prefix="kmt-far-")
        take(room, size)
        return keep(room, told[1:])
    except OSError as error:
        print(f"kmt: {error}", file=sys.stderr)
        return 3
    finally:
        be_deaf()
        end_all()
        if room:
            shutil.rmtree(room, ignore_errors=True)


def stop(*_: object) -> None:
    """End, once: what follows cleans up, and is not to be ended in its turn."""
    be_deaf()
    sys.exit(143)


def be_deaf() -> None:
    """Hear no more signals that would end this process."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


def say_facts() -> None:
    """One line on standard output; what login scripts have printed there may stand before it."""
    facts = {
        "python": platform.python_version(),
        "release": platform.release(),
        "machine": platform.machine(),
        "uid": os.getuid(),
        "extension": sysconfig.get_config_var("EXT_SUFFIX"),
        "packages": packages() if sys.hexversion >= OLDEST else {},
    }
    sys.stdout.write(f"\n{MARK}{json.dumps(facts)}\n")
    sys.stdout.flush()


def packages() -> "dict[str, str]":
    """The installed distributions and their versions."""
    from importlib import metadata

    return {str(found.metadata["Name"]): str(found.version) for found in metadata.distributions()}


def take(room: str, size: int) -> None:
    """Unpack the tar that comes on standard input into ``room``. OSError when there is no space, or too little came."""
    data = sys.stdin.buffer.read(size)
    if len(data) < size:
        raise OSError("the connection ended before the agent had arrived")
    more = {"filter": "tar"} if hasattr(tarfile, "tar_filter") else {}
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(room, **more)  # type: ignore[arg-type]


def keep(room: str, ours: "list[str]") -> int:
    """Run the agent in a child until it ends, or the host has gone; its exit status."""
    # Processes whose parents die become ours, so that none can get away.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            status = agent(room, ours)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    watch = select.poll()
    ended = os.pidfd_open(pid)
    watch.register(ended, select.POLLIN)
    watch.register(0, _POLLRDHUP)  # and POLLHUP, of which one is always told
    if 0 in [number for number, _ in watch.poll()]:  # the host has gone
        watch.unregister(0)
        if not watch.poll(GRACE * 1000):
            os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0xFF


def agent(room: str, ours: "list[str]") -> int:
    """Be the agent: frames on the descriptors that were standard input and output, words on standard error.

    ``ours``: see above; empty where the machine is somebody else's.
    """
    here, there = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    library = str(Path(room) / "lib")
    search = [library, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ.update(
        KMT_CHANNEL_FD=f"{here},{there}",
        KMT_ROOM="" if ours else room,
        KMT_ARTIFACTS=f"{'' if ours else room}/run/kmt/artifacts",
        PYTHONPATH=os.pathsep.join(search),
    )
    sys.dont_write_bytecode = True
    sys.path[:0] = [library]
    if ours:
        from kmt_guest.furnish import furnish  # type: ignore[import-not-found]

        furnish(ours[0], bytes.fromhex(ours[1]), float(ours[2]))
    from kmt_guest.agent import main as serve  # type: ignore[import-not-found]

    print("kmt: ready", file=sys.stderr, flush=True)
    return int(serve())


def end_all() -> None:
    """Kill all that is below this process, and what comes up from below that, until nothing is left."""
    end = time.monotonic() + PATIENCE
    below = children()
    while below and time.monotonic() < end:
        for pid in below:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        for pid in below:
            try:
                os.waitpid(pid, os.WNOHANG)
            except OSError:
                continue
        time.sleep(0.01)
        below = children()


def children() -> "list[int]":
    """The pids of this process's children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except (OSError, IndexError):
            continue
        if parent == str(os.getpid()):
            found.append(int(stat.parent.name))
    return found


if __name__ == "__main__":
    raise SystemExit(main())
