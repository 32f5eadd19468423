"""Everything that can go wrong with a serving side that a client has known well, over a real wire.

Whatever it is: a typed error that is counted, back-off, the last good configuration kept, and one line for a person.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from remote_site import TOKEN, Site

from harness.remote import fetch
from harness.remote.client import Client
from harness.remote.errors import ExpiredError, ThresholdError
from harness.remote.serve.wire_faults import Relay
from harness.telemetry import Registry

PATH = "datadog/2/TESTING1/a/config"
POLLS = 3
"""In trouble; and one line, not so many."""


class World:
    """A site, a client that has polled it once, and what may go wrong around them."""

    def __init__(self, path: Path, form: str) -> None:
        self.path = path
        self.site = Site(path / "site", form)
        self.relay = Relay(f"127.0.0.1:{self.site.server.port}")
        self.token: Callable[[], str] = lambda: TOKEN
        self.ahead = timedelta()
        self.metrics = Registry()
        url = f"{form}://localhost:{self.relay.port}"
        self.client = Client(
            self.site.endpoint(url=url, seconds=60.0).fetcher(lambda: self.token()),
            self.site.state(),
            products=["TESTING1"],
            clock=lambda: datetime.now(UTC) + self.ahead,
            uniform=lambda: 0.0,
            metrics=self.metrics,
        )

    def no_token(self) -> None:
        self.token = lambda: ""

    def token_that_cannot_be_read(self) -> None:
        self.token = (self.path / "none").read_text

    def wrong_token(self) -> None:
        self.token = lambda: "wrong"

    def clock_far_ahead(self) -> None:
        self.ahead = timedelta(days=4000)

    def expired_targets(self) -> None:
        self.site.directory.expire("targets")

    def hang(self) -> None:
        self.site.host.way = "hang"
        fetcher: Any = self.client._fetcher
        fetcher._endpoint = replace(fetcher._endpoint, seconds=0.3)

    def garbage(self) -> None:
        self.site.host.way = "garbage"

    def more_than_110_mebibytes(self) -> None:
        self.site.host.way = "huge"

    def forged(self) -> None:
        self.site.host.way = "forge"

    def failing(self) -> None:
        self.site.host.way = "fail"

    def gone(self) -> None:
        self.relay.close()

    def of_another_authority(self) -> None:
        """From the next connection on: somebody else answers there."""
        self.stranger = Site(self.path / "stranger", self.site.form)
        self.relay._to = f"127.0.0.1:{self.stranger.server.port}"

    def close(self) -> None:
        self.client.close()
        self.relay.close()
        for site in (self.site, getattr(self, "stranger", None)):
            if site is not None:
                site.close()


TROUBLE: dict[Callable[[World], None], type[Exception]] = {
    World.no_token: fetch.TokenError,
    World.token_that_cannot_be_read: fetch.TokenError,
    World.wrong_token: fetch.RefusedError,
    World.clock_far_ahead: ExpiredError,
    World.expired_targets: ExpiredError,
    World.hang: fetch.DeadlineError,
    World.garbage: fetch.AnswerError,
    World.more_than_110_mebibytes: fetch.AnswerError,
    World.forged: ThresholdError,
    World.failing: fetch.ServerError,
    World.gone: fetch.UnreachableError,
}


@pytest.fixture(params=["grpcs", "https"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    for name in ("site", "stranger"):
        (tmp_path / name).mkdir()
    made = World(tmp_path, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("trouble", TROUBLE, ids=lambda trouble: trouble.__name__)
def test_trouble(world: World, trouble: Callable[[World], None], caplog: pytest.LogCaptureFixture) -> None:
    stays_as_it_was(world, trouble, TROUBLE[trouble], caplog)


@pytest.mark.parametrize("world", ["https"], indirect=True)
def test_a_certificate_that_has_become_wrong(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """Over HTTPS, where every request is a connection."""
    stays_as_it_was(world, World.of_another_authority, fetch.CertificateError, caplog)
    assert not world.stranger.host.seen, "no request, and so no token, went to a server that is not trusted"


def stays_as_it_was(
    world: World, trouble: Callable[[World], None], error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "harness.remote.client")
    client, told = world.client, []
    client.subscribe("TESTING1", lambda configs, report: told.append(dict(configs)))
    world.site.put(PATH, b"good")
    assert client.poll() == 5.0
    world.site.put(PATH, b"not to be seen")
    caplog.clear()
    trouble(world)
    assert [client.poll() for _ in range(POLLS)] == [10.0, 15.0, 25.0]
    failed = {m.tags: m.value for m in world.metrics.metrics() if m.name == "remote.client.failed"}
    assert failed == {(f"kind:{error.__name__}",): POLLS}
    assert client.configs("TESTING1")[PATH].raw == b"good"
    assert len(told) == 1
    (line,) = [record for record in caplog.records if record.name == "harness.remote.client"]
    assert line.levelname == "ERROR"
    assert line.message.startswith("remote configuration stays as it is: ")
    assert line.exc_info is None
    assert "\n" not in line.getMessage()
    assert TOKEN not in caplog.text


def test_another_service_is_left_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.site.put(PATH, b"good")
    assert world.client.poll() == 5.0
    world.site.host.way = "wrong-service"
    assert world.client.poll() is None
    assert world.client.configs("TESTING1")[PATH].raw == b"good"
    assert "remote configuration is off" in caplog.text
