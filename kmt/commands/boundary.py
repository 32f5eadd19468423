"""``kmt.boundary``: the oldest kernel that an eBPF object's programs load and attach on."""

from __future__ import annotations

import difflib
import errno
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.table import Table

from kmt import config, runs
from kmt.commands.guest import booted, choose
from kmt.commands.matrix import rows as rows_of
from kmt.commands.shown import shown
from kmt.config import Config
from kmt.errors import CannotTellError, ConfigError
from kmt.hints import task
from kmt.paths import published
from kmt.simulator import objects
from kmt.simulator.boundary import Ask, Found, Trial, look, to_json
from kmt.simulator.confirm import confirm
from kmt.simulator.images import at_hand
from kmt.simulator.judge import Answer, Image
from kmt.simulator.objects import EbpfObject, Program

CELLS = {Answer.YES: "yes", Answer.NO: "no", Answer.UNKNOWN: "?"}


def boundary(
    root: Path, path: Path, program: str = "", *, kernels: Sequence[str] = (), static: bool = False,
    target: Path | None = None,
) -> str:  # fmt: skip
    """The table, and what the verifier said. ``kernels``: which (default: all that are in the cache); ``static``:
    without a real kernel; ``target``: JSON goes there too.

    Raises ConfigError, CannotTellError, and what booting kernels can raise.
    """
    try:
        image = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    settings = config.load(root)
    whole = objects.parse(image)
    programs = _chosen(whole, program)
    images, left = at_hand(rows_of(settings, kernels, "all"), settings)
    if not images:
        raise CannotTellError("no kernel with BTF is in the cache", hint=f"try: {task('fetch')}")
    with ExitStack() as stack:
        work = _place(stack, target) if target is not None else None
        found = look(whole, programs, images, None if static else _asking(settings, image, whole))
        if work is not None:
            document = [to_json(f.program.name, f.program.section, f.rows, f.boundary) for f in found]
            text = json.dumps({"object": path.name, "programs": document, "left_out": left}, indent=1)
            try:
                work.write_text(text + "\n")
            except OSError as error:
                raise _unwritable(work, error) from None
    return "\n".join([shown(_table(found, images)), *_words(found), *(f"left out: {why}" for why in left)])


def _place(stack: ExitStack, target: Path) -> Path:
    """Where to write what becomes ``target``. ConfigError when it cannot be written, before any kernel has booted."""
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        return stack.enter_context(published(target))
    except OSError as error:
        raise _unwritable(target, error) from None


def _unwritable(target: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{target}: {error.strerror}", hint="name another file for what was found")


def _chosen(whole: EbpfObject, name: str) -> list[Program]:
    known = {program.name: program for program in whole.programs}
    if name and name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise ConfigError(f"the object has no program {name!r}", hint=f"did you mean {near[0]!r}?" if near else "")
    return [known[name]] if name else list(known.values())


def _asking(settings: Config, image: bytes, whole: EbpfObject) -> Ask:
    def ask(kernel: str, programs: Sequence[Program]) -> dict[str, Trial]:
        chosen = choose(settings.root, kernel, "", "")
        with runs.start([kernel], sys.argv) as run:
            with booted(chosen, run) as link:
                said = confirm(link, image, whole, programs)
            run.finish(0)
        return said

    return ask


def _table(found: Sequence[Found], images: Sequence[Image]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("program", "oldest", *(image.name for image in images), "because"):
        table.add_column(head, no_wrap=head != "because")
    for each in found:
        cells = [CELLS[row.answer] + ("*" if row.asked else "") for row in each.rows]
        table.add_row(each.program.name, str(each.boundary), *cells, each.boundary.why)
    table.caption = "* said by that kernel itself; the others by their BTF, configuration and profile"
    table.caption_justify = "left"
    return table


def _words(found: Sequence[Found]) -> list[str]:
    """What kernels objected, and what could not be told."""
    lines = []
    for each in found:
        for row in each.rows:
            if row.trial is not None and row.trial.answer is Answer.NO:
                lines.append(f"{each.program.name} on {row.kernel}: {row.trial.error}")
        if each.boundary.ends is not None:
            row = next(r for r in each.rows if r.kernel == each.boundary.ends)
            lines.append(f"{each.program.name} ends at {row.kernel}: {'; '.join(row.reasons[:2])}")
        if each.boundary.doubts and each.rows[0].answer is not Answer.YES:
            told = "; ".join(each.boundary.doubts[:3])
            lines.append(f"{each.program.name}, {each.boundary}: cannot tell ({told})")
    if any(each.rows[0].answer is Answer.YES for each in found):
        oldest = found[0].rows[0].kernel
        lines.append(f"no kernel before {oldest} is at hand: of older ones only gates speak, and of types nothing")
    return lines
