"""(pure) The plan as a GitHub Actions workflow. It has no retries by exit status, so the job's own script has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kmt.ci import plan as jobs
from kmt.ci.plan import CACHE, RESULTS, Plan

CHECKOUT = "actions/checkout@v5"
KEEP = "actions/cache@v4"
UPLOAD = "actions/upload-artifact@v5"
DOWNLOAD = "actions/download-artifact@v6"
_WARN = f"echo '::warning title=emulated::{jobs.NO_KVM}'"
_LOST = "::warning title=infrastructure was lost::{kernel}, part {part}: trying again ({attempt} of {retries})"


def pipeline(plan: Plan) -> str:
    """The file's text."""
    document = {
        "name": "kernels",
        "on": {"push": None, "pull_request": None, "workflow_dispatch": None},
        "permissions": {"contents": "read"},
        "jobs": {"kernel": _tests(plan), **({"host": _host(plan)} if plan.host else {}), "verdict": _verdict(plan)},
    }
    return jobs.dump(plan, document)


def _common(plan: Plan) -> dict[str, Any]:
    return {
        "runs-on": plan.runner or "ubuntu-latest",
        # Privileged: /dev/kvm, where the machine has it.
        "container": {"image": plan.image, "options": "--privileged"},
    }


def _begin(packages: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"name": "System packages", "run": jobs.script(jobs.system(packages))},
        {"uses": CHECKOUT},
    ]


def _tests(plan: Plan) -> dict[str, Any]:
    name = "${{ matrix.kernel }} (${{ matrix.part }})" if plan.parts > 1 else "${{ matrix.kernel }}"
    parts = [str(number) for number in range(1, plan.parts + 1)]
    strategy = {"strategy": {"fail-fast": False, "matrix": {"kernel": list(plan.kernels), "part": parts}}}
    return _job(plan, name, strategy, "${{ matrix.kernel }}", "${{ matrix.part }}", jobs.tests(plan))


def _host(plan: Plan) -> dict[str, Any]:
    return _job(plan, jobs.HOST, {}, jobs.HOST, "1", jobs.host_tests())


def _job(plan: Plan, name: str, strategy: dict[str, Any], kernel: str, part: str, command: str) -> dict[str, Any]:
    inputs = ", ".join(f"'{name}'" for name in plan.inputs)
    return {
        "name": name,
        **_common(plan),
        "timeout-minutes": jobs.MINUTES,
        **strategy,
        "env": {"KERNEL": kernel, "PART": part},
        "steps": [
            *_begin(plan.packages),
            {"uses": KEEP,
             "with": {"path": CACHE, "key": f"kmt-{kernel}-${{{{ hashFiles({inputs}) }}}}",
                      "restore-keys": f"kmt-{kernel}-"}},
            {"name": "Access to hardware virtualisation", "run": jobs.script(jobs.access(_WARN))},
            {"name": "Tests", "run": jobs.script([*jobs.prepare(plan), *_retried(command)])},
            {"name": "What is of this machine alone", "if": "always()", "run": f"{jobs.forget()}\n"},
            {"uses": UPLOAD, "if": "always()",
             "with": {"name": f"kmt-{kernel}-{part}", "path": RESULTS, "if-no-files-found": "warn"}},
        ],
    }  # fmt: skip


def _retried(command: str) -> list[str]:
    said = _LOST.format(kernel="$KERNEL", part="$PART", attempt="$attempt", retries=jobs.RETRIES)
    return [
        "attempt=0",
        "while :; do",
        "    status=0",
        f"    {command} || status=$?",
        f'    [ "$status" -eq 6 ] && [ "$attempt" -lt {jobs.RETRIES} ] || exit "$status"',
        "    attempt=$((attempt + 1))",
        f'    echo "{said}"',
        "done",
    ]


def _verdict(plan: Plan) -> dict[str, Any]:
    return {
        **_common(plan),
        "needs": ["kernel", *(["host"] if plan.host else [])],
        "if": "always()",
        "steps": [
            *_begin(jobs.VERDICT_PACKAGES),
            {"uses": DOWNLOAD, "with": {"pattern": "kmt-*", "path": RESULTS, "merge-multiple": True}},
            {"name": "One table and one verdict", "run": jobs.script([*jobs.prepare(plan), jobs.verdict(plan)])},
            {"uses": UPLOAD, "if": "always()", "with": {"name": "merged", "path": RESULTS}},
        ],
    }
