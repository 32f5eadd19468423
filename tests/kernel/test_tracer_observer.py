"""The tracer against a second observer: programs that BCC compiled here count the same kernel functions by themselves.

They include no kernel header (net/sock.h costs minutes under emulation), so they know results and nothing of sockets.
"""

import os
import platform
import socket

import pytest

from fixtures.workloads import tcp, udp
from harness.ebpf.events import TCP, Direction
from harness.ebpf.headers import find_headers

pytestmark = pytest.mark.requires("bcc", "headers")

COUNTED = ("sent", "received", "udp_sent", "udp_received", "accepted", "connected", "closed")
ARCH, RESULT = {"x86_64": ("x86", 10), "aarch64": ("arm64", 0)}[platform.machine()]
"""The kernel's word for the machine, and which 64-bit word of ``struct pt_regs`` a function's result is."""
TEXT = """
BPF_ARRAY(counted, u64, %(number)d);

static int add(u32 slot, u64 number)
{
    u64 *count = counted.lookup((int *)&slot);

    if (count && bpf_get_current_pid_tgid() >> 32 == %(pid)d)
        __sync_fetch_and_add(count, number);
    return 0;
}

%(programs)s
"""
BYTES = f"int %s(u64 *ctx) {{ long n = (int)ctx[{RESULT}]; return n > 0 ? add(%d, n) : 0; }}"
CALLS = "int %s(u64 *ctx) { return add(%d, 1); }"
FUNCTIONS = {
    "tcp_sendmsg": ("sent", True),
    "tcp_recvmsg": ("received", True),
    "udp_sendmsg": ("udp_sent", True),
    "udpv6_sendmsg": ("udp_sent", True),
    "udp_recvmsg": ("udp_received", True),
    "udpv6_recvmsg": ("udp_received", True),
    "inet_csk_accept": ("accepted", False),
    "tcp_connect": ("connected", False),
    "tcp_close": ("closed", False),
}


@pytest.fixture(scope="module")
def headers(live, tmp_path_factory):
    """Debian's two halves of the kernel's headers as one tree: BCC knows one only."""
    found, room = find_headers(live.release), tmp_path_factory.mktemp("headers")
    for part in ("include", f"arch/{ARCH}/include"):
        (room / part).mkdir(parents=True)
        children = {child.name: child for half in (found.common, found.own) for child in (half / part).iterdir()}
        for name, child in children.items():
            (room / part / name).symlink_to(child)
    return room


@pytest.fixture(scope="module")
def observer(headers):
    """What this process has made the kernel do since the programs are in, by name."""
    from bcc import BPF

    programs = "\n".join(
        (BYTES if result else CALLS) % (f"on_{function}", COUNTED.index(name))
        for function, (name, result) in FUNCTIONS.items()
    )
    text = TEXT % {"number": len(COUNTED), "pid": os.getpid(), "programs": programs}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BCC_KERNEL_SOURCE", str(headers))
        program = BPF(text=text, cflags=["-Wno-macro-redefined"])
    for function, (_, result) in FUNCTIONS.items():
        attach = program.attach_kretprobe if result else program.attach_kprobe
        attach(event=function, fn_name=f"on_{function}")
    table = program["counted"]
    yield lambda: {name: table[n].value for n, name in enumerate(COUNTED)}
    program.cleanup()


@pytest.mark.thorough
def test_two_observers_agree(observer, load):
    with load() as tracer:
        before = observer()
        for number in range(1, 20):
            tcp.exchange(number * 997, number * 31, number, target="::1" if number % 3 == 0 else "")
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with udp.bound(family, address) as client, udp.bound(family, address) as server:
                udp.send(client, udp.name(server), [100, 2000, 30])
                udp.receive(server, [100, 2000, 30])
        client = socket.socket()
        with pytest.raises(ConnectionRefusedError):
            client.connect(("127.0.0.1", 1))
        after = observer()
        conns = [conn for conn in tracer.closed(0) if conn.pid == os.getpid()]
        assert tracer.missed() == 0
    client.close()
    done = {name: after[name] - before[name] for name in COUNTED}
    streams = [conn for conn in conns if conn.metadata & TCP]
    flows = [conn for conn in conns if not conn.metadata & TCP]
    told = {
        "sent": sum(conn.sent_bytes for conn in streams),
        "received": sum(conn.recv_bytes for conn in streams),
        "udp_sent": sum(conn.sent_bytes for conn in flows),
        "udp_received": sum(conn.recv_bytes for conn in flows),
        "accepted": sum(conn.direction == Direction.INCOMING for conn in streams),
        # A refused connect was one too, and a listener is closed as a connection is.
        "connected": sum(conn.direction == Direction.OUTGOING for conn in streams) + 1,
        "closed": len(streams) + 19,
    }
    assert told == done
    assert min(done.values()) > 0
