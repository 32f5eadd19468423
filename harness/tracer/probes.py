"""(pure) Which programs of the fentry tracer to load: the table of hooks, and the choice by a kernel's functions.

Laws: what is chosen is a subset of ``KNOWN``, and the rest of it is excluded; nothing is chosen for what is not
collected; a hook whose kernel function changed over time gives exactly one of its variants, the one whose signature
the kernel's BTF has; a kernel that fits none of them is an error, never a guess; only a hook whose function is known
to have gone may be without. Where the signatures come from: net/ipv4/tcp*.c, udp.c, af_inet.c and
inet_connection_sock.c, net/ipv6/udp.c and af_inet6.c; each change is named below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from harness.errors import SignatureError
from harness.kernel_api import Signature
from harness.tracer.settings import TracerSettings


@dataclass(frozen=True)
class Probe:
    """A program, the kernel function it is attached to, and what it takes that function to be.

    ``gone``: newer kernels do without the function, and nothing is missed there.
    """

    program: str
    function: str
    signature: Signature
    gone: bool = False


def _probe(program: str, function: str, parameters: str, result: str = "int", *, gone: bool = False) -> Probe:
    return Probe(program, function, Signature(tuple(parameters.split(", ")), result), gone)


Hook = tuple[Probe, ...]
"""The variants of one program, the newest first."""

_SK = "struct sock *"
_SEND = f"{_SK}, struct msghdr *, size_t"
_PAGE = f"{_SK}, struct page *, int, size_t, int"
_BIND = ("struct socket *, struct sockaddr_unsized *, int", "struct socket *, struct sockaddr *, int")

TCP_HOOKS: tuple[Hook, ...] = (
    (_probe("tcp_connect", "tcp_connect", _SK),),
    # Beginnings and ends twice: the kernel may pass one program by, but hardly both (docs/decisions/tracer.md).
    (_probe("tcp_connect_again", "tcp_connect", _SK),),
    (_probe("tcp_finish_connect", "tcp_finish_connect", f"{_SK}, struct sk_buff *", "void"),),
    (
        # 6.10, commit 92ef0fd55ac8: flags, error and kern went into a struct.
        _probe("inet_csk_accept_exit_2", "inet_csk_accept", f"{_SK}, struct proto_accept_arg *", _SK),
        _probe("inet_csk_accept_exit_4", "inet_csk_accept", f"{_SK}, int, int *, bool", _SK),
    ),
    (
        _probe("inet_csk_accept_again_exit_2", "inet_csk_accept", f"{_SK}, struct proto_accept_arg *", _SK),
        _probe("inet_csk_accept_again_exit_4", "inet_csk_accept", f"{_SK}, int, int *, bool", _SK),
    ),
    (_probe("inet_csk_listen_stop_enter", "inet_csk_listen_stop", _SK, "void"),),
    (_probe("tcp_sendmsg_exit", "tcp_sendmsg", _SEND),),
    # 6.5, commit dc97391e6610: sendmsg with MSG_SPLICE_PAGES took its place.
    (_probe("tcp_sendpage_exit", "tcp_sendpage", _PAGE, gone=True),),
    (
        # nonblock went in 5.19, commit ec095263a965; addr_len between 6.18.15 and 7.3, and a 6.18.44 is without it too.
        _probe("tcp_recvmsg_exit_4", "tcp_recvmsg", f"{_SEND}, int"),
        _probe("tcp_recvmsg_exit_5", "tcp_recvmsg", f"{_SEND}, int, int *"),
        _probe("tcp_recvmsg_exit_6", "tcp_recvmsg", f"{_SEND}, int, int, int *"),
    ),
    (
        _probe(
            "tcp_splice_read_exit",
            "tcp_splice_read",
            "struct socket *, loff_t *, struct pipe_inode_info *, size_t, unsigned int",
            "ssize_t",
        ),
    ),
    (_probe("tcp_retransmit_skb_exit", "tcp_retransmit_skb", f"{_SK}, struct sk_buff *, int"),),
    (_probe("tcp_close", "tcp_close", f"{_SK}, long int", "void"),),
    (_probe("tcp_close_exit", "tcp_close", f"{_SK}, long int", "void"),),
    (_probe("tcp_disconnect", "tcp_disconnect", f"{_SK}, int"),),
    (_probe("tcp_v4_destroy_sock", "tcp_v4_destroy_sock", _SK, "void"),),
    (_probe("tcp_v4_destroy_sock_again", "tcp_v4_destroy_sock", _SK, "void"),),
)
"""For TCP, over IPv4, IPv6 or both: the functions are the same."""

UDP_HOOKS: tuple[Hook, ...] = (
    (_probe("skb_consume_udp", "skb_consume_udp", f"{_SK}, struct sk_buff *, int", "void"),),
    # An IPv6 socket may carry IPv4, and the port of either says who began.
    (
        # 6.19, the type of the address only.
        _probe("inet_bind_exit", "inet_bind", _BIND[0]),
        _probe("inet_bind_exit", "inet_bind", _BIND[1]),
    ),
    (_probe("inet6_bind_exit", "inet6_bind", _BIND[0]), _probe("inet6_bind_exit", "inet6_bind", _BIND[1])),
    (_probe("udp_destroy_sock", "udp_destroy_sock", _SK, "void"),),
    (_probe("udp_destroy_sock_exit", "udp_destroy_sock", _SK, "void"),),
    (_probe("udpv6_destroy_sock", "udpv6_destroy_sock", _SK, "void"),),
    (_probe("udpv6_destroy_sock_exit", "udpv6_destroy_sock", _SK, "void"),),
)
"""For UDP over either."""

UDP_V4_HOOKS: tuple[Hook, ...] = (
    (_probe("udp_send_skb", "udp_send_skb", "struct sk_buff *, struct flowi4 *, struct inet_cork *"),),
    (_probe("udp_sendmsg_exit", "udp_sendmsg", _SEND),),
    (_probe("udp_sendpage", "udp_sendpage", _PAGE, gone=True),),
    (_probe("udp_sendpage_exit", "udp_sendpage", _PAGE, gone=True),),
)
UDP_V6_HOOKS: tuple[Hook, ...] = (
    (_probe("udp_v6_send_skb", "udp_v6_send_skb", "struct sk_buff *, struct flowi6 *, struct inet_cork *"),),
    (_probe("udpv6_sendmsg_exit", "udpv6_sendmsg", _SEND),),
)
"""What only one of them sends through."""

AGAIN = _probe("can_attach_again", "inet_csk_listen_stop", _SK, "void")
"""No hook: a program to try something with."""

HOOKS = TCP_HOOKS + UDP_HOOKS + UDP_V4_HOOKS + UDP_V6_HOOKS
KNOWN = frozenset(probe.program for hook in HOOKS for probe in hook)
"""Every program of the object that listens."""


def functions(hooks: Iterable[Hook] = HOOKS) -> frozenset[str]:
    """The kernel functions whose signatures ``choose`` wants to see."""
    return frozenset(probe.function for hook in hooks for probe in hook)


def wanted(settings: TracerSettings) -> tuple[Hook, ...]:
    """The hooks that these settings ask for, in the order in which they are attached."""
    hooks = TCP_HOOKS if settings.tcp else ()
    hooks += UDP_HOOKS if settings.udp else ()
    hooks += UDP_V4_HOOKS if settings.collect_udp_v4 else ()
    return hooks + (UDP_V6_HOOKS if settings.collect_udp_v6 else ())


def choose(signatures: Mapping[str, Signature], settings: TracerSettings) -> tuple[Probe, ...]:
    """The probes to attach on a kernel with these functions. SignatureError where a hook has no variant for it."""
    chosen = []
    for hook in wanted(settings):
        probe = _variant(hook, signatures)
        if probe is not None:
            chosen.append(probe)
        elif not hook[0].gone or hook[0].function in signatures:
            raise _misfit(hook, signatures)
    return tuple(chosen)


def loadable(signatures: Mapping[str, Signature]) -> tuple[Probe, ...]:
    """All probes that fit a kernel with these functions, also those of what may be switched on later."""
    return tuple(probe for hook in HOOKS if (probe := _variant(hook, signatures)) is not None)


def _variant(hook: Hook, signatures: Mapping[str, Signature]) -> Probe | None:
    return next((probe for probe in hook if signatures.get(probe.function) == probe.signature), None)


def _misfit(hook: Hook, signatures: Mapping[str, Signature]) -> SignatureError:
    function = hook[0].function
    if function not in signatures:
        return SignatureError(f"this kernel has no function {function}, which the tracer needs")
    known = "; ".join(str(probe.signature) for probe in hook)
    return SignatureError(
        f"this kernel's {function} is {signatures[function]}; the tracer knows it as {known}",
        hint="add a variant to bpf/tracer/ and harness/tracer/probes.py",
    )
