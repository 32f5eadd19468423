"""What stands between a publisher and the servers: the honest answer, or the way that it was told to misbehave."""

from __future__ import annotations

import logging
import random
from threading import Lock
from typing import Protocol

from harness.errors import HarnessError
from harness.remote.serve import answers
from harness.remote.serve.misbehave import Broken, Scene, misbehave
from harness.remote.serve.repository import Published
from harness.remote.wire import config_pb2 as pb

_log = logging.getLogger(__name__)
_REMEMBERED = 16
_CLIENTS = 4096


class UnavailableError(HarnessError):
    """What there is to serve cannot be had just now: the server's own trouble, and not the request's."""


class Publisher(Protocol):
    """A directory of configurations, or the agent's store."""

    def published(self) -> Published:
        """What there is to serve now; the same object as long as it is the same."""
        ...


class Host:
    """Answers requests from what somebody publishes; ``way`` (None: honestly) may be changed at any time."""

    def __init__(self, publisher: Publisher, dice: random.Random) -> None:
        self.way: str | None = None
        self.seen: dict[str, pb.Client] = {}
        """What each client last said, by its id; of the few thousand that said something last."""
        self._publisher = publisher
        self._dice = dice
        self._lock = Lock()
        self._past: list[Published] = []

    def serve(self, asked: pb.ClientGetConfigsRequest) -> pb.ClientGetConfigsResponse | Broken:
        """The answer. MetadataError where the request is refused, UnavailableError where there is nothing to serve."""
        try:
            published = self._publisher.published()
        except HarnessError as error:
            raise UnavailableError(f"nothing to serve: {error}") from error
        with self._lock:
            if not self._past or self._past[-1] is not published:
                self._past = [*self._past[1 - _REMEMBERED :], published]
            past = self._past[:-1]
        honest = answers.answer(published, asked)
        self._note(asked.client)
        if self.way is None:
            return honest
        return misbehave(self.way, Scene(published, past, asked, self._dice))

    def _note(self, client: pb.Client) -> None:
        """Say when what a client tells has changed."""
        with self._lock:
            before = self.seen.pop(client.id, None)
            self.seen[client.id] = client
            if len(self.seen) > _CLIENTS:
                del self.seen[next(iter(self.seen))]
        if before is None or before.state != client.state:
            # Whatever a client says is shown as text: no control character of it reaches a terminal.
            states = [f"{f'{c.product}/{c.id}'!r} v{c.version} state {c.apply_state} {c.apply_error!r}"
                      for c in client.state.config_states]  # fmt: skip
            _log.info(
                "client %r: targets %d, root %d, %s%s",
                client.id, client.state.targets_version, client.state.root_version, ", ".join(states) or "nothing",
                f", error: {client.state.error!r}" if client.state.has_error else "",
            )  # fmt: skip
