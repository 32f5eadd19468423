"""One kernel's tests over several guests, through real child sessions on the backend that needs no VM."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

pytestmark = pytest.mark.host_only

# Of tests that no run has seen yet each counts as one second, so these are worth two guests.
SPREAD = """
    import os, time
    import pytest

    @pytest.fixture(scope="module")
    def guest():
        return os.environ["KMT_ARTIFACTS"]

    @pytest.mark.parametrize("n", range(8))
    def test_n(n, guest, record_property):
        record_property("guest", guest)
        time.sleep(0.01 * (12 - n))
        with open(os.path.join(guest, "same name"), "a") as file:
            file.write(f"{__name__} {n}\\n")
"""


def spread(project, *names):
    for name in names:
        project.write(SPREAD, f"test_{name}.py")


def guests_of(project):
    """The guest of each test, by the properties in the JUnit file, in that file's order."""
    cases = ElementTree.parse(project.root / "out.xml").iter("testcase")
    return {
        f"{case.get('classname')}::{case.get('name')}": next(
            p.get("value") for p in case.iter("property") if p.get("name") == "guest"
        )
        for case in cases
    }


def run(project, *words):
    done = project.run("--kernel-jobs=2", "--junitxml=out.xml", "--kernel-json=out.json", *words)
    return done, json.loads((project.root / "out.json").read_text())["kernels"][0]


def test_modules_are_spread_and_stay_whole_and_results_keep_their_order(project):
    spread(project, "a", "b", "c")
    done, kernel = run(project, "-v")
    assert "24 passed" in done.stdout
    assert kernel["guests"] == 2
    where = guests_of(project)
    assert len(set(where.values())) == 2
    for module in "abc":
        assert len({guest for case, guest in where.items() if case.startswith(f"test_{module}::")}) == 1
    wanted = [f"test_{module}.py::test_n[{n}]" for module in "abc" for n in range(8)]
    assert [test["id"] for test in kernel["tests"]] == wanted
    shown = [line.split()[0] for line in done.stdout.splitlines() if " PASSED" in line]
    assert shown == [nodeid.replace("]", "-host]") for nodeid in wanted]
    assert [case.replace("::", ".py::") for case in where] == shown


@pytest.mark.parametrize(("words", "guests"), [(["--kernel-spread=test"], 2), ([], 1), (["--kernel-spread=none"], 1)])
def test_one_large_module_is_taken_apart_only_where_that_was_asked_for(project, words, guests):
    project.write(SPREAD.replace("range(8)", "range(12)"))
    done, kernel = run(project, *words)
    assert "12 passed" in done.stdout
    assert (kernel["guests"], len(set(guests_of(project).values()))) == (guests, guests)


def test_what_an_earlier_run_took_decides_whether_another_guest_is_worth_it(project):
    spread(project, "a", "b")
    assert run(project)[1]["guests"] == 2
    assert run(project)[1]["guests"] == 1  # together a second, now that it is known
    (file,) = (project.root.parent / "cache" / "v1" / "durations").glob("*.json")
    known = json.loads(file.read_text())
    file.write_text(json.dumps(dict.fromkeys(known, 9.0)))
    assert run(project)[1]["guests"] == 2


def test_a_guest_that_dies_costs_only_its_own_tests(project):
    spread(project, "a")
    project.write(SPREAD + "        if n == 3: os.kill(os.getppid(), 9)\n", "test_b.py")
    done, kernel = run(project)
    assert (done.returncode, kernel["outcome"]) == (6, "lost")
    assert kernel["reason"].startswith("1 of 2 guests: ")
    assert kernel["counts"] == {"passed": 11, "failed": 0, "skipped": 0, "error": 5}
    assert {test["id"].split("::")[0] for test in kernel["tests"] if test["lost"]} == {"test_b.py"}
    assert "1 of 2 guests" in done.stdout


def test_files_of_two_guests_never_take_each_others_place(project):
    spread(project, "a", "b")
    run(project)
    found = {}
    for path in (project.root.parent / "cache" / "v1" / "runs").glob("*/host/artifacts/**/same name"):
        found[path.read_text().split()[0]] = len(path.read_text().splitlines())
    assert found == {"test_a": 8, "test_b": 8}


def test_coverage_of_two_guests_is_combined(project):
    project.write("def a():\n    return 1\n\n\ndef b():\n    return 2\n", "measured.py")
    for name in "ab":
        project.write(SPREAD + f"        import measured\n        measured.{name}()\n", f"test_{name}.py")
    done, kernel = run(project, "--cov=measured", "--cov-report=term")
    assert kernel["guests"] == 2
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("measured.py")]
    assert line.split() == ["measured.py", "4", "0", "100%"]


def test_x_stops_all_guests_at_once_and_nothing_was_lost_by_it(project):
    spread(project, "a")
    project.write(SPREAD.replace("time.sleep(0.01 * (12 - n))", "assert n != 1"), "test_b.py")
    project.write("import time\nimport pytest\n@pytest.mark.parametrize('n', range(8))\n"
                  "def test_long(n): time.sleep(600)\n", "test_c.py")  # fmt: skip
    done, kernel = run(project, "-x", "-v")
    assert (done.returncode, kernel["outcome"]) == (1, "failed")
    assert "stopping after 1 failures" in done.stdout
    assert "1 failed" in done.stdout
    assert " error" not in done.stdout.splitlines()[-1]
    assert kernel["counts"]["failed"] == 1
    assert kernel["counts"]["error"] == 0
    assert kernel["not_run"] == 24 - len(kernel["tests"])
    assert f"host: failed: the run was stopped; tests that did not run: {kernel['not_run']}" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--kernel-jobs=-1",), "jobs must be 0 or more"),
        (("--kernel-memory-limit=-5",), "memory_limit must be 0 or more"),
        (("--kernel-spread=file",), "invalid choice: 'file'"),
        (("--kernel-fresh=never",), "invalid choice: 'never'"),
    ],
)
def test_bad_words_are_usage_errors(project, words, said):
    spread(project, "a")
    done = project.run(*words)
    assert done.returncode == 4
    assert said in done.stderr


def test_s_shows_what_guests_print_and_only_then(project):
    project.write("import sys\ndef test_says(): print('aloud', end=''); sys.stdout.flush(); print(' and clear')\n")
    assert "[host] aloud and clear" in project.run("-s").stdout
    assert "aloud" not in project.run().stdout


def test_this_machines_own_kernel_is_nobodys_pristine_one(project):
    project.write("""
        import pytest
        @pytest.mark.pristine
        def test_pristine(): raise AssertionError("it ran")
        def test_usual(): pass
    """)
    done, kernel = run(project)
    assert "1 passed, 1 error" in done.stdout
    assert "asks for a kernel that nobody has touched, and the backend host has none" in done.stdout
    assert (done.returncode, kernel["outcome"]) == (1, "failed")
    assert "2 errors" in run(project, "--kernel-fresh=test")[0].stdout
