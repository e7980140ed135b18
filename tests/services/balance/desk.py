"""A cluster of three that exists in memory only, as an operator's desk; and a site in memory before it."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from ron.auth import Authority, Caveat, RootKeys
from ron.kernel import Metrics
from ron.proto.balance import Mode, NodeName, ServiceName, Where
from ron.proto.balanceviews import (
    BalanceView,
    GhostView,
    HeadView,
    InvitationAnswer,
    LeaderView,
    MemberView,
    PublicationView,
    PublishAnswer,
    RemoveAnswer,
    RouletteAnswer,
    ServiceView,
    TokenAnswer,
)
from ron.proto.clock import rfc3339
from ron.proto.errors import conflict, not_found
from ron.services.balance.api import BODY_LIMIT_BYTES, endpoints
from ron.web import Edge, make_site
from tests.web.wire import Response, request, split_response

NOW_S = 1_800_000_000.0
NODES = ("alpha", "beta", "gamma")
ONION = "a" * 56 + ".onion"
KEY_ONION = "k" * 56 + ".onion"


def head(number: int, **more: Any) -> HeadView:
    known = {"mode": "serving", "onion": "bcd"[number] * 56 + ".onion", "healthy": True, "under_siege": False}
    figures = {"introductions_per_s": 1.5, "sessions": 4, "attacks": 0}
    return HeadView(**{**known, **figures, **more})


def member(number: int, **more: Any) -> MemberView:
    name = NODES[number]
    known = {
        "name": name,
        "number": number + 1,
        "addresses": (f"10.7.0.{number + 1}:9470",),
        "connected": True,
        "state": "alive",
        "uptime_s": 3600.0 - number,
        "drift_s": 0.01,
        "fit": True,
        "leads": number == 0,
        "hears": tuple(other for other in NODES if other != name),
        "head": head(number),
        "in_descriptor": True,
        "published_in": ("main",),
        "planned_in": ("main",),
        "holds": ("main",),
        "approved": True,
    }
    return MemberView(**{**known, **more})


def service(name: str = "main", **more: Any) -> ServiceView:
    publications = (
        PublicationView(period=20_000, revision=7, by="alpha", age_s=42.0, heads=NODES, taken=6, directories=6),
        PublicationView(period=20_001, revision=7, by="alpha", age_s=41.0, heads=NODES, taken=5, directories=6),
    )
    known = {"name": name, "onion": ONION, "mode": "threshold", "threshold": 2, "members": 3, "epoch": 1}
    known |= {
        "holders": NODES,
        "heads": NODES,
        "planned": NODES,
        "answering": 3,
        "publications": publications,
        "next_publish_s": 558.0,
    }
    return ServiceView(**{**known, **more})


class MemoryDesk:
    """A `Desk`. calls: what was asked, keys as the copies they were. refusal: what every order then raises; failures:
    what the next ones do, one each."""

    def __init__(self) -> None:
        self.members = {one.name: one for one in map(member, range(3))}
        self.services = {"main": service()}
        self.leader = LeaderView(name="alpha", why="longest uptime", lease_left_s=12.5, claims=("alpha",))
        self.roulette_until: str | None = None
        self.token = 1
        self.remove_by = 1
        self.calls: list[tuple[Any, ...]] = []
        self.keys: list[bytearray] = []
        self.refusal: Exception | None = None
        self.failures: list[Exception] = []
        self.held: Deferred[None] | None = None

    async def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if self.held is not None:
            await self.held
        if self.failures:
            raise self.failures.pop(0)
        if self.refusal is not None:
            raise self.refusal

    def _member(self, name: NodeName) -> MemberView:
        if name not in self.members:
            raise not_found(f"there is no node {name!r}")
        return self.members[name]

    def _change(self, name: NodeName, **fields: Any) -> MemberView:
        self.members[name] = msgspec.structs.replace(self._member(name), **fields)
        return self.members[name]

    def _service(self, name: ServiceName) -> ServiceView:
        if name not in self.services:
            raise not_found(f"there is no service {name!r}")
        return self.services[name]

    async def status(self) -> BalanceView:
        return BalanceView(
            node="alpha",
            cluster="00" * 16,
            time=rfc3339(NOW_S),
            leader=self.leader,
            members=tuple(self.members.values()),
            services=tuple(self.services.values()),
            roulette_until=self.roulette_until,
            warnings=("beta has an old version",),
        )

    async def ghosts(self) -> tuple[GhostView, ...]:
        return tuple(
            GhostView(node=one.name, since_s=5.0, why=one.out, sessions=2, attacks=9, introductions_per_s=3.0)
            for one in self.members.values()
            if one.head is not None and one.head.mode == "ghost"
        )

    async def promote(self, node: NodeName | None, for_s: int | None) -> LeaderView:
        await self._note("promote", node, for_s)
        if node is not None:
            self._member(node)
            until = rfc3339(NOW_S + for_s) if for_s is not None else None
            self.leader = LeaderView(name=node, why="promoted", promoted_until=until, claims=(node,))
        return self.leader

    async def siege(self, node: NodeName, on: bool, for_s: int | None) -> MemberView:
        await self._note("siege", node, on, for_s)
        mode: Any = "ghost" if on else "serving"
        shown = head(NODES.index(self._member(node).name), mode=mode, under_siege=on)
        listed = () if on else ("main",)
        out = "under siege" if on else ""
        return self._change(node, head=shown, in_descriptor=not on, published_in=listed, planned_in=listed, out=out)

    async def roulette(self, on: bool, for_s: int | None) -> RouletteAnswer:
        await self._note("roulette", on, for_s)
        self.roulette_until = rfc3339(NOW_S + (for_s or 7200)) if on else None
        return RouletteAnswer(until=self.roulette_until, warning="visitors wait longer" if on else "")

    async def refresh(self, service: ServiceName) -> ServiceView:
        await self._note("refresh", service)
        return self._next_epoch(service)

    async def reshare(
        self,
        service: ServiceName,
        threshold: int | None,
        add: tuple[NodeName, ...],
        remove: tuple[NodeName, ...],
    ) -> ServiceView:
        await self._note("reshare", service, threshold, add, remove)
        for name in (*add, *remove):
            self._member(name)
        return self._next_epoch(service, threshold=threshold or self._service(service).threshold)

    def _next_epoch(self, name: ServiceName, **more: Any) -> ServiceView:
        now = self._service(name)
        if now.mode == "shared":
            raise conflict(f"{name} has no shares")
        self.services[name] = msgspec.structs.replace(now, epoch=now.epoch + 1, **more)
        return self.services[name]

    async def leave(self) -> NodeName:
        await self._note("leave")
        return "alpha"

    async def approve(self, name: NodeName) -> MemberView:
        await self._note("approve", name)
        return self._change(name, approved=True, waiting=False)

    async def remove(self, name: NodeName) -> RemoveAnswer:
        await self._note("remove", name)
        self._member(name)
        if self.remove_by > 1:
            return RemoveAnswer(name=name, removed=False, asked_by=("alpha",), needed=self.remove_by)
        del self.members[name]
        return RemoveAnswer(name=name, asked_by=("alpha",))

    async def rotate_token(self) -> TokenAnswer:
        await self._note("token")
        self.token += 1
        return TokenAnswer(version=self.token, told=NODES[1:])

    async def invite(self, name: NodeName, addresses: tuple[Where, ...]) -> InvitationAnswer:
        await self._note("invite", name, addresses)
        return InvitationAnswer(name=name, bundle=f"bundle of {name}, number {len(self.calls)}\n")

    async def create(
        self,
        name: ServiceName,
        mode: Mode,
        threshold: int,
        members: int,
        among: tuple[NodeName, ...],
        key: bytearray | None,
    ) -> ServiceView:
        if key is not None:
            self.keys.append(key)
        await self._note("create", name, mode, threshold, members, among, bytes(key) if key is not None else None)
        if name in self.services:
            raise conflict(f"there is a service {name!r} already")
        made = ServiceView(
            name=name, onion=KEY_ONION if key else ONION, mode=mode, threshold=threshold, members=members, epoch=1
        )
        self.services[name] = made
        return made

    async def publish(self, service: ServiceName | None) -> PublishAnswer:
        await self._note("publish", service)
        if service is not None:
            self._service(service)
        return PublishAnswer(leader="alpha", services=(service,) if service else tuple(self.services))


class Answer(NamedTuple):
    """What came back. body: decoded, or None where there is none."""

    status: int
    body: Any


class World:
    """One node's control socket, without the socket."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.desk = MemoryDesk()
        self.metrics = Metrics()
        self.authority = Authority(RootKeys.generate(), audience="ron-node", now=lambda: NOW_S)
        edge = Edge(authority=self.authority, metrics=self.metrics, reactor=self.clock)
        self.site = make_site(edge, endpoints(self.desk, self.clock), body_limit=BODY_LIMIT_BYTES)

    def bearer(self, *caveats: tuple[str, str]) -> str:
        """A capability."""
        return self.authority.mint(Caveat(*caveat) for caveat in caveats)

    def begin(self, token: str | None, method: str, path: str, body: Any = None) -> Exchange:
        """Send one request on a connection of its own. body: what JSON can say, or the bytes themselves."""
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        return Exchange(self.site, request(method, path, headers, raw))

    def ask(self, token: str | None, method: str, path: str, body: Any = None) -> Answer:
        """The answer, which must be there at once."""
        exchange = self.begin(token, method, path, body)
        response = exchange.response()
        exchange.hang_up()
        assert response is not None, "no answer yet"
        return Answer(response.status, json.loads(response.body) if response.body else None)


class Exchange:
    """One request on its way."""

    def __init__(self, site: Any, sent: bytes) -> None:
        self._channel, self._transport = site.buildProtocol(None), StringTransport()
        self._channel.makeConnection(self._transport)
        self._channel.dataReceived(sent)

    def response(self) -> Response | None:
        """The answer, or None while there is none."""
        whole = split_response(self._transport.value())
        return whole[0] if whole is not None else None

    def hang_up(self) -> None:
        """As a client that has gone."""
        self._channel.connectionLost(Failure(connectionDone.value))
