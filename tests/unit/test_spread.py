"""Which tests share a guest: laws of ``kmt/run/spread.py``."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kmt.backends.base import Machine
from kmt.run.spread import Need, Unit, guests_each, lpt, parts, units

IDS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 9)).map(lambda pair: f"t{pair[0]}.py::test_{pair[1]}"), unique=True
)
SECONDS = st.floats(0, 100)
MACHINES = st.sampled_from([Machine(), Machine(cpus=2), Machine(compiler=True)])


@given(st.dictionaries(st.text(max_size=3), SECONDS), st.integers(1, 6))
def test_longest_first_keeps_every_guest_near_its_even_share(weights, count):
    where = lpt(weights, count)
    assert set(where) == set(weights)
    loads = [sum(weights[piece] for piece, guest in where.items() if guest == number) for number in range(count)]
    longest = max(weights.values(), default=0.0)
    assert max(loads) <= sum(weights.values()) / count + longest + 1e-6
    for guest in set(where.values()):  # without the piece that it was given last, nobody had less
        last = min(weights[piece] for piece in where if where[piece] == guest)
        assert loads[guest] - last <= min(loads) + 1e-6


@given(IDS.filter(bool), st.sampled_from(["module", "test", "none"]), st.integers(1, 5), st.data())
def test_every_test_is_in_one_part_in_its_order(ids, by, guests, data):
    known = data.draw(st.dictionaries(st.sampled_from(ids), SECONDS))
    made = parts(ids, by=by, guests=guests, seconds=known)
    assert sorted(i for part in made for i in part) == sorted(ids)
    assert 1 <= len(made) <= guests
    assert all(part and list(part) == [i for i in ids if i in part] for part in made)
    if by == "none":
        assert len(made) == 1
    if by == "module":
        modules = [{i.split("::")[0] for i in part} for part in made]
        assert sum(len(m) for m in modules) == len(set().union(*modules))
    assert made == parts(ids, by=by, guests=guests, seconds=known)


def test_the_longest_module_has_a_guest_for_itself():
    ids = ["a.py::x", "b.py::x", "b.py::y", "c.py::x"]
    seconds = {"a.py::x": 3.0, "b.py::x": 10.0, "b.py::y": 10.0, "c.py::x": 4.0}
    assert parts(ids, by="module", guests=2, seconds=seconds) == [("b.py::x", "b.py::y"), ("a.py::x", "c.py::x")]
    assert parts(ids, by="test", guests=2, seconds=seconds) == [("b.py::x", "c.py::x"), ("a.py::x", "b.py::y")]


@pytest.mark.parametrize(("seconds", "count"), [(0.1, 1), (1.0, 1), (2.6, 2), (100.0, 4)])
def test_another_guest_has_to_be_worth_it(seconds, count):
    ids = [f"{name}.py::x" for name in "abcd"]
    assert len(parts(ids, by="module", guests=4, seconds=dict.fromkeys(ids, seconds))) == count


@pytest.mark.parametrize(
    ("kernels", "slots", "wanted"),
    [(1, 1, [1]), (1, 4, [4]), (2, 2, [1, 1]), (5, 2, [1, 1, 1, 1, 2]), (3, 8, [3, 3, 2]), (6, 4, [1, 1, 1, 1, 2, 2])],
)
def test_no_slot_is_idle_while_the_last_kernels_run(kernels, slots, wanted):
    assert guests_each(kernels, slots) == wanted


@given(
    st.dictionaries(IDS.filter(bool).map(lambda ids: ids[0]), st.builds(Need, MACHINES, st.booleans())),
    st.sampled_from(["session", "module", "test"]),
    st.integers(1, 4),
)
def test_every_test_is_in_one_unit_and_a_fresh_one_is_alone(needs, fresh, guests):
    made = units(needs, fresh=fresh, by="module", guests=guests, seconds={})
    assert sorted(i for unit in made for i in unit.ids) == sorted(needs)
    for unit in made:
        pristine = [i for i in unit.ids if needs[i].pristine]
        modules = {i.split("::")[0] for i in unit.ids}
        assert not pristine or (unit.fresh and (len(unit.ids) == 1 or fresh == "module"))
        assert unit.fresh is (fresh != "session" or bool(pristine))
        assert fresh != "module" or len(modules) == 1
        assert fresh != "test" or len(unit.ids) == 1
        assert {needs[i].machine.cpus for i in unit.ids} == {unit.machine.cpus}


def test_tests_share_a_machine_unless_they_ask_for_processors():
    machines = {"a": Machine(cpus=2), "b": Machine(), "c": Machine(compiler=True), "d": Machine(cpus=2)}
    needs = {nodeid: Need(machine) for nodeid, machine in machines.items()}
    assert units(needs, fresh="session", by="module", guests=1, seconds={}) == (
        Unit(Machine(compiler=True), ("b", "c")),
        Unit(Machine(cpus=2, compiler=True), ("a", "d")),
    )
