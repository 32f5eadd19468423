"""A proc root made of directories, in which processes begin and end when a test says."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


class ProcWorld:
    """``root`` is the proc root; processes see ``files`` as their root directory, or what ``begin`` is given."""

    def __init__(self) -> None:
        self._base = tempfile.TemporaryDirectory()
        base = Path(self._base.name)
        self.root, self.files = base / "proc", base / "files"
        self.root.mkdir()
        self.files.mkdir()
        self._ticks = 0

    def begin(self, pid: int, *, root: Path | None = None) -> int:
        """A new process of that number, in place of any other; gives when it was born."""
        self.end(pid)
        self._ticks += 1
        room = self.root / str(pid)
        room.mkdir()
        (room / "fd").mkdir()
        (room / "root").symlink_to(root or self.files)
        (room / "cwd").symlink_to(root or self.files)
        (room / "maps").write_text("")
        self.be(pid, "S", born=self._ticks)
        return self._ticks

    def be(self, pid: int, state: str, *, threads: int = 1, born: int) -> None:
        """Change what its stat says."""
        fields = [state, *["0"] * 16, str(threads), "0", str(born), *["0"] * 30]
        fresh = self.root / str(pid) / "fresh"
        fresh.write_text(f"{pid} (a) b (c)) {' '.join(fields)}\n")
        fresh.replace(self.root / str(pid) / "stat")

    def map(self, pid: int, file: Path, shown: str) -> None:
        """It maps ``file``, shown as ``shown``; the kernel's link leads there whatever becomes of its name."""
        room = self.root / str(pid)
        lines = (room / "maps").read_text()
        at = 0x7F0000000000 + 4096 * lines.count("\n")
        (room / "map_files").mkdir(exist_ok=True)
        (room / "map_files" / f"{at:x}-{at + 4096:x}").hardlink_to(file)
        (room / "maps").write_text(f"{lines}{at:x}-{at + 4096:x} r-xp 00000000 08:01 {file.stat().st_ino} {shown}\n")

    def open(self, pid: int, file: Path) -> None:
        """It has the file open, and not mapped."""
        fds = self.root / str(pid) / "fd"
        (fds / str(len(list(fds.iterdir())))).symlink_to(file)

    def end(self, pid: int) -> None:
        """It is over, and its entry gone at once."""
        room = self.root / str(pid)
        if room.exists():
            gone = self.root / f"gone-{pid}"
            room.rename(gone)
            shutil.rmtree(gone)

    def __enter__(self) -> ProcWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self._base.cleanup()
