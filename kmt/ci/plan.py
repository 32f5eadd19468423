"""(pure) What a pipeline over the matrix consists of, whoever runs it: jobs, their script, what they keep and leave.

Laws: one job a kernel and part of the tests; the scripts are POSIX shell and take what differs from job to job from
the environment (``KERNEL``, ``PART``), so that no name of a kernel is ever read as shell; all jobs leave their files
below ``RESULTS``; the same plan gives the same text, byte for byte.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

import yaml

from kmt.errors import EXIT_INFRASTRUCTURE

RESULTS = "kmt-results"
CACHE = ".kmt-cache"
RETRIES = 2
"""How often a job runs again when infrastructure was lost (status 6); a test that failed is never run again."""
PAUSE = 15
"""Seconds before packages are tried for again; twice as many before the last time."""
MINUTES = 120
"""When a provider ends a job that does not end itself."""
VERDICT_PACKAGES = ("ca-certificates", "git", "python3", "python3-venv")
HOST = "host"
"""The job without kernels: its directory below ``RESULTS``, and the kernel that it is the cache's key of."""
STATUS = "status"
"""The file in that directory with the exit status of its tests."""
HEADER = "# Written by `{command}`: change the matrix or pyproject.toml and run that again, not this file.\n"


@dataclass(frozen=True)
class Plan:
    """``kernels`` are names of rows; ``parts``: into how many jobs each kernel's tests are divided."""

    kernels: tuple[str, ...]
    parts: int
    image: str
    setup: tuple[str, ...]
    runner: str
    packages: tuple[str, ...]
    """Debian packages that ``image`` needs to run tests; ``VERDICT_PACKAGES`` are enough for the verdict."""
    inputs: tuple[str, ...]
    """Files of the project whose content decides what is fetched and built: the cache's key."""
    host: bool
    """With a job for the tests that run on the machine itself."""
    command: str
    """What writes this pipeline, for its first line."""
    strict: bool = False
    """The project's own settings would have a kernel simulated that cannot be had."""


def system(packages: Sequence[str]) -> list[str]:
    """As root in the image: the packages, tried again where the archive does not answer."""
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages]
    # The archive not answering is infrastructure, which has a status of its own.
    again = [
        "tries=0",
        f"until apt-get update -q && {shlex.join(install)}; do",
        f'    [ "$tries" -lt {RETRIES} ] || exit {EXIT_INFRASTRUCTURE}',
        "    tries=$((tries + 1))",
        f'    echo "the packages could not be had: trying again ($tries of {RETRIES})"',
        f"    sleep $((tries * {PAUSE}))",
        "done",
    ]
    return ["export DEBIAN_FRONTEND=noninteractive", "\n".join(again)]


def prepare(plan: Plan) -> list[str]:
    """In the checkout: the environment, the cache, access to hardware virtualisation."""
    return [
        'git config --global --add safe.directory "$PWD"',
        f'export KMT_CACHE="$PWD/{CACHE}"',
        f"mkdir -p {CACHE} {RESULTS} && echo '*' >{CACHE}/.gitignore && echo '*' >{RESULTS}/.gitignore",
        *plan.setup,
    ]


def access(warning: str) -> list[str]:
    """Open /dev/kvm where its permissions alone are in the way; ``warning`` is a command that says there is none."""
    return [
        "if [ -e /dev/kvm ] && ! [ -w /dev/kvm ]; then chmod a+rw /dev/kvm || sudo chmod a+rw /dev/kvm || :; fi",
        f"if [ -w /dev/kvm ]; then echo 'hardware virtualisation: /dev/kvm'; else {warning}; fi",
    ]


NO_KVM = "no hardware virtualisation here: guests are emulated, ten times slower"


def tests(plan: Plan) -> str:
    """The job's command; its exit status is the job's."""
    where = f'"{RESULTS}/$KERNEL-$PART"'
    part = [f'"--kernel-part=$PART/{plan.parts}"'] if plan.parts > 1 else []
    strict = ["--kernel-strict"] if plan.strict else []
    words = [".venv/bin/python -m pytest", '"--kernel=$KERNEL"', *strict, *part]
    words += [f'"--kernel-json={where[1:-1]}/results.json"', f'"--junitxml={where[1:-1]}/junit.xml"']
    words += [f'"--kernel-logs={where[1:-1]}"']
    return " ".join(words)


def host_tests() -> str:
    """The command of the job without kernels: the project's tests as plain pytest runs them, and their status kept."""
    where = f"{RESULTS}/{HOST}"
    run = f'.venv/bin/python -m pytest "--junitxml={where}/junit.xml"'
    # A subshell, for its exit is not to end a loop around it.
    return f'(mkdir -p {where}; said=0; {run} || said=$?; echo "$said" >{where}/{STATUS}; exit "$said")'


def forget() -> str:
    """What is of this machine alone does not go into the cache that other machines get."""
    return f"rm -rf {CACHE}/v*/runs {CACHE}/v*/snapshots {CACHE}/v*/keepers"


def verdict(plan: Plan) -> str:
    """The last job's command: one table and one exit status over what all others left."""
    words = [".venv/bin/python", "-m", "kmt", "merge", RESULTS, f"--kernels={','.join(plan.kernels)}"]
    words += [f"--parts={plan.parts}", f"--junit={RESULTS}/junit.xml", f"--json={RESULTS}/merged.json"]
    words += ["--host"] if plan.host else []
    return shlex.join(words)


class _Dumper(yaml.SafeDumper):
    """Scripts of several lines as blocks, lists indented below their key."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Never without indentation."""
        super().increase_indent(flow, indentless=False)

    def ignore_aliases(self, data: object) -> bool:
        """What is said twice is written twice."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def dump(plan: Plan, document: object) -> str:
    """The pipeline's file."""
    body: str = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=1000, allow_unicode=True)
    return HEADER.format(command=plan.command) + body


def script(lines: Sequence[str]) -> str:
    """Lines as one block of shell."""
    return "".join(f"{line}\n" for line in lines)
