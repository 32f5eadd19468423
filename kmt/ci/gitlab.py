"""(pure) The plan as a GitLab child pipeline: ``include:`` or ``trigger:`` it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from kmt.ci import plan as jobs
from kmt.ci.plan import RESULTS, Plan

_WARN = f"printf '\\033[1;31m%s\\033[0m\\n' {shlex.quote('WARNING: ' + jobs.NO_KVM)}"


def pipeline(plan: Plan) -> str:
    """The file's text."""
    host = {"host": _host(plan)} if plan.host else {}
    made = {"stages": ["kernels", "verdict"], "kernel": _tests(plan), **host, "verdict": _verdict(plan)}
    return jobs.dump(plan, made)


def _common(plan: Plan, packages: Sequence[str]) -> dict[str, Any]:
    return {
        "image": plan.image,
        **({"tags": [plan.runner]} if plan.runner else {}),
        "before_script": [*jobs.system(packages), *jobs.prepare(plan)],
    }


def _tests(plan: Plan) -> dict[str, Any]:
    matrix = {"parallel": {"matrix": [{"KERNEL": list(plan.kernels), "PART": _parts(plan)}]}}
    return _job(plan, matrix, jobs.tests(plan), "kmt-$KERNEL")


def _host(plan: Plan) -> dict[str, Any]:
    return _job(plan, {}, jobs.host_tests(), "kmt-host")


def _job(plan: Plan, matrix: dict[str, Any], command: str, cache: str) -> dict[str, Any]:
    return {
        "stage": "kernels",
        **_common(plan, plan.packages),
        "timeout": f"{jobs.MINUTES} minutes",
        **matrix,
        "variables": {"GIT_DEPTH": "1"},
        "script": [*jobs.access(_WARN), command],
        "after_script": [jobs.forget()],
        "retry": {"max": jobs.RETRIES, "when": ["runner_system_failure"], "exit_codes": [6]},
        # GitLab takes at most two files.
        "cache": {"key": {"files": list(plan.inputs[:2]), "prefix": cache}, "paths": [jobs.CACHE],
                  "when": "always"},
        "artifacts": {"when": "always", "expire_in": "2 weeks", "paths": [RESULTS],
                      "reports": {"junit": [f"{RESULTS}/*/junit.xml"]}},
    }  # fmt: skip


def _verdict(plan: Plan) -> dict[str, Any]:
    return {
        "stage": "verdict",
        **_common(plan, jobs.VERDICT_PACKAGES),
        "when": "always",
        # Not by status 6, which here says that jobs were lost.
        "retry": {"max": jobs.RETRIES, "when": ["runner_system_failure"]},
        "script": [jobs.verdict(plan)],
        "artifacts": {"when": "always", "expire_in": "2 weeks", "paths": [RESULTS]},
    }


def _parts(plan: Plan) -> list[str]:
    return [str(number) for number in range(1, plan.parts + 1)]
