"""Life of the onion runtime: publishes each app's onion on the `onion` tor, and again when that tor comes back.

In: apps and ports. Out: addresses; readiness keys `onion.<app>`. The tor is somebody else's: when this process is
killed the onions go on, and the next one finds them and leaves them as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from txtorcon import TorControlProtocol

from ron.kernel import HealthState
from ron.kernel.aio import occurred, within
from ron.proto.errors import RonError
from ron.services.oniond.store import OnionStore
from ron.tor.attached import AttachedTor, TorHost
from ron.tor.onionkeys import new_key
from ron.tor.onions import OnionSpec, PortMap, TorOnions
from ron.tor.privnet import Stage

# The client tor that hosts every app's onion in this slice.
HOST_ROLE = "onion"
# A first publication that fails is tried again with a fresh tor; this bounds all of it.
PUBLISH_TIMEOUT_S = 120.0
WITHDRAW_TIMEOUT_S = 5.0
_log = Logger(namespace="ron.oniond")


class OnionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One app's onion as status shows it. bringup_ms: ADD_ONION to the first confirmed descriptor upload; None for one
    that was found published."""

    app: str
    onion: str | None
    ports: tuple[int, ...]
    published: bool
    bringup_ms: float | None = None


class OniondService(Service):
    """One onion per app on the tor that `tors` calls `onion`."""

    def __init__(
        self,
        reactor: Any,
        *,
        tors: TorHost,
        store: OnionStore,
        health: HealthState,
        progress: Callable[[Stage], None] = lambda stage: None,
    ) -> None:
        self._reactor = reactor
        self._store = store
        self._health = health
        self._progress = progress
        self._apps: dict[str, tuple[PortMap, ...]] = {}
        self._addresses: dict[str, str] = {}
        self._bringup_ms: dict[str, float] = {}
        self._first_round: Deferred[None] = Deferred()
        self._onions: TorOnions | None = None
        self._tor = AttachedTor(reactor, name=HOST_ROLE, host=tors, on_up=self._tor_up, on_down=self._tor_down)

    def startService(self) -> None:
        """Look for the tor."""
        super().startService()
        self._first_round = Deferred()
        self._tor.start()

    async def bring_up(self) -> None:
        """Return when every app added so far is published. Raises `TimeoutError` after two minutes."""
        if self._apps:
            await within(self._reactor, PUBLISH_TIMEOUT_S, occurred(self._first_round))

    async def _take_down(self) -> None:
        onions, self._onions = self._onions, None
        if onions is not None:
            try:
                await within(self._reactor, WITHDRAW_TIMEOUT_S, self._withdraw_all(onions))
            except Exception as error:  # noqa: BLE001 - tor may be gone already, and takes them along
                _log.warn("the onions were not taken down: {error}", event="onion_left", error=str(error))
        self._tor.stop()

    def stopService(self) -> Deferred[None]:
        """Take the onions down, and let go of the tor."""
        super().stopService()
        return Deferred.fromCoroutine(self._take_down())

    def add_app(self, app: str, ports: Sequence[PortMap]) -> None:
        """Expose `ports` on an onion of `app`'s own, from the next bring-up on."""
        self._apps[app] = tuple(ports)
        self._health.missing(f"onion.{app}", "its descriptor is not published yet")

    def onion(self, app: str) -> str | None:
        """The address of `app`, once it has one."""
        return self._addresses.get(app)

    def status(self) -> tuple[OnionStatus, ...]:
        """Every app's onion."""
        return tuple(self._status(app) for app in self._apps)

    async def _tor_up(self, control: TorControlProtocol) -> None:
        """What tor has already stays; what it has and nobody wants goes; the rest is published."""
        onions = TorOnions(self._reactor, control)
        await onions.open()
        self._onions = onions
        specs = {app: self._spec(app) for app in self._apps}
        there = await onions.detached()
        applied = {address: digest for address, digest in self._store.applied().items() if address in there}
        for app, spec in specs.items():
            if applied.get(spec.address) == spec.digest():
                self._is_up(app, spec.address, None)
        kept = {spec.address: spec.digest() for spec in specs.values()}
        for address in there:
            if applied.get(address) != kept.get(address, ""):
                applied.pop(address, None)
                self._store.save_applied(applied)  # before tor loses it: what stands here must be there
                await onions.withdraw(address)
        for app, spec in specs.items():
            if spec.address not in applied:
                await self._publish(onions, app, spec)
                applied[spec.address] = spec.digest()
                self._store.save_applied(applied)
        if not self._first_round.called:
            self._first_round.callback(None)

    def _tor_down(self) -> None:
        self._onions = None
        for app in self._apps:
            self._health.missing(f"onion.{app}", "the tor that hosts it is gone and will be started again")

    def _spec(self, app: str) -> OnionSpec:
        key = self._store.load(app)
        if key is None:
            key = new_key()
            self._store.save(app, key)  # before tor hears of it: whatever happens then, the address stays
        return OnionSpec(key=key, ports=self._apps[app])

    async def _publish(self, onions: TorOnions, app: str, spec: OnionSpec) -> None:
        self._progress(Stage("onion", 0, 1, f"publishing the descriptor of {app}"))
        try:
            uploads = await onions.publish(spec)
        except RonError as error:
            self._health.missing(f"onion.{app}", error.message)
            _log.error("onion of {app}: {reason}", event="onion_failed", app=app, reason=error.message)
            raise
        self._is_up(app, spec.address, uploads.bringup_ms)
        self._progress(Stage("onion", 1, 1, spec.address))

    def _is_up(self, app: str, address: str, bringup_ms: float | None) -> None:
        self._addresses[app] = address
        if bringup_ms is not None:
            self._bringup_ms[app] = bringup_ms
        self._health.ok(f"onion.{app}")
        _log.info(
            "onion of {app} is up: {onion}",
            event="onion_up",
            app=app,
            onion=address,
            bringup_ms=None if bringup_ms is None else round(bringup_ms, 1),
        )

    async def _withdraw_all(self, onions: TorOnions) -> None:
        self._store.save_applied({})
        for address in self._addresses.values():
            await onions.withdraw(address)

    def _status(self, app: str) -> OnionStatus:
        return OnionStatus(
            app=app,
            onion=self._addresses.get(app),
            ports=tuple(p.onion_port for p in self._apps[app]),
            published=self._health.is_ok(f"onion.{app}"),
            bringup_ms=self._bringup_ms.get(app),
        )
