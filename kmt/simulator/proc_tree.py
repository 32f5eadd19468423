"""``/proc`` as a tree of files: what a simulated kernel shows of itself, and of processes that a test lets begin.

Laws: it is written below one directory and nowhere else; a process that has ended is gone at once, as a whole.
Format: Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path


class ProcTree:
    """``root`` is the proc root. Processes see ``files`` as their root directory, unless they are given another."""

    def __init__(self, root: Path, *, release: str, symbols: Iterable[str] = (), files: Path = Path("/")) -> None:
        self.root, self.files = root, files
        self._ticks = 0
        (root / "self/ns").mkdir(parents=True, exist_ok=True)
        for name in ("net", "pid"):
            (root / "self/ns" / name).touch()
        (root / "sys/kernel").mkdir(parents=True, exist_ok=True)
        (root / "sys/kernel/osrelease").write_text(f"{release}\n")
        (root / "version").write_text(f"Linux version {release}\n")
        lines = (f"ffffffff81{n:06x} T {name}\n" for n, name in enumerate(sorted(symbols)))
        (root / "kallsyms").write_text("".join(lines))

    def begin(self, pid: int, name: str = "process", *, root: Path | None = None) -> int:
        """A new process of that number, in place of any other; gives when it was born, in ticks."""
        self.end(pid)
        self._ticks += 1
        room = self.root / str(pid)
        (room / "fd").mkdir(parents=True)
        (room / "map_files").mkdir()
        for link in ("root", "cwd"):
            (room / link).symlink_to(root or self.files)
        (room / "comm").write_text(f"{name}\n")
        (room / "maps").touch()
        fields = ["S", *["0"] * 16, "1", "0", str(self._ticks), *["0"] * 30]
        (room / "stat").write_text(f"{pid} ({name}) {' '.join(fields)}\n")
        return self._ticks

    def map(self, pid: int, file: Path, shown: str = "") -> None:
        """It maps ``file``, shown as ``shown`` (its path): the link leads there whatever becomes of its name."""
        room = self.root / str(pid)
        lines = (room / "maps").read_text()
        at = 0x7F0000000000 + 4096 * lines.count("\n")
        (room / "map_files" / f"{at:x}-{at + 4096:x}").hardlink_to(file)
        line = f"{at:x}-{at + 4096:x} r-xp 00000000 08:01 {file.stat().st_ino} {shown or file}\n"
        (room / "maps").write_text(lines + line)

    def end(self, pid: int) -> None:
        """It is over; does nothing where there is none."""
        room = self.root / str(pid)
        if room.exists():
            gone = self.root / f".gone-{pid}"
            room.rename(gone)
            shutil.rmtree(gone)
