"""A proc root made of directories, in which processes begin and end when a test says."""

from __future__ import annotations

import tempfile
from pathlib import Path

from kmt.simulator.proc_tree import OWN, ProcTree

__all__ = ["OWN", "ProcWorld"]


class ProcWorld(ProcTree):
    """``root`` is the proc root (a simulated kernel's, where it is given); processes see ``files`` as their root
    directory, or what ``begin`` is given."""

    def __init__(self, root: Path | None = None) -> None:
        self._base = tempfile.TemporaryDirectory()
        base = Path(self._base.name)
        (base / "files").mkdir()
        release = (root / "sys/kernel/osrelease").read_text().strip() if root else "6.1.0"
        super().__init__(root or base / "proc", release=release, files=base / "files")

    def begin(self, pid: int, name: str = "a) b (c)", *, root: Path | None = None) -> int:
        """A new process of that number, in place of any other; gives when it was born."""
        return super().begin(pid, name, root=root)

    def __enter__(self) -> ProcWorld:
        return self

    def __exit__(self, *_: object) -> None:
        for room in [room for room in self.root.iterdir() if room.name.isdecimal()]:
            if room.name != str(self.own):
                self.end(int(room.name))
        self._base.cleanup()
