"""``kmt.ci`` and ``kmt.merge``: a pipeline from the matrix, and one table and verdict over what its jobs left."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kmt import backends, config, doctor, matrix
from kmt.ci import github, gitlab, junit, merge
from kmt.ci.plan import HOST, STATUS, Plan
from kmt.commands.words import kernel_patterns, user_path
from kmt.config import Config
from kmt.errors import EXIT_INFRASTRUCTURE, ConfigError, ResultsError
from kmt.explain import files
from kmt.hints import task
from kmt.matrix import CATALOGUE
from kmt.paths import PACKAGE, published
from kmt.report import in_ci, table
from kmt.report import json as json_report
from kmt.results import gravest

PROVIDERS = {"gitlab": gitlab.pipeline, "github": github.pipeline}
IMAGE_PACKAGES = ("ca-certificates", "python3", "python3-venv")
MOST_PARTS = 100
MOST_JOBS = {"gitlab": 200, "github": 256}
"""What a matrix may have there."""


def generate(root: Path, provider: str, *, kernels: Sequence[str] = (), parts: int = 1, output: str = "") -> list[str]:
    """Write the pipeline to the file ``output``, or return its lines. ConfigError for words that make none."""
    text = PROVIDERS[_checked(provider, parts)](plan(root, provider, kernels, parts, output))
    if not output:
        return text.splitlines()
    target = user_path(output)
    try:
        with published(target) as work:
            work.write_text(text)
    except OSError as error:
        raise ConfigError(f"{target}: {error.strerror}", hint="name another file for the pipeline") from None
    return [f"{target}: written"]


def plan(root: Path, provider: str, kernels: Sequence[str], parts: int, output: str) -> Plan:
    """What the pipeline consists of, by the project's configuration and the words of the command."""
    settings = config.load(root)
    words = kernel_patterns(kernels) or list(settings.kernels)
    if paths := [word for word in words if "/" in word]:
        raise ConfigError(f"{paths[0]} is a file of this machine", hint="give it a row in a catalogue: docs/kernels.md")
    rows = matrix.load(root / settings.catalogue if settings.catalogue else None).select(words)
    if len(rows) * parts > MOST_JOBS[provider]:
        raise ConfigError(f"{len(rows) * parts} jobs; {provider} takes {MOST_JOBS[provider]}", hint="fewer --split")
    command = task(f"ci --provider={provider}").split()
    command += [f"--kernels={','.join(kernels)}"] if kernels else []
    command += [f"--split={parts}"] if parts > 1 else []
    command += [f"--output={output}"] if output else []
    packages = {package.name for package in doctor.packages((PACKAGE / "vms" / "packages.txt").read_text())}
    return Plan(
        kernels=tuple(row.name for row in rows),
        parts=parts,
        image=settings.ci_image,
        setup=settings.ci_setup,
        runner=settings.ci_runner,
        packages=tuple(sorted(packages | set(IMAGE_PACKAGES))),
        inputs=_inputs(settings),
        host=settings.ci_host,
        command=shlex.join(command),
        # A job is there to boot its kernel: one that cannot be had is infrastructure lost, and the job runs again.
        strict=settings.backend == backends.AUTO,
    )


def _checked(provider: str, parts: int) -> str:
    if provider not in PROVIDERS:
        raise ConfigError(f"--provider is {provider!r}", hint=f"one of {', '.join(PROVIDERS)}")
    if not 1 <= parts <= MOST_PARTS:
        raise ConfigError(f"--split is {parts}", hint=f"1 to {MOST_PARTS} jobs a kernel")
    return provider


def _inputs(settings: Config) -> tuple[str, ...]:
    """What decides what a job fetches and builds: the settings, then the lock or the catalogue."""
    own = CATALOGUE.resolve()
    packaged = own.relative_to(settings.root).as_posix() if own.is_relative_to(settings.root) else ""
    return tuple(name for name in ("pyproject.toml", settings.lock or settings.catalogue or packaged) if name)


def verdict(
    root: Path, directory: str, *, kernels: Sequence[str], parts: int = 1, json: str = "", junit_file: str = "",
    host: bool = False,
) -> tuple[list[str], int]:  # fmt: skip
    """The table over all results below ``directory``, and the exit status of all jobs together.

    ``host``: there was a job of the host's tests too.
    """
    place = user_path(directory)
    names = [word.strip() for each in kernels for word in each.split(",") if word.strip()]
    loaded = files.load(_left(place, "results.json"))
    for error in loaded.errors:
        print(f"error: {error}", file=sys.stderr)
    merged = merge.merge(loaded.results, kernels=names, parts=parts)
    missing = [f"{name}, part {part} of {parts}" for name, part in merged.missing]
    statuses = [merged.made.exit_status, EXIT_INFRASTRUCTURE if loaded.errors else 0]
    if host:
        said = _host_status(place)
        missing += ["the host's tests"] if said is None else []
        statuses.append(EXIT_INFRASTRUCTURE if said is None else said)
    status = gravest(statuses)
    if json:
        json_report.write(user_path(json), merged.kernels, replace(merged.made, exit_status=status))
    cases = ""
    if junit_file:
        target = user_path(junit_file)
        found = _left(place, "junit.xml")
        try:
            cases = f"{target}: {junit.merge(found, target, missing)} test cases of {len(found)} files"
        except ResultsError as error:
            print(f"error: {error}", file=sys.stderr)
            status = status or EXIT_INFRASTRUCTURE
    drawn = table.render(merged.kernels, config.load(root).columns)
    lines = in_ci.log().guarded(drawn.splitlines())
    in_ci.tell(lines.append, merged.kernels, drawn)
    lines += [f"{job}: {merge.LEFT_NOTHING}" for job in missing]
    lines += [f"the host's tests: exit status {said}"] if host and said else []
    return [*lines, *([cases] if cases else []), f"exit status: {status}"], status


def _host_status(place: Path) -> int | None:
    """What the host's job kept as its status; None where it left nothing that is one."""
    try:
        with (place / HOST / STATUS).open("rb") as file:
            text = file.read(16).decode("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None


def _left(place: Path, name: str) -> list[Path]:
    """What each job left under that name; what its tests left lies deeper."""
    return [path for path in sorted(place.glob(f"*/{name}")) if path.is_file() and not path.is_symlink()]
