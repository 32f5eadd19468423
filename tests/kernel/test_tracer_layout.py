"""The layouts that user space decodes by are those that the compiler gave the programs."""

import json
import subprocess

import pytest

from harness.ebpf import events
from harness.ebpf.events import Conn, ConnStats, ConnTuple, TcpStats

SIZES = {
    "conn_tuple": 48,
    "conn_stats": 56,
    "tcp_stats": 12,
    "conn": 120,
    "batch": 496,
    "port_binding": 8,
    "telemetry": 88,
    "map_errors": 512,
    "helper_errors": 2560,
}


@pytest.fixture(scope="module", params=["tracer-fentry", "tracer-fentry-debug"])
def structs(request, bpf_dir):
    """The object's structs by name: size, and members' offsets in bytes."""
    command = ["bpftool", "-j", "btf", "dump", "file", str(bpf_dir / f"co-re/{request.param}.o")]
    types = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["types"]
    return {t["name"]: t for t in types if t["kind"] == "STRUCT"}


def offsets(struct):
    return {member["name"]: member["bits_offset"] // 8 for member in struct["members"]}


def test_sizes(structs):
    assert {name: structs[name]["size"] for name in SIZES} == SIZES


def test_a_closed_connection(structs):
    """Every field at its place: numbers written where the compiler has them are the numbers that are read."""
    data = bytearray(120)
    places = []
    for part, names in (("tuple", ConnTuple), ("stats", ConnStats), ("tcp", TcpStats)):
        begin = offsets(structs["conn"])[part]
        inside = offsets(structs[{"tuple": "conn_tuple", "stats": "conn_stats", "tcp": "tcp_stats"}[part]])
        stack = inside.pop("protocol_stack", None)
        if stack is not None:
            renamed = {"flags": "protocol_flags"}
            parts = offsets(structs["protocol_stack"])
            inside |= {renamed.get(name, name): stack + place for name, place in parts.items()}
        assert inside.keys() == set(names._fields)
        places += [(begin + inside[name]) for name in names._fields]
    places.append(offsets(structs["conn"])["retransmits"])
    for number, place in enumerate(places, 1):
        data[place] = number
    assert events.conn(bytes(data)) == Conn(*range(1, 27))


def test_a_batch(structs):
    assert offsets(structs["batch"]) == {"conns": 0, "id": 480, "cpu": 488, "len": 492}


def test_the_counters(structs):
    places = offsets(structs["telemetry"])
    assert tuple(sorted(places, key=places.__getitem__)) == events.TracerCounters._fields
