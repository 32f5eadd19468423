"""The fuzzer's targets. Whatever bytes arrive, remote configuration takes them or answers with a typed error.

A target is a function of bytes; nothing but a ``HarnessError`` may get out of it. Where a missing signature would end
the way at once, the target signs what it is given. ``fuzz.py`` runs them by atheris.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from securesystemslib.exceptions import FormatError
from tuf_server import NOW, Server, sign

from harness.errors import HarnessError
from harness.remote import agent_config, json_form, messages, metadata, paths, persist, tuf
from harness.remote.serve import answers
from harness.remote.state import State, Update
from harness.remote.store.repository import Metadata, TrustedRepository
from harness.remote.wire import config_pb2 as pb

CORPUS = Path(__file__).resolve().parent / "corpus"
"""Inputs to begin with, in a folder a target."""

SERVER = Server(files={"datadog/2/TESTING1/a/b": (b"x", 1)})
ROOT = tuf.load_root(SERVER.roots[0])
HELD = State.verified(SERVER.roots[0])
HELD = HELD.apply(SERVER.answer(HELD), now=NOW).state
TARGETS: dict[str, Callable[[bytes], object]] = {}


def target(function: Callable[[bytes], object]) -> Callable[[bytes], object]:
    """Put it into the table."""
    TARGETS[function.__name__] = function
    return function


def run(name: str, data: bytes) -> None:
    """One input to one target; what it raises is an escape."""
    with contextlib.suppress(HarnessError):
        TARGETS[name](data)


@target
def root(data: bytes) -> None:
    with contextlib.suppress(HarnessError):
        tuf.load_root(data)
    tuf.extend(ROOT, [data])


@target
def signed_root(data: bytes) -> None:
    raw = _signed(data, "root-0")
    with contextlib.suppress(HarnessError):
        tuf.load_root(raw)
    with contextlib.suppress(HarnessError):
        TrustedRepository.begin("fuzz", raw)
    trusted = tuf.extend(ROOT, [raw]).trusted
    tuf.check_in_force(trusted, NOW)


@target
def targets(data: bytes) -> None:
    with contextlib.suppress(HarnessError):
        tuf.read_targets(data, ROOT, NOW)
    listed = tuf.believe_targets(data)
    for state in (State.unverified(), HELD):
        with contextlib.suppress(HarnessError):
            state.apply(Update(targets=data, client_configs=tuple(listed.files)), now=NOW)


@target
def signed_targets(data: bytes) -> None:
    raw = _signed(data, "targets-0")
    listed = tuf.read_targets(raw, ROOT, NOW)
    files = dict.fromkeys(listed.files, b"x")
    got = HELD.apply(Update(targets=raw, files=files, client_configs=tuple(files)), now=NOW).state
    assert got.configs.keys() == files.keys()
    assert got.kept is not None
    assert State.restored(SERVER.roots[0], got.kept).oldest_targets == got.targets_version


@target
def envelope(data: bytes) -> None:
    """Any signatures around something that one of them fits."""
    whole = json.loads(SERVER.answer(HELD).targets)
    whole["signatures"] = _json(data)
    tuf.read_targets(json.dumps(whole).encode(), ROOT, NOW)


@target
def config_path(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    place = paths.parse(text)
    assert paths.parse(str(place)) == place


@target
def expiry(data: bytes) -> None:
    when = metadata.expiry_of({"expires": data.decode("utf-8", "replace")}, "root")
    assert when.tzinfo is not None


@target
def agent_config_files(data: bytes) -> None:
    parts = data.split(b"\0")
    names = ["a", "b", agent_config.ORDER_ID]
    agent_config.merge({f"datadog/2/AGENT_CONFIG/{n}/f": raw for n, raw in zip(names, parts, strict=False)})


@target
def kept_file(data: bytes) -> None:
    """As it is, and with a digest that fits."""
    with contextlib.suppress(HarnessError):
        persist._decode(data, Path("fuzz"))
    whole = _json(data)
    if isinstance(whole, dict):
        whole.pop("sha256", None)
        kept = persist._decode(persist._text(whole | {"sha256": persist._digest(whole)}), Path("fuzz"))
        State.restored(SERVER.roots[0], kept)


@target
def store_metadata(data: bytes) -> None:
    """Parts of what a backend sends for one repository, with a zero byte between them."""
    timestamp, snapshot, targets, *delegated = [*data.split(b"\0"), b"", b"", b""][:5]
    begun = TrustedRepository.begin("fuzz", SERVER.roots[0])
    begun.update(
        Metadata((data,), timestamp, snapshot, targets, {f"role-{n}": raw for n, raw in enumerate(delegated)}), NOW
    )


@target
def answer(data: bytes) -> None:
    """What a server sends, as protobuf: parsed, applied to two states, and the next request made."""
    _applied(messages.update_of(messages.parse_answer(data)))


@target
def answer_json(data: bytes) -> None:
    """The same as JSON; what was parsed is the same when it has been written and parsed again."""
    parsed = json_form.load(data, pb.ClientGetConfigsResponse)
    assert json_form.load(json_form.dump(parsed), pb.ClientGetConfigsResponse) == parsed
    _applied(messages.update_of(parsed))


@target
def request(data: bytes) -> None:
    """What a client sends, and what an honest server answers to it."""
    with contextlib.suppress(DecodeError):
        answers.answer(SERVER.publish(), pb.ClientGetConfigsRequest.FromString(data))


def _applied(update: Update) -> None:
    for state in (HELD, State.unverified()):
        with contextlib.suppress(HarnessError):
            state = state.apply(update, now=NOW).state
        messages.check(messages.request(state, "id", ("ASM",), messages.Agent(), "x"))


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _signed(data: bytes, key: str) -> bytes:
    """Metadata over this JSON; over bytes that are none, or have no canonical form, as they are."""
    body = _json(data)
    try:
        return sign(body, [key]) if isinstance(body, dict) else data
    except (FormatError, ValueError, RecursionError):
        return data
