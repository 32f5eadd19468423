"""A session on this machine without its programs: order of the flow, failing starts, applying, closing.

With programs, in every kernel: tests/kernel/test_session.py. The tracer here is a stand-in that is told when to fail.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from remote_site import TOKEN, Site
from waiting import wait_for

from harness.cli import main
from harness.ebpf.events import TracerCounters
from harness.ebpf.settings import BpfSettings
from harness.errors import BpfError, ClosedError, HarnessError, SettingsError
from harness.remote.endpoint import Endpoint
from harness.session import Session, Settings
from harness.session.settings import Live, Remote
from harness.telemetry import Registry
from harness.tracer.settings import TracerSettings

ROOT = Path(__file__).parents[2]
TRACER = "employee/TRACER/a/x"
LEVEL = "datadog/2/AGENT_CONFIG/{}/x"


class Tracer:
    """Does as a tracer, for a kernel that refuses what ``refuses`` names."""

    def __init__(self, settings: TracerSettings, log: list[str]) -> None:
        self.settings = settings
        self.log = log
        self.refuses = ""
        self.conns: list[Any] = []
        self.counted = TracerCounters(*range(1, 12))
        self.at_the_end: list[Any] = []
        """What closes between the last look of the thread that looks and the end of the programs."""
        self.lock = threading.Lock()

    def collect(self, **families: bool) -> None:
        self.settings = replace(self.settings, **{f"collect_{name}": on for name, on in families.items()})  # type: ignore[arg-type]
        if self.refuses and families[self.refuses]:
            raise BpfError("attach", 1)

    def closed(self, seconds: float) -> list[Any]:
        with self.lock:
            conns, self.conns = self.conns, []
        if not conns:
            time.sleep(seconds / 10)
        return conns

    def counters(self) -> TracerCounters:
        if self.refuses == "counters":
            raise BpfError("lookup", 1)
        return self.counted

    def missed(self) -> int:
        return 12

    def stop(self, *, wait: bool) -> None:
        self.log.append("off" if wait else "off by the kernel")
        self.conns += self.at_the_end
        if self.refuses == "stop":
            raise BpfError("detach", 1)
        self.counted = self.counted._replace(tcp_closed=self.counted.tcp_closed + len(self.at_the_end))

    def __enter__(self) -> Tracer:
        self.log.append("loaded")
        return self

    def __exit__(self, *exc: object) -> None:
        self.log.append("unloaded")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "site").mkdir()
    with Site(tmp_path / "site", "unix") as site:
        yield site


@pytest.fixture
def settings(tmp_path: Path, site: Site) -> Settings:
    (tmp_path / "token").write_text(TOKEN)
    remote = Remote(Endpoint(site.url, seconds=60), tmp_path / "token", site.directory.root, interval=0.02)
    return Settings(BpfSettings(tmp_path), watch=False, remote=remote)


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    """A session sets the level of the harness's loggers, and no thread of it stays."""
    threads = set(threading.enumerate())
    log = logging.getLogger("harness")
    before = log.level
    yield
    log.setLevel(before)
    wait_for(lambda: {t for t in threading.enumerate() if not t.name.startswith("serving")} <= threads)


def session(settings: Settings, log: list[str] | None = None) -> tuple[Session, Tracer]:
    tracer = Tracer(settings.live.tracer, [] if log is None else log)
    return Session(None, settings, load=lambda *_: tracer, metrics=Registry()), tracer  # type: ignore[arg-type,return-value]


def test_nothing_is_asked_before_the_programs_are_in(settings: Settings, site: Site) -> None:
    asked: list[int] = []

    def load(*_: object) -> Tracer:
        asked.append(len(site.host.seen))
        return Tracer(settings.live.tracer, [])

    with Session(None, settings, load=load, metrics=Registry()):  # type: ignore[arg-type]
        wait_for(lambda: site.host.seen)
    assert asked == [0]


def test_a_load_that_fails_fails_the_start_and_asks_nobody(settings: Settings, site: Site) -> None:
    def load(*_: object) -> Tracer:
        raise BpfError("load", 1)

    made = Session(None, settings, load=load, metrics=Registry())  # type: ignore[arg-type]
    with pytest.raises(BpfError):
        made.start()
    assert not site.host.seen
    made.close()
    with pytest.raises(ClosedError):
        made.start()


@pytest.mark.parametrize("broken", ["root", "ca", "debug", "debug token", "keep"])
def test_a_start_that_fails_later_leaves_nothing(settings: Settings, tmp_path: Path, broken: str) -> None:
    remote = settings.remote
    assert remote is not None
    none = tmp_path / "none"
    (tmp_path / "file").write_text("")
    changed = {
        "root": lambda: replace(settings, remote=replace(remote, root=none)),
        "ca": lambda: replace(settings, remote=replace(remote, endpoint=Endpoint("grpcs://localhost:1", ca=none))),
        "debug": lambda: replace(settings, debug="0.0.0.0:1"),
        "debug token": lambda: replace(settings, debug="127.0.0.1:0", debug_token=none),
        "keep": lambda: replace(settings, remote=replace(remote, keep=tmp_path / "file")),
    }[broken]()
    log: list[str] = []
    made, _ = session(changed, log)
    with pytest.raises(HarnessError):
        made.start()
    assert log == ["loaded", "off", "unloaded"]


def test_closing_from_any_state(settings: Settings) -> None:
    log: list[str] = []
    made, _ = session(settings, log)
    made.close()
    with pytest.raises(ClosedError):
        made.start()
    made, _ = session(settings, log)
    made.start()
    made.start()
    for _ in range(2):
        made.close()
    assert log == ["loaded", "off", "unloaded"]
    assert made.client is not None
    assert not made.client.running


def told(site: Site, product: str, state: int) -> Callable[[], object]:
    return lambda: {words for _, told, words in site.told(product) if told == state}


def test_what_the_kernel_does_not_take_is_undone_and_told(settings: Settings, site: Site) -> None:
    own = replace(settings.live, tracer=replace(settings.live.tracer, collect_udp_v6=False))
    settings = replace(settings, live=own)
    made, tracer = session(settings)
    tracer.refuses = "udp_v6"
    with made:
        site.put(TRACER, {"collect_udp_v6": True, "collect_tcp_v4": False})
        wait_for(told(site, "TRACER", 3))
        assert "EPERM" in str(site.told("TRACER"))
        assert tracer.settings == own.tracer
        assert made.live == own
        site.put(TRACER, {"collect_tcp_v4": False})
        wait_for(told(site, "TRACER", 2))
        assert made.live.tracer == tracer.settings == replace(own.tracer, collect_tcp_v4=False)
        site.remove(TRACER)
        wait_for(lambda: made.live == own)
        assert tracer.settings == own.tracer


def test_layers_of_the_log_level(settings: Settings, site: Site) -> None:
    made, _ = session(settings)
    log = logging.getLogger("harness")
    with made:
        assert log.level == logging.INFO
        site.put(LEVEL.format("mine"), {"name": "x", "config": {"log_level": "error"}})
        site.put(LEVEL.format("configuration_order"), {"order": ["mine"]})
        wait_for(lambda: log.level == logging.ERROR)
        wait_for(lambda: len(site.told("AGENT_CONFIG")) and not told(site, "AGENT_CONFIG", 0)())
        site.put(LEVEL.format("mine"), {"name": "x", "config": {"log_level": "loud"}})
        wait_for(told(site, "AGENT_CONFIG", 3))
        site.put(LEVEL.format("mine"), b"{")
        wait_for(lambda: "no JSON" in str(site.told("AGENT_CONFIG")))
        assert log.level == logging.ERROR
        site.remove(LEVEL.format("mine"))
        wait_for(lambda: log.level == logging.INFO)


def test_closed_connections_wait_for_who_takes_them(settings: Settings, site: Site) -> None:
    settings = replace(settings, live=replace(settings.live, max_closed_connections_buffered=5))
    made, tracer = session(settings)
    dropped = made._group.counter("connections_dropped")
    with made:
        tracer.conns = list(range(8))
        wait_for(lambda: dropped.value == 3)
        assert made.take_closed() == [3, 4, 5, 6, 7]
        assert made.take_closed() == []
        site.put(TRACER, {"max_closed_connections_buffered": 2})
        wait_for(told(site, "TRACER", 2))
        tracer.conns = list(range(8))
        wait_for(lambda: dropped.value == 9)
        assert made.take_closed() == [6, 7]


def test_what_closes_while_the_session_does_can_be_taken_after_it(settings: Settings) -> None:
    made, tracer = session(settings)
    told = made._group.counter("connections_closed")
    tracer.at_the_end = [1, 2, 3]
    with made:
        assert told.value == 0
    assert made.take_closed() == [1, 2, 3]
    assert told.value == 3


def test_who_ends_anyway_does_not_wait_for_the_kernel(settings: Settings) -> None:
    """And misses nothing by it."""
    made, tracer = session(settings)
    tracer.at_the_end = [1, 2, 3]
    with made:
        made.close(wait=False)
        assert made.take_closed() == [1, 2, 3]
        assert counted(made)["tcp_closed"] == 1 + 3
    assert tracer.log[-2:] == ["off by the kernel", "unloaded"], "a second close adds nothing"


def test_what_closed_is_told_though_a_program_does_not_come_off(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    made, tracer = session(settings)
    tracer.at_the_end = [1, 2, 3]
    with made:
        tracer.refuses = "stop"
    assert made.take_closed() == [1, 2, 3]
    assert "the tracer's programs: detach: EPERM" in caplog.text


def counted(made: Session) -> dict[str, int]:
    found = {metric.name: metric.value for metric in made._metrics.metrics() if metric.name.startswith("tracer.")}
    return {name.removeprefix("tracer."): value for name, value in found.items()}


def test_what_the_tracers_programs_counted_are_metrics_to_the_end(settings: Settings) -> None:
    made, tracer = session(settings)
    with made:
        first = counted(made)
        assert list(first.values()) == [*range(1, 12), 12]
        assert first["events_lost"] == 3
        assert first["missed"] == 12
        tracer.counted = tracer.counted._replace(sent_bytes_lost=1000, events_lost=2)
        assert counted(made) == first | {"sent_lost_bytes": 1000}, "a count never goes down"
        tracer.at_the_end = [1, 2]
    assert counted(made) == first | {"sent_lost_bytes": 1000, "tcp_closed": 3}
    tracer.counted = tracer.counted._replace(tcp_closed=50)
    assert counted(made)["tcp_closed"] == 3, "nobody is asked any more"


def test_a_tracer_whose_counts_may_not_be_read_is_unloaded(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    log: list[str] = []
    made, tracer = session(settings, log)
    with made:
        tracer.refuses = "counters"
    assert log[-1] == "unloaded"
    assert "what was counted last cannot be read: lookup: EPERM" in caplog.text


def test_what_was_verified_is_kept(settings: Settings, site: Site, tmp_path: Path) -> None:
    assert settings.remote is not None
    settings = replace(settings, remote=replace(settings.remote, keep=tmp_path / "kept"))
    with session(settings)[0] as made:
        site.directory.rotate("root")
        wait_for(lambda: made.client and made.client.state.root_version == 2)
    site.close()
    with session(settings)[0] as made:
        assert made.client is not None
        assert made.client.state.root_version == 2


def test_unverified_is_said_loudly(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    assert settings.remote is not None
    settings = replace(settings, remote=replace(settings.remote, root=None))
    with session(settings)[0]:
        assert "NOT verified" in caplog.text


def test_debug_endpoints(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "debug-token").write_text("secret\n")
    settings = replace(settings, debug=f"unix:{tmp_path}/d", debug_token=tmp_path / "debug-token")
    with session(settings)[0] as made:
        assert made.debug is not None
        assert made.debug.address == f"unix:{tmp_path}/d"
    assert not (tmp_path / "d").exists()


def test_settings_that_contradict() -> None:
    with pytest.raises(SettingsError):
        Live(max_closed_connections_buffered=0)


@pytest.mark.parametrize("way", [None, "hang"])
def test_the_command(site: Site, tmp_path: Path, way: str | None) -> None:
    """``python -m harness run`` without its programs, as another process: it polls, shows itself, and ends.

    Also while it waits for a server that says nothing.
    """
    site.host.way = way
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "session.toml").write_text(
        f"""
        [bpf]
        dir = "none"
        [tracer]
        enabled = false
        [watcher]
        enabled = false
        [remote]
        url = "{site.url}"
        root = "{site.directory.root}"
        token = "token"
        interval = 0.05
        deadline = 600
        agent_name = "by hand"
        [debug]
        address = "unix:{tmp_path}/d"
        """
    )
    words = [sys.executable, "-m", "harness", "run", "--config", str(tmp_path / "session.toml")]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["debug"] == f"unix:{tmp_path}/d"
            wait_for(lambda: {client.client_agent.name for client in site.host.seen.values()} == {"by hand"})
            process.send_signal(signal.SIGTERM)
            assert json.loads(process.stdout.readline()) == {"event": "stopped"}
            assert process.wait() == 0
        finally:
            process.kill()


@pytest.mark.parametrize(("text", "words"), [("x = 1", "x is not known"), (None, "session.toml"), ("\udcff", "")])
def test_a_file_that_is_none(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str | None,
    words: str,
) -> None:
    monkeypatch.setenv("KMT_BPF_DIR", str(tmp_path))
    file = tmp_path / "session.toml"
    if text is not None:
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert main(["run", "--config", str(file)]) == 1
    assert words in capsys.readouterr().err
