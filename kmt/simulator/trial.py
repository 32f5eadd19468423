"""Runs in a guest, with the harness beside it: each program of an object loaded and attached alone; JSON on stdout.

The request is the last argument, JSON: ``image`` (a path), ``unsized`` (maps that get a size), and ``programs``: each
its ``name``, ``function`` (what a fentry or fexit program is attached to, or empty) and ``attach`` (whether to try).
Laws: nothing stays in the kernel; what cannot be loaded or attached is an answer, with the kernel's own words.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.ebpf.libbpf import BpfObject
from harness.errors import HarnessError, VerifierError
from harness.kernel_api import LoadOptions, MapEdit, Signature

_ENTRIES = 4096
"""A size that maps of every type can have, ring buffers too."""
_LOG = 8000


def attempt(image: bytes, program: Mapping[str, Any], unsized: list[str]) -> dict[str, Any]:
    """One program on the running kernel."""
    name = program["name"]
    # What the function is, is the kernel's to judge here: only the caller's word that it was thought of is wanted.
    expected = {name: (program["function"], Signature((), "void"))} if program["function"] else {}
    edits = {each: MapEdit(max_entries=_ENTRIES) for each in unsized}
    said: dict[str, Any] = {"loads": False, "attaches": None, "error": "", "log": ""}
    try:
        with BpfObject("trial", image, LoadOptions(programs=[name], map_edits=edits, signatures=expected)) as loaded:
            said["loads"] = True
            if program["attach"]:
                said["attaches"] = False
                loaded.attach(name)
                said["attaches"] = True
    except HarnessError as error:
        said["error"] = error.message
        said["log"] = error.log[-_LOG:] if isinstance(error, VerifierError) else ""
    return said


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """What happened to each program, by name."""
    image = Path(request["image"]).read_bytes()
    # Before 5.11 maps and programs count against it.
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return {each["name"]: attempt(image, each, request["unsized"]) for each in request["programs"]}


if __name__ == "__main__":
    json.dump(answer(json.loads(sys.argv[-1])), sys.stdout)
