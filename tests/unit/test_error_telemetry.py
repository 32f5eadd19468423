"""What maps and helpers refused: keys as the programs are told them, values as they count."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ebpf import error_telemetry
from harness.errors import FormatError


def test_every_map_has_a_key_of_its_own():
    told = error_telemetry.constants(("a", "b"))
    assert told == {"a_telemetry_key": 1, "b_telemetry_key": 2}
    assert [error_telemetry.map_key(n) for n in told.values()] == [b"\1" + bytes(7), b"\2" + bytes(7)]


def test_errors_by_name():
    counts = [0] * 64
    counts[7], counts[63] = 3, 1
    assert error_telemetry.map_errors(struct.pack("<64Q", *counts)) == {"E2BIG": 3, "ENOSR": 1}
    assert error_telemetry.map_errors(error_telemetry.EMPTY_MAP) == {}


def test_helpers_by_name():
    counts = [0] * 320
    counts[2 * 64 + 11] = 5
    assert error_telemetry.helper_errors(struct.pack("<320Q", *counts)) == {"ringbuf_output": {"EAGAIN": 5}}
    assert error_telemetry.helper_errors(error_telemetry.EMPTY_HELPER) == {}


@given(st.binary(max_size=600))
def test_other_sizes_are_refused(data):
    if len(data) != 512:
        with pytest.raises(FormatError, match="512 bytes"):
            error_telemetry.map_errors(data)
    with pytest.raises(FormatError, match="2560 bytes"):
        error_telemetry.helper_errors(data)
