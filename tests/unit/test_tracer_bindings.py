"""Ports that are waited at, out of tables of /proc/net as kernels write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import FormatError
from harness.tracer.bindings import bound_ports, listening

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TCP = HEAD + (
    "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 21 1 0 100 0 0 10 0\n"
    "   1: 0100007F:0016 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 22 1 0 20 4 30 10 -1\n"
)
TCP6 = HEAD + (
    "   0: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000\n"
)
UDP = HEAD + (
    "  10: 00000000:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 23 2 0 0\n"
    "  11: 0100007F:9C40 0100007F:0035 01 00000000:00000000 00:00000000 00000000     0        0 24 2 0 0\n"
)


def test_who_waits():
    assert listening(TCP, udp=False) == {8080}
    assert listening(UDP, udp=True) == {53}
    assert listening(HEAD, udp=False) == listening("", udp=True) == set()


def test_both_families(tmp_path):
    room = tmp_path / "self/net"
    room.mkdir(parents=True)
    assert bound_ports(tmp_path, "tcp") == set(), "no such protocol here"
    (room / "tcp").write_text(TCP)
    (room / "tcp6").write_text(TCP6)
    assert bound_ports(tmp_path, "tcp") == {8080, 80}


@given(st.text(max_size=60), st.booleans())
def test_any_text_is_ports_or_a_format_error(line, udp):
    try:
        ports = listening(HEAD + line, udp=udp)
    except FormatError:
        return
    assert all(isinstance(port, int) for port in ports)


def test_nonsense_is_named():
    with pytest.raises(FormatError, match="is no socket: '0: nonsense'"):
        listening(HEAD + "0: nonsense", udp=True)
