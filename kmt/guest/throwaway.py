"""(pure) The tests of the warm-up's throw-away session: what most projects use of pytest and Hypothesis, once.

One test fails on purpose (and is expected to): explaining, shrinking and reporting a failure is code too.
"""

from __future__ import annotations

PLAIN = """
import pytest


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("KMT_THROWAWAY", str(tmp_path))
    yield [1, 2, 3]


@pytest.mark.parametrize("wanted", [1, 2])
def test_plain(numbers, wanted, capsys, request, record_property):
    print(wanted)
    assert wanted in numbers and capsys.readouterr().out == f"{wanted}\\n"
    with pytest.raises(ValueError, match="no"):
        raise ValueError("no")
"""
PROPERTIES = """
import pytest
from hypothesis import assume, example, given, note, settings, strategies as st, target
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, precondition, rule

EVERYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(EVERYTHING, st.sets(st.integers(0, 9)), st.tuples(st.sampled_from("ab"), st.from_regex("[a-z]{1,3}")))
@example(None, set(), ("a", "b"))
def test_values(value, few, pair):
    assert value == value and len(few) <= 10 and pair[0] in "ab"


@given(st.data(), st.uuids(), st.datetimes(), st.permutations([1, 2, 3]), st.builds(complex, st.integers(0, 9)))
def test_drawn(data, uuid, moment, order, number):
    size = data.draw(st.integers(1, 5))
    assume(size > 0)
    target(float(size))
    assert len(data.draw(st.lists(st.characters(), min_size=size, max_size=size))) == size


class Machine(RuleBasedStateMachine):
    values = Bundle("values")

    @initialize()
    def begin(self):
        self.held = []

    @rule(target=values, value=st.integers())
    def add(self, value):
        self.held.append(value)
        return value

    @precondition(lambda self: self.held)
    @rule(value=values)
    def remove(self, value):
        self.held = [v for v in self.held if v != value]

    @invariant()
    def is_a_list(self):
        assert isinstance(getattr(self, "held", []), list)


TestMachine = Machine.TestCase


@pytest.mark.xfail(strict=True, raises=AssertionError)
@given(st.lists(st.integers()))
@settings(max_examples=500)
def test_that_fails(values):
    note("of no interest")
    assert {"sum": sum(values), "text": "one\\ntwo"} == {"sum": min(sum(values), 100), "text": "one\\ntwo"}
"""

PLAIN_IDS = ["test_plain[1]", "test_plain[2]"]
PROPERTIES_IDS = ["test_values", "test_drawn", "TestMachine::runTest", "test_that_fails"]
