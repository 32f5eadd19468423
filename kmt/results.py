"""(pure) Outcomes of a run as values, and their JSON form (schema in ``docs/results.md``).

Laws: infrastructure lost and test failed are different words; a failing test (1) wins over infrastructure (6),
which wins over a failed build (7); what was not run is counted, never left out; stopping a run loses nothing.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from kmt.errors import EXIT_BUILD, EXIT_INFRASTRUCTURE

SCHEMA_VERSION = 1
LONGEST = 4096
"""Characters of any text in a file of results that are read; an id or a name that is longer is an error there."""
NOT_APPLICABLE = "not applicable"
"""What a test is that a simulated kernel tells nothing of: neither passed nor failed, and no skip of its own."""


def with_kernel(name: str, kernel: str) -> str:
    """The id of a test on a kernel: ``test_x`` to ``test_x[5.10]``, ``test_x[a]`` to ``test_x[a-5.10]``."""
    return f"{name[:-1]}-{kernel}]" if name.endswith("]") else f"{name}[{kernel}]"


class Outcome(StrEnum):
    """How one kernel's run ended."""

    OK = "ok"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"
    BUILD = "build"
    LOST = "lost"
    PANIC = "panic"
    HANG = "hang"
    STOPPED = "stopped"


GRAVITY = (
    Outcome.PANIC, Outcome.HANG, Outcome.LOST, Outcome.BUILD, Outcome.FAILED, Outcome.UNAVAILABLE, Outcome.STOPPED,
    Outcome.OK,
)  # fmt: skip
"""Which of several outcomes of one kernel counts, the gravest first."""
INFRASTRUCTURE = frozenset({Outcome.UNAVAILABLE, Outcome.LOST, Outcome.PANIC, Outcome.HANG})
GONE = INFRASTRUCTURE | {Outcome.BUILD}
"""With these no test is to blame for not having spoken."""


@dataclass(frozen=True)
class TestResult:
    """One test on one kernel. ``outcome``: passed, failed, skipped, error; ``reason``: one line, may be empty."""

    __test__ = False

    id: str
    outcome: str
    seconds: float
    reason: str = ""
    property: bool = False
    """True for a Hypothesis test."""
    lost: bool = False
    """True when the test itself never spoke: its guest was lost, or never there, or pytest in it ended."""
    verifier: str = ""
    """What the kernel's verifier objected to, one line, where the test failed by it."""
    retries: tuple[str, ...] = ()
    """Why its earlier attempts failed, where it was run again (``--kernel-retries``)."""
    expected: str = ""
    """Why the project expects it to fail here, and until when; where it does."""
    cause: str = ""
    """Of a lost test: the ``Outcome`` of what lost it, which may be milder than its kernel's."""


@dataclass
class KernelResult:
    """One kernel of a run. Facts are what tests reported with ``record_property("kmt.<name>", value)``."""

    name: str
    release: str = ""
    backend: str = ""
    simulated: bool = False
    accelerator: str = ""
    boot_seconds: float | None = None
    seconds: float = 0.0
    outcome: Outcome = Outcome.OK
    reason: str = ""
    hint: str = ""
    error: str = ""
    """The class of the error that decided the outcome, as ``kmt.errors`` and its users name it: ``MirrorError``."""
    console: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    tests: list[TestResult] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Files of the project that did not travel to the guest, with why; artefacts that did not travel back."""
    guests: int = 0
    """How many guests its tests were spread over."""
    restored: int = 0
    """How many of them came from a memory snapshot instead of booting."""
    private_mib: list[float] = field(default_factory=list)
    """MiB that each machine had for itself when its tests were done (``Private_*`` of its smaps_rollup)."""
    recovered: list[str] = field(default_factory=list)
    """Guests that were lost and whose tests all ran again in others."""
    not_run: int = 0
    """Tests that were due when ``-x`` or Ctrl-C stopped the run."""
    stands_for: str = ""
    """Why it is simulated, where it was asked for as a real one."""
    not_applicable: dict[str, str] = field(default_factory=dict)
    """Where it is simulated: the ids of tests that this tells nothing of, and why; they are not among ``tests``."""

    def counts(self) -> dict[str, int]:
        """Tests by outcome; all four words are always there."""
        seen = Counter(t.outcome for t in self.tests)
        return {word: seen[word] for word in ("passed", "failed", "skipped", "error")}

    def properties(self) -> tuple[int, int]:
        """Hypothesis tests (passed, run)."""
        run = [t for t in self.tests if t.property and t.outcome != "skipped"]
        return sum(t.outcome == "passed" for t in run), len(run)

    def lost_by(self, test: TestResult) -> Outcome:
        """What lost a test that never spoke; the kernel's own outcome where the test does not say."""
        return Outcome(test.cause) if test.cause else self.outcome

    def retried(self) -> list[TestResult]:
        """The tests that were run again."""
        return [test for test in self.tests if test.retries]

    def settle(self) -> None:
        """Turn ``ok`` and ``stopped`` into ``failed`` where a test failed or could not be set up."""
        counts = self.counts()
        if self.outcome in (Outcome.OK, Outcome.STOPPED) and (counts["failed"] or counts["error"]):
            self.outcome = Outcome.FAILED


NO_TESTS = 5
"""pytest's status where no test was there to run."""
STATUS_GRAVITY = (3, 4, 2, 1, EXIT_INFRASTRUCTURE, EXIT_BUILD, NO_TESTS, 0)


def gravest(statuses: Iterable[int]) -> int:
    """The exit status of several runs together; one that is nobody's (a signal's, say) counts as infrastructure."""
    known = [status if status in STATUS_GRAVITY else EXIT_INFRASTRUCTURE for status in statuses]
    return min(known, key=STATUS_GRAVITY.index, default=0)


def exit_status(kernels: Iterable[KernelResult], *, pytest_status: int, strict: Collection[str]) -> int:
    """The run's exit status from the kernels and from what pytest itself would have said (0 to 5).

    An unavailable row counts only when it is among ``strict``, or when no real kernel was there. pytest's
    2 (interrupted), 3 and 4 stay as they are. Where not one test could run on simulated kernels it is 5: no tests.
    """
    if pytest_status in (2, 3, 4):
        return pytest_status
    kernels = list(kernels)
    missing = [k for k in kernels if k.outcome is Outcome.UNAVAILABLE]
    some = any(k.outcome is not Outcome.UNAVAILABLE and not k.simulated for k in kernels)
    tolerated = some and not any(k.name in strict for k in missing)
    outcomes = {k.outcome for k in kernels if not (tolerated and k.outcome is Outcome.UNAVAILABLE)}
    if any(t.outcome in ("failed", "error") and not t.lost for k in kernels for t in k.tests):
        return 1
    if outcomes & INFRASTRUCTURE:
        return EXIT_INFRASTRUCTURE
    if Outcome.BUILD in outcomes:
        return EXIT_BUILD
    nothing_ran = any(k.not_applicable for k in kernels) and not any(k.tests for k in kernels)
    return NO_TESTS if nothing_ran and pytest_status == 0 else pytest_status


@dataclass(frozen=True)
class Made:
    """How a run as a whole came to its results. ``started`` is ISO 8601; ``part`` is ``2/3`` of the tests, or empty."""

    started: str
    seconds: float
    exit_status: int
    part: str = ""


def bounded(nodeid: str) -> str:
    """An id that can be read back: of one that is too long its beginning and its digest, so that ids stay apart."""
    if len(nodeid) <= LONGEST:
        return nodeid
    digest = hashlib.sha256(nodeid.encode(errors="surrogatepass")).hexdigest()
    return f"{nodeid[: LONGEST - 100]}...{digest}"


def to_json(kernels: Iterable[KernelResult], made: Made) -> dict[str, Any]:
    """The documented JSON object, ready for ``json.dumps``."""
    rows = []
    for kernel in kernels:
        row = asdict(kernel)
        row["counts"] = kernel.counts()
        for test in row["tests"]:
            test["id"] = bounded(test["id"])
        rows.append(row)
    return {
        "schema": SCHEMA_VERSION,
        "started": made.started,
        "seconds": round(made.seconds, 3),
        "exit_status": made.exit_status,
        "part": made.part,
        "kernels": rows,
    }
