"""What maps and helpers refused: keys as the programs are told them, values as they count, metrics as they are read."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ebpf import error_telemetry
from harness.ebpf.error_telemetry import HELPER_ERRORS, MAP_ERRORS, ErrorTelemetry
from harness.errors import BpfError, ClosedError, FormatError
from harness.telemetry import DEFAULT, Registry

KEYS = [struct.pack("<Q", n) for n in range(3)]


class Table(dict):
    """A map as far as it is asked; once ``closed`` it says so, and ``broken`` it refuses."""

    name = "table"
    closed = broken = False

    def get(self, key):
        if self.closed:
            raise ClosedError("the object of map table is closed")
        if self.broken:
            raise BpfError("lookup", 1)
        return super().get(key)

    put = dict.__setitem__


def loaded(counted=("a", "b")):
    maps = {MAP_ERRORS: Table(), HELPER_ERRORS: Table()}
    return maps, ErrorTelemetry("module", maps, counted)


def counts(size, **at):
    numbers = [0] * size
    for place, number in at.items():
        numbers[int(place[1:])] = number
    return struct.pack(f"<{size}Q", *numbers)


def shown(registry):
    return {(m.name, m.tags): m.value for m in registry.metrics()}


def test_every_map_has_a_key_of_its_own():
    assert error_telemetry.constants(("a", "b")) == {"a_telemetry_key": 1, "b_telemetry_key": 2}
    maps, errors = loaded()
    assert dict(maps[MAP_ERRORS]) == {KEYS[1]: bytes(512), KEYS[2]: bytes(512)}
    assert dict(maps[HELPER_ERRORS]) == {KEYS[0]: bytes(2560)}
    assert errors.maps() == errors.helpers() == {}


def test_errors_by_name():
    maps, errors = loaded()
    maps[MAP_ERRORS][KEYS[2]] = counts(64, _7=3, _63=1)
    assert errors.maps() == {"b": {"E2BIG": 3, "ENOSR": 1}}


def test_helpers_by_name():
    maps, errors = loaded()
    maps[HELPER_ERRORS][KEYS[0]] = counts(320, **{f"_{2 * 64 + 11}": 5, f"_{4 * 64 + 14}": 2})
    assert errors.helpers() == {"ringbuf_output": {"EAGAIN": 5}, "probe_read_user_str": {"EFAULT": 2}}


def test_each_error_is_a_counter_that_only_grows():
    maps, errors = loaded()
    registry = Registry()
    errors.publish(registry)
    assert shown(registry) == {}, "nothing has happened"
    maps[MAP_ERRORS][KEYS[1]] = counts(64, _7=3)
    errors.publish(registry)
    maps[MAP_ERRORS][KEYS[1]] = counts(64, _7=5, _16=1)
    maps[HELPER_ERRORS][KEYS[0]] = counts(320, _14=2)
    for _ in range(2):
        errors.publish(registry)
        assert shown(registry) == {
            ("ebpf.maps.errors", ("error:E2BIG", "map_name:a", "module:module")): 5,
            ("ebpf.maps.errors", ("error:EBUSY", "map_name:a", "module:module")): 1,
            ("ebpf.helpers.errors", ("error:EFAULT", "helper:probe_read_kernel", "module:module")): 2,
        }


def test_whoever_reads_metrics_sees_the_errors_of_now():
    maps, errors = loaded(("read_when_asked",))
    metric = ("ebpf.maps.errors", ("error:E2BIG", "map_name:read_when_asked", "module:module"))
    maps[MAP_ERRORS][KEYS[1]] = counts(64, _7=4)
    assert shown(DEFAULT)[metric] == 4
    maps[MAP_ERRORS].closed = True
    assert shown(DEFAULT)[metric] == 4, "of an object that was closed what was last seen stays"
    assert errors.module == "module"


def test_an_object_that_cannot_be_read_keeps_no_other_from_being(caplog):
    """EPERM, say: the kernel's answer is told, and is not the reader's trouble."""
    broken, working = loaded(("broken",)), loaded(("working",))
    for maps, _ in (broken, working):
        maps[MAP_ERRORS][KEYS[1]] = counts(64, _7=4)
    broken[0][MAP_ERRORS].broken = True
    assert error_telemetry._live >= {broken[1], working[1]}
    metric = ("ebpf.maps.errors", ("error:E2BIG", "map_name:working", "module:module"))
    assert shown(DEFAULT)[metric] == 4
    assert "module: what its maps and helpers refused cannot be read: lookup: EPERM" in caplog.text
    caplog.clear()
    broken[1].finish()
    assert "lookup: EPERM" in caplog.text
    broken[0][MAP_ERRORS].broken = False
    metric = ("ebpf.maps.errors", ("error:E2BIG", "map_name:broken", "module:module"))
    assert shown(DEFAULT)[metric] == 4, "it is asked again"


@given(st.binary(max_size=600))
def test_other_sizes_are_refused(data):
    if len(data) != 512:
        with pytest.raises(FormatError, match="512 bytes"):
            error_telemetry.map_errors(data)
    with pytest.raises(FormatError, match="2560 bytes"):
        error_telemetry.helper_errors(data)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_object_count_for_no_map(data):
    assert error_telemetry.counted(b"\x7fELF" + data) == ()
