"""(pure) Which programs of the fentry tracer to load: the table of hooks, and the choice by a kernel's functions.

Laws: what is chosen is a subset of ``KNOWN``; a hook whose kernel function changed over time gives exactly one of
its variants, the one whose signature the kernel's BTF has; a kernel that fits none of them is an error, never a
guess. Where the signatures come from: net/ipv4/tcp*.c and inet_connection_sock.c; each change is named below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.errors import SignatureError
from harness.kernel_api import Signature


@dataclass(frozen=True)
class Probe:
    """A program, the kernel function it is attached to, and what it takes that function to be."""

    program: str
    function: str
    signature: Signature


def _probe(program: str, function: str, parameters: str, result: str = "int") -> Probe:
    return Probe(program, function, Signature(tuple(parameters.split(", ")), result))


_RECV = "struct sock *, struct msghdr *, size_t, "

TCP_HOOKS: tuple[tuple[Probe, ...], ...] = (
    (_probe("tcp_connect", "tcp_connect", "struct sock *"),),
    (_probe("tcp_finish_connect", "tcp_finish_connect", "struct sock *, struct sk_buff *", "void"),),
    (
        # 6.10, commit 92ef0fd55ac8: flags, error and kern went into a struct.
        _probe(
            "inet_csk_accept_exit_2", "inet_csk_accept", "struct sock *, struct proto_accept_arg *", "struct sock *"
        ),
        _probe("inet_csk_accept_exit_4", "inet_csk_accept", "struct sock *, int, int *, bool", "struct sock *"),
    ),
    (_probe("tcp_sendmsg_exit", "tcp_sendmsg", "struct sock *, struct msghdr *, size_t"),),
    (
        # nonblock went in 5.19, commit ec095263a965; addr_len between 6.18.15 and 7.3, and a 6.18.44 is without it too.
        _probe("tcp_recvmsg_exit_4", "tcp_recvmsg", _RECV + "int"),
        _probe("tcp_recvmsg_exit_5", "tcp_recvmsg", _RECV + "int, int *"),
        _probe("tcp_recvmsg_exit_6", "tcp_recvmsg", _RECV + "int, int, int *"),
    ),
    (_probe("tcp_close", "tcp_close", "struct sock *, long int", "void"),),
)
"""One row a hook, its variants in it, the newest first."""

KNOWN = frozenset(probe.program for hook in TCP_HOOKS for probe in hook)
"""Every program of the object."""


def functions(hooks: Iterable[tuple[Probe, ...]] = TCP_HOOKS) -> frozenset[str]:
    """The kernel functions whose signatures ``choose`` wants to see."""
    return frozenset(probe.function for hook in hooks for probe in hook)


def choose(signatures: Mapping[str, Signature], *, tcp_v4: bool = True) -> tuple[Probe, ...]:
    """The probes to load on a kernel with these functions. SignatureError where a hook has no variant for it."""
    return tuple(_variant(hook, signatures) for hook in TCP_HOOKS) if tcp_v4 else ()


def _variant(hook: tuple[Probe, ...], signatures: Mapping[str, Signature]) -> Probe:
    for probe in hook:
        if signatures.get(probe.function) == probe.signature:
            return probe
    function = hook[0].function
    if function not in signatures:
        raise SignatureError(f"this kernel has no function {function}, which the tracer needs")
    known = "; ".join(str(probe.signature) for probe in hook)
    raise SignatureError(
        f"this kernel's {function} is {signatures[function]}; the tracer knows it as {known}",
        hint="add a variant to bpf/tracer/ and harness/tracer/probes.py",
    )
