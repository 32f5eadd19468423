"""What ``pytest --kernel`` promises, through real child sessions on the backend that needs no VM."""

import json
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

pytestmark = pytest.mark.host_only

TESTS = """
    import os, platform
    import pytest
    from hypothesis import given, strategies as st

    @pytest.mark.parametrize("letter", ["a", "b"])
    def test_letters(letter):
        assert letter in "ab"

    def test_where(kernel, record_property):
        record_property("kmt.python", platform.python_version())
        assert kernel.release == platform.release()
        assert kernel.name == os.environ["KMT_KERNEL"] == "host"

    class TestClass:
        def test_fails(self):
            print("said aloud")
            assert 1 == 2

    @given(st.integers())
    def test_property(number):
        assert number == number

    @pytest.fixture
    def broken():
        raise RuntimeError("no such luck")

    def test_broken(broken):
        pass
"""


def test_outcomes_are_pytests_own(project):
    project.write(TESTS)
    done = project.run("-v", "--durations=1")
    assert done.returncode == 1
    assert "1 failed, 4 passed, 1 error" in done.stdout
    for words in ("test_letters[a-host] PASSED", "TestClass::test_fails[host] FAILED", "test_broken[host] ERROR"):
        assert words in done.stdout
    assert "said aloud" in done.stdout
    assert "no such luck" in done.stdout
    assert "slowest" in done.stdout


def test_ids_have_kernels_in_them_and_collecting_boots_nothing(project, tmp_path):
    project.write(TESTS)
    done = project.run("--co", "-q", kernel="5.10,host,7.3")
    assert "test_theirs.py::test_letters[a-5.10]" in done.stdout
    assert "test_theirs.py::TestClass::test_fails[7.3]" in done.stdout
    assert "18 tests collected" in done.stdout
    assert not (tmp_path / "cache" / "v1" / "runs").exists()


SHARED = """
    import pytest

    made = []

    @pytest.fixture(scope="module", params=["one", "two"])
    def costly(request):
        made.append(request.param)
        return request.param

    def test_first(costly):
        assert made in (["one"], ["one", "two"])

    class TestClass:
        def test_second(self, costly):
            assert made in (["one"], ["one", "two"])
"""


def test_a_fixtures_parameter_is_set_up_once(project):
    """As where pytest runs alone: what shares it runs together, on every kernel."""
    project.write(SHARED)
    listed = project.run("--co", "-q", kernel="6.1,host").stdout.splitlines()
    for kernel in ("6.1", "host"):
        ids = [line.partition("::")[2] for line in listed if line.endswith(f"-{kernel}]")]
        assert ids == [f"{t}[{p}-{kernel}]" for p in ("one", "two") for t in ("test_first", "TestClass::test_second")]
    assert "4 passed" in project.run().stdout


@pytest.mark.parametrize(
    ("words", "summary"),
    [
        (("-k", "letters"), "2 passed, 4 deselected"),
        (("-k", "host and fails"), "1 failed, 5 deselected"),
        (("-x", "-k", "fails or broken"), "1 failed, 4 deselected"),
        (("test_theirs.py::test_where",), "1 passed"),
        (("test_theirs.py::test_letters[a-host]",), "1 passed"),
        (("--deselect", "test_theirs.py::test_broken", "-k", "not fails"), "4 passed"),
    ],
)
def test_selection_works_as_ever(project, words, summary):
    project.write(TESTS)
    assert summary in project.run(*words).stdout


def test_last_failed_runs_just_those(project):
    project.write(TESTS)
    cache = ("-p", "cacheprovider")
    subprocess.run([sys.executable, "-m", "pytest", "--kernel", "host"], cwd=project.root, capture_output=True)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *cache, "--kernel", "host", "--lf"],
        cwd=project.root, capture_output=True, text=True,
    )  # fmt: skip
    assert "1 failed, 1 error" in done.stdout
    assert "passed" not in done.stdout.splitlines()[-1]


def test_junit_and_json_tell_kernel_by_kernel(project):
    project.write(TESTS)
    done = project.run("--junitxml=out.xml", "--kernel-json=out.json")
    results = json.loads((project.root / "out.json").read_text())
    assert results["schema"] == 1
    assert results["exit_status"] == done.returncode == 1
    (kernel,) = results["kernels"]
    assert kernel["counts"] == {"passed": 4, "failed": 1, "skipped": 0, "error": 1}
    assert kernel["facts"]["python"].count(".") == 2
    assert kernel["outcome"] == "failed"
    cases = ElementTree.parse(project.root / "out.xml").findall(".//testcase")
    assert len(cases) == 6
    values = {p.get("name"): p.get("value") for p in cases[0].iter("property")}
    assert (values["kernel"], values["accelerator"]) == ("host", "none")


def test_host_only_tests_and_files_outside_the_globs_are_deselected_and_counted(project):
    project.write(TESTS)
    project.write("import pytest\n@pytest.mark.host_only\ndef test_here(): pass\n", "test_host.py")
    project.write("def test_elsewhere(): pass\n", "test_other.py")
    with (project.root / "pyproject.toml").open("a") as file:
        file.write("[tool.kmt]\nguest = ['test_theirs.py', 'test_host.py']\n")
    done = project.run("-k", "letters or test_here or elsewhere")
    assert "2 passed, 6 deselected" in done.stdout


def test_without_kernel_tests_run_on_the_host(project):
    project.write("def test_here(kernel):\n    assert kernel.name == 'host'\n")
    assert "1 passed" in project.run(kernel="").stdout


@pytest.mark.parametrize("kernel", ["", "host"])
def test_nothing_of_it_is_deprecated(project, kernel):
    project.write("def test_here(kernel):\n    assert kernel.name == 'host'\n")
    done = subprocess.run(
        project.command("-W", "error", *(("--kernel", kernel) if kernel else ())),
        cwd=project.root, capture_output=True, text=True,
    )  # fmt: skip
    assert "1 passed" in done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pdb",), "cannot reach into guests"),
        (("--kernel", "5.11"), "no kernel '5.11'"),
        (("--kernel-backend", "quemu", "--kernel", "6.1"), "did you mean 'qemu'"),
    ],
)
def test_what_cannot_be_is_one_clear_line(project, words, said):
    project.write(TESTS)
    done = project.run(*words)
    assert done.returncode == 4
    (line,) = [line for line in done.stderr.splitlines() if said in line]
    assert line.startswith("ERROR: kmt: ")
    assert "Traceback" not in done.stderr + done.stdout


def test_addopts_of_the_project_do_not_act_twice(project):
    project.write("def test_one(): pass\n")
    text = "[tool.pytest.ini_options]\naddopts = '--kernel host --junitxml=x.xml -x --lf'\n"
    (project.root / "pyproject.toml").write_text(text)
    done = subprocess.run([sys.executable, "-m", "pytest"], cwd=project.root, capture_output=True, text=True)
    assert "1 passed" in done.stdout


def test_what_addopts_say_about_importing_and_plugins_acts_in_guests_too(project):
    text = "[tool.pytest.ini_options]\naddopts = '--import-mode=importlib -p their_plugin'\npythonpath = ['.']\n"
    (project.root / "pyproject.toml").write_text(text)
    project.write("import pytest\n@pytest.fixture\ndef theirs(): return 7\n", "their_plugin.py")
    for folder in ("one", "two"):
        (project.root / folder).mkdir()
        project.write("def test_same_name(theirs): assert theirs == 7\n", f"{folder}/test_same.py")
    assert "2 passed" in project.run().stdout


def test_a_test_that_ends_its_session_is_an_error_and_names_itself(project):
    project.write("""
        import os
        def test_before(): pass
        def test_kills(): os._exit(9)
        def test_after(): pass
    """)
    done = project.run("--kernel-json=out.json")
    assert "1 passed, 2 errors" in done.stdout
    assert "ended with status 9" in done.stdout
    assert "while test_theirs.py::test_kills ran" in done.stdout
    tests = json.loads((project.root / "out.json").read_text())["kernels"][0]["tests"]
    assert {t["id"]: t["lost"] for t in tests if t["outcome"] == "error"} == {
        "test_theirs.py::test_kills": True,
        "test_theirs.py::test_after": True,
    }


def test_ids_on_one_side_only_are_errors(project):
    project.write("""
        import os
        if os.environ.get("KMT_GUEST"):
            def test_guest_only(): pass
        else:
            def test_host_only_by_accident(): pass
        def test_both(): pass
    """)
    done = project.run()
    assert "1 passed, 2 errors" in done.stdout
    assert "the host collected it and the guest did not" in done.stdout
    assert "collected in the guest and not on the host" in done.stdout


def test_a_module_that_only_a_guest_can_import_is_collected_there(project):
    project.write("""
        import os
        if not os.environ.get("KMT_GUEST"):
            raise ImportError("only in guests")
        import pytest
        class TestThere:
            @pytest.mark.parametrize("n", [1, 2])
            def test_n(self, n): pass
        @pytest.mark.host_only
        def test_never(): pass
    """)
    done = project.run("-v")
    assert "TestThere::test_n[1-host] PASSED" in done.stdout
    assert "2 passed, 1 deselected" in done.stdout
    assert "(collected in a guest)" in project.run("--co", "-q").stdout
    project.write("import nowhere_at_all\n")
    done = project.run()
    assert done.returncode == 2
    assert "nor in a guest of host" in done.stdout


def test_requires_skips_and_strict_skips_fail(project):
    project.write("""
        import pytest
        @pytest.mark.requires("flux")
        def test_flux(): pass
        @pytest.mark.requires("root_or_not")
        def test_has(): pass
        @pytest.mark.skip(reason="just so")
        def test_skip(): pass
    """)
    conftest = "def pytest_kmt_probe(feature): return {'flux': False, 'root_or_not': True}.get(feature)\n"
    project.write(conftest, "conftest.py")
    assert "1 passed, 2 skipped" in project.run().stdout
    with (project.root / "pyproject.toml").open("a") as file:
        file.write("[tool.kmt]\nstrict_skips = true\n")
    for kernel in ("host", ""):
        done = project.run(kernel=kernel)
        assert "1 passed, 1 skipped, 1 error" in done.stdout
        assert "only requires(...) may skip" in done.stdout
    project.write("import pytest\npytest.skip('all of it', allow_module_level=True)\n", "test_module.py")
    done = project.run("test_module.py", kernel="")
    assert done.returncode == 2
    assert "the whole module is skipped" in done.stdout


def test_a_counter_example_is_kept_on_the_host_and_replayed(project):
    project.write("""
        from hypothesis import given, strategies as st
        @given(st.integers())
        def test_small(n): assert n < 12345
    """)
    first = project.run()
    assert "reproduce_failure" in first.stdout
    assert list((project.root / ".hypothesis" / "examples").rglob("*"))
    project.write("""
        from hypothesis import given, settings, strategies as st, Phase
        @settings(phases=[Phase.reuse])
        @given(st.integers())
        def test_small(n): assert n < 12345
    """)
    # The key is the test itself, so a changed decorator keeps it: only the reuse phase runs now.
    assert "12345" in project.run().stdout


def interrupted(project, *, times):
    """Ctrl-C while the second of two tests runs: what was said, the exit status."""
    project.write("""
        import pathlib, time
        def test_quick(): pass
        def test_slow():
            pathlib.Path("begun").touch()
            time.sleep(600)
    """)
    process = subprocess.Popen(
        project.command("-v", "--kernel", "host"),
        cwd=project.root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # As a shell starts a job in the background.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    end = time.monotonic() + 60
    while not (project.root / "begun").exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    said, _ = process.communicate(timeout=60)
    return said, process.returncode


def test_ctrl_c_stops_cleanly_and_reports_what_is_done(project):
    said, status = interrupted(project, times=1)
    assert status == 2
    assert "1 passed" in said
    assert "host: stopped: the run was stopped; tests that did not run: 1" in said
    assert not leftovers(project)


def test_ctrl_c_twice_stops_at_once(project):
    _, status = interrupted(project, times=2)
    assert status != 0
    end = time.monotonic() + 5
    while leftovers(project) and time.monotonic() < end:
        time.sleep(0.05)
    assert not leftovers(project)


def leftovers(project):
    found = subprocess.run(["pgrep", "-f", "kmt_guest"], capture_output=True, text=True).stdout.split()
    mine = []
    for pid in found:
        try:
            if bytes(project.root.parent / "cache") in Path(f"/proc/{pid}/environ").read_bytes():
                mine.append(pid)
        except OSError:
            continue
    return mine


def test_output_that_is_not_a_terminals_has_no_escapes(project):
    project.write(TESTS)
    assert "\x1b" not in project.run().stdout


def test_coverage_of_guests_is_combined_with_the_hosts(project):
    project.write("def reached():\n    return 1\n\n\ndef never():\n    return 2\n", "measured.py")
    project.write("import measured\n\ndef test_it(): assert measured.reached() == 1\n")
    done = project.run("--cov=measured", "--cov-report=term-missing")
    assert "1 passed" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("measured.py")]
    assert line.split() == ["measured.py", "4", "1", "75%", "6"]
