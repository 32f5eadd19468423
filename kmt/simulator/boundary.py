"""(pure) The oldest kernel that takes a program: from verdicts on whole kernels, and gates for the versions in between.

Laws: what a real kernel said wins over what its files say; a version in between is excluded only by a gate or a
recorded fact, and included only where every requirement is told; the rest is between ``not_before`` and ``surely``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from kmt.errors import CannotTellError
from kmt.kernel import Version
from kmt.simulator import facts
from kmt.simulator.derive import KernelFacts
from kmt.simulator.facts import Fact
from kmt.simulator.gates import Series, spelled
from kmt.simulator.judge import Answer, Finding, Image, Names, judge, overall, required
from kmt.simulator.objects import EbpfObject, Program

FIRST: Series = (4, 1)
"""Where looking begins: kprobe programs came with it."""


_PLACES = (facts.Sort.ATTACH_TYPE, facts.Sort.MARK)
"""Facts on what a program is attached to, that its load does not show."""


@dataclass(frozen=True)
class Trial:
    """What a real kernel did with a program. ``attaches`` is None where that was not tried."""

    loads: bool
    attaches: bool | None
    error: str = ""
    log: str = ""

    @property
    def answer(self) -> Answer:
        """It loads, and attaches unless that was not tried."""
        return Answer.YES if self.loads and self.attaches is not False else Answer.NO


@dataclass
class Row:
    """A program on one kernel: what its files say, and what the kernel said (None: not asked)."""

    kernel: str
    release: str
    findings: list[Finding]
    trial: Trial | None = None

    @property
    def series(self) -> Series:
        """``(6, 12)``."""
        version = Version.parse(self.release)
        return version.major, version.minor

    @property
    def answer(self) -> Answer:
        """What is known. A program that loads, and was not attached, is judged by its files for the rest.

        (A kernel without multi-kprobes loads their programs: before 5.18 it does not look at their attach type.)
        """
        if self.trial is None:
            return overall(self.findings)
        if self.trial.answer is Answer.YES and self.trial.attaches is None:
            return overall([f for f in self.findings if f.fact is not None and f.fact.sort in _PLACES])
        return self.trial.answer

    @property
    def asked(self) -> bool:
        """Whether the kernel itself has said it all."""
        return self.trial is not None and (self.trial.answer is Answer.NO or self.trial.attaches is not None)

    @property
    def reasons(self) -> list[str]:
        """Why it is not a yes."""
        if self.trial is not None and self.trial.answer is Answer.NO:
            return [self.trial.error]
        return [finding.words for finding in self.findings if finding.answer is self.answer is not Answer.YES]


@dataclass(frozen=True)
class Boundary:
    """``not_before``: no version before this one takes it; ``surely``: this one and those up to the next recorded
    kernel do; both None where no kernel at hand surely takes it. ``why`` says what excludes what comes before;
    ``ends``: the first kernel at hand that does not take it any more, None where all later ones do.
    """

    not_before: Series | None
    surely: Series | None
    why: str
    ends: str | None = None
    doubts: tuple[str, ...] = field(default=())
    """What could not be told of the versions from ``not_before`` on."""

    def __str__(self) -> str:
        if self.not_before is None or self.surely is None:
            return "cannot tell" if self.doubts else "none"
        if self.not_before == self.surely:
            return spelled(self.surely)
        return f"{spelled(self.not_before)} to {spelled(self.surely)}"


def sides(rows: Sequence[Row]) -> list[Row]:
    """The rows next to which the answer changes, on both sides; all that cannot be told."""
    wanted = []
    for index, row in enumerate(rows):
        near = [rows[i] for i in (index - 1, index + 1) if 0 <= i < len(rows)]
        if row.answer is Answer.UNKNOWN or any(other.answer is not row.answer for other in near):
            wanted.append(row)
    return wanted or list(rows[:1])


def bounded(rows: Sequence[Row], required: Sequence[Fact], told: KernelFacts, unread: Sequence[str] = ()) -> Boundary:
    """Where it begins. ``rows`` are in the order of versions, one a series at least; ``told``: of any series;
    ``unread``: why not all that is required is known."""
    index = next((i for i, row in enumerate(rows) if row.answer is Answer.YES), None)
    if index is None:
        why = next((reason for row in reversed(rows) for reason in row.reasons), "")
        return Boundary(None, None, why, doubts=_words(rows))
    good = rows[index]
    last = next((i for i in range(index - 1, -1, -1) if rows[i].answer is Answer.NO), -1)
    below = rows[last] if last >= 0 else None
    ends = next((row.kernel for row in rows[index + 1 :] if row.answer is Answer.NO), None)
    why = "; ".join(below.reasons[:2]) if below else ""
    not_before, surely = good.series, good.series
    doubts: tuple[str, ...] = ()
    versions = list(told.gates.between(below.series if below else FIRST, good.series))
    for version in reversed(versions[below is not None : -1]):
        answer, said = _between(version, below, good, required, told.of)
        if answer is not Answer.NO and (unsure := (*unread, *_words(rows[last + 1 : index]))):
            answer, said = Answer.UNKNOWN, [*said, *unsure]
        if answer is Answer.NO:
            why = f"Linux {spelled(version)}: {said[0]}"
            break
        not_before = version
        doubts = doubts or (tuple(said) if answer is Answer.UNKNOWN else ())
        surely = surely if doubts else version
    return Boundary(not_before, surely, why, ends, doubts)


def _words(rows: Sequence[Row]) -> tuple[str, ...]:
    """Why some of these cannot be told."""
    return tuple(f"{row.kernel}: {why}" for row in rows if row.answer is Answer.UNKNOWN for why in row.reasons)


def _between(
    version: Series, below: Row | None, good: Row, required: Sequence[Fact], told: Callable[[Series], KernelFacts]
) -> tuple[Answer, list[str]]:
    """What gates say of a version between two rows, and why."""
    against = [finding for finding in below.findings if finding.answer is Answer.NO] if below else []
    asked = dict.fromkeys([*required, *(f.fact for f in against if f.fact is not None)])
    unknown = []
    for fact in asked:
        said = told(version).told(fact)
        if said is None:
            unknown.append(str(fact))
        elif fact.sort is facts.Sort.SIGNATURE:
            then = told(good.series).told(fact)
            if then is None or then.value != said.value:
                return Answer.NO, [f"{fact.name} is {said.value} ({said.why})"]
        elif said.value is False:
            return Answer.NO, [f"no {fact} ({said.why})"]
    unknown += [finding.words for finding in against if finding.fact is None]
    if below is None:
        unknown.append("its types: no image of it is at hand")
    elif overall(below.findings) is not Answer.NO:  # only the kernel itself has refused it
        unknown += below.reasons
    return (Answer.UNKNOWN, unknown) if unknown else (Answer.YES, [])


@dataclass(frozen=True)
class Found:
    """All about one program."""

    program: Program
    rows: list[Row]
    boundary: Boundary


Ask = Callable[[str, Sequence[Program]], dict[str, Trial]]
"""Has a real kernel (by its row's name) try programs."""


def look(whole: EbpfObject, programs: Sequence[Program], images: Sequence[Image], ask: Ask | None) -> list[Found]:
    """Judge all by files, then have the kernels on both sides of each boundary say it, until they agree."""
    names = Names.of(images[-1].types)
    table = {p.name: [Row(i.name, i.release, _judged(p, whole, i, names)) for i in images] for p in programs}
    while ask is not None:
        wanted: dict[str, list[Program]] = {}
        for program in programs:
            for row in sides(table[program.name]):
                if row.trial is None:
                    wanted.setdefault(row.kernel, []).append(program)
        if not wanted:
            break
        for kernel, those in wanted.items():
            for name, trial in ask(kernel, those).items():
                next(row for row in table[name] if row.kernel == kernel).trial = trial
    found = []
    for program in programs:
        rows, needs, unread = table[program.name], list[Fact](), list[str]()
        try:
            needs = list(required(program, whole, images[-1].types, names))
        except CannotTellError as error:
            unread = [error.message]
        found.append(Found(program, rows, bounded(rows, needs, images[-1].told, unread)))
    return found


def _judged(program: Program, whole: EbpfObject, image: Image, names: Names) -> list[Finding]:
    """What cannot be told of one program is no other's."""
    try:
        return judge(program, whole, image, names)
    except CannotTellError as error:
        return [Finding(Answer.UNKNOWN, error.message)]


def to_json(program: str, section: str, rows: Sequence[Row], found: Boundary) -> dict[str, Any]:
    """What is known of one program, for machines."""
    return {
        "program": program,
        "section": section,
        "oldest": None if found.surely is None else spelled(found.surely),
        "not_before": None if found.not_before is None else spelled(found.not_before),
        "why": found.why,
        "ends": found.ends,
        "doubts": list(found.doubts),
        "kernels": [
            {
                "kernel": row.kernel,
                "release": row.release,
                "answer": str(row.answer),
                "static": str(overall(row.findings)),
                "reasons": row.reasons,
                "trial": None if row.trial is None else asdict(row.trial),
            }
            for row in rows
        ],
    }
