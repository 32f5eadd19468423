"""A profile out of a running guest: bpftool's feature probe, its symbol table and tracing files, and the BTF and
configuration of the kernel that it booted.

Laws: the guest is asked and believed only where it agrees with the kernel's own files: another release or another
BTF than that of the image is a ProfileError. What a probe could not tell is left out. Nothing stays in the guest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.errors import FormatError
from kmt.archive import btf
from kmt.errors import AgentError, ProfileError
from kmt.guest.wire import Kind
from kmt.kernel import Kernel
from kmt.run.link import Link
from kmt.simulator import points
from kmt.simulator.profile import Function, Profile
from kmt.simulator.types import Types

_INSIDE = Path(__file__).with_name("inside.py")
_BPFTOOL = ("bpftool", "--json", "feature", "probe", "kernel", "full")
_ATTACHED = {
    "tracing": ("BPF_PROG_TYPE_TRACING", "BPF_TRACE_FENTRY", "bpf_fentry_test1"),
    "lsm": ("BPF_PROG_TYPE_LSM", "BPF_LSM_MAC", "bpf_lsm_file_open"),
}
"""Program types whose helpers bpftool cannot tell: type, attach type, and a function that comes with them."""


def record(link: Link, kernel: Kernel) -> Profile:
    """The profile of the kernel that the guest at the other end runs."""
    image = btf.raw(kernel)
    raw = image.read_bytes() if image else b""
    try:
        types = Types.parse(raw) if raw else None
    except FormatError as error:
        raise ProfileError(f"{kernel.name}: {error}") from None
    said = _json(link, ["python3", "-c", _INSIDE.read_text(), json.dumps(_request(types))])
    features = _json(link, list(_BPFTOOL))
    tools = _json(link, ["bpftool", "--json", "version"])
    return assemble(kernel, types, raw, said, features, tools)


def _request(types: Types | None) -> dict[str, Any]:
    """(pure) What ``inside.py`` is asked."""
    programs: dict[str, list[int]] = {}
    helpers: dict[str, int] = {}
    if types is not None:
        kinds, attached = types.enumeration("bpf_prog_type"), types.enumeration("bpf_attach_type")
        helpers = {_lower(n, "BPF_FUNC_"): v for n, v in types.enumeration("bpf_func_id").items() if _real(n) and v}
        for name, (kind, place, function) in _ATTACHED.items():
            ids = types.named(function)
            if ids and kind in kinds and place in attached:
                programs[name] = [kinds[kind], attached[place], ids[0]]
    return {"functions": [*points.FUNCTIONS, *points.MARKS], "programs": programs, "helpers": helpers}


def assemble(
    kernel: Kernel, types: Types | None, raw: bytes, said: Mapping[str, Any], features: Mapping[str, Any],
    tools: Mapping[str, Any],
) -> Profile:  # fmt: skip
    """(pure but for the configuration's file) The profile that all this makes. Raises ProfileError."""
    digest = hashlib.sha256(raw).hexdigest() if raw else ""
    if said["release"] != kernel.release:
        raise ProfileError(f"{kernel.name}: the guest runs {said['release']}, not {kernel.release}")
    if said["btf"] != digest:
        raise ProfileError(f"{kernel.name}: the BTF that {kernel.release} shows is not the one in its image")
    if kernel.config is None:
        raise ProfileError(f"{kernel.name}: the configuration of {kernel.release} is not there")
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
        config=points.configuration(kernel.config.read_text()),
        program_types=_told(features["program_types"], "prog", types),
        map_types=_told(features["map_types"], "map", types),
        attach_types=tuple(
            _lower(name, "BPF_") for name in (types.enumeration("bpf_attach_type") if types else ()) if _real(name)
        ),
        helpers=helpers,
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


def _json(link: Link, argv: Sequence[str]) -> Any:
    """What a command in the guest prints, as JSON."""
    out, err, status = bytearray(), bytearray(), 0
    for frame in link.start(argv):
        if frame.kind is Kind.EXIT:
            status = int(frame.body["status"])
        else:
            (err if frame.raw[:1] == b"\x02" else out).extend(frame.raw[1:])
    try:
        if status == 0:
            return json.loads(out)
    except ValueError:
        pass
    words = (err or out).decode(errors="replace").strip().splitlines()
    raise AgentError(f"{argv[0]} in the guest ended with {status}: {words[-1] if words else 'it said nothing'}")
