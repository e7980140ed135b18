"""What time brings: grace periods end, drains come to their end, old acts are forgotten, efforts are measured.

In: the registry, once a second. Out: onions as they are then. Ends are Unix times, so that they hold over a restart;
when the host's clock is set, they are moved along, so that nobody's old address goes an hour early.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.proto.errors import RonError
from ron.services.oniond import model
from ron.services.oniond.hosting import Hosting
from ron.services.oniond.model import Onion
from ron.services.oniond.registry import Registry
from ron.services.oniond.scaling import Scaling
from ron.services.oniond.storehealth import StoreHealth
from ron.services.oniond.telemetry import Telemetry

TICK_S = 1.0
FORGET_EVERY = 600
LOOK_AGAIN_EVERY = 15
TIME_EVERY = 3
# A visitor who has moved nothing for so long does not hold up a drain: clients keep idle circuits for many minutes.
QUIET_S = 10.0
# A clock that is off by less is slewed, not set; and a look that comes late by so much is no jump.
JUMP_S = 30.0
_log = Logger(namespace="ron.oniond")


class Upkeep:
    """Looks after the onions of one registry, between `start` and `stop`. now: Unix seconds.

    even: seconds of a clock that nobody sets.
    """

    def __init__(
        self,
        reactor: Any,
        registry: Registry,
        hosting: Hosting,
        *,
        scaling: Scaling,
        store: StoreHealth,
        telemetry: Telemetry,
        now: Callable[[], float],
        even: Callable[[], float],
    ) -> None:
        self._registry = registry
        self._hosting = hosting
        self._scaling = scaling
        self._store = store
        self._telemetry = telemetry
        self._now = now
        self._even = even
        self._ahead_s = now() - even()
        # by id: by how many seconds what ends there is still to be moved
        self._late: dict[str, float] = {}
        self._ticks = 0
        self._tick = LoopingCall(self._look_after)
        self._tick.clock = reactor

    def start(self) -> None:
        """From now on."""
        self._tick.start(TICK_S, now=False)

    def stop(self) -> None:
        """No more."""
        if self._tick.running:
            self._tick.stop()

    def _look_after(self) -> Deferred[None]:
        looking = Deferred.fromCoroutine(self.look())
        return looking.addErrback(lambda failure: _log.failure("looking after onions", failure, event="oniond_tick"))

    async def look(self) -> None:
        """Once."""
        self._ticks += 1
        self._hosting.look_after()
        self._scaling.notice()
        if self._ticks % TIME_EVERY == 0 or self._jumped_s():
            await self._hosting.look_at_time()
        if not await self._store.writable():
            return  # none of this could be kept
        if self._ticks % FORGET_EVERY == 0:
            await self._registry.forget_old_acts()
        if self._ticks % LOOK_AGAIN_EVERY == 0:
            await self._hosting.look_again()
            await self._measure_effort()
        await self.follow_the_clock()
        now_s = self._now()
        for onion in list(self._registry):
            if onion.previous is not None and onion.previous.until_s <= now_s:
                onion = await self._registry.change(onion.id, None, partial(_end_grace, now_s))
                await self._hosting.host(onion)
            if onion.state == "draining":
                await self._finish_drain(onion, now_s)

    async def follow_the_clock(self) -> None:
        """The host's clock may have been set: what is left of each grace and drain is then as much as before.

        To be called before any end is reckoned by the clock as it is now. Raises `RonError` when it cannot be kept.
        """
        jumped_s = self._jumped_s()
        if jumped_s:
            _log.warn("the clock was set by {seconds} s", event="clock_jumped", seconds=round(jumped_s))
            self._ahead_s += jumped_s
            for onion in self._registry:
                if onion.previous is not None or onion.state == "draining":
                    self._late[onion.id] = self._late.get(onion.id, 0.0) + jumped_s
        # all at once, so that nothing else comes between
        moving = [Deferred.fromCoroutine(self._put_off(onion_id)) for onion_id in list(self._late)]
        for done, outcome in await DeferredList(moving, consumeErrors=True):
            if not done:
                raise cast(Any, outcome).value

    def _jumped_s(self) -> float:
        """By how much the clock was set since it was followed; 0 for what may be none."""
        jumped_s = self._now() - self._even() - self._ahead_s
        return jumped_s if abs(jumped_s) >= JUMP_S else 0.0

    async def _put_off(self, onion_id: str) -> None:
        by_s = self._late.pop(onion_id)
        try:
            await self._registry.change(onion_id, None, partial(_put_off, by_s))
        except RonError:
            if self._registry.get(onion_id) is not None:
                self._late[onion_id] = self._late.get(onion_id, 0.0) + by_s
                raise

    async def _measure_effort(self) -> None:
        """What visitors have to work, app by app the most; of restricted onions nobody but their clients can know."""
        efforts: dict[str, int] = {}
        for onion in [one for one in self._registry if one.pow and one.pow.enabled and not one.clients]:
            effort = await self._hosting.effort(onion)
            if effort is not None:
                efforts[onion.app] = max(effort, efforts.get(onion.app, 0))
        self._telemetry.efforts = efforts

    async def _finish_drain(self, onion: Onion, now_s: float) -> None:
        there = self._hosting.visitors(onion, quiet_s=QUIET_S)
        if there and now_s < onion.drain_until_s:
            return
        await self._hosting.hang_up(onion)
        await self._registry.change(onion.id, None, lambda o: model.drained(o) if o.state == "draining" else o)
        _log.info("onion {id} is drained", event="onion_drained", id=onion.id, cut_off=there)


def _put_off(by_s: float, onion: Onion) -> Onion:
    return model.put_off(onion, by_s)


def _end_grace(now_s: float, onion: Onion) -> Onion:
    return model.end_grace(onion, now_s)
