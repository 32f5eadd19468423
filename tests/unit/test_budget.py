"""Whose turn it is, and how many fit: ``kmt/run/budget.py`` with real threads."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from kmt.backends.base import Machine
from kmt.config import Config
from kmt.run.budget import MEMORY_OVERHEAD_MIB, TRANSLATED_MIB, Budget, Scheduler, Task, budget

SIZES = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 600)), min_size=1, max_size=20)


def run(scheduler, threads):
    workers = [threading.Thread(target=scheduler.work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()


@given(SIZES, st.integers(1, 4), st.integers(0, 1000))
def test_the_budget_is_never_exceeded_but_by_one_that_is_too_large_alone(sizes, cpus, memory):
    limit = Budget(cpus, memory)
    scheduler, mutex, now, done = Scheduler(limit), threading.Lock(), [], []

    def work(size):
        with mutex:
            now.append(size)
            assert len(now) == 1 or (sum(s[0] for s in now) <= cpus and sum(s[1] for s in now) <= memory)
        with mutex:
            now.remove(size)
            done.append(size)

    for number, size in enumerate(sizes):
        scheduler.submit((number,), Task(lambda size=size: work(size), *size))
    run(scheduler, cpus)
    assert sorted(done) == sorted(sizes)


def test_ranks_decide_and_a_large_task_is_not_overtaken():
    scheduler, begun, one_runs, go = Scheduler(Budget(2, 1000)), [], threading.Event(), threading.Event()

    def first():
        begun.append("first")
        one_runs.set()
        assert go.wait(60)

    scheduler.submit((0,), Task(first))
    scheduler.submit((2,), Task(lambda: begun.append("small")))
    scheduler.submit((1,), Task(lambda: begun.append("large"), cpus=2))
    workers = [threading.Thread(target=scheduler.work) for _ in range(2)]
    for worker in workers:
        worker.start()
    assert one_runs.wait(60)
    assert begun == ["first"]  # a processor is free, and "small" does not slip in before "large"
    go.set()
    for worker in workers:
        worker.join(60)
    assert begun == ["first", "large", "small"]


def test_a_task_may_bring_more_work():
    scheduler, done = Scheduler(Budget(2, 0)), []

    def grow(left):
        done.append(left)
        if left:
            scheduler.submit((left,), Task(lambda: grow(left - 1)))

    scheduler.submit((9,), Task(lambda: grow(5)))
    run(scheduler, 2)
    assert done == [5, 4, 3, 2, 1, 0]


def test_a_guest_with_two_processors_counts_as_two():
    limit = Budget(4, 100_000)
    assert [limit.guests(Machine(cpus=cpus)) for cpus in (1, 2, 3, 9)] == [4, 2, 1, 1]
    assert Budget(16, 3 * (512 + MEMORY_OVERHEAD_MIB + TRANSLATED_MIB)).guests(Machine(memory_mib=512)) == 3
    assert Budget(16, 0).guests(Machine()) == 1


def test_translated_code_counts_where_there_is_some():
    machine = Machine(memory_mib=512)
    emulated, real = (Task.keeping(machine, int, emulated=emulated).memory_mib for emulated in (True, False))
    assert emulated - real == TRANSLATED_MIB
    assert real == 512 + MEMORY_OVERHEAD_MIB


def test_what_was_said_wins_over_what_is_here(tmp_path):
    assert budget(Config(root=tmp_path, jobs=7, memory_limit=123)) == Budget(7, 123)
    assert budget(Config(root=tmp_path)).cpus >= 1
