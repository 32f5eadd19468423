"""One session: the tracer and the watcher in the kernel, remote configurations applied to them as they come.

Laws: nothing is asked of a server before the programs are in, whichever way they got in; what a start began is ended
if it fails, and everything is ended by ``close``, which comes once from any state. A remote configuration that is
invalid, or that the kernel does not take, is reported as Error with its reason, and what ran before runs on; one that
is applied is Acknowledged. Connections that closed are kept for whoever takes them, the newest first if there is no
room for all; how many were dropped is counted. What closed before ``close`` had the programs off can be taken after it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from threading import Event, Lock, Thread

from harness.debugger import Debugger, DebugServer
from harness.ebpf.events import Conn
from harness.ebpf.settings import BpfSettings
from harness.errors import ClosedError, HarnessError, SettingsError
from harness.kernel_api import KernelApi
from harness.remote import agent_config
from harness.remote.client import Client, Configs, Report
from harness.remote.endpoint import token_of
from harness.remote.failures import plain
from harness.remote.messages import Agent
from harness.remote.persist import StateFile
from harness.remote.state import ApplyState, ApplyStatus, State
from harness.session import updates
from harness.session.libraries import Libraries
from harness.session.settings import LEVELS, Live, Remote, Settings
from harness.telemetry import DEFAULT, PROMETHEUS, MetricGroup, Registry
from harness.tracer import fentry, kprobe, totals
from harness.tracer.select import new_tracer
from harness.tracer.settings import TracerSettings
from harness.tracer.tracer import Tracer
from harness.watcher.watcher import Watcher

Loader = Callable[[KernelApi, BpfSettings, TracerSettings], Tracer]
_LOADERS: Mapping[str, Loader] = {
    "auto": new_tracer,
    "fentry": lambda kernel, bpf, wanted: fentry.load_tracer(kernel, bpf, wanted, fargate=lambda: True),
    "kprobe": kprobe.load_tracer,
}
_log = logging.getLogger(__name__)
_log_of_all = logging.getLogger("harness")
_STEP = 0.1
"""Seconds between two looks for closed connections."""


class Session:
    """See the module. Use it as a context manager, or ``start`` and ``close`` it.

    ``load`` puts the tracer into the kernel (default: the one that the settings ask for). ``tracer``, ``watcher``,
    ``client`` and ``debug`` are None where the settings are without, and before the start.
    """

    def __init__(
        self,
        kernel: KernelApi,
        settings: Settings,
        *,
        load: Loader | None = None,
        metrics: Registry = DEFAULT,
    ) -> None:
        self.settings = settings
        self.live = settings.live
        self.tracer: Tracer | None = None
        self.watcher: Watcher | None = None
        self.client: Client | None = None
        self.debug: DebugServer | None = None
        self._kernel, self._load, self._metrics = kernel, load or _LOADERS[settings.tracer], metrics
        self._closed_connections: deque[Conn] = deque(maxlen=settings.live.max_closed_connections_buffered)
        self._group = MetricGroup("session", PROMETHEUS, registry=metrics)
        self.libraries = Libraries(kernel, settings.bpf, metrics)
        self._dropped = self._group.counter(
            "connections_dropped", help="Closed connections that nobody took before newer ones came."
        )
        self._told = self._group.counter("connections_closed", help="Closed connections that the tracer told of.")
        self._buffer = Lock()
        self._lock = Lock()
        self._stopping = Event()
        self._started = False
        self._wait = True
        self._stack = ExitStack()

    def start(self) -> None:
        """Load, watch, then poll. Raises what the tracer's load, or a setting, raises; a second time does nothing."""
        with self._lock:
            if self._stopping.is_set():
                raise ClosedError("the session has been closed, which is for good")
            if self._started:
                return
            self._started = True
            try:
                self._begin()
            except BaseException:
                self._stopping.set()
                self._stack.close()
                raise

    def close(self, *, wait: bool = True) -> None:
        """Stop polling, then watching and tracing; a second time does nothing.

        Without ``wait`` the kernel may be left to take off the tracer's programs, which do nothing any more: for who
        ends anyway.
        """
        self._stopping.set()
        with self._lock:
            self._wait = wait
            self._stack.close()

    def __enter__(self) -> Session:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def take_closed(self) -> list[Conn]:
        """Connections that closed since the last call."""
        with self._buffer:
            taken = list(self._closed_connections)
            self._closed_connections.clear()
        return taken

    # The flow, in its order.

    def _begin(self) -> None:
        self._stack.callback(_log_of_all.setLevel, _log_of_all.level)
        _set_level(self.live.log_level)
        if self.settings.trace:
            self.tracer = self._stack.enter_context(self._load(self._kernel, self.settings.bpf, self.live.tracer))
            _log.info("tracer: %s", self.tracer)
            drain = Thread(target=self._drain, args=(self.tracer,), name="closed-connections", daemon=True)
            count = totals.publish(self.tracer, self._metrics)
            self._stack.callback(self._end_tracing, self.tracer, drain, count)
            drain.start()
        if self.settings.watch:
            self._stack.callback(self.libraries.close)
            rules = self.libraries.rules(self.live.rules)
            self.watcher = Watcher(self._kernel, self.settings.bpf, rules, metrics=self._metrics)
            self._stack.enter_context(self.watcher)
        if self.settings.debug is not None:
            self.debug = self._debug_server(self.settings.debug)
            self._stack.callback(self.debug.stop)
        if self.settings.remote is not None:
            self.client = self._polling(self.settings.remote)
            self._stack.callback(self.client.close)
            self.client.start()

    def _polling(self, remote: Remote) -> Client:
        state, keep = self._first_state(remote)
        fetcher = remote.endpoint.fetcher(token_of(remote.token))
        self._stack.callback(fetcher.close)
        client = Client(
            fetcher,
            state,
            who=Agent(remote.agent_name),
            interval=remote.interval,
            keep=keep,
            metrics=self._metrics,
        )
        client.subscribe(agent_config.PRODUCT, self._on_agent_config)
        if self.settings.trace:
            client.subscribe(updates.TRACER, self._on(updates.tracer))
        if self.settings.watch:
            client.subscribe(updates.WATCHER, self._on(updates.watcher))
        return client

    def _first_state(self, remote: Remote) -> tuple[State, Callable[[State], None]]:
        if remote.root is None:
            _log.warning("remote configurations are NOT verified: for tests only")
            return State.unverified(products=updates.PRODUCTS), lambda state: None
        try:
            root = remote.root.read_bytes()
        except OSError as error:
            raise SettingsError(f"the first root: {error}") from None
        if remote.keep is None:
            return State.verified(root, products=updates.PRODUCTS), lambda state: None
        file = self._stack.enter_context(StateFile(remote.keep))
        return file.load(root, products=updates.PRODUCTS), file.save

    def _debug_server(self, address: str) -> DebugServer:
        file = self.settings.debug_token
        try:
            token = None if file is None else file.read_text().strip()
        except (OSError, UnicodeError) as error:
            raise SettingsError(f"the token of the debug endpoints: {error}") from None
        debugger = Debugger(token=token, metrics=self._metrics)
        if self.watcher is not None:
            debugger.add_registry(self.watcher.registry)
            debugger.add_attacher("native", self.watcher.attach_pid, self.watcher.detach_pid)
        return DebugServer(debugger, address)

    # Remote configurations.

    def _on(self, read: Callable[[Live, Configs], Live]) -> Callable[[Configs, Report], None]:
        """The listener of a product that ``read`` understands."""

        def listen(configs: Configs, report: Report) -> None:
            try:
                wanted = read(self.settings.live, configs)
                self._apply(wanted, read)
            except HarnessError as error:
                _log.warning("a remote configuration is refused: %s", plain(error))
                report(dict.fromkeys(configs, ApplyStatus(ApplyState.ERROR, updates.reason(error))))
            else:
                report(dict.fromkeys(configs, ApplyStatus(ApplyState.ACKNOWLEDGED)))

        return listen

    def _apply(self, wanted: Live, read: object) -> None:
        if read is updates.tracer:
            self._retrace(wanted.tracer)
            self._resize(wanted.max_closed_connections_buffered)
            self.live = replace(
                self.live,
                tracer=wanted.tracer,
                max_closed_connections_buffered=wanted.max_closed_connections_buffered,
            )
        elif self.watcher is not None:
            self.watcher.set_rules(self.libraries.rules(wanted.rules))
            self.live = replace(self.live, rules=wanted.rules)

    def _retrace(self, wanted: TracerSettings) -> None:
        """Switch what the tracer collects; what was, where the kernel does not take it."""
        if self.tracer is None:
            return
        before = self.tracer.settings
        try:
            self.tracer.collect(**_collected(wanted))
        except HarnessError:
            self.tracer.collect(**_collected(before))
            raise

    def _resize(self, room: int) -> None:
        with self._buffer:
            self._dropped.add(len(self._closed_connections) - room)
            self._closed_connections = deque(self._closed_connections, maxlen=room)

    def _on_agent_config(self, configs: Configs, report: Report) -> None:
        merged = agent_config.merge({path: config.raw for path, config in configs.items()})
        statuses = dict.fromkeys(configs, ApplyStatus(ApplyState.ACKNOWLEDGED))
        if merged.errors:
            statuses = merged.statuses
        else:
            try:
                level = updates.log_level(self.settings.live, merged.log_level).log_level
                _set_level(level)
                self.live = replace(self.live, log_level=level)
            except HarnessError as error:
                statuses = dict.fromkeys(configs, ApplyStatus(ApplyState.ERROR, updates.reason(error)))
        report(statuses)

    # Closed connections.

    def _drain(self, tracer: Tracer) -> None:
        while not self._stopping.is_set():
            try:
                self._hold(tracer.closed(_STEP))
            except HarnessError as error:
                _log.warning("closed connections: %s", error)
                self._stopping.wait(1)

    def _hold(self, conns: list[Conn]) -> None:
        self._told.add(len(conns))
        with self._buffer:
            kept = self._closed_connections
            self._dropped.add(len(kept) + len(conns) - (kept.maxlen or 0))
            kept.extend(conns)

    def _end_tracing(self, tracer: Tracer, drain: Thread, count: Callable[[], None]) -> None:
        """What has closed until nothing listened any more is kept and counted; then the tracer may be closed."""
        self._stopping.set()
        drain.join()
        try:
            tracer.stop(wait=self._wait)
        except HarnessError as error:
            _log.warning("the tracer's programs: %s", error)
        try:
            self._hold(tracer.closed(0))
        except HarnessError as error:
            _log.warning("closed connections: %s", error)
        finally:
            count()


def _collected(wanted: TracerSettings) -> Mapping[str, bool]:
    return {name.removeprefix("collect_"): getattr(wanted, name) for name in updates.COLLECT}


def _set_level(name: str) -> None:
    _log_of_all.setLevel(LEVELS[name.lower()])
