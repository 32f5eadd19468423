"""From a row to a kernel on disk: pinned or resolved, fetched, verified, unpacked; each step only when it is missing.

Laws: a row with a pin boots exactly its pin or is unavailable, never another kernel; with everything in the cache
no network is touched; two runs that want the same kernel fetch it once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from debian.debian_support import Version as DebianVersion

from kmt import paths
from kmt.archive import apt, local, lock, mirror, packages, resolve, unpack
from kmt.archive.packages import Package
from kmt.config import Config
from kmt.errors import ArchiveError, KmtError, MirrorError, UnavailableError
from kmt.hints import task
from kmt.kernel import Kernel
from kmt.matrix import Row, Source

Progress = Callable[[str, int, int], None]
"""Called with a label (the row's name), bytes done and bytes altogether; from the thread that fetches."""

AT_ONCE = 4
"""Rows fetched side by side by ``prepare_all``."""


@dataclass(frozen=True)
class Description:
    """What is known of a row without fetching anything. ``release`` is None while nothing has been resolved."""

    row: Row
    release: str | None
    cached: bool
    note: str


def prepare(row: Row, *, config: Config, update: bool = False, progress: Progress | None = None) -> Kernel:
    """The row's kernel, ready to boot; ``update`` resolves it anew and moves its pin.

    Raises UnavailableError (the archive has no such kernel, or not the pinned one any more), MirrorError (the
    archive does not answer), ArchiveError (a package or an image that is not what it should be, no space),
    ConfigError (an image, keyring or lock file that is not there or not right).
    """
    if row.image is not None:
        return local.kernel(row)
    _refuse(row)
    try:
        return _from_archive(row, config, update, progress)
    except OSError as error:
        if apt.out_of_space(error):
            raise apt.no_space(paths.cache_base(), 0) from None
        raise


def _from_archive(row: Row, config: Config, update: bool, progress: Progress | None) -> Kernel:
    path = lock.location(config)
    pin = None if update else lock.pinned(path, row)
    if pin is None:
        pin = _resolve(row)
        tree = _tree(row, pin, progress)
        lock.write(path, row, pin)
        return _kernel(row, pin, tree)
    try:
        return _kernel(row, pin, _tree(row, pin, progress))
    except UnavailableError as error:
        raise _pin_gone(row, pin, path, error) from None


def prepare_all(
    rows: Sequence[Row], *, config: Config, update: bool = False, progress: Progress | None = None
) -> dict[str, Kernel | KmtError]:
    """All rows side by side, each with its kernel or with why it has none."""

    def one(row: Row) -> Kernel | KmtError:
        try:
            return prepare(row, config=config, update=update, progress=progress)
        except KmtError as error:
            return error

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="fetch") as pool:
        return dict(zip([row.name for row in rows], pool.map(one, rows), strict=True))


def describe(row: Row, *, config: Config) -> Description:
    """What the row would be now, from the lock file or an index that is here; touches no network."""
    if row.image is not None:
        try:
            return Description(row, local.kernel(row).release, True, row.note)
        except KmtError as error:
            return Description(row, None, False, str(error))
    try:
        _refuse(row)
    except UnavailableError as error:
        return Description(row, None, False, error.message)
    pin = lock.pinned(lock.location(config), row)
    if pin is not None:
        return Description(row, pin.release, _home(pin, row).whole(), row.note)
    try:
        known = [p for s in row.suites for p in packages.parse(apt.known_index(_source(row, s), s, row.arch), s)]
    except KmtError as error:
        return Description(row, None, False, str(error))
    found = resolve.newest_whole(known, row.series, row.flavour, row.arch) if known else ""
    if isinstance(found, str):
        return Description(row, None, False, found or row.note)
    return Description(row, found.release, False, row.note)


def fetch_packages(suite: str, names: Sequence[str], *, arch: str = "amd64") -> list[Path]:
    """Verified packages of the machine's own archive, in the order of the names; from the cache when they are there.

    Raises UnavailableError when the suite has no such package, else like ``prepare``.
    """
    source = mirror.source(suite)
    for update in (False, True):
        found = packages.parse(apt.index(source, suite, arch, update=update), suite, set(names))
        known = {p.name: p for p in sorted(found, key=lambda p: DebianVersion(p.version))}
        missing = [name for name in names if name not in known]
        try:
            if not missing:
                return _packages([known[name] for name in names], lambda _: source, None)
        except (UnavailableError, ArchiveError) as error:
            # The index may be of last week, and its packages superseded since.
            if update or isinstance(error, MirrorError):
                raise
    raise UnavailableError(f"{suite} of {source.uri} has no {', '.join(missing)}")


def _refuse(row: Row) -> None:
    """Raise for a row that no archive can serve."""
    if row.arch != "amd64":
        raise UnavailableError(f"{row.name} is a kernel for {row.arch}, and only amd64 ones can be booted")
    if row.runs_at:
        what = f"a machine of its own, reached over SSH at {row.ssh}" if row.ssh else f"a kernel of the box {row.box}"
        raise UnavailableError(f"{row.name} is {what}: nothing to fetch")
    if not row.suites:
        why = f" ({row.note})" if row.note else ""
        raise UnavailableError(
            f"{row.name} names no archive and no image{why}",
            hint="bring one: --kernel PATH/TO/bzImage, or in a kernels.toml of your own a row with image = ..., "
            "or with suites and archive = { uri = ..., keyring = ... }",
        )


def _source(row: Row, suite: str) -> Source:
    return mirror.source(suite, row.archive)


def _resolve(row: Row) -> lock.Pin:
    """The newest whole kernel of the row in its suites; a suite that has gone is only told of when nothing is left."""
    found: list[Package] = []
    gone: list[str] = []
    for suite in row.suites:
        try:
            index = apt.index(_source(row, suite), suite, row.arch, update=True)
        except UnavailableError as error:
            gone.append(error.message)
        else:
            found += packages.parse(index, suite)
    resolution = resolve.newest_whole(found, row.series, row.flavour, row.arch)
    if isinstance(resolution, str):
        raise UnavailableError("; ".join([f"{row.name}: {resolution}", *gone]))
    return lock.Pin(lock.asks(row), resolution.release, resolution.packages)


def _pin_gone(row: Row, pin: lock.Pin, path: Path, error: UnavailableError) -> UnavailableError:
    """What was pinned, and what is there instead."""
    hint = f"try: {task('fetch --update')}, or remove the pin from {path}"
    pinned = f"{row.name}: the pinned {pin.packages[0].name} {pin.packages[0].version} has gone from the archive"
    try:
        now = _resolve(row)
    except UnavailableError as nothing:
        return UnavailableError(f"{pinned}, and {nothing.message}")
    except ArchiveError:
        return UnavailableError(f"{pinned}: {error.message}", hint=hint)
    if now.release == pin.release:
        return UnavailableError(f"{pinned}; {now.release} is there in version {now.packages[0].version}", hint=hint)
    return UnavailableError(f"{pinned}; {now.release} is there now", hint=hint)


def _digest(pin: lock.Pin) -> str:
    return hashlib.sha256(" ".join(sorted(p.sha256 for p in pin.packages)).encode()).hexdigest()


def _home(pin: lock.Pin, row: Row) -> unpack.Tree:
    return unpack.Tree(paths.cache("kernels") / f"{pin.release}-{_digest(pin)[:12]}", pin.release)


def _tree(row: Row, pin: lock.Pin, progress: Progress | None) -> unpack.Tree:
    """The pin's kernel unpacked, fetched when it is not there or not what it was."""
    tree = _home(pin, row)
    if tree.whole():
        return tree
    with paths.locked(f"kernel-{tree.root.name}"):
        if tree.whole():
            return tree
        need = sum(p.installed for p in pin.packages) * 1024
        debs = _packages(pin.packages, lambda p: _source(row, p.suite), progress and _labelled(row, progress), need)
        try:
            return unpack.unpack(debs, pin.release, tree.root, row.arch)
        except OSError as error:
            if apt.out_of_space(error):
                raise apt.no_space(tree.root.parent, need) from None
            raise ArchiveError(f"{tree.root}: {error}") from None


def _labelled(row: Row, progress: Progress) -> Callable[[int, int], None]:
    return lambda done, total: progress(row.name, done, total)


def _packages(
    wanted: Sequence[Package],
    source: Callable[[Package], Source],
    progress: Callable[[int, int], None] | None,
    extra: int = 0,
) -> list[Path]:
    """The packages' files in the cache, the missing and the damaged ones fetched; ``extra`` bytes must be free too."""
    room = paths.cache("packages")
    total = sum(p.size for p in wanted)
    missing = [p for p in wanted if not apt.intact(room / p.file_name, p.size, p.sha256)]
    here = total - sum(p.size for p in missing)

    def tell(done: int) -> None:
        if progress:
            progress(here + done, total)

    jobs = [apt.Wanted(f"{source(p).uri}/{p.path}", room / p.file_name, p.size, p.sha256) for p in missing]
    apt.check_space(room, sum(job.size for job in jobs) + extra)
    apt.download(jobs, tell)
    tell(total - here)
    return [room / p.file_name for p in wanted]


def _kernel(row: Row, pin: lock.Pin, tree: unpack.Tree) -> Kernel:
    image = pin.packages[0]
    btf = row.btf.expanduser().absolute() if row.btf else None
    if btf is not None:
        local.check_btf(btf)
    return Kernel(
        name=row.name,
        release=pin.release,
        vmlinuz=tree.vmlinuz,
        modules=tree.modules,
        config=tree.config,
        headers=tree.headers,
        btf=btf,
        digest=_digest(pin)
        if btf is None
        else hashlib.sha256(f"{_digest(pin)} {apt.digest_of(btf)}".encode()).hexdigest(),
        origin=f"{image.name} {image.version} ({image.suite})",
    )
