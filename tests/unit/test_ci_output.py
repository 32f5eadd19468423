"""What CI is told: commands of the provider where we mean them, and never out of a test's mouth."""

import html
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.ci import output
from kmt.explain.causes import Cause, Group
from kmt.report import in_ci
from kmt.results import KernelResult, Outcome, TestResult

TOKEN = "0123456789abcdef" * 2
EVIL = "x\n::error::forged\r\n##[error]no %0A\x1b[0Ksection_end:1:kernels\r</pre><img src=x>|**b**` @team\u202e"
GITHUB, GITLAB, PLAIN = (output.Log(provider, TOKEN) for provider in ("github", "gitlab", ""))


def group(line=EVIL, test=f"t.py::a[{EVIL}]", number=1):
    return Group(Cause.TEST, line, (("6.1", test),) * number, ("6.1",), (), ("r.json",))


@pytest.mark.parametrize(
    ("environ", "provider"),
    [({"GITHUB_ACTIONS": "true"}, "github"), ({"GITLAB_CI": "true"}, "gitlab"), ({"CI": "true"}, ""), ({}, "")],
)
def test_the_provider_is_known_by_its_own_variable(environ, provider):
    assert output.Log.of(environ, TOKEN).provider == provider


def test_a_group_of_github_stops_commands_while_others_speak():
    begin, stop, *said, go, end = GITHUB.section(f"console {EVIL}", [EVIL, "::endgroup::"], now=1)
    assert (stop, go, end) == (f"::stop-commands::{TOKEN}", f"::{TOKEN}::", "::endgroup::")
    assert begin.startswith("::group::console x")
    assert all(line.isprintable() for line in [begin, *said])
    assert said[1] == "::endgroup::", "as text, for commands are stopped"


def test_a_section_of_gitlab_ends_by_its_own_name_only():
    begin, *said, end = GITLAB.section("console of 6.1", [EVIL], now=7)
    name = re.fullmatch(r"\x1b\[0Ksection_start:7:(\w+)\[collapsed=true\]\r\x1b\[0Kconsole of 6\.1", begin)[1]
    assert end == f"\x1b[0Ksection_end:7:{name}\r\x1b[0K"
    assert all(line.isprintable() for line in said)
    assert TOKEN[:8] in name, "a name that nobody can guess"


def test_elsewhere_a_section_is_plain_and_there_are_no_annotations():
    assert PLAIN.section("title", ["line"], now=1) == ["--- title", "line"]
    assert PLAIN.annotations([group()]) == GITLAB.annotations([group()]) == []


def test_annotations_are_one_line_a_cause_with_all_that_has_a_meaning_escaped():
    (line,) = GITHUB.annotations([group("100% : a, b", "tests/t,1.py::a")])
    assert line == (
        "::error file=tests/t%2C1.py,title=test%3A a test failed%3A 1 test on 6.1::100%25 : a, b%0Atests/t,1.py::a"
    )
    (line,) = GITHUB.annotations([group()])
    assert line.isprintable()
    assert "file=" not in line, "an id that is none names no file"
    many = GITHUB.annotations([group()] * 15)
    assert len(many) == 11
    assert many[-1].startswith("::notice title=more causes::5 more")


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_leaves_its_annotation_or_its_place_in_the_summary(line, test):
    (said,) = GITHUB.annotations([group(line, test)])
    assert "\n" not in said
    assert "\r" not in said
    assert re.fullmatch(r"::error (?:file=[^:,]*,)?title=[^:,]*::.*", said), "nothing ends what is ours early"
    made = output.summary(line, [group(line, test)])
    assert made.count("<pre>") == made.count("</pre>") == 2
    inside = re.findall(r"<pre>(.*?)</pre>", made, re.DOTALL)
    assert all("<" not in text and ">" not in text for text in inside)
    assert all(part.isprintable() for text in inside for part in html.unescape(text).split("\n"))


def test_a_summary_never_grows_beyond_what_github_takes():
    made = output.summary("table", [group("x" * 1900, f"t.py::{n}") for n in range(2000)])
    assert len(made.encode()) < 1 << 20
    assert made.endswith("see the log_\n")


def test_a_summary_leaves_room_for_what_a_step_has_said_before(tmp_path, monkeypatch):
    assert output.summary("table", [group()], most=0) == ""
    assert len(output.summary("table", [group("x" * 100)] * 100, most=5000)) < 5100
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv(in_ci.SUMMARY, str(tmp_path / "summary.md"))
    tests = [TestResult(f"t{n}.py::a", "failed", 1.0, "x" * 1900) for n in range(300)]
    for _ in range(4):
        in_ci.tell(lambda _: None, [KernelResult("6.1", outcome=Outcome.FAILED, tests=tests)], "table")
    assert 800_000 < (tmp_path / "summary.md").stat().st_size < 1 << 20


def test_in_github_no_command_is_obeyed_between_our_own_lines():
    table = ["6.1  failed", "6.1: lost: ##[stop-commands]x"]
    assert GITHUB.guarded(table) == [f"::stop-commands::{TOKEN}", *table, f"::{TOKEN}::"]
    assert GITLAB.guarded(table) == PLAIN.guarded(table) == table


def test_in_github_a_run_annotates_and_summarises_and_elsewhere_it_does_not(tmp_path, monkeypatch):
    kernel = KernelResult("6.1", outcome=Outcome.FAILED, tests=[TestResult("t.py::a", "failed", 1.0, EVIL)])
    said = []
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    in_ci.tell(said.append, [kernel], "table")
    assert said == []
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv(in_ci.SUMMARY, str(tmp_path / "summary.md"))
    in_ci.tell(said.append, [kernel], "table")
    assert said[0].startswith("::error file=t.py,title=test%3A")
    assert (tmp_path / "summary.md").read_text().startswith("## Kernels\n<pre>table</pre>")
    monkeypatch.setenv(in_ci.SUMMARY, str(tmp_path / "no" / "such"))
    in_ci.tell(said.append, [kernel], "table")
    assert said[-1].startswith("kmt: no step summary: ")
