"""The keeper's own process: owns guests, lends them, ends those that nobody wanted for a while.

Laws: a guest is lent to one at a time and only when it was given back whole; every guest lives in the thread that
launched it (QEMU dies with that thread), is made by the settings of the lessee that it was launched for, and ends
when it idles longer than the limit, dies, or the keeper stops; a keeper without guests and lessees ends itself. Only
this user can connect: the socket lies in a private directory.
"""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

from kmt import backends
from kmt.backends.base import Backend, Vm
from kmt.deadline import Deadline
from kmt.errors import KmtError
from kmt.guest.wire import Kind
from kmt.keeper.messages import SOCKET, Connection, KeeperError, Wanted, address, requested
from kmt.run.link import Link
from kmt.runs import Run

TICK = 0.2
LINGER = 10.0
"""Seconds that a keeper without guests waits for a lessee at least."""
FOREVER = 10 * 365 * 86400.0
"""Seconds: a kept guest has no deadline of its own, its lessees have."""


class Guest:
    """One guest and its thread. ``lessee`` is the connection that has it now."""

    def __init__(self, name: str, wanted: Wanted, backend: Backend, run: Run) -> None:
        self.name, self.wanted, self._backend = name, wanted, backend
        self.lessee: Connection | None = None
        self.idle_since = time.monotonic()
        self.vm: Vm | None = None
        self.error: KmtError | None = None
        self.ended = threading.Event()
        self.ready = threading.Event()
        self.gone = threading.Event()
        self._run = run
        self._thread = threading.Thread(target=self._live, daemon=True)

    def start(self) -> None:
        """Boot it; ``ready`` is set when it is up or has failed (``error``)."""
        self._thread.start()

    def join(self, seconds: float) -> None:
        """Wait for its end."""
        self._thread.join(seconds)

    def note(self, detail: str) -> None:
        """Say in the register what it does."""
        self._run.update(self.name, phase="kept", detail=detail)

    def _live(self) -> None:
        kernel, machine, backend = self.wanted.kernel, self.wanted.machine, self._backend
        self._run.update(self.name, phase="booting")
        try:
            boot = Deadline(120 * backend.deadline_factor)
            with backend.launch(kernel, machine, self._run.kernel_dir(self.name), Deadline(FOREVER)) as vm:
                self._run.update(self.name, console=vm.console, vm_pid=vm.pid)
                link = Link(vm, boot, factor=backend.deadline_factor, cancel=self.ended)
                link.hello()
                if not vm.restored:  # the first lessee waits for this once, instead of every one for its part of it
                    link.send(Kind.WARM, {"modules": []})
                    link.receive(Kind.DONE)
                self.vm = vm
                self.ready.set()
                self._watch(vm)
                if self.lessee is None and vm.death() is None:
                    link.goodbye()
        except KmtError as error:
            self.error = error
        finally:
            self.gone.set()
            self.ready.set()
            reason = str(self.error) if self.error else "ended"
            self._run.update(self.name, phase="done", detail=reason, outcome="ended")

    def _watch(self, vm: Vm) -> None:
        """Until it dies or is ended; tells its lessee of a death."""
        while not self.ended.wait(TICK):
            death = vm.death()
            if death is not None:
                self.error = death
                if self.lessee is not None:
                    told = {"message": death.message, "hint": death.hint, "kind": type(death).__name__}
                    with suppress(OSError):
                        self.lessee.send({"death": told})
                return


class Keeper:
    """Guests by what they are. ``serve`` is the process's life."""

    def __init__(self, run: Run, idle_seconds: float) -> None:
        self._run = run
        self._idle = idle_seconds
        self._guests: list[Guest] = []
        self._backends: dict[tuple[str, str, str], Backend] = {}
        self._mutex = threading.Lock()
        self._lessees = 0
        self._busy = time.monotonic()
        self.stopping = threading.Event()

    def serve(self) -> None:
        """Lend until told to stop, or until nothing is left to lend."""
        with socket.socket(socket.AF_UNIX) as listener:
            with address(self._run.dir) as path:
                listener.bind(f"{path}.new")
            fresh = self._run.dir / f"{SOCKET}.new"
            fresh.chmod(0o600)
            listener.listen()
            fresh.rename(self._run.dir / SOCKET)  # whoever finds it is answered
            listener.settimeout(TICK)
            while not self.stopping.is_set() and not self._tidy():
                with suppress(TimeoutError):
                    stream, _ = listener.accept()
                    stream.setblocking(True)
                    threading.Thread(target=self._lend, args=(Connection(stream),), daemon=True).start()
        with self._mutex:
            guests = list(self._guests)
        for guest in guests:
            guest.ended.set()
        for guest in guests:
            guest.join(15.0)

    def _tidy(self) -> bool:
        """End guests that have idled long enough; True when nothing is left and nothing came for that long."""
        now = time.monotonic()
        with self._mutex:
            self._guests = [guest for guest in self._guests if not guest.gone.is_set()]
            for guest in self._guests:
                if guest.lessee is None and guest.ready.is_set() and now - guest.idle_since > self._idle:
                    guest.ended.set()
            return not self._guests and not self._lessees and now - self._busy > max(self._idle, LINGER)

    def _lend(self, lessee: Connection) -> None:
        """One conversation, from the request to the end of the lease."""
        with self._mutex:
            self._lessees += 1
        try:
            asked = lessee.receive()
            if asked is not None:
                self._lease(lessee, requested(asked[0]))
        except KmtError as error:
            with suppress(OSError):
                lessee.send({"error": {"message": error.message, "hint": error.hint}})
        except OSError:
            pass  # the lessee has gone; its guest was seen to
        finally:
            with self._mutex:
                self._lessees -= 1
                self._busy = time.monotonic()
            lessee.close()

    def _lease(self, lessee: Connection, wanted: Wanted) -> None:
        guest = self._free(lessee, wanted)
        whole = False
        try:
            guest.ready.wait()
            if guest.error is not None or guest.vm is None:
                raise guest.error or KeeperError(f"{guest.name} has ended")
            guest.note("in use")
            vm = guest.vm
            about = {"console": str(vm.console), "pid": vm.pid, "accelerator": vm.accelerator, "name": guest.name}
            lessee.send({"guest": about}, vm.channel.fileno())
            said = lessee.receive()
            whole = said is not None and said[0].get("release") is True
        finally:
            with self._mutex:
                guest.lessee, guest.idle_since = None, time.monotonic()
            if whole:
                guest.note("idle")
                lessee.send({"released": True})
            else:
                guest.ended.set()

    def _free(self, lessee: Connection, wanted: Wanted) -> Guest:
        """An idle guest of that kind, or a new one, taken for the lessee."""
        with self._mutex:
            for guest in self._guests:
                usable = guest.ready.is_set() and not guest.ended.is_set() and not guest.gone.is_set()
                if guest.lessee is None and usable and guest.wanted.kind == wanted.kind:
                    guest.lessee = lessee
                    return guest
            names = {guest.name for guest in self._guests}
            kernel = wanted.kernel.name
            free = (kernel if n == 1 else f"{kernel}-{n}" for n in range(1, len(names) + 2))
            name = next(name for name in free if name not in names)
            guest = Guest(name, wanted, self._backend(wanted), self._run)
            guest.lessee = lessee
            self._guests.append(guest)
        guest.start()
        return guest

    def _backend(self, wanted: Wanted) -> Backend:
        which = wanted.backend, wanted.accelerator, wanted.identity
        if which not in self._backends:
            made = backends.get(wanted.backend, config=wanted.settings, accel=wanted.accelerator)
            self._backends[which] = made
        return self._backends[which]
