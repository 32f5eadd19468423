"""(pure) What profiles say of kernel functions and options: only what somebody asks for, so that they stay small.

Functions are those that the harness's tracers and watcher may be attached to; the marks are functions whose presence
is the presence of a feature, as the harness probes it.
"""

from __future__ import annotations

from harness.tracer import kprobes, probes

MARKS = (
    "arch_prepare_bpf_trampoline",
    "bpf_kprobe_multi_link_attach",
    "bpf_uprobe_multi_link_attach",
    "register_fprobe_ips",
    *sorted(kprobes.TRACEPOINTS),
)
"""Functions of the kernel that are there with a feature."""

FUNCTIONS = tuple(
    sorted({*probes.functions(), *kprobes.functions(), "do_sys_open", "do_sys_openat2", "security_file_open"})
)
"""What programs are attached to."""

OPTIONS = (
    "BPF", "BPF_EVENTS", "BPF_JIT", "BPF_JIT_ALWAYS_ON", "BPF_KPROBE_OVERRIDE", "BPF_LIRC_MODE2", "BPF_LSM",
    "BPF_STREAM_PARSER", "BPF_SYSCALL", "BPF_UNPRIV_DEFAULT_OFF", "CGROUPS", "CGROUP_BPF", "CGROUP_NET_CLASSID",
    "DEBUG_FS", "DEBUG_INFO_BTF", "DEBUG_INFO_BTF_MODULES", "DYNAMIC_FTRACE", "DYNAMIC_FTRACE_WITH_DIRECT_CALLS",
    "FPROBE", "FTRACE_SYSCALLS", "FUNCTION_ERROR_INJECTION", "FUNCTION_TRACER", "HAVE_EBPF_JIT", "HZ", "IKHEADERS",
    "INET", "IPV6", "IPV6_SEG6_BPF", "IP_ROUTE_CLASSID", "KALLSYMS", "KALLSYMS_ALL", "KPROBES", "KPROBE_EVENTS",
    "LWTUNNEL_BPF", "MODULE_SIG_FORCE", "NET", "NETFILTER_BPF_LINK", "NETFILTER_XT_MATCH_BPF", "NET_ACT_BPF",
    "NET_CLS_ACT", "NET_CLS_BPF", "NET_SCH_INGRESS", "NF_TABLES", "PERF_EVENTS", "SECURITY", "SECURITYFS",
    "SECURITY_LOCKDOWN_LSM", "SMP", "SOCK_CGROUP_DATA", "TRACING", "UPROBES", "UPROBE_EVENTS", "XDP_SOCKETS",
    "XFRM",
)  # fmt: skip
"""Options of the kernel's configuration that decide what eBPF can do, without ``CONFIG_``."""


def configuration(text: str) -> dict[str, str]:
    """Those of a ``.config``: ``y``, ``m``, a value, or ``n`` for what is not set."""
    said = dict(line.removeprefix("CONFIG_").split("=", 1) for line in text.splitlines() if line.startswith("CONFIG_"))
    return {option: said.get(option, "n").strip('"') for option in OPTIONS}
