"""Results read back, grouped by cause, said in words, turned into a command; hostile ones as much as whole ones."""

import json
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kmt.ci import merge
from kmt.errors import ResultsError
from kmt.explain import causes, files, read, rerun, words
from kmt.explain.causes import Cause
from kmt.explain.verifier import objection
from kmt.report import table
from kmt.results import LONGEST, KernelResult, Made, Outcome, TestResult, to_json
from kmt.text import visible

LOGS = Path(__file__).parents[2] / "fixtures" / "verifier"


def result(name, *tests, outcome="ok", release="", **more):
    made = KernelResult(name, release or f"{name}.9-cloud", outcome=Outcome(outcome), tests=list(tests), **more)
    made.settle()
    return made


def failed(nodeid, reason="assert 1 == 2", **more):
    return TestResult(nodeid, "failed", 0.5, reason, **more)


def passed(nodeid):
    return TestResult(nodeid, "passed", 0.5)


def lost(nodeid):
    return TestResult(nodeid, "error", 0.0, "gone", lost=True)


def document(*kernels):
    return to_json(kernels, Made("2026-01-01T00:00:00+00:00", 2.5, 1))


def results(*kernels, name="r.json"):
    return read.parse(json.dumps(document(*kernels)).encode(), name)


def grouped(*kernels):
    return causes.groups([results(*kernels)])


def test_what_was_written_is_read_as_it_was():
    more = {"facts": {"x": "y"}, "private_mib": [1.5], "boot_seconds": 2.0, "left_out": ["z"], "error": "VmLostError"}
    tests = failed("t.py::a", verifier="R1"), lost("t.py::b")
    kernel = result("6.1", *tests, outcome="panic", reason="Oops", hint="h", **more)
    assert results(kernel).kernels == (kernel,)


def test_ids_that_are_too_long_are_written_so_that_they_can_be_read_and_stay_apart():
    tests = [failed(f"t.py::a[{'x' * LONGEST}{n}]") for n in range(2)]
    first, second = (test.id for test in results(result("6.1", *tests)).kernels[0].tests)
    assert first != second
    assert first.startswith("t.py::a[xxx")
    assert len(first) <= LONGEST


@pytest.mark.parametrize(
    ("kernel", "cause", "line"),
    [
        (result("6.1", failed("t.py::a")), Cause.TEST, "assert 1 == 2"),
        (result("6.1", failed("t.py::a", verifier="R1 invalid")), Cause.VERIFIER, "R1 invalid"),
        (result("6.1", lost("t.py::a"), outcome="panic", reason="Oops: 0000"), Cause.PANIC, "Oops: 0000"),
        (result("6.1", lost("t.py::a"), outcome="hang", reason="silent"), Cause.HANG, "silent"),
        (result("6.1", lost("t.py::a"), outcome="lost", reason="ended", error="VmLostError"), Cause.LOST, "ended"),
        (result("6.1", lost("t.py::a"), outcome="lost", reason="404", error="MirrorError"), Cause.ARCHIVE, "404"),
        (result("6.1", outcome="unavailable", reason="no more"), Cause.ARCHIVE, "no more"),
        (result("6.1", lost("t.py::a"), outcome="build", reason="a.c:1: error"), Cause.BUILD, "a.c:1: error"),
    ],
)
def test_causes(kernel, cause, line):
    (group,) = grouped(kernel)
    assert (group.cause, group.line, group.failing) == (cause, line, ("6.1",))
    assert group.pairs == tuple(("6.1", test.id) for test in kernel.tests)


def test_one_cause_on_several_kernels_is_one_group_from_the_oldest_to_the_newest():
    tests = ["t.py::a[1]", "t.py::a[2]"]
    (group,) = grouped(
        result("newest", failed(tests[0], "at 0x77: 3 of 9"), release="7.3.4"),
        result("6.1", failed(tests[0], "at 0xaf: 5 of 10"), failed(tests[1], "at 0x1: 5 of 10")),
        result("5.10", *map(passed, tests)),
        result("6.12", failed(tests[1], "at 0x2: 5 of 10")),
    )
    assert (group.failing, group.passing, group.tests) == (("6.1", "6.12", "newest"), ("5.10",), tuple(tests))
    said = "\n".join(words.lines([group], kernels=4, command=["rerun it"]))
    assert "2 tests on 6.1 to newest (3 kernels); passes on 5.10" in said
    assert "again: 'rerun it' --group 1" in said


def test_two_tests_with_one_assertion_are_two_causes_and_one_verifiers_word_is_one():
    assert len(grouped(result("6.1", failed("t.py::a"), failed("t.py::b")))) == 2
    refused = [failed(f"t.py::{n}", verifier=f"{n}: R1 invalid") for n in range(3)]
    assert len(grouped(result("6.1", *refused))) == 1


def test_a_dead_guest_takes_nothing_of_tests_that_had_failed_before():
    first, second = grouped(result("6.1", failed("t.py::a"), lost("t.py::b"), outcome="panic", reason="Oops"))
    assert (first.cause, first.pairs) == (Cause.PANIC, (("6.1", "t.py::b"),))
    assert (second.cause, second.pairs) == (Cause.TEST, (("6.1", "t.py::a"),))


def test_a_lost_test_has_the_cause_of_its_own_guest_and_one_that_ended_pytest_is_a_test():
    tests = [
        TestResult("t.py::a", "error", 0.0, "Oops: 1", lost=True, cause="panic"),
        TestResult("t.py::b", "error", 0.0, "silent", lost=True, cause="hang"),
        TestResult("t.py::c", "error", 0.0, "pytest in the guest ended", lost=True, cause="failed"),
    ]
    groups = grouped(result("6.1", *tests, outcome="panic", reason="2 of 3 guests: Oops: 1", hint="look"))
    assert [(g.cause, g.line, g.tests, g.hint) for g in groups] == [
        (Cause.PANIC, "Oops: 1", ("t.py::a",), "look"),
        (Cause.TEST, "pytest in the guest ended", ("t.py::c",), ""),
        (Cause.HANG, "silent", ("t.py::b",), ""),
    ]
    first, second = grouped(result("6.1", tests[1], outcome="panic", reason="Oops"))
    assert (first.cause, first.pairs, second.pairs) == (Cause.PANIC, (), (("6.1", "t.py::b"),))


outcomes = st.sampled_from([*Outcome])
test_results = st.builds(
    TestResult, st.sampled_from([f"t.py::{n}" for n in "abcd"]), st.sampled_from(sorted(read.TEST_OUTCOMES)),
    st.just(0.0), st.sampled_from(["x 1", "x 2", "y", ""]), st.just(False), st.booleans(), st.sampled_from(["", "R1"]),
    cause=st.sampled_from(["", *Outcome]),
)  # fmt: skip
kernel_results = st.builds(
    KernelResult, st.sampled_from(["5.10", "6.1", "mine"]), outcome=outcomes, reason=st.sampled_from(["", "Oops", "z"]),
    tests=st.lists(test_results, max_size=5, unique_by=lambda t: t.id),
)  # fmt: skip


@given(st.lists(st.lists(kernel_results, max_size=3, unique_by=lambda k: k.name), max_size=4), st.randoms())
def test_nothing_that_failed_is_left_out_or_counted_twice_and_the_order_of_files_is_nothing(runs, chance):
    loaded = [results(*kernels, name=f"{n}.json") for n, kernels in enumerate(runs)]
    groups = causes.groups(loaded)
    bad = {(k.name, t.id) for one in loaded for k in one.kernels for t in k.tests if t.outcome in ("failed", "error")}
    assert bad <= {pair for group in groups for pair in group.pairs}
    broken = {k.name for one in loaded for k in one.kernels if k.outcome in causes._OF_OUTCOME}
    assert broken <= {name for group in groups for name in group.failing}
    chance.shuffle(loaded)
    assert causes.groups(loaded) == groups


@pytest.mark.parametrize(("log", "wanted"), [
    ("helper-7.3", "cannot pass map_type 4 into func bpf_ringbuf_output#130"),
    ("value-5.10", ""),
])  # fmt: skip
def test_the_verifiers_objection_is_found_in_logs_of_kernels(log, wanted):
    text = (LOGS / f"{log}.log").read_text()
    found = objection(f"RuntimeError: libbpf said\n{text}")
    assert found
    assert found in text
    assert wanted in found
    assert objection("RuntimeError: libbpf: BPF program load failed: -13", text) == found
    assert objection("assert 1 == 2", text) == "", "a log that was only printed is no rejection"


def test_without_a_log_the_error_itself_is_the_line():
    assert objection("Failed to load BPF program b'x': Permission denied\nmore").startswith("Failed to load")


# What is no result, what is hostile

EVIL = "t.py::a[\x1b]0;owned\x07\x1b[2J[red]bold[/red]\u202eright\n::error::no\ud800]"


def changed(path, value):
    made = json.loads(json.dumps(document(result("6.1", failed("t.py::a"), private_mib=[1.5]))))
    entry = made
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    return json.dumps(made).encode()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "name a file"),
        (b"hello", "name a file"),
        (json.dumps(document(result("6.1"))).encode()[:-40], "it was cut off"),
        (b"[]", "holds no results"),
        (b'{"a": 1}', "holds no results"),
        (b"[" * 100_000, "name a file"),
        (b'{"schema": 1, "kernels": ' + b"9" * 5000 + b"}", "r.json"),
        (changed(["schema"], 2), "version 2; this kmt reads 1"),
        (changed(["schema"], "\x1b[31m"), r"version '\x1b"),
        (changed(["kernels"], {}), "kernels must be a list"),
        (changed(["kernels", 0], 7), r"kernels[0] must be an object, not 7"),
        (changed(["kernels", 0, "outcome"], "fine"), "outcome must be one of ok"),
        (changed(["kernels", 0, "outcome"], []), "outcome must be one of ok"),
        (changed(["kernels", 0, "name"], ""), "name must be a string of 1"),
        (changed(["kernels", 0, "name"], "x" * 5000), "name must be a string of 1"),
        (changed(["kernels", 0, "facts"], {"a": 1}), "facts must be"),
        (changed(["kernels", 0, "seconds"], True), "seconds must be a number"),
        (changed(["kernels", 0, "tests", 0], "t"), r"kernels[0].tests[0] must be an object"),
        (changed(["kernels", 0, "tests", 0, "id"], 1), "tests[0]: id must be"),
        (changed(["kernels", 0, "tests", 0, "id"], ""), "tests[0]: id must be"),
        (changed(["kernels", 0, "tests", 0, "outcome"], "xpassed"), "tests[0]: outcome must be one of"),
        (changed(["kernels", 0, "tests", 0, "seconds"], float("nan")), "tests[0]: seconds must be"),
        (changed(["kernels", 0, "tests", 0, "seconds"], -1), "tests[0]: seconds must be"),
        (changed(["exit_status"], 10**400), "exit_status must be a number"),
        (json.dumps(document(result("6.1"), result("6.1"))).encode(), "a kernel stands in it twice"),
        (json.dumps(document(result(EVIL), result(EVIL))).encode(), r"a kernel stands in it twice: t.py::a[\x1b]"),
        (changed(["kernels", 0, "private_mib"], [1, 10**400]), "private_mib must be a list of numbers"),
        (changed(["kernels", 0, "private_mib"], [float("nan")]), "private_mib must be a list of numbers"),
        (changed(["kernels", 0, "private_mib"], [True]), "private_mib must be a list of numbers"),
        (changed(["kernels", 0, "tests", 0, "cause"], "fire"), "tests[0]: cause must be empty, or one of ok"),
    ],
)
def test_what_cannot_be_used_is_a_typed_error_that_names_the_file(data, said):
    with pytest.raises(ResultsError) as caught:
        read.parse(data, "r.json")
    assert "r.json" in str(caught.value)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
PLACES = [["schema"], ["kernels"], ["kernels", 0], ["kernels", 0, "tests"], ["kernels", 0, "tests", 0]]
PLACES += [["kernels", 0, key] for key in document(result("6.1"))["kernels"][0]]
PLACES += [
    ["kernels", 0, "tests", 0, key] for key in ("id", "outcome", "seconds", "reason", "property", "lost", "cause")
]
PLACES += [["kernels", 0, "private_mib", 0]]


@given(st.sampled_from(PLACES), json_values)
@example(["kernels", 0, "private_mib"], [10**400])
def test_any_value_in_any_place_is_read_or_refused_and_can_be_explained_merged_and_drawn(place, value):
    try:
        found = read.parse(changed(place, value), "r.json")
    except ResultsError:
        return
    for line in words.lines(causes.groups([found]), kernels=1, command=["again"]):
        assert line.isprintable() or line == ""
    names = [kernel.name for kernel in found.kernels]
    try:
        merged = merge.merge([found], kernels=names or ["6.1"], parts=1)
    except ResultsError:
        return
    table.render(merged.kernels)


def test_escapes_and_markup_arrive_as_text():
    kernel = result("6.1", failed(EVIL, EVIL), outcome="ok", reason=EVIL)
    lines = list(words.lines(grouped(kernel), kernels=1, command=["again"]))
    assert all(line.isprintable() for line in lines)
    assert any(r"\x1b]0;owned\x07\x1b[2J[red]bold[/red]\u202eright\n::error::no\ud800" in line for line in lines)


@given(st.text(st.characters(), max_size=50), st.integers(1, 60))
def test_visible_text_is_one_printable_line_of_bounded_length(text, limit):
    shown = visible(text, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    if text.isprintable() and len(text) <= limit:
        assert shown == text


# Files


def write(path, *kernels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document(*kernels)))
    return path


def test_directories_and_archives_are_searched_and_a_bad_file_costs_itself_only(tmp_path):
    write(tmp_path / "b" / "results.json", result("6.1", failed("t.py::a")))
    write(tmp_path / "a" / "my-results-1.json", result("5.10", failed("t.py::a")))
    write(tmp_path / "other.json", result("7.3"))
    (tmp_path / "c-results.json").write_text("{")
    with zipfile.ZipFile(tmp_path / "artefacts.zip", "w") as archive:
        archive.write(tmp_path / "b" / "results.json", "../../../results.json")
        archive.writestr("x/results.json", '{"schema": 7}')
        archive.writestr("y/results.json", '{"of": "a test"}')
    loaded = files.load([tmp_path, tmp_path / "artefacts.zip"])
    assert [one.kernels[0].name for one in loaded.results] == ["5.10", "6.1", "6.1"]
    assert [str(tmp_path / "c-results.json") in str(e) or "zip:x/results.json" in str(e) for e in loaded.errors] == [
        True, True,
    ]  # fmt: skip
    assert {path.name for path in tmp_path.parent.iterdir()} & {"results.json"} == set()


def test_what_leads_out_of_an_artefact_is_not_followed(tmp_path):
    outside = write(tmp_path / "outside" / "results.json", result("6.1", failed("t.py::a")))
    inside = tmp_path / "inside"
    write(inside / "results.json", result("5.10"))
    (inside / "results-link.json").symlink_to(outside)
    (inside / "folder").symlink_to(outside.parent)
    os.mkfifo(inside / "results-pipe.json")
    assert [one.kernels[0].name for one in files.load([inside]).results] == ["5.10"]


def test_sizes_and_numbers_are_bounded(tmp_path, monkeypatch):
    whole = write(tmp_path / "results.json", result("6.1"))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("results.json", b" " * 1_000_000)
    monkeypatch.setattr(files, "MOST_BYTES", 10_000)
    (error,) = files.load([tmp_path / "bomb.zip"]).errors
    assert "larger than" in str(error)
    monkeypatch.setattr(files, "MOST_FILES", 2)
    with pytest.raises(ResultsError, match="more than 2 files"):
        files.load([whole, whole, whole])


@pytest.mark.parametrize("content", [b'{"of": "a test"}' + b" " * 900, b"{" + b" " * 900])
def test_files_that_hold_no_results_are_bounded_too(tmp_path, monkeypatch, content):
    with zipfile.ZipFile(tmp_path / "many.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(10):
            archive.writestr(f"{number}/results.json", content)
    opened = []
    read = files._unpacked
    monkeypatch.setattr(files, "_unpacked", lambda *words: opened.append(words) or read(*words))
    monkeypatch.setattr(files, "MOST_FILES", 4)
    with pytest.raises(ResultsError, match="more than 4 files"):
        files.load([tmp_path / "many.zip"])
    assert len(opened) == 5
    monkeypatch.setattr(files, "MOST_FILES", 1000)
    monkeypatch.setattr(files, "MOST_TOTAL", 3000)
    with pytest.raises(ResultsError, match="name fewer at once"):
        files.load([tmp_path / "many.zip"])
    assert len(opened) == 5 + 4


@pytest.mark.parametrize("name", ["missing.json", "missing.zip", "empty", "bad.zip", "pipe"])
def test_a_place_without_results_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.zip").write_text("PK no")
    os.mkfifo(tmp_path / "pipe")
    try:
        (error,) = files.load([tmp_path / name]).errors
    except ResultsError as caught:
        error = caught
    assert name in str(error)


# Again


def test_just_the_pairs_that_failed_become_a_command_of_pytest():
    groups = grouped(
        result("6.1", failed("t.py::C::a[x]"), passed("t.py::b")), result("5.10", failed("t.py::C::a[x]", "other"))
    )
    pairs, origin = rerun.chosen(groups, None)
    assert sorted(rerun.arguments(pairs, origin, {"6.1", "5.10"})) == sorted(
        ["--kernel", "6.1", "--kernel", "5.10", "t.py::C::a[x-6.1]", "t.py::C::a[x-5.10]"]
    )
    assert len(rerun.chosen(groups, 1)[0]) == 1
    with pytest.raises(ResultsError, match="no group 3"):
        rerun.chosen(groups, 3)
    with pytest.raises(ResultsError, match="no test of them failed"):
        rerun.chosen(grouped(result("6.1", passed("t.py::a"))), None)


@pytest.mark.parametrize(
    "nodeid",
    ["-p evil.py::x", "@/etc/x.py::y", "/etc/x.py::y", "../x.py::y", "a/../../x.py::y", "t.py", "t.py::", "t.sh::a",
     "t.py::a\nb", "--override-ini=x.py::y", "a:b.py::c", "t.py::\x1b"],
)  # fmt: skip
def test_an_id_that_is_no_test_of_the_project_is_never_given_to_pytest(nodeid):
    with pytest.raises(ResultsError, match=r"r\.json: .* is no test"):
        rerun.arguments([("6.1", nodeid)], ["r.json"], {"6.1"})


@pytest.mark.parametrize("kernel", ["9.9", "/boot/vmlinuz", "--strict", "\x1b"])
def test_a_kernel_of_another_matrix_is_named(kernel):
    with pytest.raises(ResultsError, match=r"r\.json: no kernel .* in this matrix") as caught:
        rerun.arguments([(kernel, "t.py::a")], ["r.json"], {"6.1"})
    assert str(caught.value).isprintable()


def test_what_failed_on_a_simulated_kernel_is_run_again_on_one():
    pairs = [("5.15-simulated", "t.py::a"), ("5.11-simulated", "t.py::a")]
    said = rerun.arguments(pairs, ["r.json"], {"5.15", "5.15-simulated"})
    assert said[:4] == ["--kernel", "5.15-simulated", "--kernel", "5.11-simulated"]
    assert said[4:] == ["t.py::a[5.15-simulated]", "t.py::a[5.11-simulated]"]
    with pytest.raises(ResultsError, match="no kernel mine-simulated"):
        rerun.arguments([("mine-simulated", "t.py::a")], ["r.json"], {"5.15"})
