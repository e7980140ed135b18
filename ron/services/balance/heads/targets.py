"""Where a head sends its visitors: `80:127.0.0.1:8080`, `80:unix:/run/app.sock`, `80:<onion>:80`. Pure.

In: the config's text. Out: targets, and HiddenServicePort lines. A target is on this host, or an onion: what visitors
say leaves their circuits in clear only here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

from ron.proto.errors import RonError, bad_request, conflict

MAX_PORT = 65_535
_NUMBER = re.compile(r"[1-9][0-9]{0,4}\Z")
_ONION = re.compile(r"[a-z2-7]{56}\.onion\Z")
_PATH = re.compile(r"/[^\x00-\x20\x7f\"\\]{1,106}\Z")


class Target(NamedTuple):
    """`onion_port` of the head is answered there. where: a loopback address, an onion, or a Unix socket's path; port: 0
    for the latter."""

    onion_port: int
    kind: Literal["tcp", "unix", "onion"]
    where: str
    port: int = 0

    def __str__(self) -> str:
        """As people read it, in logs and on `/readyz` too: so much of an onion as tells it from others."""
        if self.kind == "unix":
            return f"unix:{self.where}"
        host = f"{self.where[:8]}….onion" if self.kind == "onion" else self._host
        return f"{host}:{self.port}"

    @property
    def _host(self) -> str:
        return f"[{self.where}]" if ":" in self.where else self.where

    def line(self) -> str:
        """As HiddenServicePort has it; an onion is reached through a socket of ours and has no line."""
        if self.kind == "onion":
            raise ValueError("an onion is no target of tor's own")
        if self.kind == "unix":
            return f"{self.onion_port} unix:{self.where}"
        return f"{self.onion_port} {self._host}:{self.port}"


def read_targets(texts: Iterable[str]) -> tuple[Target, ...]:
    """All of them, each once. Raises BadRequest for what is no target, Conflict when one port has two."""
    targets: dict[int, Target] = {}
    for text in texts:
        target = read_target(text)
        if targets.setdefault(target.onion_port, target) != target:
            raise conflict(
                f"port {target.onion_port} of the head would have two targets",
                hint="a node has one head for all its services: give them different ports, or one target",
            )
    return tuple(targets.values())


def read_target(text: str) -> Target:
    """One of them. Raises BadRequest."""
    port, _, rest = text.partition(":")
    kind, _, path = rest.partition(":")
    if kind == "unix":
        if not _PATH.match(path):
            raise _no_target(text)
        return Target(_port(port, text), "unix", path)
    host, _, at = rest.rpartition(":")
    if _ONION.match(host):
        return Target(_port(port, text), "onion", host, _port(at, text))
    return Target(_port(port, text), "tcp", _address(host, text), _port(at, text))


def _address(host: str, text: str) -> str:
    try:
        found: ipaddress.IPv4Address | ipaddress.IPv6Address
        if host.startswith("[") and host.endswith("]"):
            found = ipaddress.IPv6Address(host[1:-1])
        else:
            found = ipaddress.IPv4Address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        raise _no_target(text) from None
    if not found.is_loopback:
        raise bad_request(f"{text!r} leads off this host", hint="name a port of this host, a socket, or an onion")
    return str(found)


def _port(number: str, text: str) -> int:
    if not _NUMBER.match(number) or int(number) > MAX_PORT:
        raise _no_target(text)
    return int(number)


def _no_target(text: str) -> RonError:
    return bad_request(
        f"{text!r} says not where a port leads",
        hint="write 80:127.0.0.1:8080, 80:unix:/run/app.sock or 80:<56 characters>.onion:80",
    )


def socket_name(target: Target) -> Path:
    """The name of our own socket before an onion."""
    return Path(f"proxy-{target.onion_port}")
