"""Payloads as they occur in the field (``fixtures/tuf/field``): odd, validly signed, accepted."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from field_vectors import CONTENT, ODDITIES, PATH, PLACE, make
from tuf.api.metadata import Metadata
from tuf.api.serialization import DeserializationError
from tuf_server import NOW

from harness.remote.errors import ThresholdError
from harness.remote.state import State, Update


def vector(name: str) -> tuple[State, Update]:
    """A client that trusts the first root, and what it is sent."""
    read = {path.name: path.read_bytes() for path in (PLACE / name).iterdir()}
    sent = Update((read["2.root.json"],), read["targets.json"], {PATH: read["content"]}, (PATH,))
    return State.verified(read["1.root.json"]), sent


def test_the_files_are_what_the_script_makes() -> None:
    made = dict(make())
    assert made == {path: path.read_bytes() for path in PLACE.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ODDITIES)
def test_what_is_validly_signed_is_accepted(name: str) -> None:
    state, update = vector(name)
    got, products = state.apply(update, now=NOW)
    assert (got.root_version, got.targets_version, got.opaque, products) == (2, 3, b"o", {"APM_TRACING"})
    assert (got.configs[PATH].raw, got.configs[PATH].version) == (CONTENT, 5)
    assert got.kept is not None
    assert State.restored(got.kept.roots[0], got.kept).oldest_targets == 3


@pytest.mark.parametrize("name", ODDITIES)
@pytest.mark.parametrize("part", ["root", "targets"])
def test_and_nothing_else(name: str, part: str) -> None:
    """The same with one digit of a signature, or of what is signed, changed."""
    state, update = vector(name)
    whole = json.loads(update.roots[0] if part == "root" else update.targets)
    for signature in (True, False):
        other = json.loads(json.dumps(whole))
        if signature:
            for entry in other["signatures"]:
                entry["sig"] = ("1" if entry["sig"][0] == "0" else "0") + entry["sig"][1:]
        else:
            other["signed"]["x-more"] = 1
        raw = json.dumps(other).encode()
        forged = replace(update, roots=(raw,)) if part == "root" else replace(update, targets=raw)
        with pytest.raises(ThresholdError, match="signed by 0 of 1"):
            state.apply(forged, now=NOW)


REFUSED = {
    "expiry-with-fraction-and-offset",
    "misspelt-role",
    "missing-role",
    "unknown-members-and-keys",
    "all-at-once",
}


@pytest.mark.parametrize("name", ODDITIES)
def test_which_of_them_the_library_alone_would_refuse(name: str) -> None:
    """When this fails for having become stricter or more lenient, the normalised copy can lose or needs a case."""
    raw = (PLACE / name / "1.root.json").read_bytes()
    if name in REFUSED:
        with pytest.raises(DeserializationError):
            Metadata.from_bytes(raw)
    else:
        Metadata.from_bytes(raw)
