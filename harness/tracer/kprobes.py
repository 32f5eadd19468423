"""(pure) Which programs of the kprobe tracer to load: the table of places, and the choice by a kernel's symbols.

Laws: those of ``probes.py``, but for signatures: programs take only arguments whose place never changed, so a function
needs to be there and no more. A place that listens to a function's end has its begin before it: what begins while the
programs go in has an end that nobody waits for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from harness.errors import NotSupportedError
from harness.tracer.settings import TracerSettings


@dataclass(frozen=True)
class Place:
    """A program and where it listens; a tracepoint where ``function`` is empty. ``gone``: newer kernels do without.

    ``needs`` and ``unless`` are symbols that a kernel has, or has not, where the program is wanted.
    """

    program: str
    function: str
    at_end: bool = False
    gone: bool = False
    needs: str = ""
    unless: str = ""


def _begin(*functions: str) -> tuple[Place, ...]:
    return tuple(Place(f"kprobe__{function}", function) for function in functions)


def _both(*functions: str, gone: bool = False, unless: str = "") -> tuple[Place, ...]:
    ends = (("kprobe", False), ("kretprobe", True))
    places = ((f"{kind}__{name}", name, at_end) for name in functions for kind, at_end in ends)
    return tuple(Place(*place, gone=gone, unless=unless) for place in places)


# 6.3, commit 6e6eda44b939: what a call on any socket came to, by one program instead of two.
_SENT, _RECEIVED = "__traceiter_sock_send_length", "__traceiter_sock_recv_length"

TCP = (
    *_begin("tcp_connect", "tcp_finish_connect", "inet_csk_listen_stop", "tcp_disconnect", "tcp_v4_destroy_sock"),
    *_both("inet_csk_accept", "tcp_splice_read", "tcp_close"),
    *_both("tcp_sendmsg", unless=_SENT),
    Place("raw_tp__sock_send_length", "", needs=_SENT),
    *_both("tcp_recvmsg", unless=_RECEIVED),
    Place("raw_tp__sock_recv_length", "", needs=_RECEIVED),
    # 6.5, commit dc97391e6610: sendmsg with MSG_SPLICE_PAGES took its place.
    *_both("tcp_sendpage", gone=True),
    Place("tracepoint__tcp__tcp_retransmit_skb", ""),
    # Beside the kprobe at tcp_v4_destroy_sock, for when the kernel passes that one by (docs/decisions/tracer.md).
    Place("raw_tp__tcp_destroy_sock", ""),
)
UDP = (*_begin("skb_consume_udp"), *_both("inet_bind", "inet6_bind", "udp_destroy_sock", "udpv6_destroy_sock"))
UDP_V4 = (*_begin("udp_send_skb"), *_both("udp_sendmsg"), *_both("udp_sendpage", gone=True))
UDP_V6 = (*_begin("udp_v6_send_skb"), *_both("udpv6_sendmsg"))
PLACES = {place.program: place for place in (*TCP, *UDP, *UDP_V4, *UDP_V6)}
"""Every program of the object, by name."""


TRACEPOINTS = frozenset(place.needs for place in PLACES.values() if place.needs)
"""Symbols of tracepoints that ``choose`` takes instead of functions where a kernel has them."""


def functions() -> frozenset[str]:
    """The kernel functions that ``choose`` wants to know the presence of."""
    return frozenset(place.function for place in PLACES.values() if place.function)


def wanted(settings: TracerSettings) -> tuple[Place, ...]:
    """The places that these settings ask for, in the order in which they are attached."""
    places = TCP if settings.tcp else ()
    places += UDP if settings.udp else ()
    places += UDP_V4 if settings.collect_udp_v4 else ()
    return places + (UDP_V6 if settings.collect_udp_v6 else ())


def choose(symbols: Collection[str], settings: TracerSettings) -> tuple[str, ...]:
    """The programs to attach on a kernel with these symbols. NotSupportedError where one is missing that is needed."""
    places = wanted(settings)
    missing = sorted({p.function for p in places if not p.gone and p.function and p.function not in symbols})
    if missing:
        raise NotSupportedError(
            f"this kernel has no function {', '.join(missing)} to set a kprobe on",
            hint="its compiler may have inlined or renamed it: /proc/kallsyms shows what there is",
        )
    return tuple(_there(places, symbols))


def loadable(symbols: Collection[str]) -> tuple[str, ...]:
    """All programs whose function is there, also those of what may be switched on later."""
    return tuple(_there(PLACES.values(), symbols))


def _there(places: Iterable[Place], symbols: Collection[str]) -> Iterable[str]:
    return (place.program for place in places if _is_there(place, symbols))


def _is_there(place: Place, symbols: Collection[str]) -> bool:
    needed = (name for name in (place.function, place.needs) if name)
    return all(name in symbols for name in needed) and place.unless not in symbols
