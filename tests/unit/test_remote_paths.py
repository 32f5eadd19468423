"""The grammar of configuration paths, and a second reading of it to compare with."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import config_paths

from harness.remote.errors import PathError
from harness.remote.paths import ConfigPath, parse


def test_both_sources() -> None:
    assert parse("datadog/2/ASM/id/file") == ConfigPath("datadog", 2, "ASM", "id", "file")
    assert parse("employee/ASM/id/file") == ConfigPath("employee", None, "ASM", "id", "file")
    assert parse("datadog/007/ASM/id/file").org == 7
    assert parse(f"datadog/{2**63 - 1}/P/i/f").org == 2**63 - 1


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("", "unknown source"),
        ("datadog", "unknown source"),
        ("Datadog/2/P/i/f", "unknown source"),
        ("/datadog/2/P/i/f", "unknown source"),
        ("other/P/i/f", "unknown source"),
        ("datadog/2/P/i", "wrong format"),
        ("datadog/2/P/i/f/g", "wrong format"),
        ("datadog/2/P//f", "wrong format"),
        ("datadog//P/i/f", "wrong format"),
        ("datadog/-1/P/i/f", "wrong format"),
        ("datadog/٢/P/i/f", "wrong format"),
        ("employee/2/P/i/f", "wrong format"),
        ("employee/P/i/f/", "wrong format"),
        (f"datadog/{2**63}/P/i/f", "64 bits"),
        (f"datadog/{'9' * 10_000}/P/i/f", "64 bits"),
    ],
)
def test_what_is_wrong_is_said(path: str, words: str) -> None:
    with pytest.raises(PathError, match=words):
        parse(path)


ZEROS = "0" * 200_000
"""So many that a match which tries them again for each of them does not end."""


@pytest.mark.parametrize("org", [0, 7, 2**63 - 1])
def test_leading_zeros_count_for_nothing(org: int) -> None:
    assert parse(f"datadog/{ZEROS}{org}/P/i/f").org == org
    assert parse(f"datadog/{ZEROS}/P/i/f").org == 0


@pytest.mark.parametrize(
    ("tail", "words"),
    [("", "wrong format"), ("x/P/i/f", "wrong format"), ("/P/i", "wrong format"), (f"{2**63}/P/i/f", "64 bits")],
)
def test_many_zeros_are_refused_as_few_are(tail: str, words: str) -> None:
    for zeros in ("0", ZEROS):
        with pytest.raises(PathError, match=words):
            parse(f"datadog/{zeros}{tail}")


def second_reading(path: str) -> bool:
    """The same grammar without regular expressions."""
    source, *rest = path.split("/")
    if source == "datadog" and len(rest) == 4:
        org = rest.pop(0)
        return org != "" and all(c in "0123456789" for c in org) and int(org) < 2**63 and all(rest)
    return source == "employee" and len(rest) == 3 and all(rest)


@given(config_paths(), st.data())
def test_agrees_with_a_second_reading_of_the_grammar(path: str, data: st.DataObject) -> None:
    assert str(parse(path)) == path
    at = data.draw(st.integers(0, len(path)))
    changed = path[:at] + data.draw(st.text("/a0٣\n", max_size=2)) + path[at + data.draw(st.integers(0, 2)) :]
    try:
        parse(changed)
    except PathError:
        assert not second_reading(changed)
    else:
        assert second_reading(changed)
