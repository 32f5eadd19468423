"""What a guest does to be one of its own again; clock, entropy and names need a guest: tests/contract."""

import platform
import random
import tempfile
import uuid

import hypothesis
import pytest
from hypothesis import core, strategies

from kmt.guest import fresh, furnish


@pytest.fixture(autouse=True)
def as_before():
    state = random.getstate()
    yield
    random.setstate(state)


def twice(draw):
    """What ``draw`` gives in two guests of one snapshot: from one state, each after its own reseeding."""
    random.seed(1)
    fresh.reseed()
    one = draw()
    random.seed(1)
    fresh.reseed()
    return one, draw()


def test_random():
    one, other = twice(lambda: random.getrandbits(128))
    assert one != other


def test_a_generator_that_nobody_reseeds_would_repeat():
    random.seed(1)
    one = random.getrandbits(128)
    random.seed(1)
    assert one == random.getrandbits(128)


def test_hypothesis_draws_from_a_new_generator():
    core.threadlocal._hypothesis_global_random = random.Random(1)
    fresh.reseed()
    assert core.threadlocal._hypothesis_global_random is None


def test_hypothesis_examples():
    def draw():
        core.threadlocal._hypothesis_global_random = random.Random(1)
        fresh.reseed()
        seen = []

        # Hypothesis derandomizes by itself where CI is set
        @hypothesis.settings(database=None, derandomize=False, max_examples=20, phases=[hypothesis.Phase.generate])
        @hypothesis.given(strategies.binary(min_size=8, max_size=8))
        def collect(value):
            seen.append(value)

        collect()
        return seen

    assert draw() != draw()


def test_names_that_python_remembers():
    platform.node()
    uuid.getnode()
    tempfile._get_candidate_names()
    fresh.reseed()
    assert platform._uname_cache is None
    assert uuid._node is None
    assert tempfile._name_sequence is None
    assert platform.node()


def test_a_machine_is_given_entropy_before_anything_else_and_goes_on_without(monkeypatch):
    given = []

    def refuse(data):
        given.append(data)
        raise OSError

    def next_step(*_):
        raise InterruptedError("what follows changes this machine")

    monkeypatch.setattr(furnish.fresh, "add_entropy", refuse)
    monkeypatch.setattr(furnish, "Path", next_step)
    with pytest.raises(InterruptedError):
        furnish.furnish("x", b"seed", 0.0)
    assert given == [b"seed"]
