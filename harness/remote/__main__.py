"""``python -m harness.remote COMMAND``: a serving side by hand.

``serve DIR`` signs the configurations in a directory and answers clients that poll; ``rotate``, ``expire`` and
``renew`` change its keys and dates, also while it serves. What a client needs is printed at the start, and lies in
``DIR/.tuf``: the first root, the authority's certificate, the token.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import random
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.errors import HarnessError, SettingsError
from harness.remote.messages import HTTP_PATH
from harness.remote.serve import misbehave
from harness.remote.serve.certificates import kept_in
from harness.remote.serve.directory import CONFIG, INSIDE, ROLES, Directory
from harness.remote.serve.files import publish
from harness.remote.serve.host import Host, Publisher
from harness.remote.serve.http_server import HttpServer
from harness.remote.serve.server import GrpcServer
from harness.remote.serve.stored import StoredDirectory
from harness.remote.serve.wire_faults import Fault, Relay
from harness.until_told import until_told

REPOSITORIES = {"director": INSIDE, "config": CONFIG}


def parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    whole = argparse.ArgumentParser(prog="python -m harness.remote", description=(__doc__ or "").split("\n\n")[1])
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="sign a directory of configurations, and answer clients that poll")
    serve.add_argument("directory", type=Path)
    serve.add_argument("--listen", default="127.0.0.1:8443", metavar="HOST:PORT", help="gRPC (default: %(default)s)")
    serve.add_argument("--unix", type=Path, metavar="PATH", help="gRPC on a unix socket too")
    serve.add_argument("--http", metavar="HOST:PORT", help=f"the JSON form too (POST {HTTP_PATH})")
    serve.add_argument("--store", type=Path, metavar="FILE", help="serve through an agent's store in this database")
    serve.add_argument("--mutual", action="store_true", help="clients must have a certificate of the same authority")
    serve.add_argument("--misbehave", choices=misbehave.names(), metavar="WAY", help=", ".join(misbehave.names()))
    serve.add_argument("--fault", type=Fault.of, metavar="KIND@BYTES", help="on the wire: drop, hang, flip or flood")
    for name, words in (("rotate", "a new key for a role"), ("expire", "let a role's metadata be past their date")):
        command = commands.add_parser(name, help=words)
        command.add_argument("directory", type=Path)
        command.add_argument("role", choices=ROLES)
        _add_repository(command)
    renew = commands.add_parser("renew", help="a root and targets with new dates")
    renew.add_argument("directory", type=Path)
    _add_repository(renew)
    return whole


def _add_repository(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--repository", choices=REPOSITORIES, default="director", help="which of a store's two (default: %(default)s)"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        options = parser().parse_args(words)
        if options.command == "serve":
            return serve(options)
        directory = Directory(options.directory, inside=REPOSITORIES[options.repository])
        if options.command == "renew":
            directory.renew()
        else:
            getattr(directory, options.command)(options.role)
        print(f"targets {directory.published().targets_version}, root {len(directory.published().roots)}")
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def serve(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C."""
    told = until_told()
    directory = Directory(options.directory)
    inside = options.directory / INSIDE
    tls = kept_in(inside / "tls", mutual=options.mutual)
    token = _token(inside / "token")
    with contextlib.ExitStack() as stack:
        publisher: Publisher = directory
        if options.store:
            config = Directory(options.directory, inside=CONFIG)
            publisher = stack.enter_context(StoredDirectory(directory, config, options.store))
        host = Host(publisher, random.Random())
        host.way = options.misbehave
        server = stack.enter_context(GrpcServer(host.serve, address=options.listen, tls=tls, token=token))
        port, where = server.port, options.listen.rpartition(":")[0]
        if options.fault:
            port = stack.enter_context(Relay(f"{where}:{port}", options.fault)).port
        urls = [f"grpcs://{where}:{port}"]
        if options.unix:
            stack.enter_context(GrpcServer(host.serve, address=f"unix:{options.unix.absolute()}", token=token))
            urls.append(f"unix://{options.unix.absolute()}")
        if options.http:
            http = stack.enter_context(HttpServer(host.serve, address=options.http, tls=tls, token=token))
            urls.append(f"https://{options.http.rpartition(':')[0]}:{http.port}")
        print("\n".join([*urls, f"root  {directory.root}", f"ca    {inside / 'tls' / 'ca.pem'}"]))
        print(f"token {inside / 'token'}", flush=True)
        told(None)
    return 0


def _token(file: Path) -> str:
    if not file.exists():
        publish(file, secrets.token_hex(32).encode())
    if not (token := file.read_text().strip()):
        raise SettingsError(f"{file} holds no token", hint="remove it, and one is made")
    return token


if __name__ == "__main__":
    sys.exit(main())
