"""``/proc`` as a tree of files: what a simulated kernel shows of itself, and of processes that a test lets begin.

Laws: it is written below one directory and nowhere else; a process is there, and is gone, at once and as a whole; what
it has mapped can be reached whatever becomes of the file's name, and is shown by the name that it has now.
Format: Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

OWN = 1 << 22
"""The number of the process that looks: higher than any other's."""
_DELETED = " (deleted)"


class ProcTree:
    """``root`` is the proc root. Processes see ``files`` as their root directory, unless they are given another."""

    def __init__(
        self, root: Path, *, release: str, symbols: Iterable[str] = (), files: Path = Path("/"), own: int = OWN
    ) -> None:
        self.root, self.files, self.own = root, files, own
        self._ticks = 0
        self._births: dict[int, tuple[str, int]] = {}
        """Names, and when each began."""
        self._shown: dict[int, list[tuple[str, str]]] = {}
        """What each has mapped: the line up to the name, and the name."""
        (root / "sys/kernel").mkdir(parents=True, exist_ok=True)
        (root / "sys/kernel/osrelease").write_text(f"{release}\n")
        (root / "version").write_text(f"Linux version {release}\n")
        lines = (f"ffffffff81{n:06x} T {name}\n" for n, name in enumerate(sorted(symbols)))
        (root / "kallsyms").write_text("".join(lines))
        self.begin(own, "self")
        (root / str(own) / "ns").mkdir()
        for name in ("net", "pid"):
            (root / str(own) / "ns" / name).touch()
        with suppress(FileExistsError):
            (root / "self").symlink_to(str(own))

    def begin(self, pid: int, name: str = "process", *, root: Path | None = None) -> int:
        """A new process of that number, in place of any other; gives when it was born, in ticks."""
        self.end(pid)
        self._ticks += 1
        self._births[pid], self._shown[pid] = (name, self._ticks), []
        room = self.root / f".new-{pid}"
        (room / "fd").mkdir(parents=True)
        (room / "map_files").mkdir()
        for link in ("root", "cwd"):
            (room / link).symlink_to(root or self.files)
        (room / "comm").write_text(f"{name}\n")
        (room / "maps").touch()
        (room / "stat").write_text(self._stat(pid, "S", 1))
        room.rename(self.root / str(pid))
        return self._ticks

    def be(self, pid: int, state: str, *, threads: int = 1) -> None:
        """Change what its ``stat`` says."""
        self._write(pid, "stat", self._stat(pid, state, threads))

    def map(self, pid: int, file: Path, shown: str = "") -> None:
        """It maps ``file``, shown as ``shown`` (its path): the link leads there whatever becomes of its name."""
        lines = self._shown[pid]
        at = 0x7F0000000000 + 4096 * len(lines)
        (self.root / str(pid) / "map_files" / f"{at:x}-{at + 4096:x}").hardlink_to(file)
        lines.append((f"{at:x}-{at + 4096:x} r-xp 00000000 08:01 {file.stat().st_ino} ", shown or str(file)))
        self._show(pid)

    def open(self, pid: int, file: Path) -> None:
        """It has the file open, and not mapped."""
        fds = self.root / str(pid) / "fd"
        (fds / str(len(list(fds.iterdir())))).symlink_to(file)

    def moved(self, file: Path, to: Path | None = None) -> None:
        """That file has another name now, or none: what is mapped or open is shown so."""
        old, new = str(file), f"{file}{_DELETED}" if to is None else str(to)
        for pid, lines in self._shown.items():
            self._shown[pid] = [(line, new if shown == old else shown) for line, shown in lines]
            self._show(pid)
            for link in (self.root / str(pid) / "fd").iterdir():
                if str(link.readlink()) == old:
                    link.unlink()
                    link.symlink_to(new)

    def die(self, pid: int) -> None:
        """It is over, and nobody has asked how it ended: a zombie, which has nothing open or mapped any more."""
        room = self.root / str(pid)
        self._shown[pid] = []
        self._show(pid)
        for link in (*(room / "fd").iterdir(), *(room / "map_files").iterdir(), room / "root", room / "cwd"):
            link.unlink(missing_ok=True)
        self.be(pid, "Z")

    def end(self, pid: int) -> None:
        """It is over; does nothing where there is none."""
        room = self.root / str(pid)
        self._births.pop(pid, None)
        self._shown.pop(pid, None)
        if room.exists():
            gone = self.root / f".gone-{pid}"
            room.rename(gone)
            shutil.rmtree(gone)

    def _stat(self, pid: int, state: str, threads: int) -> str:
        name, born = self._births[pid]
        fields = [state, *["0"] * 16, str(threads), "0", str(born), *["0"] * 30]
        return f"{pid} ({name}) {' '.join(fields)}\n"

    def _show(self, pid: int) -> None:
        self._write(pid, "maps", "".join(f"{line}{shown}\n" for line, shown in self._shown[pid]))

    def _write(self, pid: int, name: str, text: str) -> None:
        """As a whole: nobody reads a half."""
        fresh = self.root / str(pid) / f".{name}"
        fresh.write_text(text)
        fresh.replace(fresh.with_name(name))
