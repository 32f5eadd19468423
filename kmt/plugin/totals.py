"""Real and simulated results apart in what pytest itself says of a session.

Laws: no number of pytest's last line is a sum of real and simulated tests; a test that needs a real kernel, on a
simulated one, is "not applicable": no skip, and no pass. Failures are shown as ever, whichever they are.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

from kmt.results import NOT_APPLICABLE

_MARK = ("simulated", "true")
"""Among the properties that each report gets (``kmt/report/junit.py``)."""


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Its own category for what is not applicable; all else is pytest's to say."""
    if getattr(report, "kmt_outcome", "") == NOT_APPLICABLE:
        return NOT_APPLICABLE, "n", NOT_APPLICABLE.upper()
    return None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None, None, None]:
    """When all has been shown by its category, before the numbers are."""
    yield
    divide(terminalreporter.stats)


def divide(stats: dict[str, list[object]]) -> None:
    """Move what simulated kernels said into categories of its own. Set-up and tear-down (no category) stay."""
    for category in [name for name in stats if name and name != NOT_APPLICABLE]:
        reports = stats[category]
        simulated = [report for report in reports if _MARK in getattr(report, "user_properties", ())]
        if not simulated:
            continue
        stats[f"{category} (simulated)"] = simulated
        stats[category] = [report for report in reports if report not in simulated]
        if not stats[category]:
            del stats[category]
