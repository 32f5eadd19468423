"""The fuzzer's targets over its corpus, and over what a few mutations make of it; the fuzzer itself is a task."""

from __future__ import annotations

import pytest
from fuzz import LONGEST
from fuzz_remote import CORPUS, TARGETS, run
from hypothesis import given
from hypothesis import strategies as st

INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())


def test_every_target_has_inputs_and_every_input_a_target() -> None:
    assert {path.parent.name for path in INPUTS} == TARGETS.keys()
    assert all(path.stat().st_size <= LONGEST for path in INPUTS)
    assert sum(path.stat().st_size for path in INPUTS) < 200_000


@pytest.mark.parametrize("path", INPUTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_nothing_but_typed_errors(path) -> None:
    run(path.parent.name, path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
def test_nothing_but_typed_errors_when_a_piece_is_replaced(name: str, data: st.DataObject) -> None:
    raw = data.draw(st.sampled_from([path.read_bytes() for path in INPUTS if path.parent.name == name]))
    start = data.draw(st.integers(0, len(raw)))
    end = data.draw(st.integers(start, min(len(raw), start + 20)))
    run(name, raw[:start] + data.draw(st.binary(max_size=8) | st.sampled_from(JUNK)) + raw[end:])


JUNK = [b"null", b"{}", b"[]", b"-1", b"1.5", b'""', b"true", b"9" * 30, b"[" * 5000, b'"\\ud800"', b"NaN", b"\0"]
