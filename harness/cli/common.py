"""What the commands share: the options that say where the programs are and which may be loaded, and how to stop."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.ebpf.settings import BpfSettings
from harness.errors import SettingsError

_NOTHING_ELSE = {"allow_runtime_compiled_fallback": False, "allow_prebuilt_fallback": False}
_STAGES: dict[str, dict[str, Any]] = {
    "co-re": _NOTHING_ELSE,
    "runtime": {**_NOTHING_ELSE, "enable_co_re": False, "enable_runtime_compiler": True},
    "prebuilt": {**_NOTHING_ELSE, "enable_co_re": False},
}
"""Settings that leave one stage."""


def add_bpf_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that loads programs."""
    parser.add_argument(
        "--bpf-dir", type=Path, help="the built programs (default: KMT_BPF_DIR, which every guest has)", metavar="DIR"
    )
    parser.add_argument("--btf", type=Path, help="BTF of this kernel, if it shows none itself", metavar="FILE")
    parser.add_argument("--stage", choices=sorted(_STAGES), help="that one only (default: the first that works)")
    parser.add_argument("--no-ring-buffer", action="store_true", help="read events by the perf buffer")


def bpf_settings(options: argparse.Namespace) -> BpfSettings:
    """The settings that the options mean. SettingsError where nothing says where the programs are."""
    named = options.bpf_dir or os.environ.get("KMT_BPF_DIR")
    if not named:
        raise SettingsError("where are the programs?", hint="--bpf-dir DIR, or set KMT_BPF_DIR; kmt.build makes them")
    made = BpfSettings(Path(named), btf_path=options.btf, enable_ringbuffers=not options.no_ring_buffer)
    return made if options.stage is None else replace(made, **_STAGES[options.stage])


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Options of every command that shows what happens."""
    parser.add_argument("--json", action="store_true", help="a JSON object a line instead of a table")
    parser.add_argument("--seconds", type=float, help="how long (default: until Ctrl-C)", metavar="N")


def until_done(options: argparse.Namespace) -> Iterator[None]:
    """Step after step until the time that was asked for is over. Ctrl-C is its caller's to see."""
    end = None if options.seconds is None else time.monotonic() + options.seconds
    while end is None or time.monotonic() < end:
        yield


def line(**fields: Any) -> None:
    """Print one JSON object, at once."""
    print(json.dumps(fields, separators=(",", ":"), default=str), flush=True)
