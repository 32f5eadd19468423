"""(pure) What an ELF section's name says of the program in it, as libbpf reads it: its type and what it is attached to.

Law: a name that is not known is None, never a guess. Names: section_defs of tools/lib/bpf/libbpf.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Target(StrEnum):
    """What the rest of the name names."""

    NOTHING = ""
    FUNCTION = "function"
    """A kernel function, by its BTF."""
    SYMBOL = "symbol"
    """A kernel function, by the symbol table."""
    SYSCALL = "system call"
    TRACEPOINT = "tracepoint"
    """``group/name``."""
    RAW_TRACEPOINT = "raw tracepoint"
    LSM_HOOK = "LSM hook"
    ITERATOR = "iterator"
    PATTERN = "functions by a pattern"
    """Kernel functions, by the symbol table."""


@dataclass(frozen=True)
class Sort:
    """A program's type, the attach type that it is loaded with (empty: none matters), and its target's kind."""

    program_type: str
    attach_type: str = ""
    target: Target = Target.NOTHING


@dataclass(frozen=True)
class Place:
    """What a whole section name says. ``sleepable``: with ``.s``; ``at_end``: runs when the function returns."""

    sort: Sort
    name: str
    sleepable: bool
    at_end: bool

    @property
    def attachable(self) -> bool:
        """Whether libbpf attaches such a program by its section's name alone; others want to be told more."""
        kind = self.sort
        more = kind.attach_type == "lsm_cgroup" or (kind.target is Target.ITERATOR and self.name in _WANT_A_LINK_INFO)
        return bool(self.name) and kind.target is not Target.NOTHING and not more


_WANT_A_LINK_INFO = frozenset({"bpf_map_elem", "bpf_sk_storage_map", "sockmap", "cgroup"})
"""Iterators over one map, or from one control group on."""
_FUNCTION = Target.FUNCTION
_TRACED = {
    "kprobe": Sort("kprobe", "", Target.SYMBOL),
    "kretprobe": Sort("kprobe", "", Target.SYMBOL),
    "ksyscall": Sort("kprobe", "", Target.SYSCALL),
    "kretsyscall": Sort("kprobe", "", Target.SYSCALL),
    "kprobe.multi": Sort("kprobe", "trace_kprobe_multi", Target.PATTERN),
    "kretprobe.multi": Sort("kprobe", "trace_kprobe_multi", Target.PATTERN),
    "kprobe.session": Sort("kprobe", "trace_kprobe_session", Target.PATTERN),
    "uprobe": Sort("kprobe"),
    "uretprobe": Sort("kprobe"),
    "usdt": Sort("kprobe"),
    "uprobe.multi": Sort("kprobe", "trace_uprobe_multi"),
    "uretprobe.multi": Sort("kprobe", "trace_uprobe_multi"),
    "uprobe.session": Sort("kprobe", "trace_uprobe_session"),
    "tp": Sort("tracepoint", "", Target.TRACEPOINT),
    "tracepoint": Sort("tracepoint", "", Target.TRACEPOINT),
    "raw_tp": Sort("raw_tracepoint", "", Target.RAW_TRACEPOINT),
    "raw_tracepoint": Sort("raw_tracepoint", "", Target.RAW_TRACEPOINT),
    "raw_tp.w": Sort("raw_tracepoint_writable", "", Target.RAW_TRACEPOINT),
    "raw_tracepoint.w": Sort("raw_tracepoint_writable", "", Target.RAW_TRACEPOINT),
    "tp_btf": Sort("tracing", "trace_raw_tp", Target.RAW_TRACEPOINT),
    "fentry": Sort("tracing", "trace_fentry", _FUNCTION),
    "fexit": Sort("tracing", "trace_fexit", _FUNCTION),
    "fmod_ret": Sort("tracing", "modify_return", _FUNCTION),
    "lsm": Sort("lsm", "lsm_mac", Target.LSM_HOOK),
    "lsm_cgroup": Sort("lsm", "lsm_cgroup", Target.LSM_HOOK),
    "iter": Sort("tracing", "trace_iter", Target.ITERATOR),
    "perf_event": Sort("perf_event"),
    "syscall": Sort("syscall"),
}
_NETWORK = {
    "xdp": Sort("xdp"),
    "xdp.frags": Sort("xdp"),
    "tc": Sort("sched_cls"),
    "classifier": Sort("sched_cls"),
    "tcx": Sort("sched_cls", "tcx_ingress"),
    "netkit": Sort("sched_cls", "netkit_primary"),
    "action": Sort("sched_act"),
    "socket": Sort("socket_filter"),
    "sk_lookup": Sort("sk_lookup", "sk_lookup"),
    "sk_reuseport": Sort("sk_reuseport"),
    "sockops": Sort("sock_ops", "cgroup_sock_ops"),
    "sk_skb": Sort("sk_skb"),
    "sk_msg": Sort("sk_msg", "sk_msg_verdict"),
    "flow_dissector": Sort("flow_dissector", "flow_dissector"),
    "netfilter": Sort("netfilter", "netfilter"),
    "lwt_in": Sort("lwt_in"),
    "lwt_out": Sort("lwt_out"),
    "lwt_xmit": Sort("lwt_xmit"),
    "lwt_seg6local": Sort("lwt_seg6local"),
    "cgroup_skb": Sort("cgroup_skb"),
    "cgroup/skb": Sort("cgroup_skb"),
    "cgroup/sock_create": Sort("cgroup_sock", "cgroup_inet_sock_create"),
    "cgroup/sock_release": Sort("cgroup_sock", "cgroup_inet_sock_release"),
    "cgroup/dev": Sort("cgroup_device", "cgroup_device"),
    "cgroup/sysctl": Sort("cgroup_sysctl", "cgroup_sysctl"),
    "cgroup/getsockopt": Sort("cgroup_sockopt", "cgroup_getsockopt"),
    "cgroup/setsockopt": Sort("cgroup_sockopt", "cgroup_setsockopt"),
    "cgroup/connect4": Sort("cgroup_sock_addr", "cgroup_inet4_connect"),
    "cgroup/connect6": Sort("cgroup_sock_addr", "cgroup_inet6_connect"),
    "cgroup/bind4": Sort("cgroup_sock_addr", "cgroup_inet4_bind"),
    "cgroup/bind6": Sort("cgroup_sock_addr", "cgroup_inet6_bind"),
    "cgroup/sendmsg4": Sort("cgroup_sock_addr", "cgroup_udp4_sendmsg"),
    "cgroup/sendmsg6": Sort("cgroup_sock_addr", "cgroup_udp6_sendmsg"),
    "cgroup/recvmsg4": Sort("cgroup_sock_addr", "cgroup_udp4_recvmsg"),
    "cgroup/recvmsg6": Sort("cgroup_sock_addr", "cgroup_udp6_recvmsg"),
}
KNOWN = _TRACED | _NETWORK


def place(section: str) -> Place | None:
    """What the name of a section says; None for one that is not known."""
    section = section.removeprefix("?")
    for head in (section, section.partition("/")[0], "/".join(section.split("/")[:2])):
        bare = head.removesuffix(".s")
        if bare in KNOWN:
            rest = section[len(head) :].lstrip("/")
            return Place(KNOWN[bare], rest, head != bare, bare.startswith(("fexit", "kret", "uret")))
    return None
