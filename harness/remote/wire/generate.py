"""Make the Python of the ``.proto`` files beside this one: ``python -m harness.remote.wire.generate``.

Needs grpcio-tools (the extra ``dev``). A test makes them again and compares, so what is in the tree is what the
``.proto`` say.
"""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
MADE = ("config_pb2.py", "config_pb2.pyi", "service_pb2.py", "service_pb2.pyi")


def generate(output: Path) -> list[Path]:
    """Write the modules below ``output``, in the folders of their package; their paths in the order of ``MADE``."""
    from grpc_tools import _proto, protoc

    bundled = Path(_proto.__file__ or "").parent
    sources = [str(path) for path in sorted(HERE.glob("*.proto"))]
    words = ["protoc", f"-I{ROOT}", f"-I{bundled}", f"--python_out={output}", f"--pyi_out={output}", *sources]
    if protoc.main(words):
        raise SystemExit("protoc failed; its words are above")
    return [output / HERE.relative_to(ROOT) / name for name in MADE]


if __name__ == "__main__":
    generate(ROOT)
    sys.exit(0)
