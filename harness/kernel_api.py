"""(pure) All that the harness needs of a kernel, as protocols: nothing else in it touches one.

``harness/ebpf/live.py`` answers from the running kernel; a simulated kernel answers from data. A probe has three
answers: True, False, and None for "could not tell", which is never treated as False without saying so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol


class Feature(StrEnum):
    """What a kernel may or may not have."""

    BTF = "btf"
    """The kernel carries its own type information."""
    RINGBUF = "ringbuf"
    """Maps of type BPF_MAP_TYPE_RINGBUF."""
    FENTRY = "fentry"
    """Programs on the entry and exit of kernel functions (BPF trampoline)."""
    KPROBE_MULTI = "kprobe_multi"
    """Programs on many kernel functions at once."""
    UPROBE_MULTI = "uprobe_multi"
    """Programs on many functions of a file at once."""
    OPENAT2 = "openat2"
    """The system call."""


class MapType(StrEnum):
    """Types that a map edit may turn a map into."""

    PERF_EVENT_ARRAY = "perf_event_array"
    RINGBUF = "ringbuf"


_LRU_ENTRIES_PER_CPU = 256


@dataclass(frozen=True)
class MapEdit:
    """What to change of a map before it is made; None leaves a value as the object has it."""

    type: MapType | None = None
    key_size: int | None = None
    value_size: int | None = None
    max_entries: int | None = None

    @classmethod
    def lru(cls, cpus: int, least: int) -> MapEdit:
        """The size of an LRU hash that every CPU writes to: at least ``least`` entries.

        Before commit d4adf1c9ee77 each CPU sets 128 free entries aside, and one that finds none left drops the newest
        entry of its own, each time. So there are 128 more for each.
        """
        return cls(max_entries=max(least, cpus * _LRU_ENTRIES_PER_CPU))


@dataclass(frozen=True)
class Signature:
    """A kernel function's parameters and result as C types without qualifiers: ``struct sock *``, ``size_t``."""

    parameters: tuple[str, ...]
    result: str

    def __str__(self) -> str:
        return f"{self.result} ({', '.join(self.parameters) or 'void'})"


class Engine(StrEnum):
    """Who loads a program."""

    LIBBPF = "libbpf"
    """What is loaded is an ELF object."""
    BCC = "bcc"
    """What is loaded is C in BCC's dialect, compiled on the way."""


@dataclass(frozen=True)
class LoadOptions:
    """How an object is to be loaded.

    ``programs``: the names to load, None for all. ``constants``: read-only globals by name. ``kernel_btf``: a BTF
    file to use instead of the running kernel's own. ``signatures``: what programs expect of the kernel functions
    they are attached to, checked before anything is loaded: program name to (function, expected signature).
    ``engine``: who loads it.
    """

    programs: Collection[str] | None = None
    constants: Mapping[str, int] = field(default_factory=dict)
    map_edits: Mapping[str, MapEdit] = field(default_factory=dict)
    kernel_btf: Path | None = None
    signatures: Mapping[str, tuple[str, Signature]] = field(default_factory=dict)
    engine: Engine = Engine.LIBBPF


class Map(Protocol):
    """A map of a loaded object; keys and values are bytes as the kernel has them."""

    name: str

    def get(self, key: bytes) -> bytes | None:
        """The value (for per-CPU maps, of all CPUs, one after another), or None."""
        ...

    def put(self, key: bytes, value: bytes) -> None:
        """Set it."""
        ...

    def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        ...

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every entry that stays while this runs, once; those that come or go meanwhile, perhaps."""
        ...


class EventBuffer(Protocol):
    """The reading end of a perf event array or ring buffer."""

    lost: int
    """Events that the kernel said it dropped (perf only; count in the program where it must be exact)."""

    def read(self, seconds: float = 0.1) -> list[bytes]:
        """All that has arrived, in order for each CPU; only if that is nothing, waits up to ``seconds`` for some."""
        ...

    def close(self) -> None:
        """Free it; a second time does nothing."""
        ...


class Attachment(Protocol):
    """A program at one place of many."""

    def close(self) -> None:
        """Take it off; a second time does nothing."""
        ...


class LoadedObject(Protocol):
    """Programs and maps that are in the kernel until ``close``."""

    @property
    def maps(self) -> Mapping[str, Map]:
        """The object's maps by name."""
        ...

    @property
    def programs(self) -> tuple[str, ...]:
        """The names of those loaded."""
        ...

    def attach(self, program: str) -> None:
        """Attach where its section says. Attached twice it still runs once."""
        ...

    def attach_event(self, program: str, descriptor: int) -> None:
        """Attach to a perf event, whose descriptor is the program's from now on. Attached twice it still runs once."""
        ...

    def detach(self, program: str) -> None:
        """Take it off again; does nothing where it is not attached."""
        ...

    def detach_all(self, *, wait: bool = True) -> None:
        """Take off again all that is attached where its section says, or to an event.

        Without ``wait`` what ran when it was called has run to its end, and the kernel takes the programs off by itself
        later, where it can: until then it goes on calling them, also when this process has ended.
        """
        ...

    def attach_uprobe(self, program: str, file: str, offset: int) -> Attachment:
        """Attach a program of section ``uprobe`` or ``uretprobe`` to a function of all who map ``file``.

        ``offset`` is the function's place in the file, in bytes. As many places as one likes.
        """
        ...

    def attach_kprobes(self, program: str, functions: Sequence[str]) -> Attachment:
        """Attach a program of section ``kprobe.multi`` or ``kretprobe.multi`` to all these kernel functions at once."""
        ...

    def attach_uprobes(self, program: str, file: str, offsets: Sequence[int]) -> Attachment:
        """Attach a program of section ``uprobe.multi`` or ``uretprobe.multi`` to all these functions of ``file``."""
        ...

    def missed(self) -> int:
        """How often a program was to run and could not, because it ran on that CPU already (counted from 5.12 on)."""
        ...

    def buffer(self, name: str, pages: int = 64) -> EventBuffer:
        """Read the events of that map; ``pages`` a CPU for a perf event array. Open it before attaching."""
        ...

    def close(self) -> None:
        """Detach all, free buffers, maps and programs, whatever of it is there; a second time does nothing."""
        ...


class KernelApi(Protocol):
    """One kernel."""

    @property
    def release(self) -> str:
        """What ``uname -r`` says."""
        ...

    @property
    def proc_root(self) -> Path:
        """Where procfs is mounted."""
        ...

    @property
    def cpus(self) -> int:
        """The number of possible CPUs."""
        ...

    def lift_memory_limit(self) -> None:
        """Let maps and programs take the memory that they need. Where the caller may not, ``load`` says so if it fails
        for it."""
        ...

    def probe(self, feature: Feature) -> bool | None:
        """Whether it has that feature; None: could not tell."""
        ...

    def signatures(self, functions: Collection[str]) -> Mapping[str, Signature]:
        """Those of the functions that the kernel's own BTF has. Raises BtfError where there is no BTF."""
        ...

    def symbols(self, names: Collection[str]) -> frozenset[str]:
        """Those of the names that the kernel's symbol table has. Raises HarnessError if it cannot be read."""
        ...

    def load(self, name: str, image: bytes, options: LoadOptions) -> LoadedObject:
        """Load an ELF object. Raises VerifierError, BpfError, SignatureError, SettingsError or FormatError."""
        ...
