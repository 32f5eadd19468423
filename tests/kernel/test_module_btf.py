"""Functions of a kernel module, by the BTF that it brings: their signatures, and programs on them."""

import os
import socket
import struct
import subprocess

import pytest

from harness.errors import SettingsError, SignatureError
from harness.kernel_api import LoadOptions, Signature

XMIT = Signature(("struct sk_buff *", "struct net_device *"), "netdev_tx_t")
FUNCTION = "dummy:dummy_xmit"
COUNTED = struct.pack("<I", 12)
"""``MODULE`` of fixtures/programs/hooks.bpf.c."""


@pytest.fixture(scope="module")
def image(bpf_dir):
    return (bpf_dir / "co-re/hooks.o").read_bytes()


def options(function, signature=XMIT):
    return LoadOptions(["on_module"], {"process": os.getpid()}, signatures={"on_module": (function, signature)})


@pytest.fixture
def device():
    """A network device of the module, and an address on the other side of it."""
    subprocess.run(["ip", "link", "add", "harness0", "type", "dummy"], check=True)
    try:
        subprocess.run(["ip", "address", "add", "192.0.2.1/24", "dev", "harness0"], check=True)
        subprocess.run(["ip", "link", "set", "harness0", "up"], check=True)
        subprocess.run(
            ["ip", "neigh", "add", "192.0.2.2", "lladdr", "02:00:00:00:00:01", "dev", "harness0"], check=True
        )
        yield "192.0.2.2"
    finally:
        subprocess.run(["ip", "link", "delete", "harness0"], check=True)


@pytest.mark.requires("btf", "fentry", "module_btf")
def test_a_program_on_a_function_of_a_module(live, image, device):
    assert live.signatures([FUNCTION, "dummy:no_such_function", "tcp_close"]).keys() == {FUNCTION, "tcp_close"}
    assert live.signatures([FUNCTION]) == {FUNCTION: XMIT}
    with live.load("hooks", image, options(FUNCTION)) as loaded, socket.socket(type=socket.SOCK_DGRAM) as client:
        loaded.attach("on_module")
        before = int.from_bytes(loaded.maps["hits"].get(COUNTED), "little")
        for _ in range(3):
            client.sendto(b"x", (device, 9))
        assert int.from_bytes(loaded.maps["hits"].get(COUNTED), "little") - before == 3


@pytest.mark.thorough
@pytest.mark.requires("btf", "fentry", "module_btf")
def test_a_signature_that_the_module_does_not_have(live, image):
    wrong = Signature(XMIT.parameters[:1], XMIT.result)
    with pytest.raises(SignatureError, match=r"expects dummy:dummy_xmit to be netdev_tx_t \(struct sk_buff \*\)"):
        live.load("hooks", image, options(FUNCTION, wrong))


@pytest.mark.thorough
@pytest.mark.requires("btf")
@pytest.mark.parametrize("function", ["no_such_module:dummy_xmit", "dummy:no_such_function", "dummy_xmit"])
def test_a_function_that_is_in_none(live, image, function):
    """Nor is a module's function one of the kernel itself."""
    with pytest.raises(SignatureError, match=f"no function {function}"):
        live.load("hooks", image, options(function))


@pytest.mark.thorough
@pytest.mark.requires("btf", "fentry")
def test_the_signature_is_of_the_function_that_it_is_attached_to(live, image):
    """One of the kernel's that is there, and fits, is another function all the same."""
    with pytest.raises(SettingsError, match="no signature of dummy_xmit was given"):
        live.load("hooks", image, options("tcp_close", live.signatures(["tcp_close"])["tcp_close"]))
