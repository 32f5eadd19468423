"""A session with its serving side over loopback TLS: what is pushed is seen to change what the programs report."""

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from remote_site import TOKEN, Site
from waiting import wait_for

from fixtures.workloads import libraries, tcp
from fixtures.workloads import tls as workload
from harness.ebpf import core
from harness.remote.endpoint import Endpoint
from harness.session import Session, Settings
from harness.session.settings import Live, Remote, Watch
from harness.telemetry import Registry
from harness.watcher.tls import Traffic

pytestmark = [pytest.mark.thorough, pytest.mark.requires("btf", "fentry")]

ROOT = Path(__file__).parents[2]
TRACER, WATCHER, AGENT = "employee/TRACER/a/x", "employee/WATCHER/a/x", "datadog/2/AGENT_CONFIG/{}/x"
ACKNOWLEDGED, ERROR = 2, 3


@pytest.fixture(scope="module", autouse=True)
def _nothing_left(left_behind):
    """Of the whole module: its session attaches and detaches from test to test."""
    with left_behind():
        yield


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture(scope="module")
def session(live, settings, site, tmp_path_factory):
    core.reset()
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text(TOKEN)
    endpoint = Endpoint(site.url, ca=site.certificates / "ca.pem", seconds=60)
    remote = Remote(endpoint, token, site.directory.root, interval=0.05)
    wanted = Settings(settings, Live(rules=(Watch(r"libssl\.so"),)), tracer="fentry", remote=remote)
    with Session(live, wanted, metrics=Registry()) as session:
        yield session


@pytest.fixture(autouse=True)
def _nothing_served(request):
    """Each test begins and ends with a session that has no remote configuration."""
    yield
    if "session" in request.fixturenames:
        site, session = (request.getfixturevalue(name) for name in ("site", "session"))
        site.host.way = None
        for file in site.directory.published().files:
            site.remove(file)
        version = site.directory.published().targets_version
        # The request after the update says so, and before it the listeners have run.
        wait_for(lambda: {client.state.targets_version for client in list(site.host.seen.values())} == {version})
        assert session.live == session.settings.live


def push(site, path, content):
    """Serve it, and wait for the word on it: its state and error."""
    site.put(path, content)
    version = site.directory.published().files[path].version
    product = path.split("/")[-3]
    told = wait_for(lambda: {t for t in site.told(product) if t[0] == version and t[1] in (ACKNOWLEDGED, ERROR)})
    ((_, state, error),) = told
    return state, error


def seen(session, exchange):
    """How many ends of the exchange the tracer told, once it has told of a later connection that it always sees."""
    mark, told = v6_connection(), set()

    def marked():
        told.update((conn.tuple.source, conn.tuple.sport) for conn in session.take_closed())
        return mark in told

    wait_for(marked)
    return len(told & {exchange.client, exchange.server})


def v6_connection():
    """A connection over IPv6, opened and closed: what these tests never switch off."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listener:
        client = socket.create_connection(listener.getsockname()[:2])
        server, _ = listener.accept()
        with client, server:
            at = client.getsockname()[:2]
            client.sendall(b"x")
            server.recv(1)
    return at


def test_a_push_switches_probes_off_and_on(session, site, record_property):
    assert seen(session, tcp.exchange(10, 20)) == 2
    assert push(site, TRACER, {"collect_tcp_v4": False}) == (ACKNOWLEDGED, "")
    assert seen(session, tcp.exchange(11, 21)) == 0
    assert push(site, TRACER, {"collect_tcp_v4": True, "max_closed_connections_buffered": 50}) == (ACKNOWLEDGED, "")
    assert seen(session, tcp.exchange(12, 22)) == 2
    assert push(site, TRACER, {"collect_udp_v4": False, "collect_udp_v6": False}) == (ACKNOWLEDGED, "")
    programs = set(session.tracer.programs)
    assert not [name for name in programs if name.startswith("udp")]
    site.remove(TRACER)
    wait_for(lambda: not site.told("TRACER"))
    assert programs < set(session.tracer.programs), "without a file the session's own settings hold again"
    record_property("kmt.tracer", str(session.tracer))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"collect_tcp_v4": False, "max_tracked_connections": 5}, "max_tracked_connections is fixed"),
        ({"collect_tcp_v4": "no"}, "must be True or False"),
        ({"collect_tcp_v4": False, "nonsense": 1}, "'nonsense' is not known"),
        (b"{", "no JSON"),
    ],
    ids=["fixed", "type", "unknown", "json"],
)
def test_what_is_invalid_is_told_and_changes_nothing(session, site, content, reason):
    state, error = push(site, TRACER, content)
    assert state == ERROR
    assert reason in error
    assert seen(session, tcp.exchange(13, 23)) == 2


@pytest.mark.parametrize("way", ["forge", "usurp", "flip", "garbage"])
def test_a_hostile_server_changes_nothing(session, site, way):
    before = session.client.state
    site.host.way = way
    site.put(TRACER, {"collect_tcp_v4": False})
    failures = session.client.schedule
    wait_for(lambda: session.client.schedule != failures)
    assert session.client.schedule.last_error
    assert session.client.state.configs == before.configs
    assert seen(session, tcp.exchange(14, 24)) == 2
    site.host.way = None
    wait_for(lambda: session.client.schedule.last_error == "")
    wait_for(lambda: session.live.tracer.collect_tcp_v4 is False)
    assert seen(session, tcp.exchange(15, 25)) == 0


def test_rules_of_the_watcher_are_pushed(session, site, tmp_path):
    path = libraries.library(tmp_path, "libmine-crypto.so.1")
    words = [
        sys.executable,
        "-c",
        "import ctypes, sys; ctypes.CDLL(sys.argv[1]); print(flush=True); input()",
        str(path),
    ]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        process.stdout.readline()
        traced = lambda: {file.path.rsplit("/", 1)[1] for file in session.watcher.registry.traced()}  # noqa: E731
        assert path.name not in traced()
        assert push(site, WATCHER, {"rules": [{"pattern": "crypto.so"}]}) == (ACKNOWLEDGED, "")
        wait_for(lambda: path.name in traced())
        state, error = push(site, WATCHER, {"rules": [{"pattern": "("}]})
        assert state == ERROR
        assert "no regular expression" in error
        assert path.name in traced()
        assert push(site, WATCHER, {"rules": []}) == (ACKNOWLEDGED, "")
        wait_for(lambda: not traced())
        process.stdin.close()


def test_the_log_level_is_pushed(session, site):
    order = {"order": ["mine"], "internal_order": []}
    site.put(AGENT.format("configuration_order"), order)
    assert push(site, AGENT.format("mine"), {"name": "x", "config": {"log_level": "debug"}})[0] == ACKNOWLEDGED
    wait_for(lambda: logging.getLogger("harness").level == logging.DEBUG)


def test_a_pushed_rule_counts_plaintext(session, site, tmp_path):
    """With the action ``tls``: to the byte, for each process, and in the metrics once a process has ended."""
    workload.certificate(tmp_path)

    def moved():
        counted = {metric.name: metric.value for metric in session._metrics.metrics()}
        return [counted.get(f"usm.tls.{side}_bytes", 0) for side in ("received", "sent")]

    words = [sys.executable, "-c", "import ssl; print(flush=True); input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as user:
        user.stdout.readline()
        assert push(site, WATCHER, {"rules": [{"pattern": r"libssl\.so", "action": "tls"}]}) == (ACKNOWLEDGED, "")
        tls = session.libraries.tls
        wait_for(tls.hooked)
        before = moved()
        with workload.ends(tmp_path, 12_345, 54_321) as (client, server):
            traffic = tls.traffic()
            assert traffic[client] == Traffic(received=54_321, sent=12_345)
            assert traffic[server] == Traffic(received=12_345, sent=54_321)
        session.libraries.look()
        assert moved() == [value + 66_666 for value in before]
        assert not {client, server} & tls.traffic().keys(), "who has ended makes room"
        site.remove(WATCHER)
        wait_for(lambda: not tls.hooked())
        user.stdin.close()


def test_the_agent_by_hand(site, tmp_path, bpf_dir, loaded, left_behind, record_property):
    """``python -m harness run``: metrics to read, SIGTERM to end it, and then nothing of it is left in the kernel.

    With the tracer whose programs the kernel takes off when the process has gone.
    """
    config = tmp_path / "session.toml"
    (tmp_path / "token").write_text(TOKEN)
    config.write_text(
        f"""
        [tracer]
        kind = "fentry"
        [remote]
        url = "{site.url}"
        ca = "{site.certificates / "ca.pem"}"
        root = "{site.directory.root}"
        token = "token"
        interval = 0.1
        deadline = 60
        keep = "kept"
        agent_name = "by hand"
        [debug]
        address = "unix:{tmp_path}/debug"
        """
    )
    site.put(TRACER, {"collect_udp_v4": False})
    others = loaded()
    with left_behind(), agent(config, bpf_dir) as process:
        started = json.loads(process.stdout.readline())
        assert started["event"] == "started"
        assert started["tracer"].startswith("fentry")
        assert started["debug"] == f"unix:{tmp_path}/debug"
        wait_for(lambda: applied(site, "by hand") == [ACKNOWLEDGED])
        metrics = scrape(f"{tmp_path}/debug")
        assert 'remote__client__version{role="root"} 1.0' in metrics
        tcp.exchange(10, 20)
        wait_for(lambda: value(scrape(f"{tmp_path}/debug"), "tracer__tcp_closed_total") >= 2)
        assert value(metrics, "tracer__events_lost_total") == 0
        assert {kind for kind, _ in loaded() - others} >= {"prog", "map"}
        last = tcp.exchange(11, 21)
        begun = time.monotonic()
        process.send_signal(signal.SIGTERM)
        *closed, stopped = map(json.loads, process.stdout)
        assert {line["event"] for line in closed} == {"closed"}
        sources = [line["source"] for line in closed]
        assert [sources.count(f"{address}:{port}") for address, port in (last.client, last.server)] == [1, 1], sources
        assert stopped["event"] == "stopped"
        assert process.wait() == 0
        record_property("sigterm_seconds", round(time.monotonic() - begun, 3))
    assert (tmp_path / "kept" / "state.json").exists()
    assert not (tmp_path / "debug").exists()
    site.host.seen.clear()


@contextmanager
def agent(config, bpf_dir):
    """``python -m harness run``, killed if it does not end by itself."""
    words = [sys.executable, "-m", "harness", "run", "--config", str(config), "--json"]
    env = os.environ | {"KMT_BPF_DIR": str(bpf_dir)}
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


def applied(site, name):
    """The apply states that the agent of that name last told."""
    agents = [client for client in list(site.host.seen.values()) if client.client_agent.name == name]
    return [config.apply_state for client in agents for config in client.state.config_states]


def value(metrics, name):
    """Of the one metric of that name."""
    return float(re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE)[1])


def scrape(path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return b"".join(iter(lambda: sock.recv(1 << 16), b"")).decode()
