"""(pure) The frames between host and guest.

A frame is a kind (1 byte), a length (4 bytes, network order) and that many bytes: JSON for most kinds, raw bytes
for DATA and OUTPUT. Laws: bytes in any slices give the same frames; a frame over ``LIMIT``, an unknown kind or a
payload that is not what its kind says is a ``WireError``, never a guess. Both sides say their ``VERSION`` first.
Standard library only: this file travels into the guest.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

VERSION = 3
LIMIT = 16 * 1024 * 1024
CHUNK = 64 * 1024
"""How much of a file travels in one DATA frame."""
_HEADER = struct.Struct("!BI")


class WireError(Exception):
    """The other side sent what is no frame of this version."""


class Kind(IntEnum):
    """What a frame means; in brackets who sends it."""

    HELLO = 1
    """[guest] It is up: its keys: ``fresh.hello``. [host] A new run: say it again."""
    PING = 2
    """[guest] Heartbeat of the agent's own process."""
    BYE = 3
    """[host] End the guest."""
    TREE = 4
    """[host] A tar to unpack at ``dest`` follows in DATA frames; the guest answers DONE."""
    DATA = 5
    """[both] Raw bytes of a tar; an empty one ends it."""
    DONE = 6
    """[guest] The request went well: a JSON object with what it gave."""
    FAILED = 7
    """[guest] The request could not be done: ``error``."""
    EXEC = 8
    """[host] Run a command: ``argv, cwd, env, tty, rows, columns``; OUTPUT and one EXIT follow."""
    PYTEST = 9
    """[host] Run pytest in a forked child: its keys: ``runner.run_pytest``."""
    OUTPUT = 10
    """[guest] One byte (1 standard output, 2 standard error), then what was printed."""
    EXIT = 11
    """[guest] The child ended: ``status`` (negative: the signal)."""
    CANCEL = 12
    """[host] Kill the child and all it started; EXIT follows."""
    INPUT = 13
    """[host] Raw bytes for the child's standard input; an empty one ends it."""
    REPORT = 14
    """[guest] A test report as pytest serialises it: ``report``."""
    COLLECTED = 15
    """[guest] What pytest found: ``items`` (ids, locations; markers where it only collects), ``errors``, ``paused``."""
    STARTED = 16
    """[guest] A test begins: ``id``."""
    DATABASE = 17
    """[guest] A question to the example database: ``call`` (fetch, save, delete), ``key``, ``value`` as base64."""
    EXAMPLES = 18
    """[host] The answer to a fetch: ``values`` as base64."""
    ARTIFACTS = 19
    """[host] Send the artefact directory as a tar: DATA frames follow, an empty one ends them."""
    WARM = 20
    """[host] Load what tests will need, ``modules`` too (DONE says what), then be still until the host speaks again."""
    RESUME = 21
    """[host] You came out of a snapshot: ``now, entropy, hostname, machine_id``; the guest answers HELLO."""
    CLOCK = 22
    """[host] What time it is, in seconds since the epoch: ``now``. Not answered."""
    RUN = 23
    """[host] A pytest that waits after COLLECTED runs these ``ids``, in this order."""
    COMPILE = 24
    """[host] Compile ``files`` (name, rewritten) below ``root``: a tar of what came out in DATA frames follows."""
    HEARD = 25
    """[agent, to its child] STARTED, and so all that was said before it, has gone to the host."""


RAW = frozenset({Kind.DATA, Kind.OUTPUT, Kind.INPUT})


@dataclass(frozen=True)
class Frame:
    """A kind and its payload: ``body`` for JSON kinds, ``raw`` for the others."""

    kind: Kind
    body: dict[str, Any]
    raw: bytes = b""


def pack(kind: Kind, body: dict[str, Any] | None = None, raw: bytes = b"") -> bytes:
    """The frame as bytes. Values that JSON does not know are sent as their ``str``."""
    payload = raw if kind in RAW else json.dumps(body or {}, default=str).encode()
    if len(payload) > LIMIT:
        raise WireError(f"a {kind.name} frame of {len(payload)} bytes is over the limit of {LIMIT}")
    return _HEADER.pack(kind, len(payload)) + payload


class Decoder:
    """Bytes in, frames out; what is incomplete waits for more."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take bytes and give each frame that is now whole. Raises WireError."""
        self._buffer += data
        while len(self._buffer) >= _HEADER.size:
            number, length = _HEADER.unpack_from(self._buffer)
            kind = _kind(number)
            if length > LIMIT:
                raise WireError(f"a {kind.name} frame says it has {length} bytes; the limit is {LIMIT}")
            end = _HEADER.size + length
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_HEADER.size : end])
            del self._buffer[:end]
            yield _frame(kind, payload)


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError:
        raise WireError(f"{number} is no kind of frame in version {VERSION}") from None


def _frame(kind: Kind, payload: bytes) -> Frame:
    if kind in RAW:
        return Frame(kind, {}, payload)
    try:
        body = json.loads(payload)
    except ValueError as error:
        raise WireError(f"a {kind.name} frame is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise WireError(f"a {kind.name} frame holds no object")
    return Frame(kind, body)
