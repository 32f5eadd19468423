"""(pure) What a guest is asked for a profile, and the profile that its answers make.

Laws: the guest is believed only where it agrees with the kernel's own files: another release or another BTF than that
of the image is a ProfileError. What a probe could not tell is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from kmt.errors import ProfileError
from kmt.kernel import Kernel
from kmt.simulator import points
from kmt.simulator.profile import Function, Profile
from kmt.simulator.types import Types

BPFTOOL = ("bpftool", "--json")
PROBE = ("feature", "probe", "kernel", "full")
_ATTACHED = {
    "tracing": ("BPF_PROG_TYPE_TRACING", "BPF_TRACE_FENTRY", "bpf_fentry_test1"),
    "lsm": ("BPF_PROG_TYPE_LSM", "BPF_LSM_MAC", "bpf_lsm_file_open"),
}
"""Program types whose helpers bpftool cannot tell: type, attach type, and a function that comes with them."""


def request(types: Types | None) -> dict[str, Any]:
    """What ``inside.py`` is asked."""
    programs: dict[str, list[int]] = {}
    helpers: dict[str, int] = {}
    if types is not None:
        kinds, attached = types.enumeration("bpf_prog_type"), types.enumeration("bpf_attach_type")
        numbers = {_lower(n, "BPF_FUNC_"): v for n, v in types.enumeration("bpf_func_id").items()}
        helpers = {name.removeprefix("bpf_"): numbers[name.removeprefix("bpf_")] for name in _named_helpers(types)}
        for name, (kind, place, function) in _ATTACHED.items():
            ids = types.named(function)
            if ids and kind in kinds and place in attached:
                programs[name] = [kinds[kind], attached[place], ids[0]]
    return {"functions": [*points.FUNCTIONS, *points.MARKS], "programs": programs, "helpers": helpers}


def assemble(
    kernel: Kernel, config: str, types: Types | None, raw: bytes, said: Mapping[str, Any], features: Mapping[str, Any],
    tools: Mapping[str, Any],
) -> Profile:  # fmt: skip
    """The profile that all this makes; ``config`` is the text of the kernel's configuration. Raises ProfileError."""
    digest = hashlib.sha256(raw).hexdigest() if raw else ""
    if said["release"] != kernel.release:
        raise ProfileError(f"{kernel.name}: the guest runs {said['release']}, not {kernel.release}")
    if said["btf"] != digest:
        raise ProfileError(f"{kernel.name}: the BTF that {kernel.release} shows is not the one in its image")
    signatures = types.functions(points.FUNCTIONS) if types else {}
    symbols, traceable = set(said["symbols"]), set(said["traceable"])
    helpers = {_lower(k, "", "_available_helpers"): frozenset(v) for k, v in features["helpers"].items() if v}
    helpers |= {kind: frozenset(f"bpf_{n}" for n in names) for kind, names in said["helpers"].items() if names}
    return Profile(
        release=kernel.release,
        version=said["version"],
        machine=said["machine"],
        origin=kernel.origin,
        tools={"bpftool": tools["version"], "libbpf": tools["libbpf_version"]},
        config=points.configuration(config),
        program_types=_told(features["program_types"], "prog", types),
        map_types=_told(features["map_types"], "map", types),
        attach_types=tuple(
            _lower(name, "BPF_") for name in (types.enumeration("bpf_attach_type") if types else ()) if _real(name)
        ),
        helpers=helpers,
        other_helpers=_named_helpers(types) - frozenset().union(*helpers.values()),
        functions={n: Function(n in symbols, n in traceable, signatures.get(n)) for n in points.FUNCTIONS},
        marks={name: name in symbols for name in points.MARKS},
        tracepoints=frozenset(said["tracepoints"]),
        btf=digest,
        btf_modules=tuple(said["btf_modules"]) if digest else None,
        lsm=tuple(filter(None, said["lsm"].split(","))),
        lockdown=_chosen(said["lockdown"]),
        jit=said["jit"] not in ("", "0"),
        headers=bool(kernel.headers),
    )


def _named_helpers(types: Types | None) -> frozenset[str]:
    names = types.enumeration("bpf_func_id") if types else {}
    return frozenset(f"bpf_{_lower(name, 'BPF_FUNC_')}" for name, number in names.items() if _real(name) and number)


def _told(said: Mapping[str, bool], sort: str, types: Types | None) -> dict[str, bool]:
    """bpftool's answers. Its "no" counts only for what the kernel's own headers do not name.

    For it says so of all that could not be made: of an arena where there is too little memory, of what was left out
    by configuration, and of ``struct_ops`` on kernels that are older than its way to ask.
    """
    names = types.enumeration(f"bpf_{sort}_type") if types else {}
    known = {_lower(name, f"BPF_{sort.upper()}_TYPE_") for name in names}
    found = {_lower(key, "have_", f"_{sort}_type"): answer for key, answer in said.items()}
    return {name: answer for name, answer in found.items() if answer or name not in known}


def _lower(name: str, prefix: str, suffix: str = "") -> str:
    return name.removeprefix(prefix).removesuffix(suffix).lower()


def _real(enumerator: str) -> bool:
    """No mark of an enumeration's end."""
    return "MAX" not in enumerator


def _chosen(said: str) -> str:
    """``none`` of ``[none] integrity confidentiality``; empty where there is no lockdown."""
    return said.partition("[")[2].partition("]")[0]
