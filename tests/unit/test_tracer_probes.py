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
from harness.tracer.fentry import TracerSettings, load_tracer, ring_size

RECV = ("struct sock *", "struct msghdr *", "size_t", "int")
ACCEPT = {
    4: Signature(("struct sock *", "int", "int *", "bool"), "struct sock *"),
    2: Signature(("struct sock *", "struct proto_accept_arg *"), "struct sock *"),
}
RECEIVE = {
    6: Signature((*RECV, "int", "int *"), "int"),
    5: Signature((*RECV, "int *"), "int"),
    4: Signature(RECV, "int"),
}
STABLE = {
    "tcp_connect": Signature(("struct sock *",), "int"),
    "tcp_finish_connect": Signature(("struct sock *", "struct sk_buff *"), "void"),
    "tcp_sendmsg": Signature(RECV[:3], "int"),
    "tcp_close": Signature(("struct sock *", "long int"), "void"),
}


def kernel(accept, receive):
    return STABLE | {"inet_csk_accept": ACCEPT[accept], "tcp_recvmsg": RECEIVE[receive]}


@pytest.mark.parametrize(("accept", "receive"), [(4, 6), (4, 5), (2, 5), (2, 4)], ids=["5.10", "6.1", "6.12", "7.3"])
def test_the_variants_of_real_kernels(accept, receive):
    chosen = [p.program for p in probes.choose(kernel(accept, receive))]
    assert chosen == [
        "tcp_connect",
        "tcp_finish_connect",
        f"inet_csk_accept_exit_{accept}",
        "tcp_sendmsg_exit",
        f"tcp_recvmsg_exit_{receive}",
        "tcp_close",
    ]


@given(st.sampled_from(sorted(ACCEPT)), st.sampled_from(sorted(RECEIVE)), st.booleans())
def test_one_variant_of_each_hook(accept, receive, tcp_v4):
    chosen = probes.choose(kernel(accept, receive), tcp_v4=tcp_v4)
    names = [p.program for p in chosen]
    assert set(names) <= probes.KNOWN
    assert len(names) == len(set(names))
    assert [p.function for p in chosen] == ([hook[0].function for hook in probes.TCP_HOOKS] if tcp_v4 else [])


SIGNATURES = st.builds(Signature, st.lists(st.sampled_from([*RECV, "int *"]), max_size=7).map(tuple), st.just("int"))


@given(SIGNATURES)
def test_an_unknown_signature_is_an_error_never_a_guess(signature):
    functions = kernel(2, 5) | {"tcp_recvmsg": signature}
    if signature in RECEIVE.values():
        assert any(p.signature == signature for p in probes.choose(functions))
    else:
        with pytest.raises(SignatureError) as caught:
            probes.choose(functions)
        assert str(signature) in str(caught.value)


def test_a_function_that_is_gone_is_named():
    functions = kernel(2, 5)
    del functions["tcp_finish_connect"]
    with pytest.raises(SignatureError, match="no function tcp_finish_connect"):
        probes.choose(functions)


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
