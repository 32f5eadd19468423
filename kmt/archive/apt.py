"""apt at work for us: signed indexes and verified downloads, with lists and settings of our own.

One private root a source, so that a suite that is gone, or a mirror that is down, says so for itself. apt checks
signatures, digests, retries, and takes the machine's proxy and credentials; the machine's own lists are not touched.
Laws: an index is read only after apt has verified it; a package is published only when size and SHA256 are right;
"not there" (UnavailableError) and "no answer" (MirrorError) are different errors.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kmt import paths, proc
from kmt.archive.mirror import line
from kmt.errors import ArchiveError, MirrorError, UnavailableError
from kmt.hints import task
from kmt.matrix import Source

HELPER = "/usr/lib/apt/apt-helper"
TIMEOUT = 20
"""Seconds without an answer before apt gives a server up (each of RETRIES + 1 tries)."""
RETRIES = 2
UPDATE_SECONDS = 300
"""Seconds that an index may take altogether."""
INDEX_ROOM = 100_000_000
"""Bytes that a suite's index may want on disk: sid's takes 24 MB, and more while it is verified."""
STALL_SECONDS = 90.0
"""Seconds without a single byte before a download is given up."""

_ENGLISH = {"LC_ALL": "C.UTF-8", "LANGUAGE": ""}
# Read with -c, after the machine's apt.conf.d, whose hooks and compression settings it undoes.
_CONF = """\
#clear APT::Update;
#clear APT::Architectures;
#clear Acquire::CompressionTypes::Order;
APT::Architecture "{arch}";
APT::Architectures {{ "{arch}"; }};
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::PDiffs "false";
Acquire::Retries "{retries}";
Acquire::http::Timeout "{timeout}";
Acquire::https::Timeout "{timeout}";
Dir::Cache "{root}/cache";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "{root}";
Dir::State::lists "{root}/lists";
Dir::State::status "{root}/status";
pkgCacheFile::Generate "false";
"""


@dataclass(frozen=True)
class Wanted:
    """A file to download: from where, to where, and what it must be."""

    uri: str
    target: Path
    size: int
    sha256: str


def index(source: Source, suite: str, arch: str, *, update: bool) -> str:
    """The text of a suite's package index, updated first when ``update`` or when it is not here yet.

    Raises UnavailableError when the archive answers and has no such suite, MirrorError when nothing trustworthy came.
    """
    root = _root(source, suite, arch)
    with paths.locked(f"apt-{root.name}"):
        if not _sound(root):
            # apt takes an index that lies there for good and does not look into it: away with a damaged one
            shutil.rmtree(root, ignore_errors=True)
        conf = _prepare_root(root, source, suite, arch)
        if update or not _indexes(root):
            _update(conf, source, suite)
            (root / "sums").write_text(_sums(root))
        if not _indexes(root):
            raise UnavailableError(f"{suite} of {source.uri} has nothing for {arch}")
        return _read(root)


def known_index(source: Source, suite: str, arch: str) -> str:
    """The same from what is here already, without any network; "" when there is nothing."""
    root = _root(source, suite, arch)
    return _read(root) if _indexes(root) and _sound(root) else ""


def _root(source: Source, suite: str, arch: str) -> Path:
    key = hashlib.sha256(f"{source} {suite} {arch}".encode()).hexdigest()[:12]
    return paths.cache("apt") / f"{suite.replace('/', '_')}-{key}"


def _prepare_root(root: Path, source: Source, suite: str, arch: str) -> Path:
    for room in ("lists/partial", "cache/archives/partial"):
        (root / room).mkdir(parents=True, exist_ok=True)
    (root / "status").touch()
    options = f"arch={arch} target=Packages"
    (root / "sources.list").write_text(line(source, suite, options=options) + "\n")
    conf = root / "apt.conf"
    conf.write_text(_CONF.format(arch=arch, retries=RETRIES, timeout=TIMEOUT, root=root))
    return conf


def _update(conf: Path, source: Source, suite: str) -> None:
    what = f"{suite} of {source.uri}"
    done = proc.run(
        ["apt-get", "-c", conf, "-q", "update"], check=False, env=_ENGLISH, timeout=UPDATE_SECONDS, error=MirrorError
    )
    if done.status == 0:
        return
    said = _complaints(done.stdout + "\n" + done.stderr)
    if "No space left" in said:
        raise no_space(conf.parent, INDEX_ROOM)
    if "does not have a Release file" in said and _not_found(said + done.stdout):
        raise UnavailableError(f"the archive has no {what}")
    hint = "is KMT_MIRROR right?" if "Could not" not in said else "is the mirror up, and this machine online?"
    if "not signed" in said or "NO_PUBKEY" in said or "signature" in said:
        hint = "its signature could not be checked; update debian-archive-keyring"
    raise MirrorError(f"{what} cannot be read:\n{said}", hint=hint)


def _indexes(root: Path) -> list[Path]:
    # apt moves an index out of partial/ only when it has verified it; the name ends with its compression
    return sorted((root / "lists").glob("*_Packages*"))


def _sums(root: Path) -> str:
    return "".join(f"{digest_of(path)}  {path.name}\n" for path in _indexes(root))


def _sound(root: Path) -> bool:
    """True when the indexes are still what apt left there."""
    sums = root / "sums"
    return not root.exists() or (sums.is_file() and sums.read_text() == _sums(root))


def _read(root: Path) -> str:
    return proc.run([HELPER, "-c", root / "apt.conf", "cat-file", *_indexes(root)], error=ArchiveError).stdout


def download(wanted: Sequence[Wanted], progress: Callable[[int], None]) -> None:
    """Fetch the files in one go; each appears whole and verified or not at all. ``progress`` gets bytes so far.

    Raises UnavailableError for a file that the archive does not have, ArchiveError for one that is not what the
    index or the lock file says, MirrorError when the archive does not answer or stalls.
    """
    if not wanted:
        return
    room = wanted[0].target.parent
    _sweep(room)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=room) as work:
        triplets: list[str] = []
        for number, one in enumerate(wanted):
            # apt's file method hands out the file itself, its copy method a copy
            uri = one.uri.replace("file:", "copy:", 1) if one.uri.startswith("file:") else one.uri
            triplets += [uri, f"{work}/{number}", f"SHA256:{one.sha256}"]
        conf = Path(work) / "apt.conf"
        settings = f'APT::Sandbox::User "";\nAcquire::Retries "{RETRIES}";\n'
        conf.write_text(settings + "".join(f'Acquire::{m}::Timeout "{TIMEOUT}";\n' for m in ("http", "https")))
        _watched([HELPER, "-c", str(conf), "download-file", *triplets], Path(work), wanted, progress)
        for number, one in enumerate(wanted):
            if not intact(Path(work) / str(number), one.size, one.sha256):
                raise ArchiveError(f"{one.uri} is not what the index says (size or SHA256 differ)")
            (Path(work) / str(number)).replace(one.target)


def _sweep(room: Path) -> None:
    """Remove what runs that were killed left of their downloads, a day later."""
    for left in room.glob(".fetch-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > 86400:
                shutil.rmtree(left, ignore_errors=True)


def _watched(argv: Sequence[str], work: Path, wanted: Sequence[Wanted], progress: Callable[[int], None]) -> None:
    """Run the download, telling its progress; end it when it stalls or brings more than was promised."""
    promised = sum(w.size for w in wanted)
    with (work / "log").open("w+b") as log:
        child = proc.spawn(argv, stdout=log, stderr=subprocess.STDOUT, env=_ENGLISH)
        try:
            moved, seen = time.monotonic(), 0
            while child.poll() is None:
                now = sum(_size(work / str(number)) for number in range(len(wanted)))
                if now != seen:
                    moved, seen = time.monotonic(), now
                    progress(min(now, promised))
                if now > promised:
                    raise ArchiveError(f"{wanted[0].uri} is larger than the index says ({promised} bytes)")
                if time.monotonic() - moved > STALL_SECONDS:
                    raise MirrorError(f"no byte in {STALL_SECONDS:.0f} s from {wanted[0].uri}", hint="try again later")
                time.sleep(0.1)
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(5)
                child.kill()
            child.wait()
        log.seek(0)
        said = log.read().decode(errors="replace")
    if child.returncode != 0:
        raise _download_error(said, work, promised)


def _download_error(said: str, work: Path, promised: int) -> ArchiveError:
    complaints = _complaints(said)
    if "No space left" in complaints or "Disk quota" in complaints:
        return no_space(work.parent, promised)
    if "Hash Sum mismatch" in complaints or "unexpected size" in complaints:
        return ArchiveError(
            f"a package is not what the index says:\n{complaints}", hint=f"try: {task('fetch --update')}"
        )
    if _not_found(complaints):
        return UnavailableError(f"a package has gone from the archive:\n{complaints}")
    return MirrorError(f"the archive does not answer:\n{complaints}", hint="is the mirror up, and this machine online?")


def check_space(room: Path, need: int) -> None:
    """Raise before anything is begun that cannot fit."""
    if shutil.disk_usage(room).free < need:
        raise no_space(room, need)


def no_space(room: Path, need: int) -> ArchiveError:
    """The error for a full disk: how much is needed, how much is there, where, and what to do."""
    free = shutil.disk_usage(room).free
    wants = f"{megabytes(need)} needed, " if need else ""
    hint = f"try: {task('clean')}, or KMT_CACHE=DIR on a larger disk"
    return ArchiveError(f"no space left in {room}: {wants}{megabytes(free)} free", hint=hint)


def out_of_space(error: OSError) -> bool:
    """True for the ways in which a disk says that it is full (EFBIG: a limit on file size)."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def megabytes(size: int) -> str:
    """A size as people read it."""
    return f"{size / 1e6:.1f} MB"


def intact(path: Path, size: int, sha256: str) -> bool:
    """True when the file is there with that size and digest."""
    if not path.is_file() or path.is_symlink() or path.stat().st_size != size:
        return False
    return digest_of(path) == sha256


def digest_of(path: Path) -> str:
    """A file's SHA256 in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _complaints(said: str) -> str:
    """apt's errors and warnings out of its chatter, each once."""
    lines = [text.strip() for text in said.splitlines()]
    kept = [text for text in lines if text.startswith(("E:", "W:", "Error:", "Warning:", "- ", "404"))]
    return "\n".join(dict.fromkeys(kept)) or said.strip()[-500:]


def _not_found(said: str) -> bool:
    return re.search(r"\b404\s+Not Found|File not found", said) is not None
