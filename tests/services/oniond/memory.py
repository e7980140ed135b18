"""The control API without a port, a disk or a tor: a site in memory over the real service, its store included.

`World.ask` sends one request and lets the service work until it is answered; time stands still unless a test moves it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from queue import SimpleQueue
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from ron.auth import Authority, Caveat, RootKeys
from ron.kernel import HealthState, Metrics
from ron.proto.errors import unavailable
from ron.services.oniond import api
from ron.services.oniond.config import OnionConfig
from ron.services.oniond.service import OniondService
from ron.services.oniond.telemetry import Telemetry
from ron.web import Edge, Endpoint, make_site
from ron.web.health import OwnHealth, health_endpoints
from tests.services.oniond.fakes import FakeAudit
from tests.web.wire import Response, request, split_response

NOW_S = 1_800_000_000.0
PATIENCE_S = 20.0


class Turns(Clock):
    """A clock that is also where the store's thread hands its answers over; `turn` takes one."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: SimpleQueue[tuple[Callable[..., Any], tuple[object, ...]]] = SimpleQueue()

    def callFromThread(self, callable: Callable[..., Any], *args: object, **_kwargs: object) -> None:
        self._calls.put((callable, args))

    def turn(self) -> None:
        call, args = self._calls.get(timeout=PATIENCE_S)
        call(*args)


class NoTors:
    """Tors that never come up: every onion is known and none is published."""

    async def names(self) -> tuple[str, ...]:
        return ("onion",)

    async def control_port(self, _name: str) -> int:
        raise unavailable("not up")

    async def restart(self, _name: str) -> None: ...

    async def socks_port(self, _name: str) -> int:
        return 9050

    async def add(self, _name: str) -> None: ...

    async def remove(self, _name: str) -> None: ...


class Answer(NamedTuple):
    """What came back. body: decoded, or None where there is none."""

    status: int
    body: Any


class World:
    """One host. `stop` it."""

    def __init__(
        self, *, extra: Callable[[World], Iterable[Endpoint]] = lambda _world: (), config: OnionConfig | None = None
    ) -> None:
        self.clock = Turns()
        self.now = NOW_S
        # how much of it is the clock having been set, not time having passed
        self.jumped = 0.0
        self.health = HealthState()
        self.metrics = Metrics()
        self.audit = FakeAudit()
        self.authority = Authority(RootKeys.generate(), audience="ron-node", now=lambda: self.now)
        self.telemetry = Telemetry(self.metrics, self.clock, lambda: self.now)
        self.service = OniondService(
            self.clock,
            config or OnionConfig(max_per_app=6),
            directory=None,
            tors=NoTors(),
            health=self.health,
            audit=self.audit,
            telemetry=self.telemetry,
            now=lambda: self.now,
            even=lambda: self.now - self.jumped,
        )
        self.service.startService()
        self.settle(Deferred.fromCoroutine(self.service.bring_up()))
        edge = Edge(authority=self.authority, metrics=self.metrics, reactor=self.clock)
        health = health_endpoints(OwnHealth(self.health, self.metrics), name="oniond")
        routes = [*api.endpoints(self.service), *extra(self), *health]
        self.site = make_site(edge, routes, body_limit=api.BODY_LIMIT_BYTES)

    def settle(self, deferred: Deferred[Any]) -> Any:
        """Its result."""
        results: list[Any] = []
        deferred.addBoth(results.append)
        while not results:
            self.clock.turn()
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]

    def stop(self) -> None:
        """End it."""
        self.settle(self.service.stopService())

    def bearer(self, *caveats: tuple[str, str]) -> str:
        """A capability."""
        return self.authority.mint(Caveat(*caveat) for caveat in caveats)

    def ask(self, token: str | None, method: str, path: str, body: Any = None) -> Answer:
        """One request on a connection of its own. body: what JSON can say, or the bytes themselves."""
        response = self.exchange(token, method, path, body)
        text = response.body
        is_json = response.headers.get("content-type") == "application/json"
        return Answer(response.status, json.loads(text) if text and is_json else text or None)

    def exchange(
        self, token: str | None, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Response:
        """The same, with all headers."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        channel, transport = self.site.buildProtocol(None), StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(request(method, path, sent, raw))
        while (whole := split_response(transport.value(), headless=method == "HEAD")) is None:
            self.clock.turn()
        channel.connectionLost(Failure(connectionDone.value))
        return whole[0]
