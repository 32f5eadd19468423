"""The client between an honest server and every way to misbehave, through the messages as bytes.

The machine's server signs real metadata; what was ever published is remembered. Whatever is answered, the client is
where an honest server had put it, or where it was.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import timedelta
from threading import Event
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from remote_site import Site, token
from strategies import contents, key_names
from tuf_server import NOW, Server

from harness.remote import messages, paths
from harness.remote.client import Client
from harness.remote.errors import RemoteError
from harness.remote.fetch import DeadlineError, FetchError
from harness.remote.serve import answers, misbehave
from harness.remote.serve.misbehave import Broken, Scene
from harness.remote.serve.repository import Content, Published
from harness.remote.serve.wire_faults import Fault, Relay
from harness.remote.state import ApplyState, ApplyStatus, State
from harness.remote.wire import config_pb2 as pb
from harness.telemetry import Registry

PATHS = [f"datadog/2/{product}/{name}/x" for product in ("TESTING1", "TESTING2") for name in "ab"]
SUBSCRIBED = {"TESTING1", "TESTING2"}
VERSION = Content(b"", 0)


class Between:
    """Carries messages as bytes to the machine's server, or to what it was told to be."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def fetch(self, request: pb.ClientGetConfigsRequest) -> pb.ClientGetConfigsResponse:
        asked = pb.ClientGetConfigsRequest.FromString(request.SerializeToString())
        messages.check(asked)
        published = self.machine.publish()
        answer: pb.ClientGetConfigsResponse | Broken = answers.answer(published, asked)
        if self.machine.way is not None:
            scene = Scene(published, self.machine.past, asked, random.Random(self.machine.seed))
            answer = misbehave.misbehave(self.machine.way, scene)
        if answer is Broken.GARBAGE:
            return messages.parse_answer(b"\xff" * 20)
        if isinstance(answer, Broken):
            raise DeadlineError(f"no answer: {answer}")
        return messages.parse_answer(answer.SerializeToString())

    def close(self) -> None:
        pass


class Machine(RuleBasedStateMachine):
    """``server`` is honest; ``way`` is what stands in its place during a hostile poll."""

    @initialize(root=key_names("root", 2), signers=key_names("targets", 2))
    def start(self, root: tuple[str, ...], signers: tuple[str, ...]) -> None:
        self.server = Server(root, signers)
        self.past: list[Published] = []
        self.way: str | None = None
        self.seed = 0
        self.now = NOW
        self.told: list[tuple[str, dict[str, bytes]]] = []
        self.client = Client(
            Between(self),
            State.verified(self.server.roots[0]),
            clock=lambda: self.now,
            uniform=lambda: 0.5,
            metrics=Registry(),
        )
        for product in sorted(SUBSCRIBED):
            self.client.subscribe(product, self.listener(product))

    def listener(self, product: str) -> Any:
        def listen(configs: Any, report: Any) -> None:
            self.told.append((product, {path: config.raw for path, config in configs.items()}))
            report({path: ApplyStatus(ApplyState.ACKNOWLEDGED) for path in configs})

        return listen

    def publish(self) -> Published:
        """What is published now; it joins the past when something newer is."""
        published = self.server.publish()
        if not self.past or self.past[-1].targets != published.targets or self.past[-1].roots != published.roots:
            self.past.append(published)
        return published

    def change(self) -> None:
        self.server.targets_version += 1
        self.publish()

    # What an honest server does.

    @rule(path=st.sampled_from(PATHS), raw=contents)
    def put(self, path: str, raw: bytes) -> None:
        self.server.files[path] = Content(raw, self.server.files.get(path, VERSION).version + 1)
        self.change()

    @rule(path=st.sampled_from(PATHS))
    def remove(self, path: str) -> None:
        self.server.files.pop(path, None)
        self.change()

    @rule(root=key_names("root", 2), signers=key_names("targets", 2), thresholds=st.tuples(*[st.integers(1, 2)] * 2))
    def rotate(self, root: tuple[str, ...], signers: tuple[str, ...], thresholds: tuple[int, int]) -> None:
        own = min(thresholds[0], len(root)), min(thresholds[1], len(signers))
        self.server.rotate(root=root, targets=signers, thresholds=own)
        self.change()

    @rule(days=st.integers(1, 40))
    def time_passes(self, days: int) -> None:
        """The server signs in time; what is a year old has expired, roots too."""
        self.now += timedelta(days=days)
        self.server.expires = self.server.root_expires = self.now + timedelta(days=365)
        self.server.rotate()
        self.change()

    # What the client does.

    @rule()
    def poll(self) -> None:
        """A new version: who has the present one is sent nothing, also if a hostile server left something out."""
        self.change()
        self.client.poll()
        assert self.client.schedule.last_error == ""
        state = self.client.state
        assert state.targets_version == self.server.targets_version
        assert state.root_version == len(self.server.roots)
        assert {path: c.raw for path, c in state.configs.items()} == {p: c.raw for p, c in self.server.files.items()}
        assert {path: c.version for path, c in state.configs.items()} == {
            p: c.version for p, c in self.server.files.items()
        }
        told = len(self.told)
        self.client.poll()
        assert len(self.told) == told, "the same again is no news"

    @rule(way=st.sampled_from(misbehave.names()), seed=st.integers(0, 2**32))
    def hostile(self, way: str, seed: int) -> None:
        before, told, failures = self.client.state, len(self.told), self.client.schedule.errors
        self.way, self.seed = way, seed
        wait = self.client.poll()
        self.way = None
        after = self.client.state
        refused = bool(self.client.schedule.last_error) or (not self.client.schedule.succeeded)
        if refused:
            assert after is before
            assert len(self.told) == told
            assert self.client.schedule.errors >= failures
        else:
            self.was_published(after, before)
        if way in REFUSED:
            assert refused
        if way == "shuffle":
            assert not refused
        assert wait is not None

    def was_published(self, state: State, before: State) -> None:
        """The state has files of one moment's targets, no older than those before."""
        assert state.targets_version >= before.targets_version
        assert state.root_version >= before.root_version
        assert state.trusted is not None
        # A byte between tokens, or of a signature that is not needed, may differ.
        assert signed(state.trusted.raw) == signed(self.server.roots[state.root_version - 1])
        (moment,) = {p.targets_version: p for p in self.past if p.targets_version == state.targets_version}.values()
        for path, config in state.configs.items():
            assert (config.raw, config.version) == moment.files[path]

    @invariant()
    def listeners_know_what_there_is(self) -> None:
        """For each product: what was told last is what there is; whatever came was acknowledged."""
        for product in SUBSCRIBED:
            last = [configs for name, configs in self.told if name == product]
            now = {path: config.raw for path, config in self.client.state.of(product).items()}
            assert (last[-1] if last else {}) == now
        assert all(c.status.state is ApplyState.ACKNOWLEDGED for c in self.client.state.configs.values())
        assert all(paths.parse(path).product in SUBSCRIBED for path in self.client.state.configs)


def signed(root: bytes) -> Any:
    return json.loads(root)["signed"]


REFUSED = {"roll-back", "fast-forward", "forge", "usurp", "disguise", "invent", *Broken}
"""Ways that nobody may ever fall for. The others may by chance say nothing but what is true."""

Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestMachine = Machine.TestCase


@pytest.mark.parametrize("way", misbehave.names())
def test_every_way_is_one(way: str) -> None:
    """Each differs from the honest answer, given something to work on."""
    server = Server(files={path: Content(path.encode(), 1) for path in PATHS})
    past = [server.publish()]
    server.rotate(root=("root-1",))
    server.rotate(root=("root-2",))
    server.files = {path: Content(path.upper().encode(), 2) for path in PATHS}
    server.targets_version = 2
    asked = messages.request(State.verified(server.roots[0]), "x" * 21, sorted(SUBSCRIBED), messages.Agent())
    honest = answers.answer(server.publish(), asked)
    for seed in range(20):
        answer = misbehave.misbehave(way, Scene(server.publish(), past, asked, random.Random(seed)))
        if isinstance(answer, Broken):
            continue
        assert answer != honest or way in ("mix", "cut"), seed
        try:
            State.verified(server.roots[0]).apply(messages.update_of(answer), now=NOW)
        except RemoteError:
            continue
        assert way not in REFUSED


# The same over real connections.


@pytest.fixture(scope="module", params=["grpcs", "https"])
def wired(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wired]:
    folder = tmp_path_factory.mktemp("wired")
    with Site(folder, request.param) as site, Relay(f"127.0.0.1:{site.server.port}") as relay:
        yield Wired(site, relay)


class Wired:
    """A serving side whose connections pass a relay that may break them."""

    def __init__(self, site: Site, relay: Relay) -> None:
        self.site, self.relay, self.turn = site, relay, 0
        self.moments: list[dict[str, bytes]] = []

    def client(self, seconds: float = 30.0) -> Client:
        url = f"{self.site.form}://localhost:{self.relay.port}"
        fetcher = self.site.endpoint(url=url, seconds=seconds).fetcher(token)
        return Client(fetcher, self.site.state(), products=sorted(SUBSCRIBED), metrics=Registry())

    def put(self) -> dict[str, bytes]:
        """Serve new content, and give all that is served."""
        self.turn += 1
        for path in PATHS:
            self.site.put(path, f"{path} {self.turn}".encode())
        self.moments.append({path: content.raw for path, content in self.site.directory.published().files.items()})
        return self.moments[-1]


def contents_of(client: Client) -> dict[str, bytes]:
    return {path: config.raw for path, config in client.state.configs.items()}


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(["drop", "flip"]), after=st.integers(0, 6000))
def test_a_broken_connection_changes_all_or_nothing(wired: Wired, kind: Any, after: int) -> None:
    wired.relay.fault = None
    with wired.client() as client:
        served = wired.put()
        wired.relay.fault = Fault(kind, after)
        before = client.state
        try:
            client.update()
        except FetchError:
            assert client.state is before
        else:
            assert contents_of(client) == served
        wired.relay.fault = None
        for _ in range(200):
            client.poll()
            if contents_of(client) == served:
                break
            Event().wait(0.01)
        assert contents_of(client) == served


@pytest.mark.parametrize("way", misbehave.names())
def test_no_way_gets_past_a_real_wire(wired: Wired, way: str) -> None:
    wired.relay.fault = None
    with wired.client() as client:
        first = wired.put()
        client.update()
        wired.site.directory.rotate("targets")
        second = wired.put()
        wired.site.host.way = way
        slow = wired.client(0.3)
        for each in (slow, client) if way not in ("hang", "endless", "huge") else (slow,):
            before = each.state
            each.poll()
            if each.schedule.last_error or not each.schedule.succeeded:
                assert each.state is before
            else:
                assert way not in REFUSED
                # A new client may be shown what was true once; one that has seen more, not.
                moments = [first, second] if each is client else wired.moments
                assert any(contents_of(each).items() <= moment.items() for moment in moments)
        slow.close()
        wired.site.host.way = None
        client.update()
        assert contents_of(client) == second != first
