"""What a hostile or broken serving side could answer instead, by name.

Without the keys of a repository an attacker can alter, cut, mix, repeat and withhold what was published, and sign
with keys of his own. Law (a client's, which tests hold it to): whatever is sent, the client's state is one that was
published, and not an older one than it had. What nobody signs, and so nobody can verify, is which of the listed files
a client is to have, and that there is no newer root: a server that leaves some out is believed until the targets'
next version. A way that has nothing to work on (a replay without a past) answers
honestly; chance is an argument. What happens below a message, on the wire, is ``wire_faults``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, SSlibKey

from harness.errors import SettingsError
from harness.remote.serve import answers, repository
from harness.remote.serve.repository import Published
from harness.remote.wire import config_pb2 as pb


class Broken(StrEnum):
    """No answer at all."""

    HANG = "hang"
    """Silence, for as long as the caller waits."""
    ENDLESS = "endless"
    """Messages without end."""
    HUGE = "huge"
    """One message that is larger than a client takes."""
    GARBAGE = "garbage"
    """Bytes that are no message."""
    FAIL = "fail"
    """An internal error."""
    WRONG_SERVICE = "wrong-service"
    """A server that has no such service."""


@dataclass(frozen=True)
class Scene:
    """What a way to misbehave has to work with: what is published, what was before, and what was asked."""

    published: Published
    past: Sequence[Published]
    asked: pb.ClientGetConfigsRequest
    dice: random.Random

    def whole(self, published: Published | None = None) -> pb.ClientGetConfigsResponse:
        """What an honest server would say of ``published`` to one who has other targets."""
        return answers.whole(published or self.published, self.asked)


Way = Callable[[Scene], pb.ClientGetConfigsResponse]
WAYS: dict[str, Way] = {}


def _way(build: Way) -> Way:
    WAYS[build.__name__.replace("_", "-")] = build
    return build


def names() -> tuple[str, ...]:
    """Every way there is."""
    return (*WAYS, *Broken)


def misbehave(name: str, scene: Scene) -> pb.ClientGetConfigsResponse | Broken:
    """The answer that this way gives. SettingsError if there is no such way."""
    if name in WAYS:
        return WAYS[name](scene)
    try:
        return Broken(name)
    except ValueError:
        raise SettingsError(f"there is no way {name!r} to misbehave", hint=f"one of {', '.join(names())}") from None


@_way
def flip(scene: Scene) -> pb.ClientGetConfigsResponse:
    """One bit of one root, the targets or a file."""
    return _altered(scene, lambda raw: _flipped(raw, scene.dice))


@_way
def cut(scene: Scene) -> pb.ClientGetConfigsResponse:
    """A root, the targets or a file loses its end."""
    return _altered(scene, lambda raw: raw[: scene.dice.randrange(len(raw))] if raw else raw)


@_way
def replay(scene: Scene) -> pb.ClientGetConfigsResponse:
    """What was right once."""
    return scene.whole(scene.dice.choice(scene.past)) if scene.past else scene.whole()


@_way
def mix(scene: Scene) -> pb.ClientGetConfigsResponse:
    """Parts of what was published at different times."""
    one = scene.whole()
    other = scene.whole(scene.dice.choice(scene.past)) if scene.past else scene.whole()
    part = scene.dice.choice(["roots", "targets", "target_files", "client_configs"])
    one.ClearField(part)
    one.MergeFrom(_only(other, part))
    return one


@_way
def swap(scene: Scene) -> pb.ClientGetConfigsResponse:
    """Each file has another one's bytes."""
    made = scene.whole()
    bodies = [file.raw for file in made.target_files]
    for file, raw in zip(made.target_files, bodies[1:] + bodies[:1], strict=True):
        file.raw = raw
    return made


@_way
def withhold(scene: Scene) -> pb.ClientGetConfigsResponse:
    """A root or a file is not sent."""
    made = scene.whole()
    parts = [part for part in (made.roots, made.target_files) if part]
    if parts:
        part: Any = scene.dice.choice(parts)
        del part[scene.dice.randrange(len(part))]
    return made


@_way
def invent(scene: Scene) -> pb.ClientGetConfigsResponse:
    """A configuration that the targets do not list."""
    made = scene.whole()
    path = "employee/TESTING1/invented/config"
    made.target_files.add(path=path, raw=b"{}")
    made.client_configs.append(path)
    return made


@_way
def roll_back(scene: Scene) -> pb.ClientGetConfigsResponse:
    """The present targets as an earlier version; the signature is no longer theirs."""
    return _renumbered(scene, scene.published.targets_version - 1)


@_way
def fast_forward(scene: Scene) -> pb.ClientGetConfigsResponse:
    """The present targets as a version that no later one can pass; the signature is no longer theirs."""
    return _renumbered(scene, 2**31 - 1)


@_way
def forge(scene: Scene) -> pb.ClientGetConfigsResponse:
    """Targets that say what the attacker likes, signed with a key of his own."""
    made = scene.whole()
    signed = json.loads(made.targets)["signed"] | {"version": scene.published.targets_version + 1, "targets": {}}
    made.targets = repository.sign(signed, [_stranger(scene)])
    del made.client_configs[:]
    return made


@_way
def usurp(scene: Scene) -> pb.ClientGetConfigsResponse:
    """One more root, with keys of the attacker's own and signed by them."""
    made = scene.whole()
    root = json.loads(scene.published.roots[-1])["signed"]
    stranger = _stranger(scene)
    key = stranger.public_key
    root["version"] += 1
    root["keys"] = {key.keyid: key.to_dict()}
    for role in root["roles"].values():
        role["keyids"] = [key.keyid]
    made.roots.append(repository.sign(root, [stranger]))
    signed = json.loads(made.targets)["signed"]
    made.targets = repository.sign(signed, [stranger])
    return made


@_way
def disguise(scene: Scene) -> pb.ClientGetConfigsResponse:
    """A root in the place of the targets."""
    made = scene.whole()
    made.targets = scene.published.roots[-1]
    return made


@_way
def shuffle(scene: Scene) -> pb.ClientGetConfigsResponse:
    """The honest answer with its parts in another order and some of them twice: to be accepted."""
    made = scene.whole()
    for part in ("roots", "target_files", "client_configs"):
        values: Any = getattr(made, part)
        items = list(values) * 2
        scene.dice.shuffle(items)
        del values[:]
        values.extend(items)
    return made


def _altered(scene: Scene, change: Callable[[bytes], bytes]) -> pb.ClientGetConfigsResponse:
    made = scene.whole()
    at = scene.dice.randrange(len(made.roots) + 1 + len(made.target_files))
    if at < len(made.roots):
        made.roots[at] = change(made.roots[at])
    elif at == len(made.roots):
        made.targets = change(made.targets)
    else:
        file = made.target_files[at - len(made.roots) - 1]
        file.raw = change(file.raw)
    return made


def _flipped(raw: bytes, dice: random.Random) -> bytes:
    if not raw:
        return b"\0"
    at = dice.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ 1 << dice.randrange(8)]) + raw[at + 1 :]


def _renumbered(scene: Scene, version: int) -> pb.ClientGetConfigsResponse:
    made = scene.whole()
    metadata = json.loads(made.targets)
    metadata["signed"]["version"] = version
    made.targets = json.dumps(metadata).encode()
    return made


def _only(answer: pb.ClientGetConfigsResponse, part: str) -> pb.ClientGetConfigsResponse:
    made = pb.ClientGetConfigsResponse()
    made.CopyFrom(answer)
    for field in answer.DESCRIPTOR.fields:
        if field.name != part:
            made.ClearField(field.name)
    return made


def _stranger(scene: Scene) -> CryptoSigner:
    private = Ed25519PrivateKey.from_private_bytes(scene.dice.randbytes(32))
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key()))
