"""Fetchers where no server is needed: settings that are none, and what each status means."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import grpc
import pytest
from remote_site import token

from harness.errors import SettingsError
from harness.remote import fetch
from harness.remote.endpoint import Endpoint
from harness.remote.fetch import (
    FetchError,
)
from harness.remote.grpc_fetch import translate
from harness.remote.serve.server import GrpcServer, ServingError
from harness.remote.serve.wire_faults import Fault


@pytest.mark.parametrize(
    "url",
    ["", "localhost:1", "grpc://localhost:1", "http://localhost:1", "grpcs://localhost", "grpcs://:1",
     "grpcs://localhost:0", "grpcs://localhost:99999", "grpcs://u@localhost:1", "https://localhost:1/path",
     "https://localhost:1?q", "unix:relative", "unix://host/path", "unix:///"],
)  # fmt: skip
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(SettingsError, match="endpoint"):
        Endpoint(url)


def test_settings_that_are_none(tmp_path: Path) -> None:
    good = Endpoint("grpcs://[::1]:8443")
    assert good.address == ("::1", 8443)
    for changes in (
        {"certificate": tmp_path},
        {"key": tmp_path},
        {"seconds": 0},
        {"seconds": float("nan")},
        {"keep_alive": 0},
    ):
        with pytest.raises(SettingsError):
            dataclasses.replace(good, **changes)  # type: ignore[arg-type]
    for form in ("grpcs", "https"):
        with pytest.raises(SettingsError, match=r"none\.pem"):
            Endpoint(f"{form}://localhost:1", ca=tmp_path / "none.pem").fetcher(token)


def test_every_status_has_its_error() -> None:
    where = Endpoint("grpcs://localhost:1")
    for code in grpc.StatusCode:
        if code is not grpc.StatusCode.OK:
            assert isinstance(translate(code, "words", where), FetchError)
    assert fetch.bearer(lambda: " x \n") == "Bearer x"


def test_no_plain_tcp() -> None:
    with pytest.raises(ServingError, match="no certificate"):
        GrpcServer(lambda asked: None, address="127.0.0.1:0")  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("words", ["", "drop", "drop@", "drop@-1", "fall@1", "drop@1@2"])
def test_faults_that_are_none(words: str) -> None:
    assert Fault.of("drop@12") == Fault("drop", 12)
    with pytest.raises(SettingsError):
        Fault.of(words)
