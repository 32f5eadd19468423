"""A session's file, and what remote configurations may change: read whole, or refused with what is wrong."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import HarnessError, SettingsError
from harness.remote.errors import ConfigError
from harness.remote.state import Config
from harness.session import settings, updates
from harness.session.settings import Live, Watch, parse
from harness.tracer.settings import TracerSettings

HERE = Path("/etc/agent/session.toml")
WHOLE = r"""
log_level = "debug"
[bpf]
dir = "programs"
btf = "/boot/btf"
ring_buffers = false
[tracer]
kind = "kprobe"
collect_udp_v6 = false
max_tracked_connections = 100
max_closed_connections_buffered = 7
[watcher]
rules = [{pattern = 'libssl\.so', action = "tls"}, {pattern = "x"}]
[remote]
url = "grpcs://localhost:1"
ca = "ca.pem"
token = "token"
root = "root.json"
interval = 2
deadline = 1.5
keep_alive = 20
keep = "kept"
agent_name = "me"
[debug]
address = "127.0.0.1:0"
token = "debug-token"
"""


def test_a_whole_file() -> None:
    made = parse(WHOLE, HERE)
    assert made.bpf.bpf_dir == Path("/etc/agent/programs")
    assert (made.bpf.btf_path, made.bpf.enable_ringbuffers) == (Path("/boot/btf"), False)
    assert made.live == Live(
        TracerSettings(collect_udp_v6=False, max_tracked_connections=100),
        7,
        (Watch(r"libssl\.so", "tls"), Watch("x", "count")),
        "debug",
    )
    assert made.tracer == "kprobe"
    assert made.remote is not None
    assert made.remote.endpoint.ca == Path("/etc/agent/ca.pem")
    assert (made.remote.interval, made.remote.endpoint.seconds, made.remote.endpoint.keep_alive) == (2.0, 1.5, 20.0)
    assert (made.remote.token, made.remote.keep) == (Path("/etc/agent/token"), Path("/etc/agent/kept"))
    assert (made.debug, made.debug_token) == ("127.0.0.1:0", Path("/etc/agent/debug-token"))


def test_an_empty_file_is_the_defaults() -> None:
    made = parse("", HERE, bpf_dir=Path("/programs"))
    assert (made.live, made.remote, made.debug, made.trace, made.watch) == (Live(), None, None, True, True)
    off = parse("[tracer]\nenabled = false\n[watcher]\nenabled = false", HERE, bpf_dir=Path("/programs"))
    assert (off.trace, off.watch) == (False, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", "x is not known"),
        ("[tracer]\ncollect = true", "tracer.collect is not known"),
        ("[remote]\nurl='grpcs://a:1'\ntoken='t'\nroot='r'\nports=1", "remote.ports is not known"),
        ("[bpf]\nx=1", "bpf.x is not known"),
        ("log_level = 'loud'", "log_level"),
        ("log_level = 1", "log_level"),
        ("tracer = 1", "tracer must be a dict"),
        ("[tracer]\nenabled = 1", "tracer.enabled must be a bool"),
        ("[tracer]\ncollect_tcp_v4 = 1", "must be True or False"),
        ("[tracer]\nmax_closed_connections_buffered = 0", "whole number"),
        ("[tracer]\nmax_closed_connections_buffered = true", "whole number"),
        ("[tracer]\nkind = 'x'", "kind is one of"),
        ("[watcher]\nrules = 'x'", "rules must be a list"),
        ("[watcher]\nrules = ['x']", "a rule is"),
        ("[watcher]\nrules = [{pattern='x', more=1}]", "a rule is"),
        ("[watcher]\nrules = [{pattern='('}]", "no regular expression"),
        ("[watcher]\nrules = [{pattern='x', action='y'}]", "action is one of"),
        ("[watcher]\nrules = [{pattern=1}]", "must be text"),
        ("[remote]\nurl='grpcs://a:1'", "needs a url and a token"),
        ("[remote]\nurl='grpcs://a:1'\ntoken='t'", "either a root or unverified"),
        ("[remote]\nurl='grpcs://a:1'\ntoken='t'\nroot='r'\nunverified=true", "either a root or unverified"),
        ("[remote]\nurl='grpcs://a:1'\ntoken='t'\nkeep='r'\nunverified=true", "keep is for verified"),
        ("[remote]\nurl='http://a:1'\ntoken='t'\nroot='r'", "scheme"),
        ("[remote]\nurl='grpcs://a:1'\ntoken='t'\nroot='r'\ninterval=0", "interval"),
        ("[remote]\nurl='grpcs://a:1'\ntoken='t'\nroot='r'\ndeadline=nan", "deadline"),
        ("[remote]\nurl='grpcs://a:1'\ntoken='t'\nroot='r'\nkeep_alive=0", "keep-alive"),
        ("[remote]\nurl='grpcs://a:1'\ntoken='t'\nroot='r'\nkey='k'", "go together"),
        ("[debug]\naddress = 1", "debug.address must be a str"),
        ("[", "session.toml"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parse(text, HERE, bpf_dir=Path("/programs"))


def test_somebody_must_say_where_the_programs_are() -> None:
    with pytest.raises(SettingsError, match="where are the programs"):
        parse("", HERE)


# Remote configurations.

BASE = Live(TracerSettings(collect_udp_v6=False), 100, (Watch("mine"),), "warn")


def files(*contents: Any) -> dict[str, Config]:
    """Files with these contents, JSON unless they are bytes."""
    made = {}
    for n, content in enumerate(contents):
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        path = f"employee/TRACER/{n}/x"
        made[path] = Config(path, "TRACER", str(n), "x", 1, len(raw), {}, raw)
    return made


def test_members_replace_those_of_the_sessions_own() -> None:
    got = updates.tracer(BASE, files({"collect_tcp_v4": False, "max_closed_connections_buffered": 5}))
    assert got == replace(BASE, tracer=replace(BASE.tracer, collect_tcp_v4=False), max_closed_connections_buffered=5)
    rules = [{"pattern": "a"}, {"pattern": "b", "action": "tls"}]
    assert updates.watcher(BASE, files({"rules": rules})) == replace(BASE, rules=(Watch("a"), Watch("b", "tls")))
    assert updates.log_level(BASE, "DEBUG") == replace(BASE, log_level="debug")


def test_without_a_file_the_sessions_own_hold() -> None:
    for read in (updates.tracer, updates.watcher):
        assert read(BASE, {}) == read(BASE, files({})) == BASE
    assert updates.log_level(BASE, "") == BASE


@pytest.mark.parametrize(
    ("read", "content"),
    [
        *[(read, content) for read in (updates.tracer, updates.watcher)
          for content in (b"", b"\xff", b"[" * 100_000, [], 1, None, {"x": 1}, {"\ud800": 1})],
        (updates.tracer, {"max_tracked_connections": 5}),
        (updates.tracer, {"kprobe_max_active": 5}),
        (updates.tracer, {"close_event_pages": 8}),
        (updates.tracer, {"collect_tcp_v4": None}),
        (updates.tracer, {"max_closed_connections_buffered": 1.5}),
        (updates.tracer, {"rules": []}),
        (updates.watcher, {"rules": None}),
        (updates.watcher, {"rules": [{"pattern": "x" * 10 + "("}]}),
        (updates.watcher, {"collect_tcp_v4": True}),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(read: Any, content: Any) -> None:
    with pytest.raises(HarnessError) as raised:
        read(BASE, files(content))
    assert updates.reason(raised.value)


@pytest.mark.parametrize("name", ["max_tracked_connections", "close_event_pages", "kprobe_max_active"])
def test_sizes_of_maps_say_that_they_are_fixed(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is fixed when the programs are loaded"):
        updates.tracer(BASE, files({name: 8}))


def test_two_files_of_one_product() -> None:
    with pytest.raises(ConfigError, match="2 files"):
        updates.tracer(BASE, files({}, {}))


def test_levels_that_are_none() -> None:
    with pytest.raises(ConfigError, match="loud"):
        updates.log_level(BASE, "loud")
    for level in settings.LEVELS:
        assert updates.log_level(BASE, level).log_level == level


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rules", "pattern", "action", *updates.COLLECT, "x"]), inner, max_size=4)
    ),
)


@given(st.one_of(json_values, st.binary(max_size=20)))
def test_no_content_raises_anything_but_a_typed_error(content: Any) -> None:
    for read in (updates.tracer, updates.watcher):
        with contextlib.suppress(HarnessError):
            assert isinstance(read(BASE, files(content)), Live)
