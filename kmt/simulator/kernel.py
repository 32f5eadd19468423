"""A kernel that is none: the harness's ``KernelApi`` answered from a profile, gates and, where they are had, types.

Laws: an answer is one that was recorded or that a gate or type gives; what none of them tells is a CannotTellError, not
a guess; errors are those of the real kernel (``harness.ebpf.live``), by class, number and first words; the same calls
with the same seed give the same answers. Nothing of the machine's own kernel is asked; files that are named (BTF, what
uprobes go to) are the machine's, and so is what the harness itself reads beside the kernel (assets, headers).
What is asked of an object is in ``verify``; what is done with a loaded one in ``loaded``.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from harness.ebpf import elf
from harness.ebpf.live import check_signatures
from harness.ebpf.opening import check_typed
from harness.errors import BpfError, BtfError, FormatError, HarnessError, SettingsError, VerifierError
from harness.kernel_api import Engine, Feature, LoadOptions, Signature
from kmt.errors import CannotTellError
from kmt.kernel import Version
from kmt.simulator import facts, gates, lru, objects, places, stores, verify
from kmt.simulator.derive import KernelFacts
from kmt.simulator.facts import Fact
from kmt.simulator.faults import NONE, Faults
from kmt.simulator.loaded import Attacher, SimulatedObject
from kmt.simulator.objects import EbpfObject, Program
from kmt.simulator.opening import Opened, choose, prepare
from kmt.simulator.profile import Profile, recorded
from kmt.simulator.types import Kind, Types

MEMORY = 1 << 30
"""Bytes that maps may take."""
_VERDICTS = 256
"""How many are kept; the oldest go first."""
_MARKS = {
    Feature.KPROBE_MULTI: ("bpf_kprobe_multi_link_attach", "register_fprobe_ips"),
    Feature.UPROBE_MULTI: ("bpf_uprobe_multi_link_attach",),
}


class SimulatedKernel:
    """One kernel. ``profile``: one that was recorded, or what is known of a series that nobody recorded; ``types``: its
    BTF, where it is at hand; ``proc_root``: a directory (``proc_tree`` makes one)."""

    def __init__(
        self,
        profile: Profile | KernelFacts,
        *,
        types: Types | None = None,
        proc_root: Path,
        seed: int = 0,
        faults: Faults = NONE,
        cpus: int = 1,
    ) -> None:
        if isinstance(profile, Profile):
            self.told = KernelFacts(profile.series, {**recorded(), profile.series: profile}, gates.load())
            self.release = profile.release
        else:
            self.told = profile
            self.release = f"{gates.spelled(profile.version)}.0-derived"
        self.types, self.proc_root, self.cpus, self.faults = types, proc_root, cpus, faults
        self._seed = seed
        self._headers = not isinstance(profile, Profile) or profile.headers
        self._objects: list[SimulatedObject] = []
        self._verdicts: dict[tuple[object, ...], verify.Refusal | None] = {}

    @property
    def headers(self) -> bool:
        """Whether its headers are installed."""
        return self._headers and not self.faults.no_headers

    @property
    def has_btf(self) -> bool:
        """Whether it shows its types."""
        return self.told.ask(Fact(facts.Sort.OPTION, "DEBUG_INFO_BTF")).value == "y" and not self.faults.no_btf

    @property
    def objects(self) -> tuple[SimulatedObject, ...]:
        """Those that are loaded now."""
        return tuple(self._objects)

    def lift_memory_limit(self) -> None:
        """Nothing to lift."""

    def probe(self, feature: Feature) -> bool | None:
        """Whether it has that feature; None: nothing tells."""
        try:
            return self._has(feature)
        except CannotTellError:
            return None

    def _has(self, feature: Feature) -> bool:
        if feature is Feature.BTF:
            return self.has_btf
        if feature is Feature.RINGBUF:
            return not self.faults.denied and self._yes(facts.Sort.MAP_TYPE, "ringbuf")
        if feature is Feature.FENTRY:
            return not self.faults.denied and self.has_btf and self._yes(facts.Sort.PROGRAM_TYPE, "tracing")
        if feature is Feature.OPENAT2:
            return bool(self.symbols(["do_sys_openat2"])) or self._yes(
                facts.Sort.TRACEPOINT, "syscalls:sys_enter_openat2"
            )
        return all(self._yes(facts.Sort.MARK, mark) for mark in _MARKS[feature])

    def _yes(self, sort: facts.Sort, name: str) -> bool:
        return self.told.ask(Fact(sort, name)).value is True

    def signatures(self, functions: Collection[str]) -> Mapping[str, Signature]:
        """Those of the functions that the kernel's own BTF has. Raises BtfError where there is no BTF, CannotTellError
        for a function that neither its types nor a profile knows."""
        if not functions:
            return {}
        if not self.has_btf:
            raise BtfError(
                "the running kernel shows no BTF: it is hidden", hint="its configuration needs CONFIG_DEBUG_INFO_BTF"
            )
        if self.types is not None:
            return self.types.functions(functions)
        said = {name: self._signature(name) for name in functions}
        return {name: signature for name, signature in said.items() if signature is not None}

    def _signature(self, name: str) -> Signature | None:
        if not self._yes(facts.Sort.FUNCTION, name):
            return None
        words = str(self.told.ask(Fact(facts.Sort.SIGNATURE, name)).value)
        result, _, inside = words[:-1].rpartition(" (")
        return Signature(() if inside == "void" else tuple(inside.split(", ")), result)

    def symbols(self, names: Collection[str]) -> frozenset[str]:
        """Those of the names that the kernel's symbol table has. CannotTellError for one that nothing tells of."""
        return frozenset(name for name in names if self._symbol(name))

    def _symbol(self, name: str) -> bool:
        for sort in (facts.Sort.MARK, facts.Sort.FUNCTION):
            told = self.told.told(Fact(sort, name))
            if told is not None:
                return told.value is True
        if self.types is not None and any(self.types.kind(i) == Kind.FUNC for i in self.types.named(name)):
            return True
        raise CannotTellError(
            f"whether {self.release} has a function {name}",
            hint="name it in kmt/simulator/points.py, then kmt.profile",
        )

    def load(self, name: str, image: bytes, options: LoadOptions) -> SimulatedObject:
        """Load an ELF object. Raises what the real one does, or CannotTellError."""
        check_signatures(options, self.signatures({f for f, _ in options.signatures.values()}))
        if options.engine is not Engine.LIBBPF:
            raise CannotTellError(f"object {name} is for {options.engine}, which is not simulated")
        try:
            elf.contents(image)
        except FormatError as error:
            raise FormatError(f"object {name} is no eBPF object: {error.message}") from None
        whole = _parsed(image)
        for program in choose(name, whole, options):
            check_typed(program.name, program.section, options)
        opened = prepare(name, whole, options, self.cpus)
        refusal = self._verdict(image, opened, options.kernel_btf)
        if refusal is not None:
            raise _error(name, refusal)
        loaded = SimulatedObject(name, opened, self._stores(opened), _Attacher(self), self.cpus, self._objects.remove)
        self._objects.append(loaded)
        return loaded

    def _verdict(self, image: bytes, opened: Opened, custom: Path | None) -> verify.Refusal | None:
        chosen = tuple(program.name for program in opened.programs)
        key = (image, chosen, tuple(opened.maps.items()), tuple(opened.data.items()), _identity(custom))
        if key not in self._verdicts:
            relocated = any(program.code.relocations for program in opened.whole.programs)
            at = verify.Situation(
                opened.whole,
                opened.programs,
                opened.maps,
                opened.data,
                target=_types(custom) if custom is not None and relocated else self.types,
                custom_btf=custom is not None,
                memory=MEMORY,
                cpus=self.cpus,
            )
            while len(self._verdicts) >= _VERDICTS:
                self._verdicts.pop(next(iter(self._verdicts)))
            self._verdicts[key] = verify.refusal(at, self.told, self.types, self.has_btf, self.faults)
        return self._verdicts[key]

    def _stores(self, opened: Opened) -> dict[str, stores.Store]:
        version, found = Version.parse(self.release), {}
        for number, (name, definition) in enumerate(opened.maps.items()):
            section = opened.sections.get(name, "")
            found[name] = stores.make(
                definition,
                self.cpus,
                seed=self._seed + number,
                batch=lru.batch((version.major, version.minor, version.patch), definition.max_entries, self.cpus),
                content=opened.data.get(section, b""),
                frozen=section.startswith(".rodata"),
            )
        return found

    def inject(self, name: str, data: bytes, cpu: int = 0) -> int:
        """What a program on that processor would report through the map of that name, of whichever object is loaded
        (the last one first). 0, or the negative error number that its helper returns."""
        for loaded in reversed(self._objects):
            if name in loaded.maps:
                return loaded.inject(name, data, cpu)
        raise SettingsError(f"nothing that is loaded has a map {name!r}")


class _Attacher(Attacher):
    """Attaching, by what the kernel's facts say."""

    def __init__(self, kernel: SimulatedKernel) -> None:
        self._kernel = kernel

    def by_section(self, program: Program, *, again: bool) -> int:
        kernel = self._kernel
        return places.by_section(program, kernel.told, kernel.types, kernel.symbols, again=again)

    def uprobe(self, file: str, offset: int) -> int:
        return places.file_refusal(file, [offset])

    def kprobes(self, functions: Sequence[str]) -> int:
        return places.many_functions(self._kernel.told, self._kernel.symbols, functions)

    def uprobes(self, file: str, offsets: Sequence[int]) -> int:
        return places.many_places(self._kernel.told, file, offsets)


def _error(name: str, refusal: verify.Refusal) -> HarnessError:
    if refusal.program:
        return VerifierError(refusal.program, refusal.code, refusal.words, f"{refusal.words}\n")
    return BpfError(f"loading object {name}", refusal.code, detail=refusal.words)


@functools.lru_cache(maxsize=64)
def _parsed(image: bytes) -> EbpfObject:
    return objects.parse(image)


def _identity(path: Path | None) -> tuple[int, ...] | None:
    """Of a file's content; nothing where there is none."""
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _types(path: Path) -> Types:
    """Those in a file that was given for relocations."""
    try:
        status = path.stat()
        return _read(path, (status.st_ino, status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise BtfError(f"BTF in {path}: {error.strerror}") from None


@functools.lru_cache(maxsize=4)
def _read(path: Path, _identity: tuple[int, ...]) -> Types:
    data = path.read_bytes()
    if data.startswith(b"\x7fELF"):
        data = next((s.data for s in elf.sections(data, machine=None) if s.name == ".BTF"), b"")
    return Types.parse(data)


def simulated(name: str, proc_root: Path, seed: int = 0, *, faults: Faults = NONE, cpus: int = 1) -> SimulatedKernel:
    """The kernel of that series (``6.12``) or release, recorded or derived, with its BTF where the cache has it.

    Raises CannotTellError for a series about which nothing is known, ProfileError for what is no version.
    """
    # The archive's libraries are the host's; guests have none.
    from kmt.simulator.cached import cached_types

    try:
        series = Version.parse(name).series
    except ValueError:
        series = name
    profiles = recorded()
    if series in profiles:
        profile = profiles[series]
        types = cached_types(series, profile.btf)
        return SimulatedKernel(profile, types=types, proc_root=proc_root, seed=seed, faults=faults, cpus=cpus)
    told = KernelFacts(series, profiles, gates.load())
    told.ask(Fact(facts.Sort.PROGRAM_TYPE, "kprobe"))
    types = cached_types(series)
    return SimulatedKernel(told, types=types, proc_root=proc_root, seed=seed, faults=faults, cpus=cpus)
