"""Real and simulated results apart in what pytest itself says of a session.

Laws: no outcome in pytest's last line is counted over real and simulated tests together, however the session ended
(what was deselected, and warnings, are no outcomes: there is one number of each); a test that needs a real kernel, on
a simulated one, is "not applicable": no skip, and no pass. Failures are shown as ever, whichever they are.
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
    _forget(terminalreporter)


def divide(stats: dict[str, list[object]]) -> None:
    """Move what simulated kernels said into categories of its own. Set-up and tear-down (no category) stay."""
    for category in [name for name in stats if name and name != NOT_APPLICABLE]:
        real: list[object] = []
        simulated: list[object] = []
        for report in stats[category]:
            (simulated if _MARK in getattr(report, "user_properties", ()) else real).append(report)
        if not simulated:
            continue
        stats[f"{category} (simulated)"] = simulated
        stats[category] = real
        if not real:
            del stats[category]


def _forget(reporter: pytest.TerminalReporter) -> None:
    """Have the last line made of the categories that there are now, red where a test failed on whichever kernel."""
    # pytest 9.2 knows categories and colour from the first report of each on, and looks again only after the last test
    # of a session that came to it: -x and Ctrl-C are none. No public way leads there.
    state = vars(reporter)
    if "_known_types" in state and "_main_color" in state:
        state.update(_known_types=None, _main_color=None)
    if {"failed (simulated)", "error (simulated)"} & set(reporter.stats) and hasattr(reporter, "_determine_main_color"):
        state["_determine_main_color"] = lambda unknown_type_seen: "red"
