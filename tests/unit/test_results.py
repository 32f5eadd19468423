import pytest

from kmt.results import KernelResult, Outcome, TestResult, exit_status


def kernel(outcome="ok", *tests, name="6.1"):
    result = KernelResult(name, outcome=Outcome(outcome))
    result.tests = [TestResult("t", word, 0.0, lost=lost) for word, lost in tests]
    return result


FAILED = ("failed", False)
LOST = ("error", True)
SETUP = ("error", False)


@pytest.mark.parametrize(
    ("kernels", "pytest_status", "strict", "wanted"),
    [
        ([kernel()], 0, [], 0),
        ([kernel("failed", FAILED)], 1, [], 1),
        ([kernel("panic", LOST)], 1, [], 6),
        ([kernel("hang", LOST), kernel("failed", FAILED)], 1, [], 1),
        ([kernel("lost", LOST), kernel("failed", SETUP)], 1, [], 1),
        ([kernel("build", LOST)], 1, [], 7),
        ([kernel("build", LOST), kernel("lost", LOST)], 1, [], 6),
        ([kernel("unavailable", name="7.3"), kernel()], 0, [], 0),
        ([kernel("unavailable", name="7.3"), kernel()], 0, ["7.3"], 6),
        ([kernel("unavailable", name="7.3")], 0, [], 6),
        ([kernel("lost", LOST)], 2, [], 2),
        ([kernel()], 5, [], 5),
        ([kernel("failed", FAILED), kernel("stopped")], 1, [], 1),
        ([kernel("panic", LOST), kernel("stopped")], 1, [], 6),
        ([kernel("stopped")], 2, [], 2),
    ],
)
def test_the_exit_status_says_what_counts_most(kernels, pytest_status, strict, wanted):
    assert exit_status(kernels, pytest_status=pytest_status, strict=strict) == wanted


def test_an_ok_kernel_with_a_failed_test_has_failed_and_a_lost_one_stays_lost():
    failed, lost = kernel("ok", FAILED), kernel("panic", LOST)
    failed.settle()
    lost.settle()
    assert (failed.outcome, lost.outcome) == (Outcome.FAILED, Outcome.PANIC)


def test_a_kernel_that_was_cut_off_is_stopped_unless_a_test_of_it_had_failed_by_then():
    stopped, failed = kernel("stopped", ("passed", False)), kernel("stopped", FAILED)
    stopped.settle()
    failed.settle()
    assert (stopped.outcome, failed.outcome) == (Outcome.STOPPED, Outcome.FAILED)


def test_where_nothing_could_run_on_simulated_kernels_no_test_was_there():
    def simulated(*tests):
        result = kernel("ok", *tests, name="5.15-simulated")
        result.not_applicable = {"t": "why"}
        return result

    assert exit_status([simulated()], pytest_status=0, strict=[]) == 5
    assert exit_status([simulated(("passed", False))], pytest_status=0, strict=[]) == 0
    assert exit_status([simulated(), kernel("ok", ("passed", False))], pytest_status=0, strict=[]) == 0
    assert exit_status([simulated(FAILED)], pytest_status=1, strict=[]) == 1


def test_a_simulated_kernel_does_not_make_up_for_one_that_is_not_there():
    missing, real = kernel("unavailable", name="7.3"), kernel("ok", ("passed", False))
    simulated = kernel("ok", ("passed", False), name="5.15-simulated")
    simulated.simulated = True
    assert exit_status([missing, simulated], pytest_status=0, strict=[]) == 6
    assert exit_status([missing, simulated, real], pytest_status=0, strict=[]) == 0
