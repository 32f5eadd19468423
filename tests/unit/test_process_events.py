"""Messages of the process connector and records of our programs: what is malformed raises FormatError only."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import FormatError
from harness.processes.events import LISTEN, Kind, ProcessEvent, acknowledged, connector_event, record, request

# What a 6.18 kernel sent, and what was done meanwhile: process 5921 ran a program, process 5487 ended.
EXEC = bytes.fromhex(
    "4c00000003000000a36e0000000000000100000001000000a36e000000000000280000000200000001000000"
    "3343adc54d0c0000331700003317000000000000000000000000000000000000"
)
EXIT = bytes.fromhex(
    "4c00000003000000a16e0000000000000100000001000000a16e000000000000280000000000008001000000"
    "eb7d23c54d0c00006f1500006f15000000000000110000004a1500004a150000"
)
ANSWER = bytes.fromhex(
    "4c00000003000000e06e0000000000000100000001000000e06e000001000000280000000000000001000000"
    "b8610fea4d0c0000000000000000000000000000000000000000000000000000"
)


def test_what_a_kernel_sent() -> None:
    assert connector_event(EXEC) == ProcessEvent(Kind.EXEC, 0x1733)
    assert connector_event(EXIT) == ProcessEvent(Kind.EXIT, 0x156F)
    assert connector_event(ANSWER) is None
    assert acknowledged(ANSWER, 0) == 0
    assert acknowledged(ANSWER, 1) is None
    assert acknowledged(EXIT, 0) is None


def test_the_end_of_a_thread_is_not_that_of_its_process() -> None:
    assert connector_event(EXIT[:52] + struct.pack("=I", 0x1570) + EXIT[56:]) is None
    # An exec is told of the process, whichever thread made it.
    assert connector_event(EXEC[:52] + struct.pack("=I", 7) + EXEC[56:]) == ProcessEvent(Kind.EXEC, 0x1733)


def test_a_request_says_how_long_it_is() -> None:
    asked = request(LISTEN, 7, 99)
    assert len(asked) == struct.unpack_from("=I", asked)[0] == 40
    assert asked[-4:] == struct.pack("=I", 1)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 35, 39])
def test_too_short_for_its_headers(size: int) -> None:
    for parse in (connector_event, lambda message: acknowledged(message, 0)):
        with pytest.raises(FormatError, match=f"{size} bytes"):
            parse(EXIT[:size])


@pytest.mark.parametrize("size", [40, 52, 59])
def test_cut_off(size: int) -> None:
    with pytest.raises(FormatError, match="cut off"):
        connector_event(EXIT[:size])


def test_somebody_elses_message() -> None:
    for at in (4, 16, 20):
        with pytest.raises(FormatError, match="no process event"):
            connector_event(EXIT[:at] + b"\x09" + EXIT[at + 1 :])


@given(st.binary(max_size=100))
def test_no_bytes_raise_anything_else(message: bytes) -> None:
    for parse in (connector_event, lambda m: acknowledged(m, 5), record):
        with suppress(FormatError):
            parse(message)


@given(st.integers(0, 2**32 - 1), st.sampled_from(Kind), st.sampled_from([b"", bytes(4)]))
def test_records(pid: int, kind: Kind, padding: bytes) -> None:
    assert record(struct.pack("=II", pid, kind.value) + padding) == ProcessEvent(kind, pid)
    with pytest.raises(FormatError, match="kind 9"):
        record(struct.pack("=II", pid, 9))
    for wrong in (b"", bytes(4), bytes(16)):
        with pytest.raises(FormatError, match="8 bytes"):
            record(wrong)
