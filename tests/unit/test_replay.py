import pytest

from kmt.plugin.replay import checked


def report(**changes):
    whole = {
        "nodeid": "a.py::x", "location": ("a.py", 1, "x"), "keywords": {}, "outcome": "passed", "longrepr": None,
        "when": "call", "duration": 0.1, "user_properties": [],
    }  # fmt: skip
    return pytest.TestReport(**{**whole, **changes})


def test_an_honest_report_is_taken_as_it_is():
    for changes in ({}, {"outcome": "failed", "longrepr": "why"}, {"outcome": "skipped", "longrepr": ("f", 1, "why")}):
        honest = report(**changes)
        assert checked(honest) is honest


def test_a_skip_that_crossed_as_json_is_a_tuple_again():
    assert checked(report(outcome="skipped", longrepr=["f", 1, "why"])).longrepr == ("f", 1, "why")


@pytest.mark.parametrize(
    "hostile",
    [
        None,
        "report",
        pytest.CollectReport("a.py", "passed", None, []),
        report(when="never"),
        report(outcome=3),
        report(duration="long"),
        report(outcome="skipped", longrepr="no place"),
        report(outcome="skipped", longrepr=["f", 1]),
    ],
)
def test_what_would_break_the_hosts_plugins_is_refused(hostile):
    with pytest.raises(ValueError, match=r"."):
        checked(hostile)
