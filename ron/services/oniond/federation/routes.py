"""The six doors of federation: four on the onion for peers, and two of the control API for the operator.

In: requests behind `ron.web`. Out: endpoints. On the onion nothing needs a capability: who may is what the handshake
finds out. No deadline there is shorter than a refusal takes to leave.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from ron.proto.errors import unavailable
from ron.services.oniond.federation.messages import (
    Challenge,
    Digest,
    FactsMessage,
    HandshakeAnswer,
    Onion,
    RosterListing,
    SessionId,
    TransportFacts,
    ZkHandshake,
)
from ron.services.oniond.federation.service import Federation
from ron.web import Call, Endpoint

DEADLINE_S = 10.0
# Challenge, roster, proof, and the peer's call back: what each may take, and no more.
CONNECT_DEADLINE_S = 180.0


class ConnectRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /v1/federation/connect`."""

    peer: Onion


class OwnList(msgspec.Struct, frozen=True, kw_only=True):
    """Our list of holder keys. holders: how many there are; without any, the list has one key that is nobody's."""

    version: int
    digest: Digest
    size: int
    holders: int


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """One session. role: ours in the handshake. facts: the peer's newest, None when it has told none yet."""

    id: SessionId
    peer: Onion
    role: str
    roster_version: int
    expires_in_s: int
    facts: TransportFacts | None


class FederationView(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `GET /v1/federation`. onion: ours. issuers: whose capability we hold. trouble: what is wrong."""

    onion: Onion
    allow: tuple[Onion, ...]
    issuers: tuple[Onion, ...]
    list: OwnList
    sessions: tuple[SessionView, ...]
    trouble: tuple[str, ...]


class Desk(Protocol):
    """Federation as it is hosted; there is none yet while the onion has no address."""

    @property
    def federation(self) -> Federation | None: ...

    def view(self) -> FederationView: ...

    async def connect(self, peer: str) -> SessionView: ...


def peer_endpoints(desk: Desk) -> list[Endpoint]:
    """What the federation onion answers, and nothing else."""
    doors = _Doors(desk)
    path = "/federate/"
    return [
        Endpoint(method="GET", path=f"{path}challenge", handler=doors.challenge, scope=None, deadline_s=DEADLINE_S),
        Endpoint(method="GET", path=f"{path}roster", handler=doors.roster, scope=None, deadline_s=DEADLINE_S),
        Endpoint(
            method="POST",
            path=f"{path}zk_handshake",
            handler=doors.handshake,
            scope=None,
            body=ZkHandshake,
            deadline_s=DEADLINE_S,
        ),
        Endpoint(
            method="POST",
            path=f"{path}facts",
            handler=doors.facts,
            scope=None,
            body=FactsMessage,
            deadline_s=DEADLINE_S,
        ),
    ]


def operator_endpoints(desk: Desk) -> list[Endpoint]:
    """For the control API."""
    doors = _OperatorDoors(desk)
    return [
        Endpoint(method="GET", path="/v1/federation", handler=doors.federation, scope="federation:read"),
        Endpoint(
            method="POST",
            path="/v1/federation/connect",
            handler=doors.connect,
            scope="federation:connect",
            body=ConnectRequest,
            deadline_s=CONNECT_DEADLINE_S,
            waits=True,
        ),
    ]


# What each call answers, for the OpenAPI file.
ANSWERS: dict[tuple[str, str], type[msgspec.Struct]] = {
    ("GET", "/federate/challenge"): Challenge,
    ("GET", "/federate/roster"): RosterListing,
    ("POST", "/federate/zk_handshake"): HandshakeAnswer,
    ("POST", "/federate/facts"): FactsMessage,
    ("GET", "/v1/federation"): FederationView,
    ("POST", "/v1/federation/connect"): SessionView,
}


class _OperatorDoors:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def federation(self, _call: Call) -> FederationView:
        """Who is federated, who may, and this node's list of holder keys."""
        return self._desk.view()

    async def connect(self, _call: Call, body: ConnectRequest) -> SessionView:
        """Federate with a peer now, and exchange transport facts."""
        return await self._desk.connect(body.peer)


class _Doors:
    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    def challenge(self, _call: Call) -> Challenge:
        """A nonce, a one-time key and the list to prove against."""
        return self._federation().challenge()

    def roster(self, _call: Call) -> RosterListing:
        """The list of holder keys, the same for whoever asks."""
        return self._federation().roster()

    async def handshake(self, _call: Call, body: ZkHandshake) -> HandshakeAnswer:
        """A proof that the sender holds one of the capabilities of this node, or the other half of its own proof."""
        return await self._federation().handshake(body)

    async def facts(self, _call: Call, body: FactsMessage) -> FactsMessage:
        """The peer's transport facts, answered with ours."""
        return await self._federation().facts(body)

    def _federation(self) -> Federation:
        if self._desk.federation is None:
            raise unavailable("federation is not ready yet")
        return self._desk.federation
