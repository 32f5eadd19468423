from kmt.backends.base import Machine
from kmt.run.pool import group_by_machine


def test_tests_share_a_machine_unless_they_ask_for_processors():
    needs = {"a": Machine(cpus=2), "b": Machine(), "c": Machine(compiler=True), "d": Machine(cpus=2)}
    assert group_by_machine(needs) == (
        (Machine(compiler=True), ("b", "c")),
        (Machine(cpus=2, compiler=True), ("a", "d")),
    )
    assert group_by_machine({"b": Machine()}) == ((Machine(), ("b",)),)
