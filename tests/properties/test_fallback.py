"""The fallback chain against its truth table: all 16 settings, each with all 8 ways the stages can end.

The table is ``tests/chain_table.py``, written out by hand.
"""

import itertools

import pytest
from chain_table import TABLE, WORDS
from hypothesis import given
from hypothesis import strategies as st

from harness.ebpf.fallback import STAGES, Stage, Switches, climb, next_stage
from harness.errors import FallbackError

LETTERS = dict(zip("CRP", Stage, strict=True))
CASES = [(bits, "".join(good)) for bits in TABLE for n in range(4) for good in itertools.combinations("CRP", n)]


class Refused(Exception):
    """What a stage that loses raises here."""


def switches(bits):
    return Switches(*(bit == "1" for bit in bits))


def run(bits, good):
    """Climb with real calls: the stages in ``good`` return, the others raise."""
    called = []

    def way(letter):
        def call():
            called.append(letter)
            if letter not in good:
                raise Refused(letter)
            return letter

        return call

    outcome = climb(switches(bits), {LETTERS[letter]: way(letter) for letter in "CRP"})
    return outcome, "".join(called)


def expected_calls(bits, good):
    """The table's row up to the first stage that works."""
    path = TABLE[bits]
    first = next((i for i, letter in enumerate(path) if letter in good), len(path) - 1)
    return path[: first + 1]


def test_every_case_is_there():
    assert len(CASES) == len(set(CASES)) == 128


@pytest.mark.parametrize("bits", TABLE)
def test_truth_table(bits):
    """One row of the table, with all eight ways in which the three stages can end."""
    for good in [good for b, good in CASES if b == bits]:
        outcome, called = run(bits, good)
        calls = expected_calls(bits, good)
        assert called == calls
        last = calls[-1]
        if last in good:
            assert (outcome.winner, outcome.value, outcome.error) == (LETTERS[last], last, None)
        else:
            assert outcome.winner is None
            assert str(outcome.error) == WORDS[last] + last
            if last == "P":
                assert type(outcome.error) is Refused, "the error of the prebuilt stage stays as it is"
            else:
                assert type(outcome.error) is FallbackError
                assert type(outcome.error.__cause__) is Refused
        assert outcome.warnings == len(calls) - 1


@pytest.mark.parametrize("bits", TABLE)
def test_the_record_says_what_became_of_every_stage(bits):
    for good in [good for b, good in CASES if b == bits]:
        outcome, called = run(bits, good)
        assert [a.stage for a in outcome.attempts] == list(Stage)
        assert [a.stage for a in outcome.attempts if a.tried] == [LETTERS[letter] for letter in called]
        assert [a.stage for a in outcome.attempts if a.won] == ([outcome.winner] if outcome.winner else [])
        for attempt in outcome.attempts:
            assert attempt.won or attempt.error or attempt.reason, "a loser says why"
            assert not (attempt.won and attempt.error)


def test_no_stage_is_spoken_of_as_disabled_when_another_won_first():
    outcome, _ = run("1111", "C")
    assert [str(a) for a in outcome.attempts] == [
        "CO-RE: won",
        "runtime: not tried: CO-RE won before it",
        "prebuilt: not tried: CO-RE won before it",
    ]


def test_an_enabled_stage_that_may_not_follow_says_so():
    outcome, _ = run("1100", "R")
    assert str(outcome.attempts[1]) == "runtime: not tried: no stage may follow CO-RE"


def test_what_is_no_exception_passes_through():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        climb(Switches(), dict.fromkeys(Stage, interrupted))


FLAGS = st.builds(Switches, st.booleans(), st.booleans(), st.booleans(), st.booleans())


@given(FLAGS)
def test_order_and_end(flags):
    """Stages come in the order of the table, each at most once, and the plan ends."""
    tried = []
    while (stage := next_stage(flags, tuple(tried))) is not None:
        tried.append(stage)
        assert len(tried) <= len(STAGES)
    order = [row.stage for row in STAGES]
    assert tried
    assert tried == sorted(set(tried), key=order.index)


@given(FLAGS)
def test_allowing_runtime_means_nothing_without_core(flags):
    if not flags.core:
        other = Switches(flags.core, flags.runtime, not flags.allow_runtime, flags.allow_prebuilt)
        assert next_stage(flags, ()) == next_stage(other, ())
        assert next_stage(flags, (Stage.RUNTIME,)) == next_stage(other, (Stage.RUNTIME,))
