import base64

import pytest

from kmt.run.examples import Examples


def ask(examples, kernel, call, key=b"k", value=b""):
    body = {"call": call, "key": base64.b64encode(key).decode(), "value": base64.b64encode(value).decode()}
    return [base64.b64decode(v) for v in examples.answer(kernel, body)["values"]]


def test_what_one_kernel_saves_every_other_is_given(tmp_path):
    examples = Examples(tmp_path, 2)
    ask(examples, "6.1", "save", value=b"one")
    assert ask(examples, "7.3", "fetch") == [b"one"]
    assert ask(Examples(tmp_path, 2), "5.10", "fetch") == [b"one"]


def test_an_example_is_forgotten_only_when_it_fails_nowhere(tmp_path):
    examples = Examples(tmp_path, 2)
    ask(examples, "6.1", "save", value=b"one")
    ask(examples, "6.1", "delete", value=b"one")
    assert ask(examples, "7.3", "fetch") == [b"one"]
    ask(examples, "6.1", "delete", value=b"one")
    assert ask(examples, "7.3", "fetch") == [b"one"]
    ask(examples, "7.3", "delete", value=b"one")
    assert ask(examples, "7.3", "fetch") == []


def test_an_example_that_fails_on_one_kernel_stays_whatever_the_others_say(tmp_path):
    examples = Examples(tmp_path, 2)
    ask(examples, "6.1", "save", value=b"one")
    ask(examples, "7.3", "delete", value=b"one")
    examples.finished("6.1")
    examples.finished("7.3")
    assert ask(Examples(tmp_path, 1), "5.10", "fetch") == [b"one"]


def test_a_kernel_that_was_never_there_keeps_nothing_alive(tmp_path):
    ask(Examples(tmp_path, 1), "6.1", "save", value=b"one")
    examples = Examples(tmp_path, 2)
    ask(examples, "6.1", "delete", value=b"one")
    assert ask(examples, "6.1", "fetch") == [b"one"]
    examples.finished("7.3")
    assert ask(examples, "6.1", "fetch") == []


@pytest.mark.parametrize("body", [{}, {"key": 3}, {"key": "%%%"}, {"key": "aw==", "value": None}])
def test_a_hostile_question_is_refused(tmp_path, body):
    with pytest.raises(ValueError, match="no question"):
        Examples(tmp_path, 1).answer("6.1", body)
