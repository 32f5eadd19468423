"""The polling client: asks a serving side for configurations, verifies what it says, and tells who listens.

Laws:

- ``start`` begins once, with an update at once; after ``close`` no thread is left and no listener is called;
- an update that fails for any reason changes nothing: neither the state nor a listener hears of it. One that cannot
  be kept (``keep``, called with each new state before it counts) has failed;
- a server that has no such service is never asked again;
- errors before the first success are neither reported to the server nor make the client wait longer; later ones are
  reported in the next request and back off (``backoff.Schedule``);
- listeners run without the client's lock, in the order of their subscription, those whose product has changed; so
  they may call the client. One that raises marks its product's configurations as Error and stops no other;
- a kind of failure is logged once, not at every poll (``failures.FailureLog``), and counted every time.

Verification is ``state``'s, the wire a ``Fetcher``'s. Clock, chance and waiting are arguments.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from threading import Event, Lock, Thread, current_thread

from harness.errors import ClosedError, SettingsError
from harness.remote import messages
from harness.remote.backoff import Schedule, Uniform
from harness.remote.failures import FailureLog, plain, told
from harness.remote.fetch import Fetcher, UnimplementedError
from harness.remote.messages import Agent, Updater
from harness.remote.state import ApplyState, ApplyStatus, Change, Config, State
from harness.remote.wire.config_pb2 import CONFIG_STATUS_EXPIRED, ClientGetConfigsRequest
from harness.telemetry import DEFAULT, PROMETHEUS, MetricGroup, Registry

Configs = Mapping[str, Config]
Report = Callable[[Mapping[str, ApplyStatus]], None]
"""Takes apply statuses by path, during the listener's call or later, from any thread."""
Listener = Callable[[Configs, Report], None]
"""Called with all configurations of its product by path."""

POLL_INTERVAL = 5.0
_log = logging.getLogger(__name__)


class Client:
    """See the module. Use it as a context manager, or ``close`` it; it closes its fetcher."""

    def __init__(
        self,
        fetcher: Fetcher,
        state: State,
        *,
        who: Agent | Updater | None = None,
        products: Collection[str] = (),
        interval: float = POLL_INTERVAL,
        keep: Callable[[State], None] = lambda state: None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        uniform: Uniform = random.random,
        wait: Callable[[Event, float], bool] = Event.wait,
        monotonic: Callable[[], float] = time.monotonic,
        metrics: Registry = DEFAULT,
        id: str | None = None,
    ) -> None:
        self.id = messages.client_id(os.urandom(messages.ID_LENGTH)) if id is None else id
        self._fetcher = fetcher
        self._state = state
        self._who = who or Agent()
        self._products: list[str] = []
        self._keep = keep
        self._clock, self._uniform, self._wait = clock, uniform, wait
        self._schedule = Schedule.every(interval)
        self._listeners: list[tuple[str, Listener]] = []
        self._lock = Lock()
        self._closing = Event()
        self._thread: Thread | None = None
        self._asked: tuple[object, ...] = ()
        self._request = ClientGetConfigsRequest()
        self._counters = MetricGroup("remote.client", PROMETHEUS, registry=metrics)
        self._failures = FailureLog(_log, monotonic)
        for product in products:
            self._want(product)

    @property
    def state(self) -> State:
        """The last verified state."""
        return self._state

    @property
    def schedule(self) -> Schedule:
        """Where polling stands: errors counted, whether there ever was a success."""
        return self._schedule

    @property
    def running(self) -> bool:
        """Whether the polling thread is alive."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin to poll, once: a second call does nothing, nor does one after ``close``."""
        with self._lock:
            if self._thread is None and not self._closing.is_set():
                self._thread = Thread(target=self._run, name="remote-config", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop for good, from any state; waits for a listener that is running (unless it is the caller)."""
        self._closing.set()
        self._fetcher.close()
        with self._lock:
            thread = self._thread
        if thread is not None and thread is not current_thread():
            thread.join()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def subscribe(self, product: str, listener: Listener) -> None:
        """Ask for ``product`` too, and call ``listener`` at every later update that changes it."""
        with self._lock:
            self._want(product)
            self._listeners.append((product, listener))

    def describe(self, who: Agent | Updater) -> None:
        """Who the next request says that we are."""
        if not isinstance(who, Agent | Updater):
            raise SettingsError(f"a client is an Agent or an Updater, not {who!r}")
        with self._lock:
            self._who = who

    def set_agent_name(self, name: str) -> None:
        """Name the agent, if it has no name yet."""
        with self._lock:
            if isinstance(self._who, Agent) and self._who.name == Agent().name:
                self._who = replace(self._who, name=name)

    def configs(self, product: str) -> Configs:
        """The configurations of a product by path."""
        return self._state.of(product)

    def report(self, statuses: Mapping[str, ApplyStatus]) -> None:
        """Set apply statuses by path; unknown paths are left out."""
        with self._lock:
            self._state = self._state.with_statuses(statuses)

    def poll(self) -> float | None:
        """One round: an update and what follows from it. Seconds until the next, None if there is to be none."""
        self._counters.counter("polls", help="Rounds of asking and applying.").add()
        try:
            changed = self.update()
        except UnimplementedError as error:
            self._count(error)
            _log.warning("remote configuration is off: %s", plain(error))
            return None
        except ClosedError:
            return None
        except Exception as error:
            self._failed(error)
        else:
            if changed:
                self._counters.counter("changed", help="Rounds that changed a product.").add()
            else:
                self._counters.counter("unchanged", help="Rounds that changed nothing.").add()
            self._schedule = self._schedule.success()
            self._failures.over()
        self._counters.gauge("backoff", help="Failures that the wait between rounds reflects.").set(
            self._schedule.errors
        )
        return self._schedule.wait(self._uniform)

    def update(self) -> frozenset[str]:
        """Ask once and apply the answer; the products that changed. Raises FetchError, RemoteError or ClosedError."""
        answer = self._fetcher.fetch(self._next_request())
        expired = self._counters.gauge("expired", help="Whether the agent said that its configurations have expired.")
        expired.set(int(answer.config_status == CONFIG_STATUS_EXPIRED))
        update = messages.update_of(answer)
        with self._lock:
            if self._closing.is_set():
                raise ClosedError("the client is closed")
            before = self._state
            change = before.apply(update, now=self._clock())
            if change.state is not before:
                self._keep(change.state)
            self._state = change.state
        if change.state is not before:
            self._changed(change)
        return change.products

    def _run(self) -> None:
        while (seconds := self.poll()) is not None and not self._wait(self._closing, seconds):
            pass

    def _want(self, product: str) -> None:
        if product not in self._state.products:
            known = ", ".join(sorted(self._state.products))
            raise SettingsError(f"product {product!r} can never be received", hint=f"one of {known}")
        if product not in self._products:
            self._products.append(product)

    def _next_request(self) -> ClientGetConfigsRequest:
        """The request, made anew only if something in it has changed."""
        with self._lock:
            asked = (self._state, self._who, tuple(self._products), self._schedule.last_error)
        if not self._asked or self._asked[0] is not asked[0] or self._asked[1:] != asked[1:]:
            state, who, products, error = asked
            self._request = messages.request(state, self.id, products, who, error)
            self._asked = asked
        return self._request

    def _changed(self, change: Change) -> None:
        """Tell those who listen."""
        for name, value in (("root", change.state.root_version), ("targets", change.state.targets_version)):
            self._counters.gauge("version", f"role:{name}", help="Version in force of a role's metadata.").set(value)
        self._counters.gauge("configs", help="Configurations held.").set(len(change.state.configs))
        with self._lock:
            listeners = [(product, listener) for product, listener in self._listeners if product in change.products]
        broken: dict[str, str] = {}
        for product, listener in listeners:
            configs = change.state.of(product)
            try:
                listener(configs, self._reporter(configs))
            except Exception as error:
                self._counters.counter("listener_errors", f"product:{product}", help="Listeners that raised.").add()
                _log.warning("%s: a listener failed: %s", product, told(error))
                broken.setdefault(product, str(error) or type(error).__name__)
        for product, reason in broken.items():
            configs = change.state.of(product)
            self._reporter(configs)(dict.fromkeys(configs, ApplyStatus(ApplyState.ERROR, reason)))

    def _reporter(self, configs: Configs) -> Report:
        """Takes statuses of these configurations, as long as they are what they were."""

        def report(statuses: Mapping[str, ApplyStatus]) -> None:
            with self._lock:
                now = self._state.configs
                same = {path: s for path, s in statuses.items() if path in now and _same(now[path], configs.get(path))}
                self._state = self._state.with_statuses(same)

        return report

    def _count(self, error: Exception) -> None:
        self._counters.counter("failed", f"kind:{type(error).__name__}", help="Rounds that failed.").add()

    def _failed(self, error: Exception) -> None:
        self._count(error)
        self._failures.say(error, first=not self._schedule.succeeded)
        self._schedule = self._schedule.failure(str(error) or type(error).__name__)


def _same(config: Config, given: Config | None) -> bool:
    return given is not None and config.raw == given.raw
