"""(pure) What to trace, and with how much room; checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, fields

from harness.errors import SettingsError
from harness.kernel_api import MapEdit

_MOST_CONNECTIONS = 1 << 24
_MOST_PAGES = 1 << 16
_MOST_ACTIVE = 1 << 14
_SIZED = ("conn_stats", "tcp_stats", "tcp_retransmits", "tracked_sockets", "tcp_listeners", "port_bindings",
          "udp_port_bindings")  # fmt: skip
"""The maps that hold as many entries as there may be connections."""


@dataclass(frozen=True)
class TracerSettings:
    """What to trace. ``close_event_pages`` (a power of two) is the room for close events, for each CPU;
    ``kprobe_max_active`` how many calls of a function the kprobe tracer can wait for the ends of at once."""

    collect_tcp_v4: bool = True
    collect_tcp_v6: bool = True
    collect_udp_v4: bool = True
    collect_udp_v6: bool = True
    max_tracked_connections: int = 65536
    close_event_pages: int = 8
    kprobe_max_active: int = 512

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.startswith("collect_") and not isinstance(value, bool):
                raise SettingsError(f"{field.name} must be True or False, not {value!r}")
        limits = {
            "max_tracked_connections": _MOST_CONNECTIONS,
            "close_event_pages": _MOST_PAGES,
            "kprobe_max_active": _MOST_ACTIVE,
        }
        for name, most in limits.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
                raise SettingsError(f"{name} must be a whole number from 1 to {most}, not {value!r}")
        if self.close_event_pages & (self.close_event_pages - 1):
            raise SettingsError(f"close_event_pages must be a power of two, not {self.close_event_pages}")

    @property
    def families(self) -> int:
        """The value of the map ``collected``: a bit for each of TCPv4, TCPv6, UDPv4, UDPv6, in this order."""
        wanted = (self.collect_tcp_v4, self.collect_tcp_v6, self.collect_udp_v4, self.collect_udp_v6)
        return sum(on << place for place, on in enumerate(wanted))

    @property
    def tcp(self) -> bool:
        """Whether TCP over either is collected."""
        return self.collect_tcp_v4 or self.collect_tcp_v6

    @property
    def udp(self) -> bool:
        """Whether UDP over either is collected."""
        return self.collect_udp_v4 or self.collect_udp_v6

    def map_edits(self) -> dict[str, MapEdit]:
        """The sizes of the maps."""
        return {name: MapEdit(max_entries=self.max_tracked_connections) for name in _SIZED}
