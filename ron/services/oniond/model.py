"""What an onion is and what may become of it. Pure: requests and the time go in, the onion as it is then comes out.

States: active → draining → drained, and back to active by `bind`. A rotation adds a previous key that ends by itself.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import msgspec

from ron.proto.errors import bad_request, conflict, not_found
from ron.proto.onions import (
    MAX_CLIENTS,
    Client,
    CreateRequest,
    Hints,
    Isolation,
    Limits,
    Persistence,
    Port,
    Pow,
    State,
)
from ron.tor.backends import pow_arguments
from ron.tor.clientauth import FLAG, add_onion_options, parse_public
from ron.tor.onionkeys import OnionKey, address_of
from ron.tor.onions import OnionSpec, PortMap

SOCKS_SECRET_BYTES = 16


class PreviousKey(msgspec.Struct, frozen=True, dict=True):
    """The key before a rotation, served until Unix second `until_s`."""

    key: str
    until_s: float

    @cached_property
    def address(self) -> str:
        """As `Onion.address`."""
        return address_of(OnionKey(self.key))


class Onion(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """An onion as it is kept. key: tor's blob. origin: `config` for those that the daemon's config names.

    socks_secret: what the app's own circuits are told apart by. drain_until_s: while draining, when it is cut off.
    """

    id: str
    app: str
    key: str
    ports: tuple[Port, ...]
    created_s: float
    socks_secret: str
    persistence: Persistence = "durable"
    isolation: Isolation = "shared"
    clients: tuple[Client, ...] = ()
    pow: Pow | None = None
    hints: Hints = Hints()
    limits: Limits = Limits()
    state: State = "active"
    previous: PreviousKey | None = None
    drain_until_s: float = 0.0
    origin: Literal["api", "config"] = "api"

    def __repr__(self) -> str:
        """Without what is secret."""
        return f"<Onion {self.id} of {self.app}, {self.state}>"

    @cached_property
    def address(self) -> str:
        """`<56 characters>.onion`, at present. Made once: 60 µs for each of many onions at each change are seconds."""
        return address_of(OnionKey(self.key))

    def specs(self) -> tuple[OnionSpec, ...]:
        """What tor is to run for it: the present key first."""
        if self.state != "active":
            return ()
        keys = [self.key] if self.previous is None else [self.key, self.previous.key]
        return tuple(self._spec(OnionKey(key)) for key in keys)

    def _spec(self, key: OnionKey) -> OnionSpec:
        return OnionSpec(
            key=key,
            ports=tuple(PortMap(port.onion_port, port.local) for port in self.ports),
            flags=(*((FLAG,) if self.clients else ()), *(("MaxStreamsCloseCircuit",) if self.limits.streams else ())),
            options=(*self._clients(), *self._pow(), *self._limits()),
        )

    def _clients(self) -> tuple[str, ...]:
        publics = [parse_public(client.public_key) for client in self.clients]
        return add_onion_options(publics) if publics else ()

    def _limits(self) -> tuple[str, ...]:
        return (f"MaxStreams={self.limits.streams}",) if self.limits.streams else ()

    def _pow(self) -> tuple[str, ...]:
        if self.pow is None or not self.pow.enabled:
            return ()
        return tuple(pow_arguments(self.pow).split())


def create(
    request: CreateRequest,
    key: OnionKey,
    *,
    now_s: float,
    isolation: Isolation,
    origin: Literal["api", "config"] = "api",
) -> Onion:
    """A new onion. isolation: where the request does not say. Raises `RonError` (BadRequest)."""
    check_ports(request.ports)
    _check_clients(request.client_auth)
    if request.pow is not None:
        # what tor would not take must not be kept: no onion of that tor could be published any more
        pow_arguments(request.pow)
    return Onion(
        id=str(uuid.UUID(bytes=secrets.token_bytes(16), version=4)),
        app=request.app,
        key=key.blob,
        ports=request.ports,
        created_s=now_s,
        socks_secret=secrets.token_urlsafe(SOCKS_SECRET_BYTES),
        persistence=request.persistence,
        isolation=request.isolation or isolation,
        clients=request.client_auth,
        pow=request.pow,
        hints=request.hints,
        limits=request.limits,
        origin=origin,
    )


def bind(onion: Onion, ports: tuple[Port, ...]) -> Onion:
    """With other ports, and in service."""
    check_ports(ports)
    return msgspec.structs.replace(onion, ports=ports, state="active", drain_until_s=0.0)


def rotate(onion: Onion, key: OnionKey, *, now_s: float, grace_s: float) -> Onion:
    """With a new key; the old one goes on for `grace_s`. Raises Conflict while an older one still does, or drained."""
    if onion.state != "active":
        raise conflict(f"the onion is {onion.state}", hint="bind it to its ports again first")
    if onion.previous is not None and onion.previous.until_s > now_s:
        raise conflict("the last rotation's grace period is not over", hint="its old address would end without notice")
    previous = PreviousKey(onion.key, now_s + grace_s) if grace_s > 0 else None
    return msgspec.structs.replace(onion, key=key.blob, previous=previous)


def end_grace(onion: Onion, now_s: float) -> Onion:
    """Without the previous key once its time is over."""
    if onion.previous is None or onion.previous.until_s > now_s:
        return onion
    return msgspec.structs.replace(onion, previous=None)


def put_off(onion: Onion, by_s: float) -> Onion:
    """What ends at a time ends so much later: the host's clock was set by so much, and nothing is nearer its end."""
    if onion.previous is not None:
        onion = msgspec.structs.replace(
            onion, previous=msgspec.structs.replace(onion.previous, until_s=onion.previous.until_s + by_s)
        )
    if onion.state == "draining":
        onion = msgspec.structs.replace(onion, drain_until_s=onion.drain_until_s + by_s)
    return onion


def drain(onion: Onion, *, now_s: float, deadline_s: float) -> Onion:
    """No new visitors. Raises Conflict for one that is being drained or is drained."""
    if onion.state != "active":
        raise conflict(f"the onion is {onion.state} already")
    return msgspec.structs.replace(onion, state="draining", drain_until_s=now_s + deadline_s, previous=None)


def drained(onion: Onion) -> Onion:
    """Nobody is there any more."""
    return msgspec.structs.replace(onion, state="drained", drain_until_s=0.0)


def add_client(onion: Onion, client: Client) -> Onion:
    """One more may find it; a public onion is restricted from now on. Raises Conflict for a known name or key."""
    if any(known.name == client.name for known in onion.clients):
        raise conflict(f"there is a client {client.name} already", hint="remove it first, or choose another name")
    _check_clients((*onion.clients, client))
    return msgspec.structs.replace(onion, clients=(*onion.clients, client))


def remove_client(onion: Onion, name: str) -> Onion:
    """One less. Raises NotFound for a client that is none, Conflict for the last: all the world could find it then."""
    left = tuple(client for client in onion.clients if client.name != name)
    if left == onion.clients:
        raise not_found(f"the onion has no client {name[:64]}")
    if not left:
        raise conflict(
            "it is the last client, and without any the onion would be open to everybody",
            hint="add another first; or drain or delete the onion",
        )
    return msgspec.structs.replace(onion, clients=left)


def address_of_blob(key: str) -> str:
    """The address of tor's blob `key`."""
    return address_of(OnionKey(key))


def addresses(onion: Onion) -> tuple[str, ...]:
    """Those it has, served or not; the present one first."""
    return (onion.address,) if onion.previous is None else (onion.address, onion.previous.address)


def check_ports(ports: Sequence[Port]) -> None:
    """Raises `RonError` (BadRequest) for a port twice, and for one of loopback's that is none."""
    _check_unique([port.onion_port for port in ports], "onion_port {} stands there twice")
    for port in ports:
        number = port.local.rpartition(":")[2]
        if not port.local.startswith("unix:") and not 0 < int(number) < 65536:
            raise bad_request(f"local {port.local} is no port", hint="1 to 65535")
        if "/../" in f"{port.local}/" or "//" in port.local:
            raise bad_request("a socket's path must be absolute and plain")


def _check_clients(clients: Sequence[Client]) -> None:
    if len(clients) > MAX_CLIENTS:
        raise bad_request(f"at most {MAX_CLIENTS} clients")
    _check_unique([client.name for client in clients], "client {} stands there twice")
    _check_unique([parse_public(client.public_key) for client in clients], "two clients have one key")


def _check_unique(values: Sequence[object], sentence: str) -> None:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise bad_request(sentence.format(value))
