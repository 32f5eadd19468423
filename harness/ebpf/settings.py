"""(pure) The settings of everything that loads programs, checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

from harness.ebpf.fallback import Switches
from harness.errors import SettingsError


@dataclass(frozen=True)
class BpfSettings:
    """Where objects are and which ways of loading them are allowed (names as in the field, without prefixes).

    ``bpf_dir`` holds ``NAME.o`` (prebuilt), ``co-re/NAME.o``, ``co-re/btf`` (the embedded BTF collection) and
    ``runtime/NAME.bpf.c`` with its headers; ``bpf_debug`` takes ``NAME-debug.o``, programs that say more;
    ``btf_path`` is BTF of the running kernel from elsewhere; ``runtime_output_dir`` keeps what the runtime stage
    compiled (None: keep nothing).
    """

    bpf_dir: Path
    btf_path: Path | None = None
    enable_co_re: bool = True
    enable_runtime_compiler: bool = False
    allow_runtime_compiled_fallback: bool = True
    allow_prebuilt_fallback: bool = True
    enable_ringbuffers: bool = True
    bpf_debug: bool = False
    runtime_output_dir: Path | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, optional = getattr(self, field.name), "None" in str(field.type)
            if "bool" in str(field.type):
                good, wanted = isinstance(value, bool), "True or False"
            else:
                good, wanted = isinstance(value, Path) or (optional and value is None), "a path"
            if not good:
                raise SettingsError(f"{field.name} must be {wanted}, not {value!r}")

    @property
    def switches(self) -> Switches:
        """What the fallback chain reads."""
        return Switches(
            core=self.enable_co_re,
            runtime=self.enable_runtime_compiler,
            allow_runtime=self.allow_runtime_compiled_fallback,
            allow_prebuilt=self.allow_prebuilt_fallback,
        )
