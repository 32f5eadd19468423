"""``kmt.explain`` and ``kmt.rerun`` as somebody's project has them, on runs of the backend that needs no VM."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest

pytestmark = pytest.mark.host_only

TESTS = """
    import os, pytest

    @pytest.mark.parametrize("case", ["a [b]", "c::d"])
    def test_fails(case):
        assert not os.environ.get("LANG", "").startswith("en"), "only in English"

    def test_passes():
        pass

    def test_loads():
        print("0: (b7) r0 = 1\\nR1 type=scalar expected=fp\\nprocessed 1 insns (limit 1000000)")
        raise RuntimeError("libbpf: prog 'x': BPF program load failed: Permission denied")
"""


def kmt(project, *words):
    return subprocess.run(
        [sys.executable, "-m", "kmt", *words], cwd=project.root, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


@pytest.fixture
def failed(project, monkeypatch):
    monkeypatch.setenv("LANG", "en_GB.UTF-8")
    project.write(TESTS)
    assert project.run("--kernel-json=out/results.json").returncode == 1
    return project


def test_the_latest_run_is_explained_by_cause(failed):
    done = kmt(failed, "explain")
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("\n\n")[:2]
    assert first.startswith(
        "1. verifier: the verifier refused a program: 1 test on host\n   why: R1 type=scalar expected=fp\n"
    )
    assert "AssertionError: only in English" in second
    assert "test_theirs.py::test_fails[a [b]]" in second
    (left,) = (failed.root.parent / "cache").glob("v*/runs/*/results.json")
    assert f"again: python -m kmt rerun --from {left} --group 2" in second
    assert done.stderr.startswith(f"run {left.parent.name}, ")


def test_a_group_stays_what_it_was_after_another_one_ran_again(failed):
    command = [line for line in kmt(failed, "explain").stdout.splitlines() if "again: " in line][1].split()
    assert command[-2:] == ["--group", "2"]
    assert "1 failed" in kmt(failed, "rerun", "--group", "1", "--", "-p", "no:cacheprovider").stdout
    done = kmt(failed, *command[4:], "--", "-p", "no:cacheprovider")
    assert "2 failed" in done.stdout, done.stdout + done.stderr


def test_a_later_run_without_results_is_passed_over_aloud(failed):
    failed.write("import os\ndef pytest_kmt_progress(): os._exit(3)\n", "conftest.py")
    assert failed.run("--kernel-json=none.json").returncode == 3
    done = kmt(failed, "explain")
    assert done.returncode == 0
    first, second = done.stderr.splitlines()
    assert first.startswith("without results, and passed over: run ")
    assert first.endswith("(killed)")
    assert second.endswith("ended 1")


def test_a_directory_of_foreign_files_alone_is_an_error_that_says_so(project):
    (project.root / "artefacts").mkdir()
    (project.root / "artefacts" / "my-results.json").write_text('{"of": "a test"}')
    done = kmt(project, "explain", "artefacts")
    assert (done.returncode, done.stdout) == (4, "")
    assert "artefacts: no *results*.json in it that holds results" in done.stderr


def test_just_what_failed_runs_again_and_words_behind_the_dashes_go_to_pytest(failed, monkeypatch):
    done = kmt(failed, "rerun", "--from", "out/results.json", "--", "-p", "no:cacheprovider", "-v")
    assert done.returncode == 1
    assert "3 failed" in done.stdout
    assert "test_passes" not in done.stdout
    monkeypatch.setenv("LANG", "C.UTF-8")
    done = kmt(failed, "rerun", "--group", "2")
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_more_than_a_command_line_holds_runs_too(failed):
    document = json.loads((failed.root / "out" / "results.json").read_text())
    failed.write("import pytest\n@pytest.mark.parametrize('n', range(1200))\ndef test_many(n): pass\n", "test_many.py")
    tests = document["kernels"][0]["tests"]
    tests[:] = [{**tests[0], "id": f"test_many.py::test_many[{n}]", "outcome": "failed"} for n in range(1200)]
    (failed.root / "many.json").write_text(json.dumps(document))
    done = kmt(failed, "rerun", "--from", "many.json")
    assert "1200 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.update(schema=9), "results of version 9"),
        (lambda d: d["kernels"][0].update(name="9.99"), "no kernel 9.99 in this matrix"),
        (lambda d: d["kernels"][0]["tests"][0].update(id="-p evil"), "is no test of this project"),
    ],
)
def test_results_that_do_not_fit_are_one_line_that_names_the_file(failed, change, said):
    document = json.loads((failed.root / "out" / "results.json").read_text())
    for test in document["kernels"][0]["tests"]:
        test["outcome"] = "failed"
    change(document)
    (failed.root / "bad.json").write_text(json.dumps(document))
    done = kmt(failed, "rerun", "--from", "bad.json")
    assert (done.returncode, done.stdout) == (4, "")
    assert said in done.stderr
    assert "bad.json" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_damaged_file_among_good_ones_is_named_and_the_others_explained(failed):
    whole = (failed.root / "out" / "results.json").read_text()
    (failed.root / "out" / "cut-results.json").write_text(whole[:-50])
    shutil.make_archive(str(failed.root / "artefacts"), "zip", failed.root / "out")
    done = kmt(failed, "explain", "artefacts.zip")
    assert done.returncode == 4
    assert "2 causes on 1 kernel of 1" in done.stdout
    assert "cut-results.json" in done.stderr
    assert "it was cut off" in done.stderr


def test_without_any_run_the_error_says_what_to_name(project):
    done = kmt(project, "explain")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "python -m kmt explain FILE" in done.stderr


def test_parts_share_the_tests_and_leave_their_files_also_when_there_is_nothing_to_run(project):
    for name in "ab":
        project.write("import os\ndef test_one(): open(os.environ['KMT_ARTIFACTS'] + '/left', 'w').write('x')\n",
                      f"test_{name}.py")  # fmt: skip
    ran = []
    for part in ("1/3", "2/3", "3/3"):
        out = f"out-{part[0]}"
        done = project.run(f"--kernel-part={part}", f"--kernel-json={out}/results.json", f"--kernel-logs={out}")
        assert done.returncode == 0, done.stdout
        document = json.loads((project.root / out / "results.json").read_text())
        assert document["part"] == part
        (kernel,) = document["kernels"]
        ran += [test["id"] for test in kernel["tests"]]
        assert (project.root / out / "host" / "artifacts" / "left").is_file() == bool(kernel["tests"])
    assert sorted(ran) == ["test_a.py::test_one", "test_b.py::test_one"]
    assert project.run("--kernel-part=4/3").returncode == 4


def test_parts_of_no_tests_at_all_are_no_tests(project):
    project.write("")
    done = project.run("--kernel-part=1/2", "--kernel-json=out.json")
    assert done.returncode == 5, done.stdout
    document = json.loads((project.root / "out.json").read_text())
    assert (document["exit_status"], document["part"], document["kernels"][0]["tests"]) == (5, "1/2", [])


@pytest.mark.parametrize("place", ["--kernel-logs=/proc/no/such", "--kernel-json=/proc/no/such.json"])
def test_a_place_that_cannot_be_written_costs_a_line_and_the_status_and_nothing_else(project, place):
    project.write("def test_x(): pass\n")
    done = project.run(place, "--junitxml=out.xml")
    assert done.returncode == 4
    assert "kmt: /proc/no" in done.stdout
    assert [line for line in done.stdout.splitlines() if line.startswith("host ")], "the table"
    assert "name another" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    names = {p.get("name") for p in ElementTree.parse(project.root / "out.xml").iter("property")}
    assert "kernel host" in names
    assert "nothing failed on 1 kernel" in kmt(project, "explain").stdout


def test_a_junit_file_that_is_none_by_the_end_is_a_line_and_a_status(project):
    project.write("def test_x(): pass\n")
    project.write(
        """
        import pytest
        from pathlib import Path

        @pytest.hookimpl(tryfirst=True)
        def pytest_unconfigure():
            Path("out.xml").write_text("no XML")
        """,
        "conftest.py",
    )
    done = project.run("--junitxml=out.xml")
    assert (done.returncode, "kmt: out.xml" in done.stderr.replace(str(project.root) + "/", "")) == (4, True)
    assert "Traceback" not in done.stdout + done.stderr


def test_logs_that_are_too_large_are_said_and_left_out_of_no_guest(project):
    project.write(
        """
        import os

        def test_x():
            with open(os.environ["KMT_ARTIFACTS"] + "/big", "wb") as file:
                file.truncate(65 << 20)
        """
    )
    done = project.run("--kernel-logs=logs", "--kernel-json=out.json")
    assert done.returncode == 0, done.stdout
    assert "host: not copied: artifacts/big (larger than 64 MiB: in " in done.stdout
    assert "left out of the guests" not in done.stdout
