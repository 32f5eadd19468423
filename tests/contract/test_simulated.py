"""Simulated kernels in sessions of a stranger's project: what runs, what does not, and nobody takes it for real."""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from kmt import build, config
from kmt.explain.read import parse

pytestmark = pytest.mark.host_only

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A directory with this project's own objects (made before a stranger's has a cache of its own)."""
    place = tmp_path_factory.mktemp("objects")
    for name, path in build.build(config.load(ROOT)).objects.items():
        shutil.copy(path, place / f"{name}.o")
    return place


TESTS = """
    import ctypes, errno
    import pytest
    from hypothesis import given, strategies as st
    from harness.kernel_api import Feature

    def test_probes(kernel, record_property):
        record_property("kmt.said", kernel.release)
        assert kernel.simulated
        assert kernel.api.probe(Feature.RINGBUF) is True

    @given(st.integers())
    def test_property(kernel, number): assert kernel.api.release == kernel.release

    @pytest.fixture
    def by_another(kernel): return kernel.version

    def test_by_a_fixture(by_another): assert by_another[:2] == (5, 15)

    @pytest.mark.requires("kprobe_multi")
    def test_of_5_18(kernel): raise AssertionError("5.15 has none")

    def test_plain(): raise AssertionError("it would touch this machine's kernel")

    @pytest.mark.real
    def test_real(kernel): raise AssertionError("it is marked")

    @pytest.mark.host_only
    def test_here(kernel): pass
"""
FAILS = "def test_fails(kernel): assert kernel.version == (6, 1, 0)\n"
UNTOLD = """
    import pytest

    def test_asked(kernel): kernel.api.symbols(["no_such_function"])

    def test_swallowed(kernel):
        with pytest.raises(Exception): kernel.api.symbols(["no_such_function"])

    def test_told(kernel): assert kernel.api.symbols(["tcp_close"]) == {"tcp_close"}
"""
NOWHERE = "file:/nonexistent"


def results(project, *words, kernel="5.15", backend="auto"):
    """What a session said, its only kernel's results, and the same as ``kmt`` reads it."""
    options = (f"--kernel-backend={backend}",) if backend else ()
    done = project.run(*words, *options, "--kernel-json=out.json", kernel=kernel)
    data = (project.root / "out.json").read_bytes()
    (found,) = json.loads(data)["kernels"]
    (read,) = parse(data, "out.json").kernels
    assert read.not_applicable == found["not_applicable"]
    assert found["simulated"] is found["name"].endswith("-simulated")
    return done, found


def last(done):
    return done.stdout.strip().splitlines()[-1]


def numbers(done):
    """The parts of pytest's last line: ``1 passed``, ``2 not applicable`` ..."""
    return last(done).strip("= ").rpartition(" in ")[0].split(", ")


def test_a_row_that_cannot_be_had_is_simulated_and_says_why(project):
    project.write(TESTS)
    done, found = results(project, "-v")
    assert done.returncode == 0, done.stdout
    assert found["name"] == "5.15-simulated"
    assert (found["backend"], found["accelerator"], found["boot_seconds"]) == ("simulated", "simulated", None)
    assert found["stands_for"] == "in no Debian archive"
    assert found["counts"] == {"passed": 3, "failed": 0, "skipped": 1, "error": 0}
    assert set(found["not_applicable"]) == {"test_theirs.py::test_plain", "test_theirs.py::test_real"}
    assert found["facts"] == {"said": "5.15.0-derived"}
    assert "test_probes[5.15-simulated] PASSED" in done.stdout
    assert "test_plain[5.15-simulated] NOT APPLICABLE" in done.stdout
    assert "5.15-simulated: simulated, for it could not be had: in no Debian archive" in done.stdout
    wanted = ["1 deselected", "1 skipped (simulated)", "2 not applicable", "3 passed (simulated)"]
    assert sorted(numbers(done)) == wanted


def test_real_and_simulated_are_never_added_up(project):
    project.write(TESTS.replace("assert kernel.simulated\n", "if not kernel.simulated: return\n"))
    words = ("-k", "probes or plain", "--junitxml=out.xml", "--kernel-json=out.json")
    done = project.run(*words, kernel="5.15-simulated,host")
    assert done.returncode == 1
    assert {"1 failed", "1 passed", "1 passed (simulated)", "1 not applicable"} <= set(numbers(done))
    assert "real: 1 kernel, 1 passed, 1 failed" in done.stdout
    assert "simulated: 1 kernel, 1 passed; 1 not applicable" in done.stdout
    real, simulated = ElementTree.parse(project.root / "out.xml").findall("testsuite")
    counts = ("tests", "failures", "errors", "skipped")
    assert [real.get(c) for c in counts] == ["2", "1", "0", "0"]
    assert [simulated.get(c) for c in counts] == ["2", "0", "0", "1"]
    assert simulated.get("name").endswith(" (simulated)")
    assert {case.get("name") for case in simulated.iter("testcase")} == {
        "test_probes[5.15-simulated]",
        "test_plain[5.15-simulated]",
    }
    assert simulated.find("testcase/skipped").get("type") == "kmt.not_applicable"


def test_a_failure_is_a_failing_test_and_is_shown_whole(project):
    project.write(FAILS)
    done, found = results(project)
    assert done.returncode == 1
    assert found["outcome"] == "failed"
    assert "AssertionError" in done.stdout
    assert "FAILED test_theirs.py::test_fails[5.15-simulated]" in done.stdout
    assert numbers(done) == ["1 failed (simulated)"]


def test_the_last_line_of_a_run_that_was_cut_short_has_what_was_simulated(project):
    project.write("""
        import time
        def test_passes(kernel): pass
        def test_fails(kernel): assert False
        def test_later(kernel): time.sleep(1000)
    """)
    words = ["1 passed (simulated)", "1 failed (simulated)"]
    done, found = results(project, "-x", "--color=yes")
    assert (done.returncode, found["not_run"]) == (1, 1)
    assert last(done).startswith("\x1b[31m")  # red
    assert re.findall(r"\d+ \w+ \(simulated\)", last(done)) == words
    whole = project.run("--color=yes", "-k", "not later", kernel="5.15-simulated")
    assert last(whole).startswith("\x1b[31m")
    assert re.findall(r"\d+ \w+ \(simulated\)", last(whole)) == words


def test_what_failed_is_run_again_on_what_it_failed_on(project):
    project.write(FAILS)
    results(project)
    again = [sys.executable, "-m", "kmt"]
    said = subprocess.run([*again, "explain", "out.json"], cwd=project.root, capture_output=True, text=True).stdout
    assert "1 test on 5.15-simulated" in said
    done = subprocess.run([*again, "rerun", "--from", "out.json"], cwd=project.root, capture_output=True, text=True)
    assert done.returncode == 1
    assert "1 failed (simulated)" in done.stdout


def test_what_the_simulator_cannot_tell_is_neither_passed_nor_failed(project):
    project.write(UNTOLD)
    done, found = results(project)
    assert done.returncode == 0
    assert found["counts"] == {"passed": 1, "failed": 0, "skipped": 0, "error": 0}
    why = found["not_applicable"]
    assert set(why) == {"test_theirs.py::test_asked", "test_theirs.py::test_swallowed"}
    assert all("cannot tell: whether 5.15.0-derived has a function no_such_function" in said for said in why.values())


def test_what_attaching_cannot_be_told_of_is_heard_too(project, built):
    """A test that catches it, as the harness does with a program that does not attach, has not been answered."""
    project.write(f"""
        from contextlib import suppress
        from pathlib import Path
        import pytest
        from harness.kernel_api import LoadOptions

        @pytest.fixture
        def loaded(kernel):
            image = Path({str(built / "hooks.o")!r}).read_bytes()
            with kernel.api.load("hooks", image, LoadOptions(["on_missing", "on_kprobe_multi", "on_uprobe"])) as loaded:
                yield loaded

        def test_by_section(loaded):
            with suppress(Exception): loaded.attach("on_missing")

        def test_by_functions(loaded):
            with suppress(Exception): loaded.attach_kprobes("on_kprobe_multi", ["no_such_function"])

        def test_to_a_file(loaded):
            loaded.attach_uprobe("on_uprobe", __file__, 0).close()
    """)
    done, found = results(project, kernel="6.12", backend="simulated")
    assert found["counts"] == {"passed": 1, "failed": 0, "skipped": 0, "error": 0}, done.stdout
    why = {name.rpartition("::")[2]: said for name, said in found["not_applicable"].items()}
    assert set(why) == {"test_by_section", "test_by_functions"}
    assert "has a function no_kernel_has_such_a_function" in why["test_by_section"]
    assert "has a function no_such_function" in why["test_by_functions"]


def test_without_the_kernels_types_what_needs_them_is_not_applicable(project, built):
    """The cache of such a project is empty: what the profile tells is told, and no relocation is guessed."""
    project.write(f"""
        from pathlib import Path
        from harness.kernel_api import LoadOptions

        def load(kernel, name, program):
            image = Path({str(built)!r}, name + ".o").read_bytes()
            known = kernel.api.signatures(["tcp_close"])
            wanted = {{"tcp_close": ("tcp_close", known["tcp_close"])}}
            return kernel.api.load(name, image, LoadOptions([program], signatures=wanted))

        def test_signatures(kernel):
            assert str(kernel.api.signatures(["tcp_close"])["tcp_close"]) == "void (struct sock *, long int)"

        def test_without_relocations(kernel): load(kernel, "hooks", "on_uprobe").close()

        def test_with_relocations(kernel): load(kernel, "tracer-fentry", "tcp_close")
    """)
    done, found = results(project, kernel="6.12", backend="simulated")
    assert found["counts"] == {"passed": 2, "failed": 0, "skipped": 0, "error": 0}, done.stdout
    ((name, why),) = found["not_applicable"].items()
    assert name.endswith("test_with_relocations")
    assert "its types are not at hand (kmt.fetch" in why


def test_what_a_wider_fixture_was_not_told_none_of_its_tests_was(project):
    project.write("""
        import pytest

        @pytest.fixture(scope="class")
        def chain(kernel):
            try: kernel.api.symbols(["no_such_function"])
            except Exception: return "fallback"

        class TestChain:
            def test_first(self, chain): assert chain
            def test_second(self, chain): assert chain

        def test_after(kernel):
            assert (kernel.api.proc_root / "sys/kernel/osrelease").read_text().strip() == kernel.release
    """)
    done, found = results(project)
    assert done.returncode == 0, done.stdout
    assert found["counts"] == {"passed": 1, "failed": 0, "skipped": 0, "error": 0}
    names = {name.rpartition("::")[2] for name in found["not_applicable"]}
    assert names == {"test_first", "test_second"}


def test_without_one_test_to_simulate_a_row_stays_unavailable(project):
    project.write("def test_plain(): pass\n")
    done, found = results(project)
    assert done.returncode == 6
    assert found["outcome"] == "unavailable"
    assert "in no Debian archive" in found["reason"]
    assert "no test of these can run on a simulated kernel" in found["hint"]
    done, found = results(project, kernel="6.1", backend="simulated")
    assert done.returncode == 5, "asked for, and there is nothing to run"
    assert found["not_applicable"]


@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("KMT_MIRROR", NOWHERE, "has no bookworm"),
        ("KMT_QEMU", "/nonexistent/qemu", "/nonexistent/qemu is not installed"),
    ],
)
def test_what_turns_out_not_to_be_had_is_simulated_too(project, monkeypatch, variable, value, why):
    monkeypatch.setenv(variable, value)
    project.write(TESTS.replace("(5, 15)", "(6, 1)").replace("5.15 has none", ""))
    done, found = results(project, "-v", "-k", "probes or plain", kernel="6.1")
    assert done.returncode == 0, done.stdout
    assert found["name"] == "6.1-simulated"
    assert why in found["stands_for"]
    assert found["release"].startswith("6.1.0-")
    assert "test_probes[6.1-simulated] PASSED" in done.stdout
    assert "test_plain[6.1-simulated] NOT APPLICABLE" in done.stdout
    assert found["console"].endswith("6.1-simulated/console.log")


@pytest.mark.parametrize(
    ("words", "backend"),
    [((), "qemu"), ((), ""), (("--kernel-strict",), "auto")],
    ids=["qemu", "nothing said", "strict"],
)
def test_nobody_is_given_a_simulated_kernel_who_wants_a_real_one(project, words, backend):
    project.write(TESTS)
    done, found = results(project, *words, backend=backend)
    assert done.returncode == 6
    assert (found["name"], found["simulated"], found["outcome"]) == ("5.15", False, "unavailable")
    assert found["not_applicable"] == {}


def test_an_image_is_never_simulated_instead(project):
    project.write(TESTS)
    (project.root / "bzImage").write_bytes(b"none")
    done, found = results(project, kernel="./bzImage")
    assert done.returncode != 0
    assert not found["simulated"]


@pytest.mark.parametrize(
    ("kernel", "backend", "said"),
    [
        ("5.15-simulated", "qemu", "asks for what --kernel-backend qemu never does"),
        ("9.9", "simulated", "Linux 9.9 cannot be simulated: what is known goes from"),
        ("2.6-simulated", "auto", "Linux 2.6 cannot be simulated"),
        ("5.77-simulated", "auto", "there is no Linux 5.77"),
        ("./bzImage", "simulated", "is an image, and only versions can be simulated"),
        ("six-simulated", "auto", "no kernel 'six'"),
        ("5.11", "auto", "no kernel '5.11'"),
    ],
)
def test_what_cannot_be_simulated_is_one_clear_line(project, kernel, backend, said):
    project.write(TESTS)
    done = project.run(f"--kernel-backend={backend}", kernel=kernel)
    assert done.returncode == 4
    (line,) = [line for line in done.stderr.splitlines() if said in line]
    assert line.startswith("ERROR: kmt: ")


def test_any_version_in_between_and_many_at_once(project):
    project.write(
        TESTS.replace("assert by_another[:2] == (5, 15)", "pass").replace(
            '@pytest.mark.requires("kprobe_multi")', "@pytest.mark.real"
        )
    )
    kernels = "5.11,5.15,6.6,6.*"
    done = project.run("--kernel-backend=simulated", "--kernel-json=out.json", kernel=kernels)
    assert done.returncode == 0, done.stdout
    found = json.loads((project.root / "out.json").read_text())["kernels"]
    assert [k["name"] for k in found][:4] == ["5.11-simulated", "5.15-simulated", "6.6-simulated", "6.1-simulated"]
    assert all(k["counts"]["passed"] == 3 for k in found)
    assert len({k["release"] for k in found}) == len(found)


def test_selection_and_the_last_failed_know_the_name(project):
    project.write(TESTS + "\n    def test_fails(kernel): assert kernel.release == ''\n")
    cache = (sys.executable, "-m", "pytest", "--kernel-backend=auto", "--kernel=5.15")
    environment = {**os.environ}
    first = subprocess.run([*cache], cwd=project.root, env=environment, capture_output=True, text=True)
    assert "1 failed (simulated)" in first.stdout
    again = subprocess.run([*cache, "--lf"], cwd=project.root, env=environment, capture_output=True, text=True)
    assert "1 failed (simulated)" in again.stdout
    assert "passed" not in last(again)
    one = project.run("test_theirs.py::test_probes[5.15-simulated]", "--kernel-backend=auto", kernel="5.15")
    assert "1 passed (simulated)" in last(one)


def test_collecting_says_what_would_be_simulated(project, tmp_path):
    project.write(TESTS)
    done = project.run("--co", "-q", "--kernel-backend=auto", kernel="5.15")
    assert "test_theirs.py::test_probes[5.15-simulated]" in done.stdout
    assert not (tmp_path / "cache" / "v1" / "runs").exists()


FENCE = """
    import ctypes, errno, os

    def refused(number):
        libc = ctypes.CDLL(None, use_errno=True)
        return libc.syscall(number, 0, None, 0) == -1 and ctypes.get_errno() == errno.EPERM

    def test_calls(kernel):
        assert os.uname().machine != "x86_64" or refused(321) and refused(298)

    def test_children(kernel):
        assert os.system("mount -t tmpfs none /mnt 2>/dev/null") != 0

    def test_files(kernel):
        written = []
        for name in ("/sys/kernel/tracing/kprobe_events", "/sys/kernel/mm/ksm/run", "/proc/sys/kernel/panic"):
            try:
                os.close(os.open(name, os.O_WRONLY))
                written.append(name)
            except OSError:
                pass
        assert written == []

    def test_the_rest_works(kernel, tmp_path):
        (tmp_path / "x").write_text("y")
        assert os.system("true") == 0
"""


def test_this_machines_own_kernel_is_out_of_reach(project):
    project.write(FENCE)
    done, found = results(project)
    assert found["counts"]["passed"] == 4, done.stdout


@pytest.mark.skipif(not os.access("/sys", os.W_OK), reason="nothing of this kernel's could be written to anyway")
def test_where_it_cannot_be_put_out_of_reach_nothing_runs(project):
    """Root, in a container that may not mount, and with a writable /sys."""
    project.write(FENCE)
    command = project.command("--kernel-backend=simulated", "--kernel=5.15")
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", *command], cwd=project.root, capture_output=True, text=True
    )
    assert done.returncode == 1, done.stdout
    told = done.stdout.partition("short test summary")[0]  # which is cut short, but not where CI is set
    assert told.count("cannot be kept away from this machine's kernel: '/sys' stays writable") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert numbers(done) == ["4 error (simulated)"]


def test_the_projects_hooks_speak_for_real_kernels_only(project):
    project.write("""
        import pytest
        def test_api(kernel): assert kernel.api == "theirs" or kernel.simulated
        @pytest.mark.requires("flux")
        def test_flux(kernel): assert kernel.simulated
        @pytest.mark.requires("theirs")
        def test_theirs(kernel): assert not kernel.simulated
    """)
    project.write(
        """
        def pytest_kmt_kernel_api(kernel): return "theirs"
        def pytest_kmt_probe(feature): return {"flux": False, "theirs": True}.get(feature)
        def pytest_kmt_probe_simulated(feature, kernel): return {"flux": True, "theirs": False}.get(feature)
        """,
        "conftest.py",
    )
    real = project.run(kernel="host")
    assert "2 passed, 1 skipped" in real.stdout
    _, found = results(project)
    assert found["counts"] == {"passed": 2, "failed": 0, "skipped": 1, "error": 0}


def test_without_a_hook_a_real_kernel_says_so(project):
    project.write("def test_api(kernel): kernel.api\n")
    done = project.run(kernel="host")
    assert done.returncode == 1
    assert "no hook pytest_kmt_kernel_api says how tests reach this kernel" in done.stdout


def test_a_machine_is_what_commands_need(project):
    words = [sys.executable, "-m", "kmt", "exec", "5.15-simulated", "--", "true"]
    done = subprocess.run(words, cwd=project.root, capture_output=True, text=True)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "a simulated kernel is no machine" in done.stderr
