"""A key service with two workers, all in one process: every frame between them is encoded, sent on and decoded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any, get_args

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from ron.crypto.secrets import SecretBuffer
from ron.kernel import Metrics
from ron.kernel.health import Readiness
from ron.services.kms import openapi
from ron.services.kms.api import endpoints
from ron.services.kms.config import KmsConfig
from ron.services.kms.readiness import Key
from ron.services.kms.workers.calls import Calls
from ron.services.kms.workers.crew import Crew, Ways
from ron.services.kms.workers.custodian import OwnersCustody
from ron.services.kms.workers.frames import (
    Downward,
    Feels,
    Standing,
    Upward,
    decode_downward,
    decode_upward,
    encode_frame,
)
from ron.services.kms.workers.gate import GatedDesk
from ron.services.kms.workers.service import Surroundings, WorkerService
from ron.web import Edge, make_site
from tests.services.kms.world import World


class Crewman:
    """A worker and its pair. deaf: what the owner says is kept from it. dumb: what it says is kept from the owner."""

    def __init__(self, ship: Ship, name: str, count: int) -> None:
        self.name = name
        self.metrics = Metrics()
        self.wishes: KmsConfig = ship.wishes
        self.listens = self.killed = self.deaf = self.dumb = False
        self.told: list[Downward] = []
        self.said: list[Upward] = []
        self._down: deque[bytes] = deque()
        self._up: deque[bytes] = deque()
        self._heard: Callable[[Upward], None] = lambda _frame: None
        around = Surroundings(
            reactor=reactor,
            wishes=lambda: self.wishes,
            adopt=self._adopt,
            metrics=self.metrics,
            exported=lambda: tuple(self.metrics.export()),
            now_s=time.time,
            chatty=lambda: False,
        )
        with ship.lender.lend() as master:
            secret = SecretBuffer.taking(bytearray(master), allow_unlocked=True)
        self.service = WorkerService(around, secret, workers=count, send=self._send, go=self._go)
        self.service.start()
        self.ended: Deferred[None] = Deferred()
        self.seat = ship.crew.join(name, Ways(self._tell, self.kill, self.ended))
        self._heard = lambda frame: ship.crew.heard(self.seat, frame)
        self._send(Feels(Readiness(ready=True)))

    def kill(self) -> None:
        """It dies a turn later, as a process does."""
        if not self.killed:
            self.killed = True
            reactor.callLater(0, self.ended.callback, None)

    def flush(self) -> None:
        """Everything that was kept back arrives now."""
        self.deaf = self.dumb = False
        self._deliver()

    def _adopt(self, raw: bytes) -> None:
        self.wishes = msgspec.json.decode(raw, type=KmsConfig)

    def _go(self) -> None:
        self.listens = True

    def _tell(self, frame: Downward) -> None:
        self._down.append(encode_frame(frame))
        reactor.callLater(0, self._deliver)

    def _send(self, frame: Upward) -> None:
        self._up.append(encode_frame(frame))
        reactor.callLater(0, self._deliver)

    def _deliver(self) -> None:
        while self._down and not (self.deaf or self.killed):
            down = decode_downward(self._down.popleft())
            self.told.append(down)
            self.service.heard(down)
        while self._up and not (self.dumb or self.killed):
            up = decode_upward(self._up.popleft())
            self.said.append(up)
            self._heard(up)


class Ship(World):
    """World, whose site is the first worker's; what workers do not serve over HTTP is the owner's."""

    on_disk = True
    count = 2

    async def begin(self) -> None:
        await super().begin()
        self.lender: Any = self.backend.inner  # type: ignore[attr-defined]
        self.felt: dict[str, Readiness] = {}
        self.manned: list[int] = []
        self.gate = GatedDesk(self.service, self.settled)
        self.crew = Crew(
            reactor,
            OwnersCustody(self.service, self.lender),
            standing=self.standing,
            calls=Calls(self.gate),
            manned=self.manned.append,
            feels=self.felt.__setitem__,
        )
        self.service.on_key = self.crew.key
        told = self.service.guard.on_change

        def changed(key: Key, trouble: str) -> None:
            told(key, trouble)
            self.crew.look()

        self.service.guard.on_change = changed
        self.crew.start()
        self.men = [Crewman(self, f"kms-worker.{number}", self.count) for number in range(1, self.count + 1)]
        await self.until(lambda: all(man.listens for man in self.men), "workers")
        self.owners_site = self.site
        self.use(self.men[0])

    def use(self, man: Crewman) -> None:
        """From now on `self.ask` asks this worker."""
        edge = Edge(authority=self.authority, metrics=man.metrics, reactor=reactor)
        own = [one for one in endpoints(man.service, openapi.served) if "/audit/" not in one.path]
        owners = [one for one in endpoints(self.gate, openapi.served) if "/audit/" in one.path]
        self.site = make_site(edge, [*own, *owners], body_limit=1024 * 1024)

    async def settled(self) -> None:
        await self.crew.settled()

    def standing(self) -> Standing:
        guard = self.service.guard
        return Standing(
            generation=0,
            freezes={f"tenant:{tenant}": why for tenant, why in self.votes.freezes.items()},
            modes={f"tenant:{tenant}": mode for tenant, mode in self.votes.modes.items()},
            troubles={key: why for key in get_args(Key) if (why := guard.why_not(key))},
            fresh=guard.degraded_age_ms() is None,
            config=msgspec.json.encode(self.wishes),
        )

    async def end(self) -> None:
        self.crew.stop()
        for man in self.men:
            man.killed = True
            man.service.stop()
        await super().end()
