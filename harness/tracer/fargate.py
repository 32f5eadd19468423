"""(pure) The gate of the fentry tracer: it is meant for Fargate tasks, where no kprobe may be set."""

from __future__ import annotations

from collections.abc import Mapping

_TRUE = frozenset({"1", "t", "true", "yes", "y", "on"})


def on_fargate(environment: Mapping[str, str]) -> bool:
    """Whether these environment variables are those of a task on ECS Fargate or a pod on EKS Fargate."""
    if environment.get("AWS_EXECUTION_ENV") == "AWS_ECS_FARGATE":
        return True
    return any(environment.get(name, "").lower() in _TRUE for name in ("ECS_FARGATE", "DD_EKS_FARGATE"))
