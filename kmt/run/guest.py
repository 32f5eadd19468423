"""One pytest session in one guest: the project goes in, reports come out.

Laws: every test that was asked for ends as reported, or as ``Lost`` with a reason; a test that only one side can
see is an error; what the guest says of itself is checked before it is believed.
"""

from __future__ import annotations

import fnmatch
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from kmt.errors import AgentError
from kmt.guest.wire import Frame, Kind
from kmt.run.events import Chatter, Event, Lost, Report, Started
from kmt.run.examples import Examples
from kmt.run.link import Link
from kmt.run.tree import Tree, write_tar

TRAVELLING_ENV = ("LANG", "LC_*", "TZ", "PYTHONHASHSEED", "HYPOTHESIS_*")
BPF_DIR = "/run/kmt/bpf"
ARTIFACTS_DIR = "/run/kmt/artifacts"


@dataclass(frozen=True)
class Plan:
    """What to run in each guest of a run; the same for all kernels.

    ``known`` maps each file that the host collected whole to all ids in it, so that an id that only a guest can
    see is noticed; ``tree`` is None where guests share the host's files.
    """

    root: Path
    inifile: str
    options: tuple[str, ...]
    env: Mapping[str, str]
    strict_skips: bool
    known: Mapping[str, frozenset[str]]
    modules: Mapping[str, bool] = field(default_factory=dict)
    """Sources of the project that its collection loaded, and whether pytest rewrites their assertions."""
    coverage: Mapping[str, Any] | None = None
    """How the host's pytest-cov measures (``source, branch, config``); None where it does not."""


@dataclass(frozen=True)
class Places:
    """Directories as the guest's tests see them: all of ours below it, the built objects ("": none), the artefacts."""

    room: str
    bpf: str
    artifacts: str


@dataclass
class Tally:
    """Which of the wanted tests have been heard of, and how far."""

    wanted: list[str]
    running: str = ""
    done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._known = frozenset(self.wanted)

    def expects(self, nodeid: object) -> bool:
        """It is the id of a test that was asked for and is not done."""
        return isinstance(nodeid, str) and nodeid in self._known and nodeid not in self.done

    def missing(self) -> list[str]:
        """Wanted and not done, the one that was running first."""
        left = [i for i in self.wanted if i not in self.done]
        return sorted(left, key=lambda i: i != self.running)


def travelling_env(globs: tuple[str, ...], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of ``environ`` that may enter a guest. Never CI: Hypothesis would switch its database off."""
    wanted = (*TRAVELLING_ENV, *globs)
    return {k: v for k, v in environ.items() if k != "CI" and any(fnmatch.fnmatchcase(k, g) for g in wanted)}


def send_files(
    link: Link, tree: Tree | None, programs: Sequence[Path], more: Mapping[str, bytes] = MappingProxyType({})
) -> str:
    """Unpack the project at its own path and the directories of ``programs`` in ``BPF_DIR``, one over the other.

    Both below the guest's room, if it has one.

    ``more`` are files (path and content) to lie among the project's.

    Returns where the programs are ("": there are none): where files are shared, in the first of them.
    """
    if tree is not None:
        link.send_tar(link.inside(tree.root), partial(write_tar, tree, more=more))
    if tree is None or not programs:
        return str(programs[0]) if programs else ""
    link.send_tar(link.inside(BPF_DIR), partial(write_programs, programs))
    return link.inside(BPF_DIR)


def write_programs(directories: Sequence[Path], target: IO[bytes]) -> None:
    """Write the files of all the directories as one tar stream, those of the first first."""
    with tarfile.open(fileobj=target, mode="w|") as tar:
        add_programs(tar, directories)


def add_programs(tar: tarfile.TarFile, directories: Sequence[Path], *, under: str = "") -> None:
    """Add them to a tar, below ``under``."""
    for directory in directories:
        for path in sorted(p for p in directory.rglob("*") if p.is_file()):
            tar.add(path, arcname=Path(under) / path.relative_to(directory), recursive=False)


def request(
    plan: Plan,
    *,
    files: list[str],
    ids: list[str],
    kernel: Mapping[str, Any],
    env: Mapping[str, str],
    collect_only: bool = False,
    room: str = "",
) -> dict[str, Any]:
    """The body of a PYTEST frame; its other end is ``guest/runner.py``. ``room`` is where the guest has our files.

    In a room paths are not those of this side, on which coverage could be combined: it is not measured.
    """
    return {
        "root": f"{room}{plan.root}",
        "inifile": plan.inifile and f"{room}{plan.inifile}",
        "files": files,
        "ids": ids,
        "options": list(plan.options),
        "env": {**plan.env, **env, "KMT_KERNEL": str(kernel["name"])},
        "kernel": dict(kernel),
        "accelerator": kernel["accelerator"],
        "collect_only": collect_only,
        "strict_skips": plan.strict_skips,
        "coverage": None if collect_only or room else plan.coverage,
    }


def begin(
    link: Link, plan: Plan, ids: list[str], kernel: Mapping[str, Any], places: Places, *, pause: bool = False
) -> None:
    """Have pytest in the guest collect what those ids need, and run them unless it is to ``pause`` there."""
    env = {"KMT_ARTIFACTS": places.artifacts, **({"KMT_BPF_DIR": places.bpf} if places.bpf else {})}
    files = list(dict.fromkeys(i.split("::", 1)[0] for i in ids))
    body = request(plan, files=files, ids=ids, kernel=kernel, env=env, room=places.room)
    link.send(Kind.PYTEST, {**body, "pause": pause})


def follow(
    link: Link, plan: Plan, tally: Tally, kernel: str, examples: Examples, emit: Callable[[Event], None], *, until: Kind
) -> Frame:
    """Pass on what pytest in the guest says; returns its first frame of the kind ``until``, or its EXIT.

    When pytest has ended, however it did, all tests of the tally are accounted for.
    """
    said: list[str] = []
    while True:
        frame = link.receive(Kind.COLLECTED, Kind.STARTED, Kind.REPORT, Kind.OUTPUT, Kind.DATABASE, Kind.EXIT)
        if frame.kind is Kind.DATABASE:
            try:
                link.send(Kind.EXAMPLES, examples.answer(kernel, frame.body))
            except ValueError as error:
                raise AgentError(str(error)) from None
            continue
        if frame.kind is Kind.EXIT:
            _ended(kernel, tally, frame, said, emit)
        for event in _events(kernel, plan, tally, frame, said):
            emit(event)
        if frame.kind in (until, Kind.EXIT):
            return frame


def _events(name: str, plan: Plan, tally: Tally, frame: Frame, said: list[str]) -> Iterator[Event]:
    if frame.kind is Kind.OUTPUT:
        text = frame.raw[1:].decode(errors="replace")
        said.append(text)
        del said[:-50]
        yield Chatter(name, text)
    elif frame.kind is Kind.STARTED:
        tally.running = str(frame.body.get("id"))
        yield Started(name, tally.running)
    elif frame.kind is Kind.REPORT:
        report = frame.body.get("report")
        # Only of what was asked for: a guest must not add to the accounts, nor report a test twice.
        if isinstance(report, dict) and tally.expects(report.get("nodeid")):
            if report.get("when") == "teardown":
                tally.done.add(report["nodeid"])
            yield Report(name, report)
    elif frame.kind is Kind.COLLECTED:
        yield from _compare(name, plan, tally, frame.body)


def _compare(name: str, plan: Plan, tally: Tally, body: Mapping[str, Any]) -> Iterator[Event]:
    """Ids that only one side has."""
    here = {str(item.get("id")) for item in body.get("items", [])}
    errors = {str(e.get("id")): str(e.get("text")) for e in body.get("errors", [])}
    for wanted in tally.wanted:
        if wanted not in here:
            tally.done.add(wanted)
            why = errors.get(wanted.split("::", 1)[0], "the host collected it and the guest did not")
            yield Lost(name, wanted, f"not collected in the guest: {why}")
    for path, known in plan.known.items():
        for extra in sorted(i for i in here if i.split("::", 1)[0] == path and i not in known):
            yield Lost(name, extra, "collected in the guest and not on the host: no one asked for it")


def _ended(name: str, tally: Tally, frame: Frame, said: list[str], emit: Callable[[Event], None]) -> None:
    """Account for wanted tests that pytest in the guest never finished although the guest lives."""
    missing = tally.missing()
    if not missing:
        return
    status = frame.body.get("status")
    how = f"signal {-status}" if isinstance(status, int) and status < 0 else f"status {status}"
    words = "".join(said).strip()[-2000:]
    for number, wanted in enumerate(missing):
        culprit = "" if number == 0 and wanted == tally.running else f" while {tally.running or 'collecting'} ran"
        emit(Lost(name, wanted, f"pytest in the guest ended with {how}{culprit}\n{words}".rstrip(), again=True))
        tally.done.add(wanted)


def environment(globs: tuple[str, ...]) -> dict[str, str]:
    """This process's variables that may enter a guest."""
    return travelling_env(globs, os.environ)
