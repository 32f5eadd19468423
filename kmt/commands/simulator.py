"""``kmt.profile``: kernels as data."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from kmt import config, runs
from kmt.commands.guest import booted, choose
from kmt.commands.matrix import rows
from kmt.errors import ProfileError
from kmt.paths import published
from kmt.simulator import record
from kmt.simulator.profile import DIRECTORY, LARGEST, dump, parse


def profile(root: Path, words: Sequence[str], directory: Path | None = None) -> Iterator[str]:
    """Record the kernels (the defaults without words), each in a guest of its own; a line a file that is written.

    Files go to ``directory``, by default where the project's own are (a checkout's ``fixtures/profiles``).
    """
    settings = config.load(root)
    target = directory or DIRECTORY
    for row in rows(settings, words, ",".join(settings.kernels)):
        chosen = choose(root, row.name, "", "")
        with runs.start([row.name], sys.argv) as run:
            with booted(chosen, run) as link:
                found = record.record(link, chosen.kernel)
            run.finish(0)
        text, path = dump(found), target.resolve() / f"{found.series}.json"
        if parse(text, str(path)) != found:
            raise ProfileError(f"{row.name}: its profile does not read back as it was")
        if len(text) > LARGEST:
            raise ProfileError(f"{row.name}: its profile has {len(text)} bytes, more than {LARGEST}")
        with published(path) as fresh:
            fresh.write_text(text)
        yield f"{row.name}: {path} ({len(text)} bytes, {found.release})"
