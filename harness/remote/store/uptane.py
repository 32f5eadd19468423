"""(pure) What the director and the config repository must agree on before a file is served.

Laws: every file that the director lists is listed by the config repository too, with the same length and the same
hashes, at least one; its bytes are at hand and are those; its path is of our organisation, or of none; and a
snapshot that names an organisation names ours.
"""

from __future__ import annotations

from collections.abc import Callable

from tuf.api.metadata import TargetFile

from harness.remote import paths, tuf
from harness.remote.errors import UptaneError
from harness.remote.store.repository import TrustedRepository

Content = Callable[[str], "bytes | None"]
"""The bytes that are kept of a path."""


def check_files(director: TrustedRepository, config: TrustedRepository, content: Content, org: int | None) -> None:
    """Raise unless every file of the director may be served; ``org`` None: of whatever organisation."""
    for path, entry in director.targets.items():
        place = paths.parse(path)
        if org is not None and place.org is not None and place.org != org:
            raise UptaneError(f"{path}: the director lists a file of organisation {place.org}, this is {org}")
        _check_entries(path, entry, config.find(path))
        raw = content(path)
        if raw is None:
            raise UptaneError(f"{path}: the director lists a file that was never sent")
        tuf.verify_file(path, raw, entry)


def organisation(repository: TrustedRepository) -> str | None:
    """The organisation that a repository's snapshot names, if it names one."""
    custom = repository.custom("snapshot")
    named = custom.get("org_uuid") if isinstance(custom, dict) else None
    if named is not None and not isinstance(named, str):
        raise UptaneError(f"{repository.name}: the snapshot's 'org_uuid' is no string")
    return named


def check_organisation(repository: TrustedRepository, ours: Callable[[], str]) -> None:
    """Raise if the snapshot names another organisation; ``ours`` is asked only if it names one."""
    named = organisation(repository)
    if named is not None and named != (known := ours()):
        raise UptaneError(f"{repository.name}: the snapshot is of organisation {named[:80]!r}, this is {known!r}")


def _check_entries(path: str, director: TargetFile, config: TargetFile | None) -> None:
    if config is None:
        raise UptaneError(f"{path}: the director lists a file that the config repository does not")
    tuf.check_entry(path, director)
    tuf.check_entry(path, config)
    if director.length != config.length:
        raise UptaneError(
            f"{path}: {director.length} bytes for the director, {config.length} for the config repository"
        )
    if not director.hashes or director.hashes != config.hashes:
        raise UptaneError(f"{path}: the director and the config repository list other hashes")
