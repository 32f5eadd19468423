"""(pure, but for ``read`` and ``recorded``) A kernel as data: what one real kernel was seen to have, and its text.

Laws: reading what was written gives the same profile, and writing it again the same text; a text of a newer format,
a fact of the wrong type, and facts that cannot both be so are a ProfileError that names the key; what was not asked,
or could not be told, is missing, which is not the same as "no". One fact or group of facts a line, for review.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness.kernel_api import Signature
from kmt.errors import ProfileError
from kmt.kernel import Version

FORMAT = 1
"""Raise it when a key changes its meaning."""
DIRECTORY = Path(__file__).parents[1] / "profiles"
"""The profiles that travel with the package (in a checkout ``kmt/profiles`` is a link to ``fixtures/profiles``)."""
LARGEST = 60_000
"""Bytes."""


@dataclass(frozen=True)
class Function:
    """A kernel function: in the symbol table, open to probes, and its signature where BTF has it."""

    symbol: bool
    traceable: bool
    signature: Signature | None


@dataclass(frozen=True)
class Profile:
    """One kernel. ``origin``: where it came from; ``tools``: what it was recorded with.

    ``helpers`` maps each program type to the names that its programs may call; a type that is missing could not be
    told. ``other_helpers`` are named by the kernel's headers, and not callable by any type that could be told.
    ``tracepoints`` are ``group:name``. ``attach_types`` are those that the kernel's own headers name. Names of
    types are lower case without their prefixes: ``ringbuf``, ``raw_tracepoint``, ``trace_kprobe_multi``; a type that is
    False is one that the kernel has never heard of.
    ``btf_modules``: the loaded modules that had BTF, None for no BTF at all.
    """

    release: str
    version: str
    machine: str
    origin: str
    tools: Mapping[str, str]
    config: Mapping[str, str]
    program_types: Mapping[str, bool]
    map_types: Mapping[str, bool]
    attach_types: tuple[str, ...]
    helpers: Mapping[str, frozenset[str]]
    other_helpers: frozenset[str]
    functions: Mapping[str, Function]
    marks: Mapping[str, bool]
    tracepoints: frozenset[str]
    btf: str
    btf_modules: tuple[str, ...] | None
    lsm: tuple[str, ...]
    lockdown: str
    jit: bool
    headers: bool

    @property
    def series(self) -> str:
        """``6.12``."""
        return Version.parse(self.release).series


def dump(profile: Profile) -> str:
    """The text of a profile."""
    lines = [f'"format": {FORMAT}']
    for key, value in _plain(profile).items():
        lines.append(f"{json.dumps(key)}: {_text(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _plain(profile: Profile) -> dict[str, Any]:
    found = {field.name: getattr(profile, field.name) for field in fields(Profile)}
    found["helpers"] = _grouped(profile.helpers)
    found["other_helpers"] = tuple(sorted(profile.other_helpers))
    found["functions"] = {
        name: [f.symbol, f.traceable, None if f.signature is None else [f.signature.result, *f.signature.parameters]]
        for name, f in sorted(profile.functions.items())
    }
    groups: dict[str, list[str]] = {}
    for event in sorted(profile.tracepoints):
        group, _, name = event.partition(":")
        groups.setdefault(group, []).append(name)
    found["tracepoints"] = groups
    for key in ("tools", "config", "program_types", "map_types", "marks"):
        found[key] = dict(sorted(found[key].items()))
    return found


def _grouped(helpers: Mapping[str, frozenset[str]]) -> list[list[list[str]]]:
    """``[types, helpers]`` for each set of program types that may call the same ones."""
    callers: dict[str, list[str]] = {}
    for kind in sorted(helpers):
        for helper in helpers[kind]:
            callers.setdefault(helper, []).append(kind)
    groups: dict[tuple[str, ...], list[str]] = {(kind,): [] for kind in helpers if not helpers[kind]}
    for helper in sorted(callers):
        groups.setdefault(tuple(callers[helper]), []).append(helper)
    return [[list(kinds), names] for kinds, names in sorted(groups.items(), key=lambda g: (-len(g[0]), g[0]))]


def _text(value: Any) -> str:
    """JSON with a line an entry, and long lists wrapped."""
    if isinstance(value, Mapping) and value:
        return "{\n" + ",\n".join(_wrapped(f"{json.dumps(k)}: {json.dumps(v)}") for k, v in value.items()) + "\n}"
    if isinstance(value, tuple):
        return _wrapped(json.dumps(value)).strip()
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(_wrapped(json.dumps(v)) for v in value) + "\n]"
    return json.dumps(value)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 118, initial_indent=" ", subsequent_indent="  ", break_long_words=False,
                         break_on_hyphens=False)  # fmt: skip


def parse(text: str, where: str = "profile") -> Profile:
    """Read a profile. Raises ProfileError that begins with ``where``."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ProfileError(f"{where}:{error.lineno}: {error.msg}") from None
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise ProfileError(f"{where}: no profile of a kernel")
    if document["format"] != FORMAT:
        newer = "of a newer version of this project" if document["format"] > FORMAT else "too old"
        raise ProfileError(f"{where}: format {document['format']}, not {FORMAT}: {newer}", hint="record it anew")
    keys = {field.name for field in fields(Profile)}
    if odd := sorted(keys ^ (document.keys() - {"format"})):
        raise ProfileError(f"{where}: {odd[0]} is {'missing' if odd[0] in keys else 'no key of a profile'}")
    try:
        profile = _typed(document)
    except _WrongError as error:
        raise ProfileError(f"{where}: {error}") from None
    contradiction = _contradiction(profile)
    if contradiction:
        raise ProfileError(f"{where}: {contradiction}", hint="both cannot be so: record it anew")
    return profile


class _WrongError(Exception):
    """What is of the wrong type."""


def _typed(document: Mapping[str, Any]) -> Profile:
    values: dict[str, Any] = {}
    for key in ("release", "version", "machine", "origin", "btf", "lockdown"):
        values[key] = _a(str, document[key], key)
    for key in ("jit", "headers"):
        values[key] = _a(bool, document[key], key)
    for key, kind in (("tools", str), ("config", str), ("program_types", bool), ("map_types", bool), ("marks", bool)):
        values[key] = {name: _a(kind, value, f"{key} {name}") for name, value in _a(dict, document[key], key).items()}
    for key in ("attach_types", "lsm"):
        values[key] = _names(document[key], key)
    modules = document["btf_modules"]
    values["btf_modules"] = None if modules is None else _names(modules, "btf_modules")
    values["other_helpers"] = frozenset(_names(document["other_helpers"], "other_helpers"))
    values["helpers"] = _helpers(document["helpers"])
    values["functions"] = {
        name: _function(value, f"functions {name}")
        for name, value in _a(dict, document["functions"], "functions").items()
    }
    events = _a(dict, document["tracepoints"], "tracepoints")
    values["tracepoints"] = frozenset(
        f"{group}:{name}" for group, names in events.items() for name in _names(names, f"tracepoints {group}")
    )
    try:
        Version.parse(values["release"])
    except ValueError as error:
        raise _WrongError(f"release: {error}") from None
    return Profile(**values)


def _a(kind: type, value: Any, key: str) -> Any:
    if type(value) is not kind:
        raise _WrongError(f"{key} must be of type {kind.__name__}, not {json.dumps(value)[:60]}")
    return value


def _names(value: Any, key: str) -> tuple[str, ...]:
    names = tuple(_a(str, name, key) for name in _a(list, value, key))
    if len(set(names)) != len(names):
        raise _WrongError(f"{key} names one thing twice")
    return names


def _helpers(value: Any) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for group in _a(list, value, "helpers"):
        if not isinstance(group, list) or len(group) != 2:
            raise _WrongError("helpers must be pairs of program types and helpers")
        kinds, names = _names(group[0], "helpers"), _names(group[1], "helpers")
        for kind in kinds:
            found.setdefault(kind, set()).update(names)
    return {kind: frozenset(names) for kind, names in found.items()}


def _function(value: Any, key: str) -> Function:
    if not isinstance(value, list) or len(value) != 3:
        raise _WrongError(f"{key} must be [symbol, traceable, signature]")
    symbol, traceable, words = value
    signature = None
    if words is not None:
        result, *parameters = [_a(str, word, key) for word in _a(list, words, key)] or [""]
        signature = Signature(tuple(parameters), result)
    return Function(_a(bool, symbol, key), _a(bool, traceable, key), signature)


def _contradiction(profile: Profile) -> str:
    """Two facts that cannot both be so, in words; empty where there are none."""
    config = profile.config
    for kind in profile.helpers:
        if profile.helpers[kind] and not profile.program_types.get(kind, False):
            return f"programs of type {kind} may call helpers, and there are no such programs"
    for kind, names in profile.helpers.items():
        if odd := sorted(names & profile.other_helpers):
            return f"no program type may call {odd[0]}, and {kind} may"
    if profile.btf and config.get("DEBUG_INFO_BTF") == "n":
        return "there is BTF, and the configuration was without DEBUG_INFO_BTF"
    if bool(profile.btf) != (profile.btf_modules is not None):
        return "btf and btf_modules differ on whether there is BTF"
    for name, function in profile.functions.items():
        if function.signature is not None and not profile.btf:
            return f"function {name} has a signature, and there is no BTF"
        if function.traceable and not function.symbol:
            return f"function {name} can be probed, and is not in the symbol table"
    if "bpf" in profile.lsm and config.get("BPF_LSM") == "n":
        return "bpf is among the active LSMs, and the configuration was without BPF_LSM"
    if profile.tracepoints and config.get("TRACING") == "n":
        return "there are tracepoints, and the configuration was without TRACING"
    return ""


def read(path: Path) -> Profile:
    """The profile in a file. Raises ProfileError."""
    try:
        return parse(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ProfileError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def recorded(directory: Path = DIRECTORY) -> dict[str, Profile]:
    """All profiles of a directory by series, the oldest first; of two of one series the newer release."""
    found: dict[str, Profile] = {}
    for profile in sorted(map(read, directory.glob("*.json")), key=lambda p: Version.parse(p.release)):
        found[profile.series] = profile
    return found
