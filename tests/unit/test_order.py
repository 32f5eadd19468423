"""The order in which pytest is given what guests report: laws of ``kmt/plugin/order.py``."""

from hypothesis import given
from hypothesis import strategies as st

from kmt.plugin.order import InOrder

DUE = st.dictionaries(st.sampled_from(["5.10", "6.1", "7.3"]), st.lists(st.sampled_from("abcdef"), unique=True))


@given(DUE, st.data())
def test_whatever_the_timing_the_order_is_the_same_and_nothing_is_forgotten(due, data):
    coming = [
        (kernel, i) for kernel, ids in due.items() for i in ids if data.draw(st.booleans(), f"{kernel} {i} comes")
    ]
    extra = [(kernel, "z-not-due") for kernel in due if data.draw(st.booleans())]
    events = data.draw(st.permutations([*coming, *extra]))
    ordered, given_out, left = InOrder(due), [], dict.fromkeys(due, 0)
    for kernel, _ in events:
        left[kernel] += 1
    for kernel in [k for k, count in left.items() if not count]:
        ordered.finished(kernel)
    for kernel, nodeid in events:
        ordered.put(kernel, nodeid, (kernel, nodeid))
        left[kernel] -= 1
        if not left[kernel]:
            ordered.finished(kernel)
        given_out += ordered.take()
    given_out += ordered.take()
    in_order = [(kernel, nodeid) for kernel, ids in due.items() for nodeid in [*ids, "z-not-due"]]
    assert given_out == [pair for pair in in_order if pair in {*coming, *extra}]


def test_what_is_in_its_turn_is_not_held_back():
    ordered = InOrder({"5.10": ["a", "b"], "6.1": ["a"]})
    ordered.put("6.1", "a", 3)
    ordered.put("5.10", "b", 2)
    assert list(ordered.take()) == []
    ordered.put("5.10", "a", 1)
    assert list(ordered.take()) == [1, 2]
    ordered.finished("5.10")
    assert list(ordered.take()) == [3]
