"""Which programs are loaded on which kernel, and the gate before all of it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.ebpf.live import check_signatures
from harness.ebpf.settings import BpfSettings
from harness.errors import NotSupportedError, SettingsError, SignatureError
from harness.kernel_api import LoadOptions, Signature
from harness.tracer import probes
from harness.tracer.fargate import on_fargate
from harness.tracer.fentry import load_tracer
from harness.tracer.settings import TracerSettings
from harness.tracer.tracer import ring_size

ALL = TracerSettings()
ON = st.booleans()
SETTINGS = st.builds(TracerSettings, ON, ON, ON, ON)
SK, SEND = "struct sock *", ("struct sock *", "struct msghdr *", "size_t")
ACCEPT = {
    4: Signature((SK, "int", "int *", "bool"), SK),
    2: Signature((SK, "struct proto_accept_arg *"), SK),
}
RECEIVE = {
    6: Signature((*SEND, "int", "int", "int *"), "int"),
    5: Signature((*SEND, "int", "int *"), "int"),
    4: Signature((*SEND, "int"), "int"),
}
BIND = {
    "sockaddr": Signature(("struct socket *", "struct sockaddr *", "int"), "int"),
    "unsized": Signature(("struct socket *", "struct sockaddr_unsized *", "int"), "int"),
}
PAGE = Signature((SK, "struct page *", "int", "size_t", "int"), "int")
CHANGED = {"inet_csk_accept", "tcp_recvmsg", "inet_bind", "inet6_bind"}
PAGES = {"tcp_sendpage", "udp_sendpage"}
STABLE = {hook[0].function: hook[0].signature for hook in probes.HOOKS if hook[0].function not in CHANGED | PAGES}


def kernel(accept, receive, bind="sockaddr", pages=False):
    """What the BTF of a kernel says: these variants, and sendpage or not."""
    changed = {"inet_csk_accept": ACCEPT[accept], "tcp_recvmsg": RECEIVE[receive]}
    gone = dict.fromkeys(PAGES, PAGE) if pages else {}
    return STABLE | changed | gone | {"inet_bind": BIND[bind], "inet6_bind": BIND[bind]}


KERNELS = st.builds(kernel, st.sampled_from([2, 4]), st.sampled_from([4, 5, 6]), st.sampled_from(sorted(BIND)), ON)


@pytest.mark.parametrize(
    ("functions", "accept", "receive"),
    [
        (kernel(4, 6, pages=True), 4, 6),
        (kernel(4, 5, pages=True), 4, 5),
        (kernel(2, 5), 2, 5),
        (kernel(2, 4, "unsized"), 2, 4),
    ],
    ids=["5.10", "6.1", "6.12", "7.3"],
)
def test_the_variants_of_real_kernels(functions, accept, receive):
    chosen = {p.program for p in probes.choose(functions, ALL)}
    twice = ("inet_csk_accept_exit", "inet_csk_accept_again_exit")
    variants = {f"{name}_{n}" for name in twice for n in ACCEPT} | {f"tcp_recvmsg_exit_{n}" for n in RECEIVE}
    pages = {"udp_sendpage", *(f"{name}_exit" for name in PAGES)}
    there = {*(f"{name}_{accept}" for name in twice), f"tcp_recvmsg_exit_{receive}"}
    there |= {f"{name}_exit" for name in PAGES & functions.keys()} | {"udp_sendpage"} & functions.keys()
    assert chosen == probes.KNOWN - variants - pages | there


@given(KERNELS, SETTINGS)
def test_one_variant_of_each_hook_that_is_asked_for(functions, settings):
    chosen = probes.choose(functions, settings)
    names = [p.program for p in chosen]
    assert set(names) <= probes.KNOWN
    assert len(names) == len(set(names))
    there = [hook for hook in probes.wanted(settings) if hook[0].function in functions]
    assert [p.function for p in chosen] == [hook[0].function for hook in there]
    assert all(functions[p.function] == p.signature for p in chosen)
    assert names.count("skb_consume_udp") == settings.udp, "one way of receiving UDP, if any is asked for"
    assert bool(names) == bool(settings.families)
    assert set(chosen) <= set(probes.loadable(functions)), "what may be switched on is loaded"


@given(KERNELS, st.sampled_from(sorted(probes.functions())))
def test_what_is_not_asked_for_may_be_missing(functions, missing):
    """And what is asked for may not, unless newer kernels are known to do without."""
    functions = {name: signature for name, signature in functions.items() if name != missing}
    for settings in (TracerSettings(True, True, False, False), TracerSettings(False, False, True, True)):
        needed = probes.functions(probes.wanted(settings)) - PAGES
        if missing in needed:
            with pytest.raises(SignatureError, match=f"no function {missing}, which"):
                probes.choose(functions, settings)
        else:
            probes.choose(functions, settings)


SIGNATURES = st.builds(
    Signature, st.lists(st.sampled_from([*SEND, "int", "int *"]), max_size=7).map(tuple), st.just("int")
)


@given(SIGNATURES)
def test_an_unknown_signature_is_an_error_never_a_guess(signature):
    functions = kernel(2, 5) | {"tcp_recvmsg": signature}
    if signature in RECEIVE.values():
        assert any(p.signature == signature for p in probes.choose(functions, ALL))
    else:
        with pytest.raises(SignatureError) as caught:
            probes.choose(functions, ALL)
        assert str(signature) in str(caught.value)


def test_what_a_program_expects_is_compared_before_loading():
    options = LoadOptions(signatures={"p": ("tcp_recvmsg", RECEIVE[5])})
    check_signatures(options, {"tcp_recvmsg": RECEIVE[5]})
    with pytest.raises(SignatureError, match="program p expects tcp_recvmsg to be"):
        check_signatures(options, {"tcp_recvmsg": RECEIVE[6]})
    with pytest.raises(SignatureError, match="no function tcp_recvmsg"):
        check_signatures(options, {})
    check_signatures(LoadOptions(programs=["q"], signatures=options.signatures), {})


@pytest.mark.parametrize(
    ("environment", "there"),
    [
        ({}, False),
        ({"AWS_EXECUTION_ENV": "AWS_ECS_FARGATE"}, True),
        ({"AWS_EXECUTION_ENV": "AWS_ECS_EC2"}, False),
        ({"ECS_FARGATE": "true"}, True),
        ({"ECS_FARGATE": "false"}, False),
        ({"DD_EKS_FARGATE": "1"}, True),
        ({"DD_EKS_FARGATE": ""}, False),
    ],
)
def test_fargate(environment, there):
    assert on_fargate(environment) is there


class Untouchable:
    """A kernel, or a setting, that fails the test if anything is asked of it."""

    def __getattr__(self, name):
        raise AssertionError(f"{name} was asked for")


def test_outside_fargate_nothing_is_touched():
    with pytest.raises(NotSupportedError):
        load_tracer(Untouchable(), Untouchable(), fargate=lambda: False)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"collect_tcp_v4": 1}, "True or False"),
        ({"collect_udp_v6": None}, "True or False"),
        ({"kprobe_max_active": 0}, "from 1 to"),
        ({"max_tracked_connections": 0}, "from 1 to"),
        ({"max_tracked_connections": 1 << 40}, "from 1 to"),
        ({"max_tracked_connections": "many"}, "whole number"),
        ({"close_event_pages": True}, "whole number"),
        ({"close_event_pages": 3}, "power of two"),
    ],
)
def test_bad_settings_are_refused(changed, said):
    with pytest.raises(SettingsError, match=said):
        TracerSettings(**changed)


def test_families():
    assert TracerSettings().families == 0b1111
    assert TracerSettings(collect_tcp_v4=False).families == 0b1110
    assert TracerSettings(False, False, False, True).families == 0b1000
    udp = TracerSettings(False, False, False, True)
    assert (udp.tcp, udp.udp) == (False, True)


@pytest.mark.parametrize(("cpus", "size"), [(0, 8), (1, 8), (2, 16), (3, 32), (5, 32), (6, 64), (64, 512)])
def test_room_of_the_ring_buffer(cpus, size):
    assert ring_size(cpus, 8, 4096) == size * 4096


def test_the_settings_of_the_chain():
    switches = BpfSettings(Path("/bpf"), enable_co_re=False, enable_runtime_compiler=True).switches
    assert (switches.core, switches.runtime, switches.allow_runtime, switches.allow_prebuilt) == (
        False,
        True,
        True,
        True,
    )
