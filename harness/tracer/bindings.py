"""Ports that are waited at when the tracer comes: who opened a connection cannot be seen any more, but guessed.

Laws: only sockets of this process's network namespace; a file that is not there (no IPv6) has none; one that cannot
be read as expected is a FormatError.
"""

from __future__ import annotations

from pathlib import Path

from harness.errors import FormatError

_LISTEN = "0A"
_ANY_PORT = "0000"


def listening(table: str, *, udp: bool) -> set[int]:
    """(pure) The ports of a table of ``/proc/net``: of TCP sockets that listen, of UDP sockets without a peer."""
    ports = set()
    for line in table.splitlines()[1:]:
        words = line.split()
        try:
            local, remote, state = words[1:4]
            waits = remote.rpartition(":")[2] == _ANY_PORT if udp else state == _LISTEN
            if waits:
                ports.add(int(local.rpartition(":")[2], 16))
        except ValueError:
            raise FormatError(f"a line of /proc/net that is no socket: {line.strip()[:80]!r}") from None
    return ports


def bound_ports(proc: Path, protocol: str) -> set[int]:
    """The ports waited at now; ``protocol`` is "tcp" or "udp", over IPv4 and IPv6."""
    ports: set[int] = set()
    for name in (protocol, f"{protocol}6"):
        try:
            table = (proc / "self/net" / name).read_text()
        except OSError:
            continue
        ports |= listening(table, udp=protocol == "udp")
    return ports
