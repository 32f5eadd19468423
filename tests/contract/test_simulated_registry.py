"""Runs of the registry over real processes of this machine, and over the same in a simulated kernel's ``/proc``.

Drawn are processes (some in a chroot) that open and map libraries, end, or stay as zombies; files that are replaced,
renamed and deleted under them; and what the watcher does about it. Each activation is a simulated kernel's uprobe, in
both (real ones: ``tests/properties/test_differential.py``). After each step both must have come to the same: outcome,
error, who holds what, metrics.
"""

import ctypes
import errno
import os
import re
import shutil
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waiting import wait_for

from harness.errors import BpfError, HarnessError
from harness.kernel_api import LoadOptions
from harness.processes import procfs
from harness.telemetry import Registry
from harness.watcher.errors import AttachError
from harness.watcher.registry import FileRegistry
from harness.watcher.rules import Rule
from harness.watcher.tracking import Tracking
from kmt import build, config
from kmt.simulator.kernel import SimulatedKernel
from kmt.simulator.proc_tree import ProcTree
from kmt.simulator.profile import recorded

pytestmark = [
    pytest.mark.host_only,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may look at what others have mapped, and change its root"),
]

ROOT = Path(__file__).parents[2]
FEW = 25
NAMES = ("liba.so", "libb.so", "small.so", "readme")
"""The third is too short for its uprobe."""
OFFSET = 50
SIZES = {"small.so": 10}
ROOMS = ("", "inner")
"""Where processes have their root: the directory of all libraries is theirs, or they are in a chroot."""
RULES = ((r"lib[ab]\.so", r"small\.so"), (r"liba\.so",), (r"small\.so|/readme$",), ())
PROT, MAP_PRIVATE = 5, 2


class Child:
    """A real process that maps and opens what it is told to."""

    def __init__(self, root):
        mine, theirs = socket.socketpair()
        self.pid = os.fork()
        if not self.pid:
            mine.close()
            _obey(theirs, root)
        theirs.close()
        self._socket, self._asked, self._reaped = mine, False, False
        assert mine.recv(1) == b"."

    def told(self, word, path):
        self._socket.send(f"{word} {path}".encode())
        assert self._socket.recv(1) == b"."

    def die(self):
        """Ends, and is not asked how."""
        self._leave()
        wait_for(lambda: procfs.status("/proc", self.pid).state == "Z")

    def end(self):
        self._leave()
        if not self._reaped:
            os.waitpid(self.pid, 0)
        self._reaped = True

    def _leave(self):
        """Said in a word: later children have a copy of the socket, so that its end would not be seen."""
        if not self._asked:
            self._socket.send(b"leave")
            self._socket.close()
        self._asked = True


def _obey(orders, root):
    """What such a process does, all its life."""
    try:
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        if root:
            os.chroot(root)
            os.chdir("/")
        orders.send(b".")
        while order := orders.recv(4096):
            word, _, path = order.decode().partition(" ")
            if word == "leave":
                break
            fd = os.open(path, os.O_RDONLY)
            if word == "map":
                assert libc.mmap(None, ctypes.c_size_t(4096), PROT, MAP_PRIVATE, fd, ctypes.c_long(0)) % 4096 == 0
                os.close(fd)
            orders.send(b".")
    finally:
        os._exit(0)


class RealProcesses:
    """Of the running kernel."""

    root = Path("/proc")

    def __init__(self, place):
        self._children = {}

    def begin(self, root):
        child = Child(root)
        self._children[child.pid] = child
        return child.pid

    def takes(self, pid, word, root, file):
        self._children[pid].told(word, f"/{file.relative_to(root)}" if root else file)

    def die(self, pid):
        self._children[pid].die()

    def end(self, pid):
        self._children[pid].end()

    def moved(self, file, to=None):
        """The kernel knows."""

    def close(self):
        for child in self._children.values():
            child.end()


class TreesProcesses:
    """Of a simulated kernel's tree."""

    def __init__(self, place):
        self._tree = ProcTree(place / "proc", release="6.1.0")
        self.root = self._tree.root
        self._last = 100
        self.die, self.end, self.moved = self._tree.die, self._tree.end, self._tree.moved

    def begin(self, root):
        self._last += 1
        self._tree.begin(self._last, root=root)
        return self._last

    def takes(self, pid, word, root, file):
        (self._tree.map if word == "map" else self._tree.open)(pid, file)

    def close(self):
        """Its files go with the directory."""


class World:
    """Processes, files, and what the watcher makes of them on one kernel."""

    def __init__(self, processes, kernel, image, place):
        self.files = place / "files"
        for room in ROOMS:
            (self.files / room).mkdir(parents=True, exist_ok=True)
            for name in NAMES:
                self._fresh(self.files / room / name)
        self.processes = processes(place)
        self._rooms, self._alive, self._pids, self._names = {}, set(), {}, {}
        self._metrics = Registry()
        root = str(self.processes.root)
        self._registry = FileRegistry("differential", proc_root=root, metrics=self._metrics)
        self._links = {}
        with ExitStack() as stack:
            stack.callback(self.processes.close)
            self._loaded = stack.enter_context(kernel.load("hooks", image, LoadOptions(["on_uprobe"])))
            stack.callback(self._registry.clear)
            self._stack = stack.pop_all()
        self._tracking = Tracking(self._registry, self._rules(0), self._at_once, proc_root=root, metrics=self._metrics)

    def play(self, steps):
        with self._stack:
            return [(step, *self._outcome(step), self._state()) for step in steps]

    def _outcome(self, step):
        word, label, *more = step
        try:
            return "done", getattr(self, f"do_{word}")(label, *more)
        except AttachError as error:
            return "AttachError", error.attached, sorted(self._plain(each) for each in error.errors)
        except (HarnessError, OSError) as error:
            return type(error).__name__, self._plain(error)

    def _plain(self, error):
        """Its words, without what only one of the worlds has: numbers, addresses, directories."""
        if isinstance(error, BpfError):
            return errno.errorcode.get(error.code, error.code)
        words = str(error).replace(str(self.files), "FILES").replace(f"{self.processes.root}/", "PROC/")
        words = re.sub(r"map_files/[0-9a-f-]+|fd/\d+", "LINK", words)
        words = re.sub(r"dev/inode \S+", "FILE", words)
        return re.sub(r"\b\d+\b", lambda found: self._names.get(int(found[0]), found[0]), words)

    def _state(self):
        traced = sorted(
            (re.sub(r"^.*/", "", file.path), sorted(self._names[pid] for pid in file.pids))
            for file in self._registry.traced()
        )
        blocked = len(self._registry.blocklist.entries())
        metrics = sorted((metric.name, metric.value) for metric in self._metrics.metrics() if metric.value)
        return traced, blocked, len(self._links), metrics

    def _rules(self, number):
        return tuple(Rule.of(pattern, self._activate, self._deactivate) for pattern in RULES[number])

    def _activate(self, file):
        self._links[file.id] = self._loaded.attach_uprobe("on_uprobe", file.host_path, OFFSET)

    def _deactivate(self, file):
        if file.id in self._links:
            self._links.pop(file.id).close()

    @staticmethod
    def _at_once(job):
        job()
        return True

    def _fresh(self, path):
        new = self.files / "fresh"
        new.write_bytes(bytes(SIZES.get(path.name, 4096)))
        new.replace(path)

    # What happens.

    def do_begin(self, label, room):
        if label in self._alive:
            return
        if label in self._pids:
            self.processes.end(self._pids[label])
        root = self.files / room if room else None
        pid = self.processes.begin(root)
        self._pids[label], self._rooms[label] = pid, root
        self._names[pid] = f"{label}.{len(self._names)}"
        self._alive.add(label)

    def do_take(self, label, word, room, name):
        """It maps or opens a library, its own or one of the whole."""
        file = (self._rooms.get(label) or self.files / room) / name
        if label in self._alive and file.exists():
            self.processes.takes(self._pids[label], word, self._rooms[label], file)

    def do_die(self, label):
        if label in self._alive:
            self._alive.discard(label)
            self.processes.die(self._pids[label])

    def do_end(self, label):
        if label in self._pids:
            self._alive.discard(label)
            self.processes.end(self._pids[label])

    def do_replace(self, label, room, name):
        file = self.files / room / name
        if file.exists():
            self.processes.moved(file)
        self._fresh(file)

    def do_delete(self, label, room, name):
        file = self.files / room / name
        if file.exists():
            file.unlink()
            self.processes.moved(file)

    def do_rename(self, label, room, name):
        file, to = self.files / room / name, self.files / room / f"libb.so{'' if name != 'libb.so' else '.1'}"
        if file.exists():
            if to.exists():
                self.processes.moved(to)
            file.rename(to)
            self.processes.moved(file, to)

    # What the watcher does.

    def do_opened(self, label, room, name):
        if label in self._pids:
            root = self._rooms[label]
            self._tracking.opened(self._pids[label], f"/{name}" if root else str(self.files / room / name))

    def do_look(self, label):
        if label in self._pids:
            self._tracking.look_at(self._pids[label])

    def do_attach(self, label):
        if label in self._pids:
            self._tracking.attach(self._pids[label])

    def do_detach(self, label):
        if label in self._pids:
            self._tracking.detach(self._pids[label])

    def do_ended(self, label):
        if label in self._pids:
            self._tracking.ended(self._pids[label])

    def do_sweep(self, label):
        self._tracking.sweep()

    def do_rules(self, label, number):
        self._tracking.rules = self._rules(number)


labels, names, rooms = st.sampled_from("pqr"), st.sampled_from(NAMES), st.sampled_from(ROOMS)
words = st.sampled_from(["map", "map", "open"])
happens = st.one_of(
    st.tuples(st.just("take"), labels, words, rooms, names),
    st.tuples(st.sampled_from(["replace", "delete", "rename"]), labels, rooms, names),
    st.tuples(st.sampled_from(["end", "die"]), labels),
    st.tuples(st.just("begin"), labels, rooms),
)
watched = st.one_of(
    st.tuples(st.sampled_from(["look", "attach", "detach", "ended", "sweep"]), labels),
    st.tuples(st.sampled_from(["look", "attach"]), labels),
    st.tuples(st.just("opened"), labels, rooms, names),
    st.tuples(st.just("rules"), labels, st.integers(0, len(RULES) - 1)),
)


@st.composite
def runs(draw):
    """Processes with a few libraries each; then what happens to them, and what is done about it."""
    steps = []
    for label in "pqr"[: draw(st.integers(1, 3))]:
        steps.append(("begin", label, draw(rooms)))
        steps += [("take", label, draw(words), draw(rooms), draw(names)) for _ in range(draw(st.integers(1, 3)))]
    for _ in range(draw(st.integers(2, 8))):
        steps += [*draw(st.lists(happens, max_size=1)), draw(watched)]
    return steps


def after(word, *then):
    """A process has a library, and then something happens."""
    return [("begin", "p", "inner"), ("take", "p", word, "inner", "liba.so"), ("look", "p"), *then, ("look", "p")]


ALWAYS = (
    after("map", ("replace", "p", "inner", "liba.so")),
    after("map", ("rename", "p", "inner", "liba.so"), ("attach", "p")),
    after("map", ("delete", "p", "inner", "liba.so"), ("opened", "p", "inner", "liba.so")),
    after("open", ("replace", "p", "inner", "liba.so")),
    after("map", ("die", "p"), ("opened", "p", "inner", "liba.so"), ("ended", "p")),
    after("map", ("end", "p"), ("sweep", "p"), ("attach", "p")),
    after("map", ("take", "p", "map", "inner", "small.so"), ("attach", "p"), ("attach", "p"), ("detach", "p")),
    after("map", ("rules", "p", 2), ("detach", "p"), ("detach", "p")),
)
"""Runs that each find something in the tree that is not as in the kernel, if it is not."""


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Plays a run in both."""
    image = build.build(config.load(ROOT)).objects["hooks"].read_bytes()
    room = tmp_path_factory.mktemp("registry")

    def play(steps):
        shutil.rmtree(room)
        kernel = SimulatedKernel(recorded()["6.12"], proc_root=room)
        return [
            World(processes, kernel, image, room / processes.__name__).play(steps)
            for processes in (RealProcesses, TreesProcesses)
        ]

    return play


def compare(both, steps):
    for at, (real, tree) in enumerate(zip(*both(steps), strict=True)):
        assert real == tree, f"step {at} of {steps}\n  real: {real}\n  tree: {tree}"


@pytest.mark.parametrize("steps", ALWAYS, ids=lambda steps: " ".join(step[0] for step in steps[3:-1]))
def test_these_come_to_the_same(both, steps):
    compare(both, steps)


@settings(max_examples=FEW, suppress_health_check=list(HealthCheck))
@given(runs())
def test_whatever_happens_comes_to_the_same(both, steps):
    compare(both, steps)
