"""Situations that a kernel can be put into: drawn as plain values, played in a world, told as plain values.

A world (``worlds``) is a kernel behind ``KernelApi`` and how programs run in it. What is told of an error is its class,
its number and what sort of objection it is, by the words of the verifier or libbpf; those words themselves change with
every version.
"""

import errno
import re
from contextlib import ExitStack
from dataclasses import dataclass, field

from chain_table import TABLE
from hypothesis import strategies as st

from harness.ebpf import core
from harness.ebpf.settings import BpfSettings
from harness.errors import BpfError, FormatError, HarnessError, VerifierError
from harness.kernel_api import Feature, LoadOptions, MapEdit, MapType
from harness.telemetry import Registry
from harness.tracer import kprobes, probes
from harness.tracer.settings import TracerSettings
from harness.watcher import program
from harness.watcher.registry import FileRegistry
from kmt.errors import CannotTellError

OBJECTIONS = {
    "no such helper": r"invalid func |unknown func |cannot use helper",
    "no map for that helper": r"cannot pass map_type",
    "behind a map's value": r"invalid access to map value",
    "behind the stack": r"stack|invalid zero-sized",
    "no such argument": r"-th argument|invalid bpf_context access|is no pointer to a struct",
    "a relocation": r"CO-RE relocation|0xbad2310",
}
LOADING = "loading object "
REFUSALS = {
    "no right to load": r"Couldn't load trivial BPF program",
    "no BTF of the kernel": r"Error loading vmlinux BTF",
    "a map": r"map '([^']+)': failed to create",
    "no function to attach to": r"prog '([^']+)': failed to find kernel BTF type ID of '([^']+)'",
    "an ambiguous relocation": r"relocation decision ambiguity",
    "a program": r"prog '([^']+)': BPF program load failed",
}
"""What libbpf says where no verifier's log tells more; in groups, whom it names."""


def objection(words):
    """What sort of thing the verifier says."""
    return next((name for name, pattern in OBJECTIONS.items() if re.search(pattern, words)), words[:60])


def refused(words):
    """What sort of thing libbpf says of an object that it cannot load, and whom it names."""
    for name, pattern in REFUSALS.items():
        if found := re.search(pattern, words):
            return [name, *found.groups()]
    return [words[:60]]


def told(error):
    """An error as plain values; what could not be told is raised, though a chain took it for a stage that lost."""
    for each in (error, error.__cause__):
        if isinstance(each, CannotTellError):
            raise each
    kind = type(error).__name__
    cause = [told(error.__cause__)] if isinstance(error.__cause__, Exception) and kind == "FallbackError" else []
    if isinstance(error, VerifierError):
        return [kind, error.program, errno.errorcode.get(error.code, error.code), objection(error.log or error.reason)]
    if isinstance(error, BpfError):
        what = refused(error.message) if error.operation.startswith(LOADING) else []
        return [kind, error.operation, errno.errorcode.get(error.code, error.code), *what]
    words = str(error).partition(":")[0] if isinstance(error, FormatError) or cause else str(error)
    return [kind, words, *cause]


def attempt(steps, name, do, *given):
    """One step: what came of it is told; True if it went well."""
    try:
        value = do(*given)
    except CannotTellError:
        raise
    except (HarnessError, OSError) as error:
        steps.append((name, *told(error)))
        return False
    steps.append((name, value))
    return True


# Loading, attaching.

HOOKS = ("tracepoint__syscalls__sys_enter_openat", "tracepoint__syscalls__sys_exit_openat")
FUNCTION = "__x64_sys_getpgid"
OBJECTS = {
    "shared-libraries": (HOOKS[:1], HOOKS, ("tracepoint__syscalls__sys_exit_openat2",), ("no_such_program",)),
    "hooks": tuple(
        (name,)
        for name in ("on_kprobe", "on_fentry", "on_fexit", "on_tracepoint", "on_uprobe", "on_kprobe_multi",
                     "on_uprobe_multi", "on_missing")
    ),
    "maps": (("obey",),),
    "tracer-fentry": tuple(
        (name,)
        for name in ("tcp_connect", "tcp_close_exit", "tcp_recvmsg_exit_4", "tcp_recvmsg_exit_5", "tcp_recvmsg_exit_6",
                     "inet_csk_accept_exit_2", "inet_csk_accept_exit_4", "tcp_sendpage_exit")
    ),
}  # fmt: skip
PROBES = {probe.program: probe for hook in probes.HOOKS for probe in hook}
MAPS = {
    "shared-libraries": ("open_at_args", "shared_libraries", "counters", "map_err_telemetry_map"),
    "hooks": ("hits",),
    "maps": ("an_array", "a_percpu_array", "a_hash", "a_percpu_hash", "an_lru_hash", "an_lru_percpu_hash",
             "perf_events", "ring", "orders", "payload"),
    "tracer-fentry": ("conn_stats", "conn_close_event", "telemetry", "tcp_stats"),
}  # fmt: skip
CONSTANTS = {"shared-libraries": "ringbuffers_enabled", "tracer-fentry": "ringbuffers_enabled", "hooks": "process",
             "maps": "process"}  # fmt: skip
HUGE = (1 << 32) - 1
EDITS = st.one_of(
    st.builds(MapEdit, max_entries=st.sampled_from([0, 1, 3, 16, 4096, HUGE])),
    st.builds(MapEdit, value_size=st.sampled_from([0, 1, 8, 4096, 1 << 31])),
    st.builds(MapEdit, key_size=st.sampled_from([0, 4, 8, 600])),
    st.builds(MapEdit, type=st.sampled_from(MapType)),
    st.just(MapEdit(MapType.RINGBUF, 0, 0, 4096)),
    st.just(MapEdit(MapType.RINGBUF, 0, 0, 5000)),
    st.just(MapEdit(MapType.PERF_EVENT_ARRAY, 4, 4, 0)),
    st.just(MapEdit(max_entries=-1)),
)


@dataclass(frozen=True)
class Load:
    """An object into the kernel, its program attached, taken off, attached again."""

    object: str
    programs: tuple
    edits: dict = field(default_factory=dict)
    constants: dict = field(default_factory=dict)
    sized: bool = True
    own_word: bool = True
    """Whether programs on functions are loaded with what they expect, or with what the kernel has."""
    denied: bool = False

    def play(self, world, place):
        kernel, steps = world.kernel, []
        image = (place / "co-re" / f"{self.object}.o").read_bytes()
        edits = TracerSettings().map_edits() if self.object == "tracer-fentry" and self.sized else {}
        with ExitStack() as stack:
            if self.denied:
                stack.enter_context(world.denied())

            def load():
                wanted = {**edits, **self.edits}
                options = LoadOptions(self.programs, self.constants, wanted, signatures=self._signatures(kernel))
                kept.append(stack.enter_context(kernel.load(self.object, image, options)))
                return sorted(kept[0].maps), kept[0].programs

            kept = []
            if not attempt(steps, "load", load):
                return steps
            (loaded,) = kept
            for name in self.programs:
                attempt(steps, f"attach {name}", loaded.attach, name)
                loaded.detach(name)
                attempt(steps, f"attach {name} again", loaded.attach, name)
        return steps

    def _signatures(self, kernel):
        wanted = {}
        for name in self.programs:
            if name in PROBES:
                wanted[name] = PROBES[name].function, PROBES[name].signature
            elif name in ("on_fentry", "on_fexit"):
                wanted[name] = FUNCTION, None
        if wanted and not (self.own_word and all(signature for _, signature in wanted.values())):
            known = kernel.signatures({function for function, _ in wanted.values()})
            wanted = {name: (function, known.get(function)) for name, (function, _) in wanted.items()}
        return wanted


@st.composite
def loads(draw):
    name = draw(st.sampled_from([*OBJECTS, "shared-libraries", "maps"]))
    edited = draw(st.none() | st.sampled_from(MAPS[name]))
    constants = draw(st.just({}) | st.just({CONSTANTS[name]: 1}) | st.just({"no_such_constant": 1}))
    return Load(
        name,
        draw(st.sampled_from(OBJECTS[name])),
        {edited: draw(EDITS)} if edited else {},
        constants,
        draw(st.sampled_from([True, True, True, False])),
        draw(st.booleans()),
        draw(st.sampled_from([False, False, False, False, True])),
    )


# Maps and events.

KEYS = st.integers(0, 9)
OPERATIONS = ("put", "get", "delete", "items", "update by program", "lookup by program")


@dataclass(frozen=True)
class Use:
    """What user space and a program do to a map, and at the end all that is in it."""

    map: str
    entries: int
    operations: tuple
    OBJECT = "maps"

    def play(self, world, place):
        steps, cpus = [], world.kernel.cpus
        image = (place / "co-re/maps.o").read_bytes()
        edits = {self.map: MapEdit(max_entries=self.entries)}
        with world.loaded("maps", image, edits) as loaded:
            used = loaded.maps[self.map]
            wide, per_cpu = "array" not in self.map, "percpu" in self.map
            for name, number in self.operations:
                key = number.to_bytes(8 if wide else 4, "little")
                value = (number + 1).to_bytes(8, "little") * (cpus if per_cpu else 1)
                do = {
                    "put": (used.put, key, value),
                    "get": (used.get, key),
                    "delete": (used.delete, key),
                    "items": (entries, used),
                    "update by program": (world.order, loaded, 2, number, 1),
                    "lookup by program": (world.order, loaded, 1, number, 0),
                }[name]
                attempt(steps, f"{name} {number}", *do)
            attempt(steps, "at the end", entries, used)
        return steps


def entries(used):
    """All of them, in an order of ours: the map's own is nobody's business."""
    return sorted(used.items())


@st.composite
def uses(draw):
    used = draw(st.sampled_from(MAPS["maps"][:6]))
    names = OPERATIONS if used == "an_lru_hash" else OPERATIONS[:4]
    most = draw(st.sampled_from([10, 10, 30]))
    operations = draw(st.lists(st.tuples(st.sampled_from([*names, "put"]), KEYS), max_size=most))
    if draw(st.booleans()):
        operations = [("put", n) for n in range(draw(st.integers(1, 12)))] + operations
    return Use(used, draw(st.integers(1, 8)), tuple(operations))


@dataclass(frozen=True)
class Report:
    """Events through a buffer that is read now and then."""

    ring: bool
    pages: int
    sizes: tuple
    """Of each event; None: read all."""

    def play(self, world, place):
        steps = []
        image = (place / "co-re/maps.o").read_bytes()
        edits = {"ring": MapEdit(max_entries=4096 * self.pages)}
        with world.loaded("maps", image, edits) as loaded:
            buffer = loaded.buffer("ring" if self.ring else "perf_events", self.pages)
            loaded.maps["payload"].put(bytes(4), bytes(range(256)))
            sent = []
            for size in (*self.sizes, None, 8, None):
                if size is None:
                    attempt(steps, "read", received, buffer, sent)
                elif attempt(steps, f"event of {size}", world.order, loaded, 4 if self.ring else 3, 0, size):
                    sent += [size] * (steps[-1][1] == 0)
        return steps


def received(buffer, sent):
    """Each record's length and what was sent of it (perf's padding is what stood there before); what was lost."""
    records = buffer.read(0)
    assert len(records) == len(sent)
    told = [(len(record), record[:size]) for record, size in zip(records, sent, strict=True)]
    sent.clear()
    return told, buffer.lost


@st.composite
def reports(draw):
    size = draw(st.sampled_from([0, 1, 7, 8, 100, 128, 255, 256]))
    runs = draw(st.lists(st.tuples(st.integers(0, 40), st.just(size) | st.integers(0, 256)), max_size=3))
    sizes = [s for count, each in runs for s in [*[each] * count, None]]
    return Report(draw(st.booleans()), draw(st.sampled_from([1, 1, 2])), tuple(sizes))


# What the kernel says of itself; which probes are chosen.


@dataclass(frozen=True)
class Choose:
    """Features, symbols, signatures, and the choice of probes that follows."""

    settings: TracerSettings
    features: tuple

    def play(self, world, place):
        kernel, steps = world.kernel, []
        for feature in self.features:
            attempt(steps, f"probe {feature}", kernel.probe, feature)
        names = kprobes.functions() | kprobes.TRACEPOINTS
        attempt(steps, "kprobes", lambda: kprobes.choose(kernel.symbols(names), self.settings))
        asked = {probe.function for hook in probes.wanted(self.settings) for probe in hook}
        attempt(steps, "probes", lambda: [p.program for p in probes.choose(kernel.signatures(asked), self.settings)])
        return steps


chosen = st.builds(
    Choose,
    st.builds(TracerSettings, st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    st.lists(st.sampled_from(Feature), max_size=3, unique=True).map(tuple),
)


# The registry, with real uprobes.

FILES = {"library": 4096, "small": 10, "empty": 0, "missing": None, "directory": -1}


@dataclass(frozen=True)
class Register:
    """Processes come and go with files; each file's activation is a uprobe at ``offset``."""

    events: tuple
    offset: int

    def play(self, world, place):
        steps, metrics = [], Registry()
        here = place.parent / "registry"
        for pid in range(1, 5):
            root = here / str(pid) / "root"
            if not root.is_dir():
                root.mkdir(parents=True)
                (root / "directory").mkdir()
                for name, size in FILES.items():
                    if size is not None and size >= 0:
                        (root / name).write_bytes(bytes(size))
        image = (place / "co-re/hooks.o").read_bytes()
        with world.kernel.load("hooks", image, LoadOptions(["on_uprobe"])) as loaded:
            links = {}

            def activate(file):
                links[file.id] = loaded.attach_uprobe("on_uprobe", file.host_path, self.offset)

            def deactivate(file):
                if file.id in links:
                    links.pop(file.id).close()

            registry = FileRegistry("differential", proc_root=str(here), metrics=metrics)
            for what, pid, name in self.events:
                if what == "register":
                    attempt(steps, f"{pid} {name}", registry.register, f"/{name}", pid, activate, deactivate)
                elif what == "unregister":
                    attempt(steps, f"{pid} ends", registry.unregister, pid)
                else:
                    attempt(steps, "clear", registry.clear)
                steps.append(("hooked", len(links)))
            steps.append(("traced", sorted((t.path, t.pids) for t in registry.traced())))
            steps.append(("metrics", sorted((metric.name, metric.value) for metric in metrics.metrics())))
            registry.clear()
        return steps


registered = st.builds(
    Register,
    st.lists(
        st.tuples(
            st.sampled_from(["register", "register", "register", "unregister", "clear"]),
            st.integers(1, 4),
            st.sampled_from(sorted(FILES)),
        ),
        max_size=12,
    ).map(tuple),
    st.sampled_from([0, 5, 100]),
)


# The fallback chain.

SWITCHES = ("enable_co_re", "enable_runtime_compiler", "allow_runtime_compiled_fallback", "allow_prebuilt_fallback")


@dataclass(frozen=True)
class Chain:
    """A module by the first stage that works; ``faults`` by stage: see ``chain_faults``."""

    bits: str
    faults: tuple
    garbage: bool
    ringbuffers: bool
    denied: bool

    def play(self, world, place):
        steps = []
        wanted = dict(zip(SWITCHES, (bit == "1" for bit in self.bits), strict=True))
        garbage = place / "garbage.btf"
        settings = BpfSettings(
            place, btf_path=garbage if self.garbage else None, enable_ringbuffers=self.ringbuffers, **wanted
        )
        core.reset()
        try:
            with ExitStack() as stack:
                if self.denied:
                    stack.enter_context(world.denied())
                attempt(steps, "start", lambda: self._run(world.kernel, settings, steps))
            steps.append(("codes", core.result_codes().get("shared-libraries")))
        finally:
            core.reset()
        return steps

    def _run(self, kernel, settings, steps):
        with program.start(kernel, settings) as running:
            for each in running.attempts:
                steps.append((each.stage, each.tried, each.won, told(each.error) if each.error else each.reason))
            steps.append(("errors", running.errors.maps(), running.errors.helpers()))
            return running.stage, running.ringbuf


def chains(faults):
    """Over those of ``chain_faults``."""
    return st.builds(
        Chain,
        st.sampled_from(sorted(TABLE)),
        st.tuples(*(st.none() | st.sampled_from(names) for _, names in faults.values())),
        st.booleans(),
        st.booleans(),
        st.sampled_from([False, False, False, True]),
    )
