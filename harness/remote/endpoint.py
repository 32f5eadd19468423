"""Where a serving side is and how to be sure of it: one URL, the certificates, and the fetcher that follows from them.

``grpcs://HOST:PORT`` is gRPC over TLS, ``unix:///PATH`` gRPC over a unix socket (who may connect is the socket's
file mode), ``https://HOST:PORT`` the JSON form over TLS. Law: there is no way to send a token over TCP unencrypted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from harness.errors import SettingsError
from harness.remote.fetch import Fetcher, Token

SCHEMES = ("grpcs", "unix", "https")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A serving side. ``ca`` None: the machine's own authorities; ``certificate`` and ``key`` are for mutual TLS.

    ``server_name`` is the name to expect in the certificate, where it is not the URL's host. ``seconds`` is the
    deadline of a whole request. ``keep_alive`` is for gRPC, whose connection outlives a request: after so many seconds
    of silence, during a request or between two, the server is asked for a sign of life, and after a third as many
    again without one the connection is given up.
    """

    url: str
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None
    seconds: float = 10.0
    keep_alive: float = 30.0

    def __post_init__(self) -> None:
        _split(self.url)
        if (self.certificate is None) != (self.key is None):
            raise SettingsError("endpoint: a client certificate and its key go together")
        for what, seconds in (("a deadline", self.seconds), ("a keep-alive", self.keep_alive)):
            if not 0 < seconds <= 3600:
                raise SettingsError(f"endpoint: {what} of {seconds} s is not between 0 and an hour")

    @property
    def scheme(self) -> str:
        """One of ``SCHEMES``."""
        return _split(self.url)[0]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; of a unix socket its path and 0."""
        return _split(self.url)[1:]

    def fetcher(self, token: Token) -> Fetcher:
        """A fetcher for this serving side. SettingsError where a certificate cannot be read."""
        if self.scheme == "https":
            from harness.remote.http_fetch import HttpFetcher

            return HttpFetcher(self, token)
        from harness.remote.grpc_fetch import GrpcFetcher

        return GrpcFetcher(self, token)

    def read(self, file: Path | None) -> bytes | None:
        """A certificate's or key's bytes; SettingsError says what is wrong with it."""
        try:
            return None if file is None else file.read_bytes()
        except OSError as error:
            raise SettingsError(f"endpoint {self.url}: {error}") from None


def token_of(file: Path) -> Token:
    """The token in ``file``, read for every request, so that a new one counts at once."""
    return lambda: file.read_text("ascii")


def _split(url: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise SettingsError(f"endpoint {url!r}: {error}") from None
    if parts.scheme not in SCHEMES:
        raise SettingsError(f"endpoint {url!r}: the scheme is one of {', '.join(SCHEMES)}")
    more = parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme == "unix":
        if parts.netloc or more or not parts.path[1:] or parts.path[0] != "/":
            raise SettingsError(f"endpoint {url!r}: a unix socket is unix:///its/whole/path")
        return parts.scheme, parts.path, 0
    if not host or not port or more or parts.path not in ("", "/"):
        raise SettingsError(f"endpoint {url!r}: expected {parts.scheme}://HOST:PORT")
    return parts.scheme, host, port
