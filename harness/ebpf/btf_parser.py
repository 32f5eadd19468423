"""(pure) The kernel's type information (BTF): enough of it to compare functions and to find constants.

Laws: any bytes either parse or raise FormatError, nothing else; a type that is asked for is rendered in bounded
time, however its references loop. The whole file is walked once, when it is parsed; types are looked at when asked
for (a kernel has more than 100,000 of them). Format: Documentation/bpf/btf.rst of the kernel.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Self

from harness.errors import FormatError
from harness.kernel_api import Signature

_MAGIC = 0xEB9F
_HEADER = "HBBIIIII"
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF = range(1, 9)
_VOLATILE, _CONST, _RESTRICT, _FUNC, _FUNC_PROTO, _VAR, _DATASEC = range(9, 16)
_FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(16, 20)

_TRANSPARENT = frozenset({_VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_TAGGED = {_STRUCT: "struct", _UNION: "union", _ENUM: "enum", _ENUM64: "enum", _FWD: "struct"}
_NO_SUCH_KIND = 1 << 40

# Words behind the three common ones: how many always, how many a member.
_FIXED = [_NO_SUCH_KIND] * 32
_MEMBER = [0] * 32
for _kind in range(20):
    _FIXED[_kind] = 0
_FIXED[_INT] = _FIXED[_VAR] = _FIXED[_DECL_TAG] = 1
_FIXED[_ARRAY] = 3
_MEMBER[_STRUCT] = _MEMBER[_UNION] = _MEMBER[_DATASEC] = _MEMBER[_ENUM64] = 3
_MEMBER[_ENUM] = _MEMBER[_FUNC_PROTO] = 2
_DEEPEST = 32


@dataclass(frozen=True)
class Variable:
    """Where a global variable lies in its section, in bytes."""

    offset: int
    size: int


class Btf:
    """Parsed BTF. Type ids count from 1; 0 is void."""

    def __init__(self, words: array[int], strings: bytes, base: Btf | None = None) -> None:
        self._words, self._strings = words, strings
        self._at, self._functions = _index(words)
        if base is not None:
            # A module's types and strings count on from the kernel's.
            shift = len(base._words)
            self._at = base._at + [at + shift for at in self._at[1:]]
            self._functions = [at + shift for at in self._functions]
            self._words, self._strings = base._words + words, base._strings + strings

    @classmethod
    def parse(cls, data: bytes, *, base: Btf | None = None) -> Self:
        """Read the raw form (``/sys/kernel/btf/vmlinux``, the section ``.BTF``), either byte order.

        ``base`` is the kernel's, where ``data`` is a module's and builds on it.
        """
        order = _byte_order(data)
        try:
            fields = struct.unpack_from(order + _HEADER, data)
        except struct.error:
            raise FormatError(f"BTF of {len(data)} bytes is too short for its header") from None
        _, version, _, header, type_off, type_len, str_off, str_len = fields
        if version != 1:
            raise FormatError(f"BTF has version {version}, not 1")
        types = data[header + type_off :][:type_len]
        strings = data[header + str_off :][:str_len]
        if len(types) != type_len or len(strings) != str_len or type_len % 4:
            raise FormatError("BTF is truncated: its header promises more than there is")
        if (base is None and strings[:1] != b"\0") or strings[-1:] not in ((b"\0",) if base is None else (b"\0", b"")):
            raise FormatError("BTF strings do not begin and end with NUL")
        words = array("I", types)
        if (order == "<") != (sys.byteorder == "little"):
            words.byteswap()
        return cls(words, strings, base)

    def __len__(self) -> int:
        """The number of types, void not counted."""
        return len(self._at) - 1

    def function(self, name: str) -> Signature | None:
        """The signature of that function, or None. Of several the first, as the kernel itself chooses."""
        return self.functions([name]).get(name)

    def functions(self, names: Collection[str]) -> Mapping[str, Signature]:
        """Those of the named functions that are there."""
        wanted = {offset: name for name in names for offset in self._offsets(name)}
        found: dict[str, Signature] = {}
        for at in self._functions:
            name = wanted.get(self._words[at])
            if name is not None and name not in found:
                found[name] = self._signature(self._words[at + 2])
        return found

    def section(self, name: str) -> Mapping[str, Variable]:
        """The variables of that data section; empty where there is none."""
        wanted = set(self._offsets(name))
        for type_id in range(1, len(self._at)):
            kind, vlen, at = self._type(type_id)
            if kind == _DATASEC and self._words[at] in wanted:
                return dict(self._variable(at + 3 + 3 * i) for i in range(vlen))
        return {}

    def _variable(self, at: int) -> tuple[str, Variable]:
        type_id, offset, size = self._words[at : at + 3]
        return self._name(self._type(type_id)[2]), Variable(offset, size)

    def _offsets(self, name: str) -> list[int]:
        """Every offset at which a reader of the string table finds just this name."""
        sought, found, start = name.encode() + b"\0", [], 0
        while name and (start := self._strings.find(sought, start)) >= 0:
            found.append(start)
            start += 1
        return found

    def _type(self, type_id: int) -> tuple[int, int, int]:
        """Kind, number of members and place of a type."""
        if not 0 < type_id < len(self._at):
            raise FormatError(f"BTF refers to type {type_id} of {len(self._at) - 1}")
        at = self._at[type_id]
        info = self._words[at + 1]
        return info >> 24 & 31, info & 0xFFFF, at

    def _name(self, at: int) -> str:
        offset = self._words[at]
        if offset >= len(self._strings):
            raise FormatError(f"BTF refers to string {offset} of {len(self._strings)}")
        return self._strings[offset : self._strings.index(b"\0", offset)].decode(errors="replace")

    def _signature(self, type_id: int) -> Signature:
        kind, vlen, at = self._type(type_id)
        if kind != _FUNC_PROTO:
            raise FormatError(f"BTF has a function whose type {type_id} is of kind {kind}, not a prototype")
        ids = [self._words[at + 3 + 2 * i + 1] for i in range(vlen)]
        variadic = bool(ids) and ids[-1] == 0
        words = [self._render(i) for i in (ids[:-1] if variadic else ids)]
        return Signature((*words, "...") if variadic else tuple(words), self._render(self._words[at + 2]))

    def _render(self, type_id: int) -> str:
        stars = ""
        for _ in range(_DEEPEST):
            if type_id == 0:
                return _pointer("void", stars)
            kind, _, at = self._type(type_id)
            if kind == _PTR:
                stars += "*"
            elif kind not in _TRANSPARENT:
                return _pointer(self._named(kind, at), stars)
            type_id = self._words[at + 2]
        raise FormatError(f"BTF type {type_id} refers to itself")

    def _named(self, kind: int, at: int) -> str:
        if kind in (_INT, _TYPEDEF, _FLOAT):
            return self._name(at)
        if kind in _TAGGED:
            tag = "union" if kind == _FWD and self._words[at + 1] >> 31 else _TAGGED[kind]
            return f"{tag} {self._name(at) or '(anonymous)'}"
        return "array" if kind == _ARRAY else "function"


def _byte_order(data: bytes) -> str:
    for order in "<>":
        if data[:2] == struct.pack(order + "H", _MAGIC):
            return order
    raise FormatError(f"no BTF: it begins with {data[:4].hex() or 'nothing'}")


def _index(words: array[int]) -> tuple[list[int], list[int]]:
    """The place of every type (that of void is never used), and the places of the functions."""
    at, functions = [0], []
    i, end = 0, len(words)
    try:
        while i < end:
            info = words[i + 1]
            kind = info >> 24 & 31
            at.append(i)
            if kind == _FUNC:
                functions.append(i)
            i += 3 + _FIXED[kind] + _MEMBER[kind] * (info & 0xFFFF)
    except IndexError:
        raise FormatError("BTF is truncated inside its last type") from None
    if i >= _NO_SUCH_KIND:
        raise FormatError(f"BTF type {len(at) - 1} is of an unknown kind")
    if i != end:
        raise FormatError("BTF is truncated inside its last type")
    return at, functions


def _pointer(name: str, stars: str) -> str:
    return f"{name} {stars}" if stars else name
