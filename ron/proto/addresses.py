"""Network addresses as they stand in configs and facts. Pure."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

# The URI in a node's certificate that names the node: `ron://node/<name>`.
IDENTITY_PREFIX = "ron://node/"


class HostPort(NamedTuple):
    """A listening address. Port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True when only this host can reach it."""
        return ipaddress.ip_address(self.host).is_loopback


def parse_host_port(text: str) -> HostPort:
    """`127.0.0.1:9080` or `[::1]:9080`. Raises ValueError with what is wrong."""
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise ValueError(f"{text!r} is not an address like 127.0.0.1:9080")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise ValueError(f"{host!r} is not an IP address") from None
    if bracketed != (address.version == 6):
        raise ValueError(f"{text!r} is not an address: an IPv6 host, and no other, stands in brackets")
    return HostPort(str(address), int(port))


def is_ip_address(text: str) -> bool:
    """True for an IPv4 or IPv6 address without brackets or port."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
