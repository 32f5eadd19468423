"""(pure) The seam between the polling client and whatever carries its messages, and what can go wrong behind it.

Laws: a fetcher gives the server's answer or raises one of these errors, never later than its deadline, however slowly
or much the server sends; ``close`` ends a fetch that is under way in another thread, and leaves nothing running but a
look-up of a name, where the system's resolver does not let itself be interrupted; no error holds the token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from harness.errors import HarnessError
from harness.remote.wire.config_pb2 import ClientGetConfigsRequest, ClientGetConfigsResponse

MAX_MESSAGE = 110 << 20
"""Bytes of an answer; a larger one is refused before it is read whole."""

HINT_TLS = "check the certificate's dates and names, the authority given for it, and this machine's clock"
"""What to do about a connection that failed by its TLS."""

Token = Callable[[], str]
"""Gives the bearer token; asked for every request, so that it may change."""


class FetchError(HarnessError):
    """Base of all reasons to have no answer."""


class UnimplementedError(FetchError):
    """The server has no such service: asking again is of no use."""


class TokenError(FetchError):
    """The token could not be had, so nothing was sent."""


class RefusedError(FetchError):
    """The server does not accept who we are: no token, a wrong one, or no client certificate that it knows."""


class CertificateError(FetchError):
    """The server is not who it should be: its certificate is unknown, expired, not yet valid or of another name."""


class UnreachableError(FetchError):
    """Nobody there, or the connection broke."""


class DeadlineError(FetchError):
    """No whole answer in time."""


class AnswerError(FetchError):
    """An answer that is none: too large, or no message of this service."""


class ServerError(FetchError):
    """The server says that it failed, or that the request was wrong."""


class Fetcher(Protocol):
    """Carries one request at a time."""

    def fetch(self, request: ClientGetConfigsRequest) -> ClientGetConfigsResponse:
        """The answer, or a ``FetchError``; ``ClosedError`` once it is closed."""
        ...

    def close(self) -> None:
        """End what is under way and free everything; a second time does nothing."""
        ...


def bearer(token: Token) -> str:
    """The value of the ``authorization`` header. Whatever goes wrong with the token is a ``TokenError``."""
    try:
        given = token().strip()
        given.encode("ascii")
    except UnicodeError:
        raise TokenError("could not acquire the auth token: it is not plain ASCII") from None
    except (HarnessError, OSError) as error:
        raise TokenError(f"could not acquire the auth token: {error}") from None
    if not given.isprintable() or not given:
        raise TokenError("could not acquire the auth token: it is empty or has control characters in it")
    return f"Bearer {given}"
