"""What is refused of an object before the kernel is asked, by the names of its sections."""

import pytest

from harness.ebpf import opening
from harness.errors import SettingsError
from harness.kernel_api import LoadOptions, Signature

GIVEN = LoadOptions(signatures={"p": ("tcp_close", Signature(("struct sock *",), "void"))})
OF_A_MODULE = LoadOptions(signatures={"p": ("nf_conntrack:tcp_close", Signature((), "void"))})


@pytest.mark.parametrize("section", ["fentry", "fexit", "fmod_ret", "fentry.s", "fexit.s", "fmod_ret.s"])
@pytest.mark.parametrize("optional", ["", "?"])
def test_a_program_on_a_functions_arguments_takes_a_signature(section, optional):
    """Also one that may sleep, one that replaces the result, and one that is not loaded unless it is chosen."""
    name = f"{optional}{section}/tcp_close"
    for options in (GIVEN, OF_A_MODULE):
        opening.check_typed("p", name, options)
    for options in (LoadOptions(), LoadOptions(signatures={"p": ("tcp_sendmsg", Signature((), "int"))})):
        with pytest.raises(SettingsError, match="no signature of tcp_close was given"):
            opening.check_typed("p", name, options)


@pytest.mark.parametrize("section", ["kprobe/tcp_close", "?kprobe/tcp_close", "lsm.s/file_open", "xdp", "fentries/x"])
def test_others_take_none(section):
    opening.check_typed("p", section, LoadOptions())
