import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from kmt.errors import ConfigError
from kmt.report import json as json_file
from kmt.report import junit, summary, table
from kmt.results import KernelResult, Made, Outcome, TestResult


def outcomes(**counts):
    return [TestResult(f"t::{o}{n}", o, 0.1, property=n == 0) for o, k in counts.items() for n in range(k)]


KERNELS = [
    KernelResult("5.10", "5.10.0-40-cloud-amd64", "qemu", False, "tcg", 3.21, 41.2, facts={"tracer": "core"},
                 tests=outcomes(passed=20, skipped=2), private_mib=[60.2, 71.4]),
    KernelResult("6.18", outcome=Outcome.UNAVAILABLE, reason="the archive has it no more", hint="it has 7.3"),
    KernelResult("6.1", "6.1.0-33-cloud-amd64", "qemu", False, "kvm", 1.0, 141.2, Outcome.PANIC,
                 reason="BUG: unable to handle [0]", tests=outcomes(passed=1, failed=1, error=3)),
    KernelResult("5.15", "5.15.0", "simulated", True, "simulated", None, 1.2),
]  # fmt: skip


def rows(text):
    """The table as a list of dictionaries by head."""
    lines = text.splitlines()
    heads = [(m.start(), m.group()) for m in re.finditer(r"\S+", lines[0])]
    cells = [re.split(r"  +", line.strip()) for line in lines[1:5]]
    return [dict(zip([h for _, h in heads], row, strict=True)) for row in cells]


def test_every_kernel_has_its_row_and_its_words():
    text = table.render(KERNELS, ["tracer"])
    first, unavailable, panicked, simulated = rows(text)
    assert first == {
        "kernel": "5.10", "release": "5.10.0-40-cloud-amd64", "accel": "tcg", "boot": "3.2 s", "tracer": "core",
        "properties": "1/1", "passed": "20", "failed": "0", "skipped": "2", "errors": "0", "time": "41.2 s",
        "memory": "71 MiB", "outcome": "ok",
    }  # fmt: skip
    assert (unavailable["outcome"], unavailable["passed"], unavailable["boot"]) == ("unavailable", "–", "–")
    assert (panicked["outcome"], panicked["errors"], panicked["time"]) == ("panic", "3", "2:21")
    assert simulated["outcome"] == "ok (simulated)"
    assert "6.18: unavailable: the archive has it no more (it has 7.3)" in text
    assert "6.1: panic: BUG: unable to handle [0]" in text


def test_a_fact_that_no_kernel_has_is_no_column():
    (first, *others) = rows(table.render(KERNELS, ["tracer", "agreement"]))
    assert "agreement" not in first
    assert [row["tracer"] for row in others] == ["–"] * 3


@pytest.mark.parametrize("width", [70, 80, 100, 120])
def test_a_narrow_terminal_gets_fewer_columns_and_whole_cells(width):
    text = table.render(KERNELS, ["tracer"], width=width)
    body = text.splitlines()[:5]
    assert max(map(len, body)) <= width
    assert "…" not in text
    assert {"kernel", "failed", "outcome"} <= rows(text)[0].keys()


def test_colour_only_where_it_is_wanted_and_nothing_is_markup():
    assert "\x1b[" in table.render(KERNELS, colour=True)
    assert "\x1b[" not in table.render(KERNELS)
    named = KernelResult("[red]x[/red]", outcome=Outcome.LOST, reason="[bold]gone[/bold]")
    assert table.render([named]).count("[/") == 3


def test_files_that_stayed_behind_are_named_once():
    both = [KernelResult("a", left_out=["big.bin: 200 MiB"]), KernelResult("b", left_out=["big.bin: 200 MiB"])]
    assert table.render(both).count("big.bin") == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1:00"), (3600, "60:00")]
)
def test_durations(seconds, text):
    assert table.duration(seconds) == text


def suite(tmp_path, content):
    path = tmp_path / "junit.xml"
    path.write_text(content)
    return path


def test_junit_gets_the_kernels_and_says_error_for_what_is_no_failure(tmp_path):
    path = suite(tmp_path, '<testsuites><testsuite name="pytest" errors="0" failures="1" skipped="0" tests="2">'
                           '<testcase name="a"/></testsuite></testsuites>')  # fmt: skip
    bad = KernelResult("7.3", outcome=Outcome.BUILD, reason="x.bpf.c:3: no \x00 such header")
    junit.complete(path, [*KERNELS, bad])
    root = ElementTree.parse(path).getroot()[0]
    assert root.find("properties/property[@name='kernel 6.1']").get("value") == "6.1.0-33-cloud-amd64 kvm panic"
    errors = {case.get("name"): case.find("error").get("type") for case in root.iter("testcase") if len(case) > 1
              and case.find("error") is not None}  # fmt: skip
    assert errors == {"kernel[6.1]": "kmt.panic", "kernel[7.3]": "kmt.build"}
    assert root.find("testcase[@name='kernel[6.18]']/skipped").text.endswith("it has 7.3")
    assert [root.get(k) for k in ("tests", "errors", "failures", "skipped")] == ["5", "2", "1", "1"]


def test_junit_strict_makes_an_unavailable_row_an_error(tmp_path):
    path = suite(tmp_path, '<testsuite tests="0"/>')
    junit.complete(path, [KERNELS[1]], strict={"6.18"})
    assert ElementTree.parse(path).getroot().find("testcase/error").get("type") == "kmt.unavailable"


@pytest.mark.parametrize("content", ["", "<a/>", "<testsuites>"])
def test_junit_of_somebody_else_is_a_clear_error(tmp_path, content):
    with pytest.raises(ConfigError, match=r"junit\.xml"):
        junit.complete(suite(tmp_path, content), KERNELS)


def test_tests_carry_their_kernel_into_junit(tmp_path):
    (tmp_path / "conftest.py").write_text(
        "from kmt.report import junit\nfrom kmt.results import KernelResult\n"
        "def pytest_runtest_makereport(item): item.user_properties[:] = junit.properties(\n"
        "    KernelResult('6.1', '6.1.0', 'qemu', accelerator='tcg'))\n"
    )
    (tmp_path / "test_x.py").write_text("def test_x(): pass\n")
    subprocess.run([sys.executable, "-m", "pytest", "-q", "--junitxml=j.xml"], cwd=tmp_path, check=True)
    found = ElementTree.parse(tmp_path / "j.xml").findall(".//testcase/properties/property")
    assert {p.get("name"): p.get("value") for p in found} == {
        "kernel": "6.1", "release": "6.1.0", "accelerator": "tcg", "backend": "qemu", "simulated": "false",
    }  # fmt: skip


def test_json_is_written_whole_or_not(tmp_path):
    path = tmp_path / "deep" / "results.json"
    json_file.write(path, KERNELS, Made("2026-01-01T00:00:00+00:00", 1.5, 6))
    document = json.loads(path.read_text())
    assert document["kernels"][2]["counts"] == {"passed": 1, "failed": 1, "skipped": 0, "error": 3}
    with pytest.raises(ConfigError, match=r"results\.json.below"):
        json_file.write(path / "below", KERNELS, Made("", 1.5, 6))


def test_the_end_of_a_console_is_clean(tmp_path):
    console = tmp_path / "console"
    noise = b"x" * 200_000
    console.write_bytes(noise + b"\r\n\x1b[0;31mpanic\x1b[0m - not syncing\r\n\xff\n\n" + b"\r\nend\x07")
    assert summary.tail(console)[-3:] == ["panic - not syncing", "\N{REPLACEMENT CHARACTER}", "end"]
    assert summary.tail(tmp_path / "none") == []


def test_simulated_and_real_kernels_have_totals_of_their_own():
    assert table.totals(KERNELS[:3]) == []
    assert table.totals(KERNELS) == [
        "real: 3 kernels, 21 passed, 1 failed, 2 skipped, 3 error",
        "simulated: 1 kernel, no test",
    ]
    more = KernelResult("5.4-simulated", simulated=True, tests=outcomes(passed=3), not_applicable={"a": "", "b": ""},
                        stands_for="no archive")  # fmt: skip
    text = table.render([KERNELS[0], more, KERNELS[3]])
    assert "simulated: 2 kernels, 3 passed; 2 not applicable" in text
    assert "real: 1 kernel, 20 passed, 2 skipped" in text
    assert "5.4-simulated: simulated, for it could not be had: no archive" in text
    head, _, simulated, _ = text.splitlines()[:4]
    assert " n/a " in head
    assert re.search(r" 2 +.* ok \(simulated\)", simulated)


def test_junit_has_a_suite_for_what_was_simulated(tmp_path):
    def case(name, simulated, more=""):
        held = f'<properties><property name="simulated" value="{simulated}"/>{more}</properties>'
        return f'<testcase name="{name}" time="1.5">{held}'

    path = suite(
        tmp_path,
        '<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="2" tests="6" time="9">'
        + case("a", "false") + "</testcase>" + case("b", "false") + "<failure/></testcase>"
        + case("c", "false") + "<skipped/></testcase>" + case("d", "true") + "<failure/></testcase>"
        + case("e", "true") + "<error/></testcase>"
        + case("f", "true", '<property name="outcome" value="not applicable"/>')
        + '<skipped type="pytest.skip"/></testcase>'
        + "</testsuite></testsuites>",
    )  # fmt: skip
    junit.complete(path, [KERNELS[3]])
    real, simulated = ElementTree.parse(path).getroot()
    assert [real.get(k) for k in ("name", "tests", "failures", "errors", "skipped")] == ["pytest", "3", "1", "0", "1"]
    assert [simulated.get(k) for k in ("name", "tests", "failures", "errors", "skipped", "time")] == [
        "pytest (simulated)", "3", "1", "1", "1", "4.500",
    ]  # fmt: skip
    assert simulated.find("testcase[@name='f']/skipped").get("type") == "kmt.not_applicable"
