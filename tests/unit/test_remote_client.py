"""The polling client with a fetcher that does as it is told: schedule, listeners, statuses, closing, what is said."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuf_server import EARLIER, LATER, NOW, Server

from harness.errors import ClosedError, SettingsError
from harness.remote import failures, messages
from harness.remote.backoff import Schedule
from harness.remote.client import Client
from harness.remote.errors import ExpiredError, StoreError, TargetError
from harness.remote.failures import FailureLog
from harness.remote.fetch import FetchError, TokenError, UnimplementedError, UnreachableError
from harness.remote.messages import Updater
from harness.remote.serve import answers
from harness.remote.serve.repository import Content
from harness.remote.state import ApplyState, ApplyStatus, State
from harness.remote.wire import config_pb2 as pb
from harness.telemetry import Registry

ONE, TWO, OTHER = "datadog/2/TESTING1/a/x", "datadog/2/TESTING1/b/x", "employee/TESTING2/c/x"
ACK = ApplyStatus(ApplyState.ACKNOWLEDGED)


class Fetching:
    """Answers from ``server``, or raises what ``trouble`` gives first; remembers what was asked."""

    def __init__(self, server: Server | None = None, trouble: Iterable[Exception | None] = ()) -> None:
        self.server = server or Server()
        self.trouble = list(trouble)
        self.asked: list[pb.ClientGetConfigsRequest] = []
        self.closed = 0

    def fetch(self, request: pb.ClientGetConfigsRequest) -> pb.ClientGetConfigsResponse:
        messages.check(request)
        self.asked.append(pb.ClientGetConfigsRequest.FromString(request.SerializeToString()))
        error = self.trouble.pop(0) if self.trouble else None
        if error is not None:
            raise error
        return answers.answer(self.server.publish(), request)

    def close(self) -> None:
        self.closed += 1

    def serve(self, **files: str) -> None:
        """These files by the names of the paths above, as the next targets."""
        self.server.files = {globals()[name]: Content(raw.encode(), 1) for name, raw in files.items()}
        self.server.targets_version += 1


def client(fetching: Fetching, **options: Any) -> Client:
    defaults: dict[str, Any] = {"clock": lambda: NOW, "uniform": lambda: 0.0, "metrics": Registry()}
    state = options.pop("state", None) or State.verified(fetching.server.roots[0])
    return Client(fetching, state, products=["TESTING1", "TESTING2"], **defaults | options)


def count(made: Client, name: str, *tags: str) -> int:
    return made._counters.counter(name, *tags).value


# The schedule.


@given(st.lists(st.booleans(), max_size=14), st.floats(0, 1, exclude_max=True))
def test_waits_and_reports_are_those_of_the_schedule(outcomes: list[bool], uniform: float) -> None:
    """For any sequence of good and bad updates; the model is ``Schedule``, of which ``test_backoff`` has the laws."""
    fetching = Fetching(trouble=[None if good else UnreachableError(f"error {n}") for n, good in enumerate(outcomes)])
    made, model = client(fetching, uniform=lambda: uniform), Schedule.every(5)
    for n, good in enumerate(outcomes):
        wait = made.poll()
        state = fetching.asked[-1].client.state
        assert (state.has_error, state.error) == (bool(model.last_error), model.last_error)
        model = model.success() if good else model.failure(f"error {n}")
        assert wait == model.wait(lambda: uniform)
        assert made.schedule == model
    assert count(made, "polls") == len(outcomes)
    assert count(made, "failed", "kind:UnreachableError") == outcomes.count(False)


@given(st.lists(st.booleans(), max_size=6), st.integers(0, 3))
def test_a_service_that_is_not_there_is_never_asked_again(before: list[bool], after: int) -> None:
    trouble = [None if good else UnreachableError("x") for good in before]
    fetching = Fetching(trouble=[*trouble, UnimplementedError("no such service"), *[None] * after])
    with client(fetching, wait=lambda event, seconds: False) as made:
        made.start()
        assert made._thread is not None
        made._thread.join()
        assert len(fetching.asked) == len(before) + 1
        made.start()
        assert not made.running


def test_the_first_update_is_at_once_and_starting_is_once() -> None:
    fetching, waits, go = Fetching(), [], threading.Semaphore(0)

    def wait(event: threading.Event, seconds: float) -> bool:
        waits.append(seconds)
        go.acquire()
        return event.is_set()

    made = client(fetching, wait=wait)
    before = set(threading.enumerate())
    for _ in range(3):
        made.start()
    go.release(2)
    while len(waits) < 3:
        pass
    assert len(set(threading.enumerate()) - before) == 1
    made._closing.set()
    go.release()
    made.close()
    assert (waits, len(fetching.asked)) == ([5.0, 5.0, 5.0], 3)


def test_an_error_that_nobody_thought_of_is_one_like_others(caplog: pytest.LogCaptureFixture) -> None:
    made = client(Fetching(trouble=[None, ZeroDivisionError("what"), None]))
    assert made.poll() == 5
    assert made.poll() == 10
    assert "what" in caplog.text
    assert "Traceback" in caplog.text
    assert made.poll() == 5


# Updates.


def test_an_update_that_fails_changes_nothing_and_tells_nobody() -> None:
    fetching, told = Fetching(), []
    made = client(fetching)
    made.subscribe("TESTING1", lambda configs, report: told.append(dict(configs)))
    fetching.serve(ONE="one")
    made.poll()
    state = made.state
    fetching.serve(ONE="two")
    fetching.server.expires = EARLIER
    assert made.poll() == 10
    assert made.state is state
    assert len(told) == 1
    fetching.server.expires = LATER
    assert made.poll() == 5
    # The request of that poll told of the failure, and nothing else had changed.
    assert "targets 3 expired" in fetching.asked[-1].client.state.error
    assert [c.raw for c in told[-1].values()] == [b"two"]


def test_a_clock_that_is_far_off() -> None:
    fetching = Fetching()
    fetching.serve(ONE="one")
    made = client(fetching, clock=lambda: NOW + timedelta(days=4000))
    with pytest.raises(ExpiredError, match="clock is wrong"):
        made.update()
    assert made.state.configs == {}
    assert made.poll() == 1


def test_an_expired_server_is_told() -> None:
    class Expired(Fetching):
        def fetch(self, request: pb.ClientGetConfigsRequest) -> pb.ClientGetConfigsResponse:
            return pb.ClientGetConfigsResponse(config_status=pb.CONFIG_STATUS_EXPIRED)

    made = client(Expired())
    made.poll()
    assert made._counters.gauge("expired").value == 1


def test_every_new_state_is_kept_before_it_counts() -> None:
    fetching, kept = Fetching(), []
    made = client(fetching, keep=kept.append)
    made.poll()
    fetching.serve(ONE="one")
    made.poll()
    made.poll()
    assert [state.targets_version for state in kept] == [1, 2]
    assert kept[-1] is made.state

    def full(state: State) -> None:
        raise StoreError("the disk is full")

    told: list[str] = []
    made = client(fetching, keep=full)
    made.subscribe("TESTING1", lambda configs, report: told.append("told"))
    made.poll()
    assert (made.state.targets_version, told) == (0, [])


def test_an_unchanged_request_is_not_made_again() -> None:
    fetching = Fetching()
    fetching.serve(ONE="one")
    made = client(fetching)
    made.poll()
    first = made._next_request()
    made.poll()
    assert made._next_request() is first
    for change in (
        lambda: made.report({ONE: ACK}),
        lambda: made.set_agent_name("me"),
        lambda: made.describe(Updater()),
        lambda: made.subscribe("ASM", lambda configs, report: None),
        lambda: fetching.trouble.append(UnreachableError("x")) or made.poll(),  # type: ignore[func-returns-value]
        lambda: fetching.serve(ONE="two") or made.poll(),  # type: ignore[func-returns-value]
    ):
        before = made._next_request()
        change()
        assert made._next_request() is not before
        assert made._next_request() is made._next_request()


def test_who_asks() -> None:
    fetching = Fetching()
    made = client(fetching, id="me")
    made.poll()
    made.set_agent_name("first")
    made.set_agent_name("second")
    made.poll()
    made.describe(Updater(("a:b",)))
    made.set_agent_name("third")
    made.poll()
    clients = [asked.client for asked in fetching.asked]
    assert [c.id for c in clients] == ["me"] * 3
    assert [c.client_agent.name for c in clients] == ["unknown", "first", ""]
    assert [c.is_updater for c in clients] == [False, False, True]
    with pytest.raises(SettingsError):
        made.describe("me")  # type: ignore[arg-type]
    assert client(Fetching()).id != client(Fetching()).id


# Listeners.


def test_listeners_of_what_changed_in_the_order_of_subscription() -> None:
    fetching, told = Fetching(), []
    made = client(fetching)

    def listener(name: str) -> Callable[..., None]:
        return lambda configs, report: told.append((name, sorted(configs)))

    made.subscribe("TESTING2", listener("first"))
    made.subscribe("TESTING1", listener("second"))
    made.subscribe("TESTING2", listener("third"))
    fetching.serve(ONE="1", OTHER="1")
    made.poll()
    made.subscribe("TESTING1", listener("late"))
    assert told == [("first", [OTHER]), ("second", [ONE]), ("third", [OTHER])]
    made.poll()
    assert len(told) == 3, "nothing changed, and a late subscription is not told what was before it"
    fetching.serve(ONE="1", TWO="2", OTHER="1")
    made.poll()
    assert told[3:] == [("second", [ONE, TWO]), ("late", [ONE, TWO])]
    fetching.serve(ONE="1", TWO="2")
    made.poll()
    assert told[5:] == [("first", []), ("third", [])]


def test_products_that_can_never_come_are_refused() -> None:
    made = client(Fetching())
    with pytest.raises(SettingsError, match="'MINE'"):
        made.subscribe("MINE", lambda configs, report: None)
    own = State.verified(Server().roots[0], products=frozenset({"MINE"}))
    Client(Fetching(), own, products=["MINE"]).close()


def test_listeners_may_call_the_client() -> None:
    """All of it; with a lock held, each of these would wait for ever."""
    fetching, seen = Fetching(), []

    def listener(configs: Any, report: Any) -> None:
        report(dict.fromkeys(configs, ACK))
        made.report(dict.fromkeys(configs, ACK))
        made.set_agent_name("named by a listener")
        made.subscribe("TESTING2", lambda configs, report: seen.append("new"))
        seen.append(made.configs("TESTING1")[ONE].status)
        made.close()

    made = client(fetching)
    made.subscribe("TESTING1", listener)
    fetching.serve(ONE="1")
    made.poll()
    assert seen == [ACK]


def test_a_listener_that_raises_marks_its_configurations_and_stops_no_other() -> None:
    fetching, told = Fetching(), []

    def acknowledge(configs: Any, report: Any) -> None:
        report(dict.fromkeys(configs, ACK))
        told.append(sorted(configs))

    def broken(configs: Any, report: Any) -> None:
        report(dict.fromkeys(configs, ACK))
        raise TargetError("cannot take this")

    made = client(fetching)
    for product, listener in (("TESTING1", broken), ("TESTING1", acknowledge), ("TESTING2", acknowledge)):
        made.subscribe(product, listener)
    fetching.serve(ONE="1", TWO="2", OTHER="3")
    assert made.poll() == 5, "a listener's trouble is no failure of the update"
    assert told == [[ONE, TWO], [OTHER]]
    error = ApplyStatus(ApplyState.ERROR, "cannot take this")
    assert {path: config.status for path, config in made.state.configs.items()} == {ONE: error, TWO: error, OTHER: ACK}
    made.poll()
    states = {(c.product, c.apply_state, c.apply_error) for c in fetching.asked[-1].client.state.config_states}
    assert states == {("TESTING1", 3, "cannot take this"), ("TESTING2", 2, "")}


def test_a_status_is_of_the_content_that_it_was_said_of() -> None:
    """A listener may report much later; what has come meanwhile is not what it speaks of."""
    fetching, reports = Fetching(), []
    made = client(fetching)
    made.subscribe("TESTING1", lambda configs, report: reports.append(report))
    fetching.serve(ONE="1", TWO="2")
    made.poll()
    fetching.serve(ONE="other", TWO="2")
    made.poll()
    reports[0]({ONE: ACK, TWO: ACK, OTHER: ACK})
    assert {path: config.status for path, config in made.state.configs.items()} == {ONE: ApplyStatus(), TWO: ACK}
    reports[1]({ONE: ACK})
    assert made.state.configs[ONE].status == ACK


# Closing.


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("times", [1, 2])
def test_closing(started: bool, times: int) -> None:
    fetching, before = Fetching(), threading.active_count()
    made = client(fetching)
    if started:
        made.start()
    for _ in range(times):
        made.close()
    made.start()
    assert not made.running
    assert threading.active_count() == before
    assert fetching.closed == times
    assert len(fetching.asked) <= int(started)


def test_closing_while_an_answer_is_on_its_way() -> None:
    """It is not applied any more, and nobody hears of it."""
    fetching, told, arrived, on = Fetching(), [], threading.Event(), threading.Event()
    fetching.serve(ONE="1")

    class Slow(Fetching):
        def fetch(self, request: pb.ClientGetConfigsRequest) -> pb.ClientGetConfigsResponse:
            arrived.set()
            on.wait(60)
            return fetching.fetch(request)

        def close(self) -> None:
            on.set()

    made = client(Slow(fetching.server))
    made.subscribe("TESTING1", lambda configs, report: told.append(configs))
    made.start()
    assert arrived.wait(60)
    made.close()
    assert (made.running, told, made.state.targets_version) == (False, [], 0)
    with pytest.raises(ClosedError):
        made.update()


# What a person reads.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_trouble_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    fetching = Fetching()
    made = client(fetching, monotonic=clock)
    fetching.trouble = [UnreachableError(f"try {n}") for n in range(50)]
    for _ in range(50):
        made.poll()
        clock.now += 5
    assert [record.getMessage() for record in caplog.records] == ["no remote configuration yet: try 0"]
    assert caplog.records[0].levelno == logging.INFO
    made.poll()
    assert caplog.messages[1:] == ["remote configuration works again after 50 failures"]
    made.poll()
    fetching.trouble = [FetchError("other kind"), UnreachableError("try 51"), TokenError("third kind")]
    for _ in range(3):
        made.poll()
    assert caplog.messages[2:] == [f"remote configuration stays as it is: {kind} kind" for kind in ("other", "third")]
    assert caplog.records[-1].levelno == logging.ERROR
    clock.now += failures.AGAIN
    fetching.trouble = [UnreachableError("still")]
    made.poll()
    assert caplog.messages[4:] == ["remote configuration stays as it is: still"]


def test_what_a_server_says_reaches_no_terminal(caplog: pytest.LogCaptureFixture) -> None:
    made = client(
        Fetching(trouble=[UnreachableError("one\ntwo \x1b[2J\u2028 \ud800 \xe9"), UnimplementedError("a\rb")])
    )
    made._failures._log.setLevel(logging.INFO)
    made.poll()
    made.poll()
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        r"one\ntwo \x1b[2J\u2028 \ud800 " + "\xe9",
        r"a\rb",
    ]


@given(st.lists(st.tuples(st.sampled_from([FetchError, TokenError, None]), st.floats(0, 100)), max_size=60))
def test_a_kind_of_trouble_is_one_line_in_ten_minutes(steps: list[tuple[type[FetchError] | None, float]]) -> None:
    lines: list[tuple[float, str]] = []
    clock = Clock()

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((clock.now, record.getMessage()))

    log = logging.Logger("of this test")
    log.addHandler(Lines())
    said = FailureLog(log, clock)
    for kind, seconds in steps:
        clock.now += seconds
        if kind is None:
            said.over()
        else:
            said.say(kind(kind.__name__), first=False)
    for kind in (FetchError, TokenError):
        times = [when for when, words in lines if words.endswith(kind.__name__)]
        assert all(later - earlier >= failures.AGAIN for earlier, later in itertools.pairwise(times))
        assert bool(times) == any(step[0] is kind for step in steps)
    troubles = [words for _, words in lines if "again" not in words]
    assert len(lines) - len(troubles) <= len(troubles)


def test_a_mistake_of_ours_is_told_with_its_place_and_in_words_that_harm_no_terminal(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What an error quotes of a server's words may not write to a terminal, nor begin a line of the log."""

    def listener(*_: object) -> None:
        try:
            raise ValueError("\x1b[2Jcleared\nERROR forged")
        except ValueError as error:
            raise RuntimeError("worse\r\x1b]0;title\x07") from error

    fetching = Fetching()
    fetching.serve(ONE="1")
    made = client(fetching)
    made.subscribe("TESTING1", listener)
    made.poll()
    try:
        listener()
    except RuntimeError as error:
        FailureLog(logging.getLogger("harness.remote.client"), Clock()).say(error, first=False)
    assert len(caplog.records) == 2
    for record in caplog.records:
        said = logging.Formatter("%(levelname)s %(message)s").format(record)
        assert [char for char in said if not char.isprintable() and char != "\n"] == []
        assert not [line for line in said.splitlines()[1:] if line.startswith("ERROR")]
        assert "worse\\r\\x1b]0;title\\x07" in said
        assert "ValueError: \\x1b[2Jcleared\\nERROR forged" in said
        assert "in listener" in said


def test_polls_of_many_threads_are_one_after_another() -> None:
    """Nothing of the client breaks when listeners, statuses and polls come from everywhere."""
    fetching = Fetching()
    fetching.serve(ONE="1", TWO="2")
    made = client(fetching)
    made.subscribe("TESTING1", lambda configs, report: report(dict.fromkeys(configs, ACK)))
    dice = random.Random(1)
    calls = [
        lambda: made.report({ONE: ACK}),
        lambda: made.set_agent_name("x"),
        lambda: made.configs("TESTING1"),
        lambda: made._next_request(),
    ]
    done = threading.Event()
    failed: list[BaseException] = []

    def hammer() -> None:
        try:
            while not done.is_set():
                dice.choice(calls)()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(20):
        fetching.serve(ONE=str(n), TWO="2")
        assert made.poll() == 5
    done.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert made.state.targets_version == fetching.server.targets_version
