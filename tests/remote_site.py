"""A whole serving side for a test: a directory of configurations, keys, certificates, a real server on loopback."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.remote.endpoint import Endpoint
from harness.remote.serve.certificates import Tls, kept_in
from harness.remote.serve.directory import INSIDE, Directory
from harness.remote.serve.host import Host
from harness.remote.serve.http_server import HttpServer
from harness.remote.serve.server import GrpcServer
from harness.remote.state import PRODUCTS, State

TOKEN = "the-right-one"
FORMS = ("grpcs", "unix", "https")


class Site:
    """``host.way`` makes it misbehave; ``put`` and ``remove`` change what it serves."""

    def __init__(self, path: Path, form: str = "grpcs", *, tls: Tls | None = None, mutual: bool = False) -> None:
        self.path = path
        self.form = form
        self.certificates = path / INSIDE / "tls"
        self.directory = Directory(path)
        self.host = Host(self.directory, random.Random(0))
        kept = kept_in(self.certificates, mutual=mutual)
        self.server: GrpcServer | HttpServer
        if form == "https":
            self.server = HttpServer(self.host.serve, tls=tls or kept, token=TOKEN)
        else:
            address, tls = (f"unix:{path}/.socket", None) if form == "unix" else ("127.0.0.1:0", tls or kept)
            self.server = GrpcServer(self.host.serve, address=address, tls=tls, token=TOKEN)

    @property
    def url(self) -> str:
        return f"unix://{self.path}/.socket" if self.form == "unix" else f"{self.form}://localhost:{self.server.port}"

    def endpoint(self, **changes: Any) -> Endpoint:
        """Where a client finds it, and how it trusts it."""
        settings: dict[str, Any] = {"url": self.url, "ca": self.certificates / "ca.pem", "seconds": 20.0}
        return Endpoint(**settings | changes)

    def state(self, products: frozenset[str] = PRODUCTS) -> State:
        """What a client is born with."""
        return State.verified(self.directory.root.read_bytes(), products=products)

    def put(self, path: str, content: bytes | dict[str, Any]) -> None:
        """Serve this file from now on; an object as JSON."""
        file = self.path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(".part")
        part.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        part.replace(file)

    def remove(self, path: str) -> None:
        (self.path / path).unlink()

    def told(self, product: str) -> set[tuple[int, int, str]]:
        """What clients last said of a product: version, apply state and error of each of its configurations."""
        states = [state for client in list(self.host.seen.values()) for state in client.state.config_states]
        return {(state.version, state.apply_state, state.apply_error) for state in states if state.product == product}

    def close(self) -> None:
        self.server.close()

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def token() -> str:
    """The right one."""
    return TOKEN


@contextmanager
def by_hand(directory: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """``python -m harness.remote serve``, and what it printed by the first words: URLs, ``root``, ``ca``, ``token``."""
    command = [sys.executable, "-m", "harness.remote", "serve", str(directory), "--listen", "127.0.0.1:0", *words]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            said: dict[str, str] = {}
            while "token" not in said:
                line = process.stdout.readline().strip()
                assert line, "the server ended"
                key, _, value = line.partition("://" if "://" in line else " ")
                said[key] = line if "://" in line else value.strip()
            yield process, said
        finally:
            process.kill()
