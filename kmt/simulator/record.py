"""A profile out of a running guest: bpftool's feature probe, its symbol table and tracing files, and the BTF and
configuration of the kernel that it booted.

Law: nothing stays in the guest. What is made of its answers, and which of them are believed, is ``assemble.py``'s.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import FormatError
from kmt.archive import btf
from kmt.errors import AgentError, ProfileError
from kmt.guest.wire import Kind
from kmt.kernel import Kernel
from kmt.run.link import Link
from kmt.simulator.assemble import BPFTOOL, PROBE, assemble, request
from kmt.simulator.profile import Profile
from kmt.simulator.types import Types

_INSIDE = Path(__file__).with_name("inside.py")


def record(link: Link, kernel: Kernel) -> Profile:
    """The profile of the kernel that the guest at the other end runs."""
    if kernel.config is None:
        raise ProfileError(f"{kernel.name}: the configuration of {kernel.release} is not there")
    image = btf.raw(kernel)
    raw = image.read_bytes() if image else b""
    try:
        types = Types.parse(raw) if raw else None
    except FormatError as error:
        raise ProfileError(f"{kernel.name}: {error}") from None
    said = ask(link, ["python3", "-c", _INSIDE.read_text(), json.dumps(request(types))])
    features = ask(link, [*BPFTOOL, *PROBE])
    tools = ask(link, [*BPFTOOL, "version"])
    return assemble(kernel, kernel.config.read_text(), types, raw, said, features, tools)


def ask(link: Link, argv: Sequence[str]) -> Any:
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
