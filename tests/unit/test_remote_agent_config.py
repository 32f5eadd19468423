"""AGENT_CONFIG: layers, their order, and what is wrong with them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.remote.agent_config import ORDER_ID, Merged, merge
from harness.remote.errors import ConfigError, PathError
from harness.remote.state import ApplyState, ApplyStatus


def at(id: str, file: str = "f") -> str:
    return f"datadog/2/AGENT_CONFIG/{id}/{file}"


def layer(level: Any) -> bytes:
    return json.dumps({"name": "x", "config": {"log_level": level}}).encode()


def orders(order: Any, internal: Any) -> dict[str, bytes]:
    return {at(ORDER_ID): json.dumps({"order": order, "internal_order": internal}).encode()}


@pytest.mark.parametrize(
    ("order", "internal", "wins"),
    [
        (["a", "b"], [], "debug"),
        (["b", "a"], [], "warn"),
        (["gone", "b", "a"], [], "warn"),
        (["a"], ["b"], "warn"),
        (["a"], ["gone", "empty", "b"], ""),
        (["a"], ["gone"], "debug"),
        ([], [], ""),
        (None, None, ""),
        (["gone"], [], ""),
    ],
)
def test_the_first_found_wins_and_internal_comes_first(order: Any, internal: Any, wins: str) -> None:
    layers = {at("a"): layer("debug"), at("b"): layer("warn"), at("empty"): layer(""), at("nobodys"): layer("trace")}
    assert merge(layers | orders(order, internal)) == Merged(wins)


def test_without_an_order_there_is_nothing() -> None:
    assert merge({at("a"): layer("debug")}) == merge({}) == Merged()


@pytest.mark.parametrize(
    ("path", "raw", "error", "words"),
    [
        (at("bad"), b"{", ConfigError, "no JSON"),
        (at("bad"), b"[" * 100_000, ConfigError, "no JSON"),
        (at("bad"), b"\xff", ConfigError, "no JSON"),
        (at("bad"), b"[]", ConfigError, "no JSON object"),
        (at("bad"), layer(1), ConfigError, "must be a string"),
        (at("bad"), b'{"config": 3}', ConfigError, "must be a string"),
        (at(ORDER_ID), b'{"order": "a"}', ConfigError, "must be lists"),
        (at(ORDER_ID), b'{"internal_order": [1]}', ConfigError, "must be lists"),
        (at("a", "second"), layer("info"), ConfigError, "has the same id"),
        ("employee/AGENT_CONFIG/x/f", layer("info"), PathError, "is no file of AGENT_CONFIG"),
        ("datadog/2/ASM/x/f", layer("info"), PathError, "is no file of AGENT_CONFIG"),
        ("elsewhere", layer("info"), PathError, "unknown source"),
    ],
)
def test_one_bad_file_and_there_is_no_configuration(path: str, raw: bytes, error: type, words: str) -> None:
    good = orders(["a"], []) | {at("a"): layer("debug")}
    assert merge(good).log_level == "debug"
    got = merge(good | {path: raw})
    assert (got.log_level, list(got.errors)) == ("", [path])
    assert type(got.errors[path]) is error
    assert got.statuses == {path: ApplyStatus(ApplyState.ERROR, str(got.errors[path]))}
    assert words in str(got.errors[path])


def test_every_bad_file_has_its_error() -> None:
    assert list(merge({at("a"): b"", at("b"): b"", at("c"): layer("x")}).errors) == [at("a"), at("b")]


def test_what_is_missing_or_null_is_empty() -> None:
    for raw in (b"{}", b'{"config": null}', b'{"config": {}}', b'{"config": {"log_level": null, "other": 1}}'):
        assert merge(orders(["a"], ["b"]) | {at("a"): layer("debug"), at("b"): raw}) == Merged("")


ids = st.sampled_from("abcd")


@given(st.dictionaries(ids, st.sampled_from(["", "info", "debug"])), st.lists(ids), st.lists(ids), st.randoms())
def test_as_layers_laid_down_one_by_one(
    layers: dict[str, str], order: list[str], internal: list[str], chance: Any
) -> None:
    level = ""
    for name in (*reversed(order), *reversed(internal)):
        level = layers.get(name, level)
    files = list((orders(order, internal) | {at(name): layer(value) for name, value in layers.items()}).items())
    chance.shuffle(files)
    assert merge(dict(files)) == Merged(level)
