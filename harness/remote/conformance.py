"""A TUF client with the command line that the TUF project's conformance suite for clients asks for.

``python -m harness.remote.conformance --metadata-dir DIR init ROOT``, ``… --metadata-url URL refresh`` and
``… --metadata-url URL --target-name NAME --target-base-url URL --target-dir DIR download``. Status 0 or 1, and on 1
a line on stderr that says why.

The root step is this project's: roots are fetched one by one, verified by ``tuf.extend`` and kept when they are, and
the last must be in force. Timestamp, snapshot, targets, delegations and files are python-tuf's ``Updater``, which
starts from that root and is not let to look for another.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.ngclient import FetcherInterface, Updater, Urllib3Fetcher

from harness.errors import HarnessError
from harness.remote import tuf
from harness.remote.errors import RootChainError, StoreError, TargetError, TooLargeError

ROOT = "root.json"
TIMEOUT = 30
"""Seconds that the repository may be silent."""


class _NoMoreRoots(Urllib3Fetcher):
    """Fetches what it is asked for, roots excepted: of those there is none that is newer."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = urlsplit(url).path.rpartition("/")[2]
        if name.endswith(f".{ROOT}") and name.removesuffix(f".{ROOT}").isdecimal():
            raise DownloadHTTPError("the root in force is the newest", 404)
        return super()._fetch(url)


def init(metadata: Path, root: Path) -> None:
    """Trust ``root`` from now on; it must be signed by itself."""
    raw = root.read_bytes()
    tuf.load_root(raw)
    metadata.mkdir(parents=True, exist_ok=True)
    _keep(metadata, raw)


def refresh(metadata: Path, url: str, *, target_dir: Path | None = None, target_url: str | None = None) -> Updater:
    """Bring all top-level metadata up to date; gives python-tuf's client in that state."""
    trusted = _newest_root(metadata, url, Urllib3Fetcher(TIMEOUT))
    files = None if target_dir is None else str(target_dir)
    updater = Updater(str(metadata), url, files, target_url, _NoMoreRoots(TIMEOUT), bootstrap=trusted.raw)
    tuf.check_in_force(trusted, datetime.now(UTC))
    updater.refresh()
    return updater


def download(metadata: Path, url: str, name: str, target_url: str, directory: Path) -> Path:
    """The verified file of that name, fetched unless it is in ``directory`` already."""
    directory.mkdir(parents=True, exist_ok=True)
    updater = refresh(metadata, url, target_dir=directory, target_url=target_url)
    entry = updater.get_targetinfo(name)
    if entry is None:
        raise TargetError(f"{name}: no targets list this file")
    return Path(updater.find_cached_target(entry) or updater.download_target(entry))


def _newest_root(metadata: Path, url: str, fetcher: FetcherInterface) -> tuf.TrustedRoot:
    """Follow the repository's roots from the trusted one; each is kept as soon as it is verified."""
    try:
        trusted = tuf.load_root((metadata / ROOT).read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{metadata} holds no trusted root", hint="init comes first") from None
    for _ in range(tuf.MAX_ROOTS):
        raw = _root(trusted.version + 1, url, fetcher)
        if raw is None:
            return trusted
        following = tuf.extend(trusted, [raw]).trusted
        if following.version == trusted.version:
            raise RootChainError(f"{trusted.version + 1}.{ROOT} holds an older root")
        trusted = following
        _keep(metadata, raw)
    if _root(trusted.version + 1, url, fetcher) is not None:
        raise TooLargeError(f"the repository has more than {tuf.MAX_ROOTS} new roots")
    return trusted


def _root(version: int, url: str, fetcher: FetcherInterface) -> bytes | None:
    """The root of that version; None if the repository has none."""
    try:
        return fetcher.download_bytes(f"{url.rstrip('/')}/{version}.{ROOT}", tuf.MAX_ROOT)
    except DownloadHTTPError as error:
        if error.status_code in (403, 404):
            return None
        raise


def _keep(metadata: Path, root: bytes) -> None:
    new = metadata / f"{ROOT}.new"
    new.write_bytes(root)
    new.replace(metadata / ROOT)


def main(words: Sequence[str] | None = None) -> int:
    """Parse the words, do what they say, and give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m harness.remote.conformance", description=__doc__.splitlines()[0])
    parser.add_argument("--metadata-dir", type=Path, required=True)
    for option in ("--metadata-url", "--target-name", "--target-base-url"):
        parser.add_argument(option, default="")
    parser.add_argument("--target-dir", type=Path)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init").add_argument("root", type=Path)
    commands.add_parser("refresh")
    commands.add_parser("download")
    asked = parser.parse_args(words)
    try:
        if asked.command == "init":
            init(asked.metadata_dir, asked.root)
        elif not asked.metadata_url:
            parser.error("--metadata-url is missing")
        elif asked.command == "refresh":
            refresh(asked.metadata_dir, asked.metadata_url)
        elif not (asked.target_name and asked.target_base_url and asked.target_dir):
            parser.error("download needs --target-name, --target-base-url and --target-dir")
        else:
            download(asked.metadata_dir, asked.metadata_url, asked.target_name, asked.target_base_url, asked.target_dir)
    except (HarnessError, RepositoryError, DownloadError, OSError) as error:
        print(f"{asked.command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
