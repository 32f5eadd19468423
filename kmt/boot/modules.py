"""Which modules of a kernel an initramfs needs, and their plain content.

Resolved from the kernel's own ``modules.builtin``, ``modules.dep`` and ``modules.softdep`` (depmod(8)), never by a
list for each kernel: what is built into one kernel is a module of another.
"""

from __future__ import annotations

import gzip
import lzma
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kmt import proc
from kmt.errors import ImageError
from kmt.hints import task


@dataclass(frozen=True)
class Module:
    """A file to load. ``optional``: it may refuse, for it drives hardware that the machine may not have."""

    path: Path
    optional: bool = False


def module_name(path: str) -> str:
    """``virtio_blk`` of ``kernel/drivers/block/virtio-blk.ko.xz``."""
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def load_order(directory: Path, wanted: Iterable[str]) -> list[Module]:
    """What to load for the ``wanted`` modules, dependencies first; built-in ones need none.

    ``directory`` is a ``lib/modules/<release>`` that depmod has seen. A soft dependency may be an alias that several
    modules answer to (crc32c: one for each kind of processor): all are optional. Raises ImageError for a module that
    is neither there nor built in.
    """
    built_in = {module_name(line) for line in _lines(directory / "modules.builtin")}
    files: dict[str, str] = {}
    needs: dict[str, list[str]] = {}
    for line in _lines(directory / "modules.dep"):
        path, _, dependencies = line.partition(":")
        files[module_name(path)] = path
        needs[module_name(path)] = [module_name(d) for d in dependencies.split()]
    soft = _soft_dependencies(directory)
    order: dict[str, bool] = {}

    def add(name: str, optional: bool) -> None:
        if name in built_in:
            return
        if name in order:
            order[name] = order[name] and optional
            return
        if name not in files:
            raise ImageError(
                f"kernel {directory.name} has no module {name} and it is not built in",
                hint="a guest needs virtio_pci, virtio_blk, virtio_console, erofs and overlay",
            )
        for dependency in needs[name]:
            add(dependency, optional)
        for dependency in soft.pop(name, ()):  # once: soft dependencies may go in circles
            if dependency in files:
                add(dependency, True)
        order[name] = optional

    for name in wanted:
        add(name, False)
    return [Module(directory / files[name], optional) for name, optional in order.items()]


def content(path: Path) -> bytes:
    """The module as an ELF object, decompressed (xz, gz, zst). Raises ImageError when it is damaged."""
    try:
        if path.suffix == ".xz":
            return lzma.decompress(path.read_bytes())
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes())
        if path.suffix == ".zst":
            with tempfile.TemporaryFile() as plain:
                proc.run(["zstd", "-dcq", path], stdout=plain, error=ImageError)
                plain.seek(0)
                return plain.read()
        return path.read_bytes()
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise ImageError(f"{path}: {error}", hint=f"{task('fetch')} fetches it anew") from None


def _soft_dependencies(directory: Path) -> dict[str, list[str]]:
    """A module's name to what should be loaded before it, aliases resolved."""
    aliases: dict[str, list[str]] = {}
    for line in _lines(directory / "modules.alias"):
        words = line.split()
        if len(words) == 3 and words[0] == "alias":
            aliases.setdefault(words[1].replace("-", "_"), []).append(words[2])
    found: dict[str, list[str]] = {}
    for line in _lines(directory / "modules.softdep"):
        words = [word.replace("-", "_") for word in line.split()]
        if len(words) > 3 and words[0] == "softdep" and words[2] == "pre:":
            first = words[3 : words.index("post:")] if "post:" in words else words[3:]
            found.setdefault(words[1], []).extend(real for name in first for real in (name, *aliases.get(name, ())))
    return found


def _lines(path: Path) -> list[str]:
    """Lines with something in them; a file that is not there has none."""
    if not path.is_file():
        return []
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
