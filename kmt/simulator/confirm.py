"""Programs tried on a real kernel: the object and the harness go into its guest, what the kernel says comes back."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import harness
from kmt.run.link import Link
from kmt.simulator.boundary import Trial
from kmt.simulator.objects import EbpfObject, Program
from kmt.simulator.record import ask
from kmt.simulator.sections import Target

PLACE = "/run/kmt/trial"
_OBJECT = "object.o"


def confirm(link: Link, image: bytes, whole: EbpfObject, programs: Sequence[Program]) -> dict[str, Trial]:
    """What the kernel at the other end does with each of the programs, by name."""
    link.send_tar(PLACE, lambda target: _pack(target, image))
    request = {
        "image": f"{PLACE}/{_OBJECT}",
        "unsized": list(whole.unsized),
        "programs": [
            {
                "name": program.name,
                "function": program.place.name if program.place.sort.target is Target.FUNCTION else "",
                "attach": program.place.attachable,
            }
            for program in programs
        ],
    }
    code = Path(__file__).with_name("trial.py").read_text()
    said = ask(link, ["python3", "-c", f"import sys; sys.path.insert(0, {PLACE!r})\n{_without_future(code)}",
                      json.dumps(request)])  # fmt: skip
    return {name: Trial(**values) for name, values in said.items()}


def _without_future(code: str) -> str:
    """Such an import must be a file's first, and Python 3.13 does without."""
    return code.replace("from __future__ import annotations\n", "")


def _pack(target: IO[bytes], image: bytes) -> None:
    """The object, and the harness's own files."""
    package = Path(str(harness.__file__)).parent
    with tarfile.open(fileobj=target, mode="w|") as tar:
        info = tarfile.TarInfo(_OBJECT)
        info.size = len(image)
        tar.addfile(info, io.BytesIO(image))
        for path in sorted([*package.glob("*.py"), *(package / "ebpf").glob("*.py")]):
            tar.add(path, arcname=Path("harness", path.relative_to(package)), recursive=False)
