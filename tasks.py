"""``./inv TASK``: each task parses words, calls one function of ``kmt`` and prints. What they do: ``kmt/commands/``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import invoke
from invoke import Collection, Context

from kmt import doctor as examination
from kmt.commands import boundary as bisection
from kmt.commands import (
    checks,
    cleaning,
    explaining,
    guest,
    matrix,
    pipelines,
    reporting,
    simulator,
    snapshots,
    soaking,
    testing,
    vagrant,
    watching,
)
from kmt.commands.words import behind_dashes, user_path
from kmt.errors import KmtError

ROOT = Path(__file__).resolve().parent


def task(function: Callable[..., int | None] | None = None, /, **options: Any) -> Any:
    """``invoke.task`` for a function that may return an exit status; our errors become one line."""
    if function is None:
        return functools.partial(task, **options)

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            status = function(*args, **kwargs)
        except KmtError as error:
            raise invoke.Exit(f"error: {error}", error.exit_status) from None
        except KeyboardInterrupt:
            raise invoke.Exit("stopped", 130) from None
        if status:
            raise invoke.Exit(code=status)

    return invoke.task(guarded, auto_shortflags=False, **options)


def show(lines: Iterable[str], status: int = 0) -> int:
    """Print them, each at once; returns ``status``."""
    for line in lines:
        print(line, flush=True)
    return status


KERNELS = "which: 6.1, 5.10,7.3, '6.*', all, default, newest, a path to an image; may be given several times"
BACKEND = "how kernels run (default: [tool.kmt] backend)"
ACCEL = "auto, kvm or tcg (default: what really boots a guest here)"
RESULTS = "a file of --kernel-json, a directory or a zip archive with such files (default: the latest run here)"
RUN = "the run's id or its beginning, as kmt.status shows it"
TESTING = {
    "kernels": f"{KERNELS} (default: [tool.kmt] kernels)",
    "backend": BACKEND,
    "jobs": "guests at once (default: as many as cores and memory allow)",
    "accel": ACCEL,
    "timeout": "seconds for one kernel, scaled up without hardware virtualisation",
    "json": "write the results to this file (docs/results.md)",
    "junit": "write JUnit XML to this file",
    "strict": "an unavailable kernel fails the run",
}
BOOT = {"kernel": "the kernel to boot", "backend": BACKEND, "accel": ACCEL}
KEEP = "leave the guests running for kmt.test, kmt.exec and kmt.shell; --keep=MINUTES: until they idle that long (15)"


@task(
    iterable=["kernels"],
    optional=["keep"],
    help=TESTING
    | {
        "dry_run": "print the QEMU command lines and boot nothing",
        "keep": KEEP,
        "demo": "no tests: run [tool.kmt] demo in one kernel, and show it",
    },
)
def start(
    _c: Context, kernels: Any = None, backend: str = "", jobs: int = 0, accel: str = "", timeout: int = 0,
    json: str = "", junit: str = "", strict: bool = False, dry_run: bool = False, keep: Any = None, demo: bool = False,
) -> int | None:  # fmt: skip
    """Boot the matrix, run the tests in every kernel, end with the table. Words behind -- go to pytest.

    Without such words the tests are those that [tool.kmt] start selects; ./inv test runs all.
    """
    if dry_run:
        return show(matrix.dry_run(ROOT, kernels, backend, accel))
    if demo:
        return guest.demo(ROOT, kernels, backend=backend, accel=accel)
    kept = testing.minutes(keep)
    chosen = testing.Options(kernels, backend, jobs, accel, timeout, json, junit, strict, kept, True, behind_dashes())
    return testing.run(ROOT, chosen)


@task(iterable=["kernels"], help=TESTING)
def kernel_test(
    _c: Context, kernels: Any = None, backend: str = "", jobs: int = 0, accel: str = "", timeout: int = 0,
    json: str = "", junit: str = "", strict: bool = False,
) -> int:  # fmt: skip
    """Run some tests in kernels, shown as pytest shows them: kmt.test --kernels 6.1 -- tests/kernel -k tracer -v."""
    chosen = testing.Options(kernels, backend, jobs, accel, timeout, json, junit, strict, args=behind_dashes())
    return testing.run(ROOT, chosen, live=False)


@task(iterable=["kernels"], help={"kernels": KERNELS})
def ls(_c: Context, kernels: Any = None) -> None:
    """List the kernels: what each resolves to, and whether it is in the cache."""
    print(matrix.listing(ROOT, kernels))


@task(iterable=["kernels"], help={"kernels": KERNELS, "update": "move the lock file to the newest versions"})
def fetch(_c: Context, kernels: Any = None, update: bool = False) -> int:
    """Fetch kernels into the cache."""
    return show(*matrix.fetch(ROOT, kernels, update=update))


@task
def image(_c: Context) -> None:
    """Build the guests' root image, if need be."""
    print(matrix.make_image(ROOT))


@task(iterable=["kernels"], help={"kernels": KERNELS})
def box(_c: Context, kernels: Any = None) -> int:
    """Make Vagrant's box and machines: cd vms, vagrant up 6.1. kmt.box -- bash: there, with a libvirtd of its own."""
    return show(*vagrant.make(ROOT, kernels, behind_dashes()))


@task(iterable=["kernels"], help={"kernels": f"{KERNELS}: what only its guest gets, too"})
def build(_c: Context, kernels: Any = None) -> None:
    """Compile the project's eBPF programs."""
    show(matrix.compile_objects(ROOT, kernels or ()))


@task(positional=["kernel"], help=BOOT | {"gdb": "print how to attach a debugger"})
def shell(_c: Context, kernel: str, backend: str = "", accel: str = "", gdb: bool = False) -> int:
    """Boot one kernel and give an interactive console in it."""
    return guest.shell(ROOT, kernel, backend=backend, accel=accel, gdb=gdb)


@task(name="exec", positional=["kernel"], help=BOOT)
def execute(_c: Context, kernel: str, backend: str = "", accel: str = "") -> int:
    """Run the command behind -- in one kernel; its output and exit status are this one's: kmt.exec 6.1 -- uname -r."""
    return guest.execute(ROOT, kernel, behind_dashes(), backend=backend, accel=accel)


@task(help={"limit": "how many runs that are over to show"})
def status(_c: Context, limit: int = 5) -> None:
    """Show the runs that go on in any terminal, and the last ones."""
    print(watching.status(limit))


@task(help={"run": f"{RUN} (default: every run that goes on)"})
def stop(_c: Context, run: str = "") -> None:
    """Stop runs, whichever terminal they are in: once to ask, twice to end them."""
    show(watching.stop(run))


@task(positional=["kernel"], help={"kernel": "whose", "run": f"{RUN} (default: latest)", "follow": "wait for more"})
def logs(_c: Context, kernel: str, run: str = "", follow: bool = False) -> None:
    """Print the console of a kernel."""
    for piece in watching.logs(kernel, run, follow=follow):
        print(piece, end="", flush=True)


@task(iterable=["from_"], help={"from_": RESULTS})
def explain(_c: Context, from_: Any = None) -> int:
    """Say what failed, grouped by its cause over kernels, and how to run just that again: kmt.explain -- FILE..."""
    return show(*explaining.explain([*(from_ or ()), *behind_dashes()]))


@task(iterable=["from_"], help={"from_": RESULTS, "group": "one of the numbers that kmt.explain gives"})
def rerun(_c: Context, from_: Any = None, group: int = 0) -> int:
    """Run just the (kernel, test) pairs that failed again. Words behind -- go to pytest."""
    return explaining.again(ROOT, from_ or (), group=group or None, args=behind_dashes())


@task(
    iterable=["kernels"],
    help={
        "provider": "gitlab or github",
        "kernels": f"{KERNELS} (default: [tool.kmt] kernels)",
        "split": "jobs a kernel, each with a share of the tests",
        "output": "write it to this file (default: standard output)",
    },
)
def ci(_c: Context, provider: str, kernels: Any = None, split: int = 1, output: str = "") -> None:
    """Write a CI pipeline from the matrix: a job a kernel, and one for the verdict (docs/ci.md)."""
    show(pipelines.generate(ROOT, provider, kernels=kernels or (), parts=split, output=output))


@task(
    iterable=["kernels"],
    help={
        "results": "the directory with all jobs' files",
        "kernels": "the names of all that were to run",
        "parts": "how many jobs each of them had",
        "json": "write the merged results to this file",
        "junit": "write the merged JUnit file here",
        "host": "there was a job of the host's tests too",
    },
)
def merge(
    _c: Context, results: str, kernels: Any = None, parts: int = 1, json: str = "", junit: str = "", host: bool = False
) -> int:
    """One table and one verdict over what the jobs of a pipeline left."""
    words = {"kernels": kernels, "parts": parts, "json": json, "junit_file": junit, "host": host}
    return show(*pipelines.verdict(ROOT, results, **words))


@task(help={"output": "the archive to write (default: kmt-flare-DATE.tar.gz here)"})
def flare(_c: Context, output: str = "") -> None:
    """Gather what a bug report needs (versions, configuration, last results and consoles), without secrets."""
    show(reporting.flare(ROOT, output))


@task
def doctor(_c: Context) -> int:
    """Say what this machine has, what it lacks, and the command that mends it."""
    text, status = examination.examine(ROOT)
    print(text)
    return status


@task(
    iterable=["make", "drop"],
    help={
        "make": f"make them ahead; {KERNELS}",
        "drop": "drop one by its key (the beginning is enough), those of a kernel, or all",
        "verify": "hash every snapshot, memory too, and drop what is damaged",
    },
)
def snapshot(_c: Context, make: Any = None, drop: Any = None, verify: bool = False) -> int:
    """List the warm snapshots that guests start from; make, check, drop them."""
    status = 0
    if drop:
        show(snapshots.drop(drop))
    if make:
        show(snapshots.make(ROOT, make))
    if verify:
        status = show(*snapshots.verify())
    if not (make or drop or verify):
        print(snapshots.listing())
    return status


@task(
    positional=["kernels"],
    help={"kernels": "which: 6.1, 5.10,7.3, default, all", "directory": "where to write (default: fixtures/profiles)"},
)
def profile(_c: Context, kernels: str, directory: str = "") -> None:
    """Record what kernels have and lack, each in a real guest, as data for the simulator: kmt.profile default."""
    show(simulator.profile(ROOT, [kernels], user_path(directory) if directory else None))


@task(
    positional=["object"],
    iterable=["kernels"],
    help={
        "object": "an eBPF object file of anybody's",
        "program": "one of its programs (default: all)",
        "kernels": f"{KERNELS} (default: all that are in the cache)",
        "static": "from the kernels' files alone: boot nothing",
        "json": "write what was found to this file (docs/simulator.md)",
    },
)
def boundary(
    _c: Context, object: str, program: str = "", kernels: Any = None, static: bool = False, json: str = ""
) -> None:
    """The oldest kernel that an eBPF object loads and attaches on, in the verifier's words: kmt.boundary x.bpf.o."""
    target = user_path(json) if json else None
    print(bisection.boundary(ROOT, user_path(object), program, kernels=kernels or (), static=static, target=target))


@task(name="clean", help={"all": "the whole cache: kernels, images, objects"})
def clean(_c: Context, all: bool = False) -> None:
    """Remove what older versions left in the cache and the logs of runs that are over."""
    show(cleaning.clean(everything=all))


@task
def test(_c: Context) -> int:
    """The whole test suite: the host's tests, then those of the guests in every default kernel."""
    return testing.everything(ROOT, behind_dashes())


@task(
    iterable=["kernels"],
    help={
        "kernels": KERNELS,
        "times": "how often to run the tests named behind --",
        "boots": "boots of each kernel (0: none)",
        "rounds": "attach and detach rounds under traffic in each (0: none)",
        "processes": "processes that begin and end in a row under the watcher in each (0: none)",
        "situations": "situations compared between each and its simulated kernel (0: none)",
    },
)
def soak(
    _c: Context, kernels: Any = None, times: int = 20, boots: int = 200, rounds: int = 100, processes: int = 10_000,
    situations: int = 2000,
) -> int:  # fmt: skip
    """Boot, attach, begin and end processes again and again, looking for one panic or one loss: an hour and more.

    With words for pytest behind --, run just those tests so many times, and say how often each of them fails.
    """
    if behind_dashes():
        return soaking.repeat(ROOT, kernels or (), times=times, args=behind_dashes())
    return testing.soak(ROOT, kernels, boots=boots, rounds=rounds, processes=processes, situations=situations)


@task(help={"pairs": "rounds of all measures"})
def bench(_c: Context, pairs: int = 9) -> int:
    """How fast it is, against virtme-ng on the same kernel; and what more kernels and guests cost."""
    return testing.bench(ROOT, pairs=pairs)


@task(help={"seconds": "how long"})
def fuzz(_c: Context, seconds: int = 60) -> int:
    """Look for input that the parsers of remote configuration answer with anything but their typed errors."""
    return testing.fuzz(ROOT, seconds=seconds)


@task
def lint(_c: Context) -> int:
    """Style, format and types."""
    return checks.lint(ROOT)


namespace = Collection(test, lint, bench, fuzz)
engine = Collection("kmt")
for each in (
    start, ls, fetch, image, box, build, shell, execute, status, stop, logs, explain, rerun, doctor, snapshot, clean,
    soak, profile, boundary, ci, merge, flare,
):  # fmt: skip
    engine.add_task(each)
engine.add_task(kernel_test, name="test")
namespace.add_collection(engine)
