"""Requests mirror states, and the JSON form says the same as the protobuf one."""

from __future__ import annotations

import contextlib
import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import config_paths, contents, versions
from tuf_server import NOW, Server

from harness.errors import SettingsError
from harness.remote import json_form, messages, paths
from harness.remote.errors import MetadataError
from harness.remote.fetch import AnswerError
from harness.remote.messages import Agent, Package, Updater
from harness.remote.serve import answers
from harness.remote.serve.repository import Content
from harness.remote.state import PRODUCTS, ApplyState, ApplyStatus, Config, State, Update
from harness.remote.wire import config_pb2 as pb

ID = "x" * messages.ID_LENGTH
anything = st.text(st.characters(), max_size=6)
"""Lone surrogates among it."""
hexes = st.binary(min_size=1, max_size=4).map(bytes.hex)
wire_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@st.composite
def states(draw: st.DrawFn) -> State:
    """Any state, whether or not an update could lead to it."""
    configs = {}
    for path in draw(st.lists(config_paths(), max_size=4)):
        place, raw = paths.parse(path), draw(contents)
        hashes = draw(st.dictionaries(st.sampled_from(["sha256", "sha512"]), hexes, min_size=1))
        status = ApplyStatus(draw(st.sampled_from(ApplyState)), draw(anything))
        configs[path] = Config(
            path, place.product, place.config_id, place.file, draw(versions), len(raw), hashes, raw, status
        )
    return State(
        None,
        unverified_root_version=draw(st.integers(1, 2**31)),
        targets_version=draw(st.integers(0, 2**31)),
        opaque=draw(st.binary(max_size=8)),
        configs=MappingProxyType(configs),
    )


agents = st.builds(Agent, *[wire_text] * 4, st.lists(wire_text, max_size=2).map(tuple))
packages = st.builds(Package, *[wire_text] * 3)
updaters = st.builds(Updater, st.lists(wire_text, max_size=2).map(tuple), st.lists(packages, max_size=2).map(tuple))


@given(states(), st.one_of(agents, updaters), st.lists(st.sampled_from(sorted(PRODUCTS)), unique=True), anything)
def test_a_request_mirrors_its_state(state: State, who: Agent | Updater, products: list[str], error: str) -> None:
    made = messages.request(state, ID, products, who, error)
    messages.check(made)
    asked = pb.ClientGetConfigsRequest.FromString(made.SerializeToString())
    client = asked.client
    assert (client.state.root_version, client.state.targets_version) == (state.root_version, state.targets_version)
    assert (client.id, list(client.products), client.state.backend_client_state) == (ID, products, state.opaque)
    assert client.state.has_error == bool(error)
    assert client.state.error == error.encode("utf-8", "backslashreplace").decode()
    assert [(c.path, c.length) for c in asked.cached_target_files] == [(p, c.length) for p, c in state.configs.items()]
    for told, config in zip(client.state.config_states, state.configs.values(), strict=True):
        assert (told.id, told.version, told.product) == (config.id, config.version, config.product)
        assert told.apply_state == config.status.state
    for cached, config in zip(asked.cached_target_files, state.configs.values(), strict=True):
        assert {hash.algorithm: hash.hash for hash in cached.hashes} == config.hashes
    assert (client.is_agent, client.is_updater) == (isinstance(who, Agent), isinstance(who, Updater))
    assert (client.HasField("client_agent"), client.HasField("client_updater")) == (client.is_agent, client.is_updater)
    assert json_form.load(json_form.dump(made), pb.ClientGetConfigsRequest) == made


@given(
    st.lists(st.binary(max_size=9), max_size=3),
    st.binary(max_size=9),
    st.lists(st.tuples(wire_text, st.binary(max_size=9)), max_size=4),
    st.lists(wire_text, max_size=4),
)
def test_an_answer_says_what_the_update_is(roots: Any, targets: Any, files: Any, configs: Any) -> None:
    update = Update(tuple(roots), targets, dict(files), tuple(configs))
    made = answers.response(update)
    for file in files:
        made.target_files.add(path=file[0], raw=file[1])
    assert messages.update_of(messages.parse_answer(made.SerializeToString())) == update
    assert json_form.load(json_form.dump(made), pb.ClientGetConfigsResponse) == made
    assert messages.update_of(made).empty == (not any((roots, targets, files, configs)))


def test_the_json_form_is_the_fields() -> None:
    """Snake case, base64, numbers as numbers: what other implementations read."""
    server = Server(files={"datadog/2/TESTING1/a/b": Content(b"\xff\0", 2**53 + 1)})
    state = State.verified(server.roots[0]).apply(server.answer(State.verified(server.roots[0])), now=NOW).state
    made = json.loads(json_form.dump(messages.request(state, ID, ["TESTING1"], Agent("me"), "oh")))
    assert made["client"]["state"] == {
        "root_version": 1,
        "targets_version": 1,
        "config_states": [{"id": "a", "version": 2**53 + 1, "product": "TESTING1"}],
        "has_error": True,
        "error": "oh",
    }
    assert made["client"]["is_agent"] is True
    assert made["client"]["client_agent"] == {"name": "me"}
    (cached,) = made["cached_target_files"]
    assert (cached["length"], cached["hashes"][0]["algorithm"]) == (2, "sha256")
    answer = json.loads(json_form.dump(answers.response(server.answer(State.verified(server.roots[0])))))
    assert answer["target_files"] == [{"path": "datadog/2/TESTING1/a/b", "raw": "/wA="}]


def test_the_json_form_reads_what_others_write() -> None:
    """Numbers as strings, members that are not known, base64 of either alphabet, null."""
    raw = b'{"targets": "_-8=", "client_configs": ["a"], "config_status": 1, "more": {"x": []}, "roots": null}'
    assert json_form.load(raw, pb.ClientGetConfigsResponse) == pb.ClientGetConfigsResponse(
        targets=b"\xff\xef", client_configs=["a"], config_status=pb.CONFIG_STATUS_EXPIRED
    )
    raw = b'{"cached_target_files": [{"length": "12"}]}'
    assert json_form.load(raw, pb.ClientGetConfigsRequest).cached_target_files[0].length == 12


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["roots", "targets", "target_files", "path", "raw", "client_configs", "config_status"]),
            inner,
        )
    ),
)


@given(st.one_of(st.binary(max_size=30), json_values.map(lambda value: json.dumps(value).encode())))
def test_no_input_raises_anything_but_an_answer_error(raw: bytes) -> None:
    for parse in (messages.parse_answer, lambda given: json_form.load(given, pb.ClientGetConfigsResponse)):
        with contextlib.suppress(AnswerError):
            assert isinstance(parse(raw), pb.ClientGetConfigsResponse)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"roots":' * 50_000, b'{"client_configs": ["\\ud800"]}', b"", b"1"])
def test_json_that_is_hard_on_a_parser(raw: bytes) -> None:
    with pytest.raises(AnswerError):
        json_form.load(raw, pb.ClientGetConfigsResponse)


COMPLETE = messages.request(State(None), ID, [], Agent())


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda asked: asked.ClearField("client"), "no client"),
        (lambda asked: asked.client.ClearField("state"), "no client state"),
        (lambda asked: asked.client.ClearField("id"), "no id"),
        (lambda asked: asked.client.ClearField("is_agent"), "neither"),
        (lambda asked: setattr(asked.client, "is_tracer", True), "is_agent and is_tracer"),
        (lambda asked: setattr(asked.client, "is_updater", True), "is_agent and is_updater"),
        (lambda asked: setattr(asked.client.state, "root_version", 0), "root version"),
    ],
)
def test_requests_that_a_server_refuses(break_it: Any, words: str) -> None:
    asked = pb.ClientGetConfigsRequest()
    asked.CopyFrom(COMPLETE)
    messages.check(asked)
    break_it(asked)
    with pytest.raises(MetadataError, match=words):
        messages.check(asked)
    with pytest.raises(MetadataError, match=words):
        answers.answer(Server().publish(), asked)


@given(st.binary(min_size=messages.ID_LENGTH, max_size=40))
def test_ids(random: bytes) -> None:
    made = messages.client_id(random)
    assert len(made) == 21
    assert set(made) <= set(messages.ID_ALPHABET)
    assert made == messages.client_id(bytes(byte % 64 for byte in random))


def test_the_alphabet_of_ids() -> None:
    assert len(set(messages.ID_ALPHABET)) == 64


def test_values_of_the_wrong_type() -> None:
    for make in (
        lambda: Agent(name=None),  # type: ignore[arg-type]
        lambda: Agent(name="\ud800"),
        lambda: Agent(cws_workloads=["x"]),  # type: ignore[arg-type]
        lambda: Updater(tags=(1,)),  # type: ignore[arg-type]
        lambda: Updater(packages=("x",)),  # type: ignore[arg-type]
        lambda: Package(name=b"x"),  # type: ignore[arg-type]
    ):
        with pytest.raises(SettingsError, match="must be"):
            make()


# What an honest server answers.


def test_who_has_the_targets_gets_nothing() -> None:
    server = Server(files={"datadog/2/TESTING1/a/b": Content(b"x", 1)}, targets_version=7)
    asked = messages.request(State(None, targets_version=7), ID, ["TESTING1"], Agent())
    assert answers.answer(server.publish(), asked) == pb.ClientGetConfigsResponse()


@pytest.mark.parametrize("version", [0, 6, 8])
def test_who_has_others_gets_all_that_he_lacks(version: int) -> None:
    files = {f"datadog/2/TESTING{n}/a/b": Content(bytes([n]), 1) for n in (1, 2)}
    server = Server(files=files | {"employee/TESTING1/c/d": Content(b"y", 1)}, targets_version=7)
    server.rotate()
    asked = messages.request(State(None, targets_version=version), ID, ["TESTING1"], Agent())
    answer = answers.answer(server.publish(), asked)
    assert list(answer.roots) == server.roots[1:]
    assert sorted(answer.client_configs) == ["datadog/2/TESTING1/a/b", "employee/TESTING1/c/d"]
    assert {file.path: file.raw for file in answer.target_files} == {
        "datadog/2/TESTING1/a/b": b"\1",
        "employee/TESTING1/c/d": b"y",
    }
    asked.cached_target_files.add(path="employee/TESTING1/c/d", length=1).hashes.add(
        algorithm="sha256", hash=server.entries()["employee/TESTING1/c/d"]["hashes"]["sha256"]
    )
    assert [file.path for file in answers.answer(server.publish(), asked).target_files] == ["datadog/2/TESTING1/a/b"]
