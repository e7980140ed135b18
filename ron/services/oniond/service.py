"""Life of the onion runtime: brings the network up, publishes each app's onion, publishes it again when tor comes back.

In: apps and ports. Out: addresses; readiness keys `tor.*` and `onion.<app>`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from ron.kernel import HealthState
from ron.kernel.aio import within
from ron.proto.errors import RonError
from ron.services.oniond.store import OnionKeys
from ron.tor.onions import PortMap, Published, publish
from ron.tor.privnet import PrivateNetwork, Stage
from ron.tor.watchdog import WatchedTor

# The client tor that hosts every app's onion in this slice.
HOST_ROLE = "onion"
# A first publication that fails is tried again with a fresh tor; this bounds all of it.
PUBLISH_TIMEOUT_S = 120.0
_log = Logger(namespace="ron.oniond")


class OnionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One app's onion as status shows it. bringup_ms: ADD_ONION to the first confirmed descriptor upload."""

    app: str
    onion: str | None
    ports: tuple[int, ...]
    published: bool
    bringup_ms: float | None = None


class OniondService(Service):
    """One onion per app on the private network's `onion` tor."""

    def __init__(
        self,
        reactor: Any,
        *,
        network: PrivateNetwork,
        keys: OnionKeys,
        health: HealthState,
        progress: Callable[[Stage], None] = lambda stage: None,
    ) -> None:
        self.network = network
        self._reactor = reactor
        self._keys = keys
        self._health = health
        self._progress = progress
        self._apps: dict[str, tuple[PortMap, ...]] = {}
        self._published: dict[str, Published] = {}
        self._first_round: Deferred[None] = Deferred()
        network.on_client_up(self._client_up)

    async def bring_up(self) -> None:
        """Start the network; returns when every app added so far is published. Raises `RonError` when it cannot."""
        await self.network.bring_up()
        if self._apps:
            await within(self._reactor, PUBLISH_TIMEOUT_S, self._first_round)

    def stopService(self) -> Deferred[None]:
        """Take the network down; fires when no tor is left."""
        super().stopService()
        return Deferred.fromCoroutine(self.network.take_down())

    def add_app(self, app: str, ports: Sequence[PortMap]) -> None:
        """Expose `ports` on an onion of `app`'s own, from the next bring-up on."""
        self._apps[app] = tuple(ports)
        self._health.missing(f"onion.{app}", "its descriptor is not published yet")

    def onion(self, app: str) -> str | None:
        """The address of `app`, once it has one."""
        published = self._published.get(app)
        return published.onion if published else None

    def status(self) -> tuple[OnionStatus, ...]:
        """Every app's onion."""
        return tuple(self._status(app) for app in self._apps)

    async def _client_up(self, tor: WatchedTor) -> None:
        """tor forgets its onions when it ends; give them back as soon as it is there again."""
        if tor.name != HOST_ROLE:
            return
        for app in self._apps:
            try:
                await self._publish(app)
            except RonError as error:
                self._health.missing(f"onion.{app}", error.message)
                _log.error("onion of {app}: {reason}", event="onion_failed", app=app, reason=error.message)
                raise
        if not self._first_round.called:
            self._first_round.callback(None)

    async def _publish(self, app: str) -> None:
        control = self.network.tors[HOST_ROLE].control
        if control is None:
            return
        self._progress(Stage("onion", 0, 1, f"publishing the descriptor of {app}"))
        before = self._keys.load(app)
        published = await publish(self._reactor, control, self._apps[app], before)
        if before is None:
            self._keys.save(app, published.key)
        self._published[app] = published
        self._health.ok(f"onion.{app}")
        self._progress(Stage("onion", 1, 1, published.onion))
        _log.info(
            "onion of {app} is up: {onion}",
            event="onion_up",
            app=app,
            onion=published.onion,
            bringup_ms=round(published.bringup_ms, 1),
        )

    def _status(self, app: str) -> OnionStatus:
        published = self._published.get(app)
        return OnionStatus(
            app=app,
            onion=published.onion if published else None,
            ports=tuple(p.onion_port for p in self._apps[app]),
            published=self._health.is_ok(f"onion.{app}"),
            bringup_ms=published.bringup_ms if published else None,
        )
