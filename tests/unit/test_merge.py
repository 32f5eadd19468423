"""One table, one JUnit file and one verdict of what many jobs left; and what they left damaged or hostile."""

import json
import xml.etree.ElementTree as ElementTree
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.ci import junit, merge
from kmt.commands import pipelines
from kmt.errors import ResultsError
from kmt.explain import read
from kmt.results import KernelResult, Made, Outcome, TestResult, to_json

KERNELS = ("5.10", "6.1")


@pytest.fixture(autouse=True)
def summary(monkeypatch):
    """That of this run's own CI is not these tests' to write."""
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


def job(kernel, part, *outcomes, outcome="ok", status=0, parts=2, **more):
    tests = [TestResult(f"t{part}.py::{n}", word, 1.0, "why") for n, word in enumerate(outcomes)]
    result = KernelResult(kernel, f"{kernel}.9", outcome=Outcome(outcome), tests=tests, seconds=2.0, **more)
    result.settle()
    made = Made(f"2026-01-0{part}", 3.0, status, f"{part}/{parts}" if parts > 1 else "")
    return read.parse(json.dumps(to_json([result], made)).encode(), f"{kernel}-{part}/results.json")


def test_parts_become_one_kernel_with_all_their_tests():
    left = [
        job("5.10", 1, "passed", guests=1, private_mib=[1.0], boot_seconds=3.0, facts={"a": "1"}),
        job("5.10", 2, "passed", "failed", guests=2, private_mib=[2.0], boot_seconds=2.0, facts={"b": "2"}, status=1),
        job("6.1", 1, "passed"),
        job("6.1", 2, "skipped"),
    ]
    merged = merge.merge(left, kernels=KERNELS, parts=2)
    first, second = merged.kernels
    assert [first.name, second.name] == list(KERNELS)
    assert (first.outcome, first.counts()["passed"], first.counts()["failed"]) == (Outcome.FAILED, 2, 1)
    assert (first.guests, first.private_mib, first.boot_seconds, first.facts) == (
        3,
        [1.0, 2.0],
        2.0,
        {"a": "1", "b": "2"},
    )
    assert (second.outcome, second.seconds) == (Outcome.OK, 4.0)
    assert (merged.made, merged.missing) == (Made("2026-01-01", 12.0, 1), ())


def test_a_job_that_left_nothing_is_lost_aloud():
    merged = merge.merge([job("5.10", 1, "passed"), job("6.1", 1), job("6.1", 2)], kernels=KERNELS, parts=2)
    assert merged.missing == (("5.10", 2),)
    assert (merged.kernels[0].outcome, merged.kernels[0].reason) == (Outcome.LOST, merge.LEFT_NOTHING)
    assert merged.kernels[0].counts()["passed"] == 1
    assert merged.made.exit_status == 6
    assert merge.merge([], kernels=KERNELS, parts=1).made.exit_status == 6


@pytest.mark.parametrize(
    ("statuses", "verdict"),
    [((0, 0), 0), ((0, 1), 1), ((6, 1), 1), ((6, 7), 6), ((7, 0), 7), ((0, 5), 0), ((5, 5), 5), ((1, 2), 2),
     ((0, 99), 6), ((4, 1), 4), ((3, 4), 3)],
)  # fmt: skip
def test_the_verdict_is_the_gravest_of_all(statuses, verdict):
    left = [job(kernel, 1, "passed", status=status, parts=1) for kernel, status in zip(KERNELS, statuses, strict=True)]
    assert merge.merge(left, kernels=KERNELS, parts=1).made.exit_status == verdict


@pytest.mark.parametrize(("statuses", "verdict"), [((0, 0), 5), ((0, 5), 5), ((5, 5), 5), ((6, 0), 6)])
def test_where_no_part_has_a_test_there_were_none(statuses, verdict):
    left = [job(kernel, 1, status=status, parts=1) for kernel, status in zip(KERNELS, statuses, strict=True)]
    assert merge.merge(left, kernels=KERNELS, parts=1).made.exit_status == verdict
    left[0] = job("5.10", 1, "passed", status=0, parts=1)
    assert merge.merge(left, kernels=KERNELS, parts=1).made.exit_status == (0 if statuses[1] in (0, 5) else 6)


def test_a_status_that_hides_a_failed_test_is_not_believed():
    left = [job("5.10", 1, "failed", status=0, parts=1), job("6.1", 1, "passed", parts=1)]
    assert merge.merge(left, kernels=KERNELS, parts=1).made.exit_status == 1


@given(st.sets(st.sampled_from(list(product(KERNELS, (1, 2)))), min_size=1), st.randoms())
def test_what_is_missing_is_what_was_expected_and_not_left_whatever_the_order(places, chance):
    left = [job(kernel, part, "passed") for kernel, part in sorted(places)]
    chance.shuffle(left)
    merged = merge.merge(left, kernels=KERNELS, parts=2)
    assert set(merged.missing) == set(product(KERNELS, (1, 2))) - places
    assert sum(len(kernel.tests) for kernel in merged.kernels) == len(places)


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ([job("7.3", 1)], "kernel 7.3 is not of this matrix"),
        ([job("5.10", 1), job("5.10", 1)], "part 1, is in 5.10-1/results.json too"),
        ([job("5.10", 3, parts=3)], "part 3/3 of the tests; expected one of 2"),
        ([job("5.10", 1, parts=1)], "part none of the tests"),
    ],
)
def test_results_of_another_matrix_are_an_error_that_names_the_file(left, said):
    with pytest.raises(ResultsError, match=r"results\.json: ") as caught:
        merge.merge(left, kernels=KERNELS, parts=2)
    assert said in str(caught.value)


# JUnit


SUITE = (
    '<testsuites><testsuite name="pytest" tests="1">'
    '<testcase name="a&lt;b">x &amp; y{}</testcase></testsuite></testsuites>'
)


def write(directory, *texts):
    paths = []
    for number, text in enumerate(texts):
        path = directory / f"job-{number}" / "junit.xml"
        path.parent.mkdir()
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        paths.append(path)
    return paths


def test_suites_of_all_files_are_in_the_one_file_under_the_names_of_their_jobs(tmp_path):
    one = '<testsuite name="s"><testcase name="alone"/></testsuite>'
    paths = write(tmp_path, SUITE.format("<failure message='\"1\" &lt; 2'/>"), one)
    assert junit.merge(paths, tmp_path / "all.xml") == 2
    suites = ElementTree.parse(tmp_path / "all.xml").getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["job-0: pytest", "job-1: s"]
    case = suites[0].find("testcase")
    assert (case.get("name"), case.text, case.find("failure").get("message")) == ("a<b", "x & y", '"1" < 2')
    assert suites[0].get("tests") == "1"


def test_jobs_that_left_nothing_are_errors_of_the_one_file(tmp_path):
    junit.merge(write(tmp_path, SUITE.format("")), tmp_path / "all.xml", ['6.1, part 2 of 3 "<&'])
    suite = ElementTree.parse(tmp_path / "all.xml").getroot().findall("testsuite")[-1]
    assert (suite.get("name"), suite.get("errors")) == ("jobs", "1")
    assert suite.find("testcase").get("name") == '6.1, part 2 of 3 "<&'
    assert suite.find("testcase/error").get("type") == "kmt.lost"


LAUGHS = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><testsuites><testsuite name="&b;"/></testsuites>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no element found"),
        ("<html/>", "its root is <html>"),
        (SUITE[:-20], "cut off"),
        (LAUGHS, "document type"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><testsuites/>', "document type"),
        ("<testsuite>" + "<a>" * 100, "within each other"),
        ("<testsuite>\x1b[31m</testsuite>", "not well-formed"),
        (b"\xff\xfe\x00", "junit.xml"),
    ],
)  # fmt: skip
def test_what_is_no_junit_file_is_named_and_leaves_no_half_of_one(tmp_path, text, said):
    paths = write(tmp_path, SUITE.format(""), text)
    with pytest.raises(ResultsError) as caught:
        junit.merge(paths, tmp_path / "all.xml")
    assert "job-1/junit.xml" in str(caught.value)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "all.xml").exists()


def test_a_job_whose_name_is_no_xml_is_shown_as_text(tmp_path):
    path = tmp_path / "job\x1b\udcff" / "junit.xml"
    path.parent.mkdir()
    path.write_text(SUITE.format(""))
    junit.merge([path], tmp_path / "all.xml")
    assert ElementTree.parse(tmp_path / "all.xml").getroot()[0].get("name") == r"job\x1b\udcff: pytest"


def test_a_file_without_end_is_not_read_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(junit, "MOST_BYTES", 100_000)
    paths = write(tmp_path, "<testsuite>" + " " * 300_000)
    with pytest.raises(ResultsError, match="larger than"):
        junit.merge(paths, tmp_path / "all.xml")
    with pytest.raises(ResultsError, match="No such file"):
        junit.merge([tmp_path / "missing" / "junit.xml"], tmp_path / "all.xml")


xml_text = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=10)


@given(st.lists(st.tuples(xml_text, xml_text), max_size=5))
def test_names_and_texts_come_through_unchanged(tmp_path_factory, cases):
    directory = tmp_path_factory.mktemp("junit")
    suite = ElementTree.Element("testsuite", name="s")
    for name, text in cases:
        ElementTree.SubElement(ElementTree.SubElement(suite, "testcase", name=name), "failure").text = text
    (path,) = write(directory, ElementTree.tostring(suite, encoding="utf-8"))
    assert junit.merge([path], directory / "all.xml") == len(cases)
    found = ElementTree.parse(directory / "all.xml").getroot().iter("testcase")
    assert [(case.get("name"), case.find("failure").text or "") for case in found] == cases


# The command


def test_the_verdict_is_a_table_and_a_status_and_what_is_damaged_counts(tmp_path, capsys):
    for kernel in KERNELS:
        directory = tmp_path / f"{kernel}-1"
        directory.mkdir()
        result = KernelResult(kernel, f"{kernel}.9", tests=[TestResult("t.py::a", "passed", 1.0)])
        (directory / "results.json").write_text(json.dumps(to_json([result], Made("2026", 1.0, 0))))
        (directory / "junit.xml").write_text(SUITE.format(""))
    words = {"kernels": ["5.10,6.1"], "json": str(tmp_path / "merged.json"), "junit_file": str(tmp_path / "junit.xml")}
    lines, status = pipelines.verdict(tmp_path, str(tmp_path), **words)
    assert (status, lines[-1]) == (0, "exit status: 0")
    assert "2 test cases of 2 files" in lines[-2]
    assert json.loads((tmp_path / "merged.json").read_text())["exit_status"] == 0
    assert pipelines.verdict(tmp_path, str(tmp_path), **words)[1] == 0, "what it wrote itself is no job's"
    (tmp_path / "6.1-1" / "results.json").write_text("{")
    lines, status = pipelines.verdict(tmp_path, str(tmp_path), kernels=KERNELS)
    assert status == 6
    assert "6.1, part 1 of 1: its job left no results" in lines
    assert "6.1-1/results.json" in capsys.readouterr().err
    (tmp_path / "5.10-1" / "junit.xml").write_text("<html/>")
    assert pipelines.verdict(tmp_path, str(tmp_path), **words)[1] == 6
    assert pipelines.verdict(tmp_path, str(tmp_path / "nothing"), kernels=KERNELS)[1] == 6


@pytest.mark.parametrize(
    ("kept", "status", "said"),
    [
        ("0\n", 0, ""),
        ("1\n", 1, "the host's tests: exit status 1"),
        ("77\n", 6, "the host's tests: exit status 77"),
        ("", 6, "the host's tests: its job left no results"),
        ("-1", 6, "the host's tests: its job left no results"),
        (None, 6, "the host's tests: its job left no results"),
    ],
)
def test_the_hosts_job_counts_as_any_other(tmp_path, kept, status, said):
    directory = tmp_path / "6.1-1"
    directory.mkdir()
    result = KernelResult("6.1", tests=[TestResult("t.py::a", "passed", 1.0)])
    (directory / "results.json").write_text(json.dumps(to_json([result], Made("2026", 1.0, 0))))
    if kept is not None:
        (tmp_path / "host").mkdir()
        (tmp_path / "host" / "status").write_text(kept)
    words = {"kernels": ["6.1"], "json": str(tmp_path / "merged.json")}
    lines, found = pipelines.verdict(tmp_path, str(tmp_path), host=True, **words)
    assert (found, lines[-1]) == (status, f"exit status: {status}")
    assert said in lines[-2] if said else "host" not in "".join(lines)
    assert json.loads((tmp_path / "merged.json").read_text())["exit_status"] == status
    assert pipelines.verdict(tmp_path, str(tmp_path), **words)[1] == 0


def test_the_table_of_a_verdict_is_no_command_of_github(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    (tmp_path / "6.1-1").mkdir()
    result = KernelResult("6.1", outcome=Outcome.LOST, reason="##[stop-commands]x")
    (tmp_path / "6.1-1" / "results.json").write_text(json.dumps(to_json([result], Made("2026", 1.0, 6))))
    lines, _ = pipelines.verdict(tmp_path, str(tmp_path), kernels=["6.1"])
    (evil,) = (n for n, line in enumerate(lines) if "##[" in line and not line.startswith("::error"))
    stop = next(n for n, line in enumerate(lines) if line.startswith("::stop-commands::"))
    go = lines.index(f"::{lines[stop].rpartition(':')[2]}::")
    assert stop < evil < go < next(n for n, line in enumerate(lines) if line.startswith("::error"))


def test_parts_that_were_simulated_are_a_row_of_their_own():
    left = [
        job("5.10", 1, "passed"),
        job("5.10-simulated", 2, "passed", simulated=True, not_applicable={"t2.py::9": "why"}),
        job("6.1-simulated", 1, "passed", simulated=True),
    ]
    merged = merge.merge(left, kernels=KERNELS, parts=2)
    assert [(k.name, k.simulated, k.counts()["passed"], str(k.outcome)) for k in merged.kernels] == [
        ("5.10-simulated", True, 1, "ok"),
        ("5.10", False, 1, "ok"),
        ("6.1-simulated", True, 1, "lost"),
    ]
    assert merged.kernels[0].not_applicable == {"t2.py::9": "why"}
    assert merged.missing == (("6.1", 2),)
    with pytest.raises(ResultsError, match=r"5\.10-simulated, part 1, is in"):
        merge.merge([job("5.10", 1), job("5.10-simulated", 1, simulated=True)], kernels=KERNELS, parts=2)
    with pytest.raises(ResultsError, match=r"5\.10-simulated is not of this matrix"):
        merge.merge([job("5.10-simulated", 1)], kernels=KERNELS, parts=2)


def test_a_matrix_may_have_simulated_rows():
    left = [job("5.10", 1, "passed", parts=1), job("5.15-simulated", 1, "passed", parts=1, simulated=True)]
    merged = merge.merge(left, kernels=("5.10", "5.15-simulated"), parts=1)
    assert [k.name for k in merged.kernels] == ["5.10", "5.15-simulated"]
    assert merged.made.exit_status == 0
