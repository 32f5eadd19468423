"""Vagrant's machines of this process: which are lent, how each comes up clean, how it goes.

Laws: a machine has one lessee at a time; a second guest of a row, at the same time, is a machine of its own (``6.1``,
``6.1-2``); each lessee gets one in which nobody has done anything. The first time that is ``up``; the second time it
is ``destroy`` and ``up``, and a snapshot of memory and disk, for a machine that was wanted twice will be wanted
again; from then on the snapshot. Whatever fails on the way is followed by one ``destroy`` and ``up``, which mends what
Vagrant gets wrong: a panicked guest that still says running, a domain that a failed ``up`` half removed, a snapshot
that is gone. The libvirt below them is started with the first of them and ends with this process.
"""

from __future__ import annotations

import atexit
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kmt.backends.vagrant_vm import Qemu, followed, qemu_of
from kmt.boot.consolelog import Watch
from kmt.config import Config
from kmt.deadline import Deadline
from kmt.errors import KmtError, VmError, VmNeverStartedError, VmPanickedError
from kmt.text import visible
from kmt.vagrant.cli import Vagrant, check_here
from kmt.vagrant.daemon import Session, libvirt
from kmt.vagrant.machines import Entry
from kmt.vagrant.words import StaleMachineError

CLEAN = "kmt-clean"
"""The snapshot's name."""
DESTROY_SECONDS = 60.0
END_SECONDS = 10.0


@dataclass
class Spot:
    """One machine, and what has become of it so far.

    ``mark``: in its QEMU's command line, and no other's. ``lent``: somebody has it.
    """

    entry: Entry
    mark: str
    lent: bool = True
    starts: int = 0
    saved: bool = False
    ssh_config: str = ""


class Machines:
    """All of this process, and the libvirt below them. ``OURS`` is the only one."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._starting = threading.Lock()
        self._spots: dict[str, Spot] = {}
        self._over = threading.Event()
        self._ready = threading.Event()
        self._thread: threading.Thread | None = None
        self._session: Session | None = None
        self._error: KmtError | None = None

    def session(self, config: Config) -> Session:
        """The libvirt and its command's environment, started where it is not. Raises KmtError."""
        check_here()
        with self._starting:
            if self._session is not None and self._session.daemon.poll() is not None:  # and its machines with it
                self.end()
                self._spots.clear()
            if self._session is None:
                self._ready.clear()
                self._over.clear()
                # What it starts dies with the thread that started it: one that is there as long as this process.
                self._thread = threading.Thread(target=self._hold, args=(config,), name="libvirt", daemon=True)
                self._thread.start()
                atexit.register(self.end)
            self._ready.wait()
            if self._session is None:
                raise self._error or VmNeverStartedError("libvirt did not start")
            return self._session

    def _hold(self, config: Config) -> None:
        try:
            with libvirt(config) as session:
                self._session = session
                self._ready.set()
                self._over.wait()
        except (KmtError, OSError) as error:  # OSError: in the middle of making its pool, say
            self._error = error if isinstance(error, KmtError) else VmNeverStartedError(f"libvirt: {error}")
        finally:
            self._session = None
            self._ready.set()

    def end(self) -> None:
        """End libvirt, and all machines with it."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(END_SECONDS)

    @contextmanager
    def lease(self, row: str, prefix: str, describe: Callable[[str], Entry]) -> Iterator[Spot]:
        """A machine for that row that nobody else has; ``describe`` writes it down for the Vagrantfile.

        ``prefix`` is what libvirt's names of machines begin with.
        """
        spot = self._take(row, prefix, describe)
        try:
            yield spot
        finally:
            spot.lent = False

    def _take(self, row: str, prefix: str, describe: Callable[[str], Entry]) -> Spot:
        with self._mutex:
            number = 1
            while (spot := self._spots.get(_name(row, number))) is not None and spot.lent:
                number += 1
            name = _name(row, number)
            entry = describe(name)
            if spot is None:
                spot = self._spots[name] = Spot(entry, f"guest={domain(prefix + name)},")
            if spot.entry.key != entry.key:  # made of something else: no snapshot of it is of use
                spot.saved = False
            if spot.entry.port != entry.port:  # it is in the snapshot, too
                spot.saved, spot.ssh_config = False, ""
            spot.entry, spot.lent = entry, True
            return spot


OURS = Machines()


@contextmanager
def running(
    vagrant: Vagrant, spot: Spot, watch: Watch, deadline: Deadline, *, snapshots: bool
) -> Iterator[tuple[Qemu | None, bool]]:
    """Have it up and clean: its QEMU, and whether it came out of a snapshot. It is switched off at the end.

    Raises KmtError, with the last words of the serial log where there are some.
    """
    spot.entry.serial.unlink(missing_ok=True)
    with followed(spot.entry.serial, watch):
        qemu = None
        try:
            with _panics_end_it(spot, watch):
                restored = _start(vagrant, spot, deadline, snapshots=snapshots)
            qemu = qemu_of(spot.mark)
            yield qemu, restored
        finally:
            _switch_off(vagrant, spot.entry, qemu or qemu_of(spot.mark))


def _start(vagrant: Vagrant, spot: Spot, deadline: Deadline, *, snapshots: bool) -> bool:
    """Whether it was restored."""
    name, first = spot.entry.name, spot.starts == 0
    spot.starts += 1
    if spot.saved:
        try:
            vagrant.restore(name, CLEAN, deadline)
            return True
        except VmError:
            spot.saved = False
    try:
        if not first:
            vagrant.destroy(name, deadline)
        vagrant.up(name, deadline)
    except StaleMachineError:
        vagrant.destroy(name, deadline)
        vagrant.up(name, deadline)
    if not first and snapshots:
        with suppress(KmtError):  # then the next one is destroyed and made again
            vagrant.save(name, CLEAN, deadline)
            spot.saved = True
    return False


def _switch_off(vagrant: Vagrant, entry: Entry, qemu: Qemu | None) -> None:
    """What is on its disk is nobody's: no shutdown is waited for."""
    gone = qemu.kill() if qemu is not None else False
    if qemu is not None:
        qemu.close()
    if not gone:
        with suppress(KmtError):
            vagrant.destroy(entry.name, Deadline(DESTROY_SECONDS))


def domain(name: str) -> str:
    """(pure) What libvirt calls a machine of that name: vagrant-libvirt leaves out all other characters."""
    return re.sub(r"[^-A-Za-z0-9_.]", "", name)


def _name(row: str, number: int) -> str:
    return row if number == 1 else f"{row}-{number}"


@contextmanager
def _panics_end_it(spot: Spot, watch: Watch) -> Iterator[None]:
    """While Vagrant waits for a machine, a panic ends that machine, and so the wait.

    Raises VmPanickedError then; of other failures what the console ends with is told, for the domain may be gone.
    """
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.2):
            if watch.panicked_at is not None and (qemu := qemu_of(spot.mark)) is not None:
                qemu.kill()
                qemu.close()

    thread = threading.Thread(target=look, name=f"panics of {spot.entry.name}", daemon=True)
    thread.start()
    try:
        yield
    except VmError as error:
        if watch.panicked_at is not None:
            raise VmPanickedError(str(watch.console.fatal)) from None
        words = _last_line(watch.path)
        if not words:
            raise
        raise type(error)(f"{error.message}; its console ends with: {words}", hint=error.hint) from None
    finally:
        over.set()
        thread.join()


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.is_file() else []
    return visible(next((line[-200:] for line in reversed(lines) if line), ""))
