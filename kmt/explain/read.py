"""(pure) A file of results (``docs/results.md``) as values; nothing in it is believed before it is looked at.

Laws: bytes give ``Results`` or a ResultsError that names the file and the place in it, nothing else; what ``to_json``
wrote comes back as it was; keys that are not known are passed over, as the rule for new keys wants it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, NoReturn, cast

from kmt.errors import ForeignFileError, ResultsError
from kmt.results import LONGEST, SCHEMA_VERSION, KernelResult, Outcome, TestResult
from kmt.text import visible

MOST_TESTS = 200_000
"""Tests of one kernel."""
TEST_OUTCOMES = frozenset({"passed", "failed", "skipped", "error"})


@dataclass(frozen=True)
class Results:
    """One run as its file tells it. ``name`` is the file's, for messages."""

    name: str
    started: str
    seconds: float
    exit_status: int
    kernels: tuple[KernelResult, ...]
    part: str = ""


def parse(data: bytes, name: str) -> Results:
    """Read a file's bytes. Raises ResultsError."""
    where = visible(name)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        hint = "it was cut off: fetch it again" if data.lstrip()[:1] == b"{" else "name a file of --kernel-json"
        raise ResultsError(f"{where}: {visible(str(error), 200)}", hint=hint) from None
    if not isinstance(document, dict) or "schema" not in document:
        raise ForeignFileError(f"{where} holds no results", hint="name a file that --kernel-json wrote")
    if document["schema"] != SCHEMA_VERSION:
        version = visible(repr(document["schema"]), 40)
        raise ResultsError(
            f"{where}: results of version {version}; this kmt reads {SCHEMA_VERSION}",
            hint="explain it with the kmt that wrote it",
        )
    take = _Taker(where, document)
    rows = take.items("kernels")
    kernels = tuple(_kernel(f"{where}: kernels[{n}]", row) for n, row in enumerate(rows))
    names = [kernel.name for kernel in kernels]
    if len(set(names)) < len(names):
        raise ResultsError(f"{where}: a kernel stands in it twice: {visible(', '.join(names), 200)}")
    status, part = int(take.number("exit_status")), take.text("part")
    return Results(where, take.text("started"), take.number("seconds"), status, kernels, part)


class _Taker:
    """Takes typed values out of an object; ``where`` is its place, for messages."""

    def __init__(self, where: str, entry: object) -> None:
        self._where = where
        if not isinstance(entry, dict):
            raise ResultsError(f"{where} must be an object, not {visible(repr(entry), 60)}")
        self._entry: Mapping[str, Any] = entry

    def wrong(self, key: str, wanted: str) -> NoReturn:
        given = visible(repr(self._entry.get(key)), 60) if key in self._entry else "missing"
        raise ResultsError(f"{self._where}: {key} must be {wanted}; it is {given}")

    def text(self, key: str, *, whole: bool = False) -> str:
        """``whole``: it may be neither empty nor longer than is kept."""
        value = self._entry.get(key, "")
        if not isinstance(value, str):
            self.wrong(key, "a string")
        if whole and not 0 < len(value) <= LONGEST:
            self.wrong(key, f"a string of 1 to {LONGEST} characters")
        return value[:LONGEST]

    def number(self, key: str, *, optional: bool = False) -> float:
        value = self._entry.get(key, 0 if optional else None)
        if not _is_number(value):
            self.wrong(key, "a number of 0 or more")
        return cast("float", value)

    def numbers(self, key: str) -> list[float]:
        values = self.items(key, optional=True)
        if not all(map(_is_number, values)):
            self.wrong(key, "a list of numbers of 0 or more")
        return values

    def flag(self, key: str) -> bool:
        value = self._entry.get(key, False)
        if not isinstance(value, bool):
            self.wrong(key, "true or false")
        return value

    def items(self, key: str, *, optional: bool = False) -> list[Any]:
        value = self._entry.get(key, [] if optional else None)
        if not isinstance(value, list):
            self.wrong(key, "a list")
        return value

    def texts(self, key: str) -> list[str]:
        value = self.items(key, optional=True)
        if not all(isinstance(text, str) for text in value):
            self.wrong(key, "a list of strings")
        return [text[:LONGEST] for text in value]

    def pairs(self, key: str) -> dict[str, str]:
        value = self._entry.get(key, {})
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            self.wrong(key, "an object of strings")
        return {name[:LONGEST]: text[:LONGEST] for name, text in value.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value) and 0 <= value < 1e15
    except OverflowError:
        return False


def _kernel(where: str, entry: object) -> KernelResult:
    take = _Taker(where, entry)
    assert isinstance(entry, dict)
    if entry.get("outcome") not in list(Outcome):
        take.wrong("outcome", f"one of {', '.join(Outcome)}")
    tests = take.items("tests")
    if len(tests) > MOST_TESTS:
        raise ResultsError(f"{where}: {len(tests)} tests; more than {MOST_TESTS} are not read")
    return KernelResult(
        name=take.text("name", whole=True),
        release=take.text("release"),
        backend=take.text("backend"),
        simulated=take.flag("simulated"),
        accelerator=take.text("accelerator"),
        boot_seconds=None if entry.get("boot_seconds") is None else take.number("boot_seconds"),
        seconds=take.number("seconds"),
        outcome=Outcome(entry["outcome"]),
        reason=take.text("reason"),
        hint=take.text("hint"),
        error=take.text("error"),
        console=take.text("console"),
        facts=take.pairs("facts"),
        tests=[_test(where, number, test) for number, test in enumerate(tests)],
        left_out=take.texts("left_out"),
        guests=int(take.number("guests", optional=True)),
        restored=int(take.number("restored", optional=True)),
        private_mib=take.numbers("private_mib"),
        recovered=take.texts("recovered"),
        not_run=int(take.number("not_run", optional=True)),
        stands_for=take.text("stands_for"),
        not_applicable=take.pairs("not_applicable"),
    )


_KINDS: dict[str, tuple[type, ...]] = {
    "id": (str,), "outcome": (str,), "seconds": (int, float), "reason": (str,), "property": (bool,), "lost": (bool,),
    "verifier": (str,), "retries": (list, tuple), "expected": (str,), "cause": (str,),
}  # fmt: skip
_DEFAULTS = {field.name: field.default for field in fields(TestResult) if field.default is not MISSING}


def _test(where: str, number: int, entry: object) -> TestResult:
    if not isinstance(entry, dict):
        raise ResultsError(f"{where}.tests[{number}] must be an object, not {visible(repr(entry), 60)}")
    values: list[Any] = []
    for key, kinds in _KINDS.items():
        value = entry.get(key, _DEFAULTS.get(key))
        if type(value) not in kinds:
            _Taker(f"{where}.tests[{number}]", entry).wrong(key, f"a {kinds[-1].__name__}")
        values.append(value)
    nodeid, outcome, seconds, reason, is_property, lost, verifier, retries, expected, cause = values
    if not 0 < len(nodeid) <= LONGEST or outcome not in TEST_OUTCOMES or not _finite(seconds):
        take = _Taker(f"{where}.tests[{number}]", entry)
        take.text("id", whole=True)
        take.number("seconds")
        take.wrong("outcome", f"one of {', '.join(sorted(TEST_OUTCOMES))}")
    if retries and not all(type(why) is str for why in retries):
        _Taker(f"{where}.tests[{number}]", entry).wrong("retries", "a list of strings")
    if cause and cause not in list(Outcome):
        _Taker(f"{where}.tests[{number}]", entry).wrong("cause", f"empty, or one of {', '.join(Outcome)}")
    again = tuple(why[:LONGEST] for why in retries)
    words = (reason[:LONGEST], is_property, lost, verifier[:LONGEST], again, expected[:LONGEST], cause)
    return TestResult(nodeid, outcome, seconds, *words)
