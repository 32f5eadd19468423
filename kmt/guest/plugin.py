"""What tests see of us, on the host and in guests alike: the markers, the fixture ``kernel``, the skip law.

Laws: ``requires(feature)`` skips only where a probe says that this kernel does not have the feature; a probe that
cannot tell lets the test run. With ``strict_skips`` (our own suite) any other skip is a failure.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from . import fixtures, hookspecs, probes

MARKERS = (
    "requires(*features, cpus=1): run only on kernels that have these features; cpus asks for that many processors",
    "host_only: never run this test in a guest",
    "pristine: run this test in a kernel that nobody has touched, alone",
    "real: never run this test on a simulated kernel, though it takes the fixture kernel",
)


LAW = "in this suite only requires(...) may skip"


def _nothing() -> Any:
    return None


@dataclass(frozen=True)
class KernelInfo:
    """Where a test runs. ``version`` is (major, minor, patch); ``headers``: they are there to compile against."""

    name: str
    release: str
    version: tuple[int, int, int]
    simulated: bool
    accelerator: str
    headers: bool
    reach: Callable[[], Any] = field(default=_nothing, repr=False, compare=False)
    """Makes ``api``."""

    @cached_property
    def api(self) -> Any:
        """What the hook ``pytest_kmt_kernel_api`` gives for it; on a simulated kernel, that kernel."""
        found = self.reach()
        if found is None:
            raise LookupError(
                "no hook pytest_kmt_kernel_api says how tests reach this kernel; a conftest.py may have it"
            )
        return found


class Unmet(pytest.skip.Exception):  # type: ignore[name-defined,misc]
    """A skip that ``requires`` made: the only one that is no failure under ``strict_skips``."""


def here(said: dict[str, Any]) -> KernelInfo:
    """The kernel under this process, with what the host said of it (``name, accelerator, simulated``)."""
    release = str(said.get("release", platform.release()))
    numbers = [int(n) for n in re.findall(r"\d+", release.split("-", 1)[0])[:3]]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return KernelInfo(
        name=said.get("name", "host"),
        release=release,
        version=(major, minor, patch),
        simulated=bool(said.get("simulated", False)),
        accelerator=said.get("accelerator", "none"),
        # A simulated kernel has none: what lies here is another's.
        headers=not said.get("simulated") and Path(f"/lib/modules/{release}/build/include").is_dir(),
    )


class SharedPlugin:
    """Registered by the host's plugin for tests that run there, by the runner in guests."""

    def __init__(self, said: dict[str, Any], *, strict_skips: bool) -> None:
        self._info = here(said)
        self._strict = strict_skips

    def pytest_addhooks(self, pluginmanager: pytest.PytestPluginManager) -> None:
        """Make ``pytest_kmt_probe`` known."""
        pluginmanager.add_hookspecs(hookspecs)

    def pytest_configure(self, config: pytest.Config) -> None:
        """Describe the markers, so that ``--strict-markers`` and ``--markers`` know them; have the fixture."""
        for line in MARKERS:
            config.addinivalue_line("markers", line)
        config.stash[fixtures.KNOWN] = self._known
        config.pluginmanager.register(fixtures, "kmt-fixtures")

    def _known(self, config: pytest.Config) -> KernelInfo:
        if self._info.reach is _nothing:
            self._info = replace(self._info, reach=lambda: config.hook.pytest_kmt_kernel_api(kernel=self._info))
        return self._info

    def _has(self, feature: str, item: pytest.Item) -> bool | None:
        """What the probes say; of a simulated kernel those that do not look at this machine."""
        answer: bool | None
        if self._info.simulated:
            answer = item.ihook.pytest_kmt_probe_simulated(feature=feature, kernel=self._known(item.config))
        else:
            answer = item.ihook.pytest_kmt_probe(feature=feature)
        return answer

    @pytest.hookimpl(trylast=True)
    def pytest_kmt_probe(self, feature: str) -> bool | None:
        """The general probes, behind those of the project."""
        return probes.probe(feature)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Skip where this kernel lacks what the test requires."""
        for marker in item.iter_markers("requires"):
            for feature in marker.args:
                if self._has(feature, item) is False:
                    raise Unmet(f"requires {feature}: this kernel has none")

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        """Hold the skips of whole modules to the law."""
        report = yield
        if self._strict and report.skipped:
            report.outcome = "failed"
            report.longrepr = f"the whole module is skipped ({report.longreprtext}): {LAW}"
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Hold the skips of tests to the law."""
        report = yield
        raised = call.excinfo.value if call.excinfo else None
        if self._strict and isinstance(raised, pytest.skip.Exception) and not isinstance(raised, Unmet):
            report.outcome = "failed"
            report.longrepr = f"skipped ({raised.msg}): {LAW}"
        return report
