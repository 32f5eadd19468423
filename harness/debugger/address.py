"""Where the debug endpoints listen: a loopback port, or a unix socket that only its owner may connect to.

Laws: nothing but loopback is bound; a unix socket has mode 0600 from its first moment; a socket file is replaced only
if nobody listens on it, and any other file never.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
from pathlib import Path

from harness.errors import HarnessError, SettingsError

_HINT = "127.0.0.1:PORT, [::1]:PORT (0: any free one) or unix:/PATH"


def listen(address: str) -> socket.socket:
    """A socket that listens at ``127.0.0.1:PORT``, ``[::1]:PORT`` (0: any free port) or ``unix:/PATH``.

    SettingsError for another address, HarnessError where this one cannot be had.
    """
    if address.startswith("unix:"):
        return _unix(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (is_loopback(host) and port.isascii() and port.isdigit() and int(port) < 1 << 16):
        raise SettingsError(f"{address!r} is no place for debug endpoints", hint=_HINT)
    host = "127.0.0.1" if host == "localhost" else host
    try:
        return socket.create_server(
            (host, int(port)), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=64
        )
    except OSError as error:
        raise HarnessError(f"debug endpoints at {address}: {error}") from None


def is_loopback(host: str) -> bool:
    """(pure) Whether a host, as in a ``Host`` header without its port, is this machine and no other."""
    if host.lower().removesuffix(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


def shown(listener: socket.socket) -> str:
    """The address it listens at, in the words of ``listen``."""
    if listener.family == socket.AF_UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def forget(path: str, inode: int) -> None:
    """Remove the unix socket's file, if it is still the one that was made."""
    try:
        if os.lstat(path).st_ino == inode:
            Path(path).unlink()
    except OSError:
        pass


def _unix(path: str) -> socket.socket:
    if not path.startswith("/") or "\0" in path:
        raise SettingsError(f"unix:{path} is no absolute path", hint=_HINT)
    listener = socket.socket(socket.AF_UNIX)
    try:
        _make_room(path)
        # The mode of the socket before it is bound becomes that of its file (net/unix/af_unix.c).
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(path)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise HarnessError(f"debug endpoints at unix:{path}: {error}") from None
    except BaseException:
        listener.close()
        raise
    return listener


def _make_room(path: str) -> None:
    """Remove a socket that nobody listens on any more."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise HarnessError(f"debug endpoints at unix:{path}: there is a file that is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink()
            return
    raise HarnessError(f"debug endpoints at unix:{path}: another process listens there")
