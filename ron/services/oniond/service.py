"""Life of the onion runtime: every app's onions kept on their tors, from the act that makes them to the last visitor.

In: acts (create, bind, rotate, drain, delete, clients, export); the onions that the config names. Out: `OnionView`s;
readiness keys `onion.<app>` for the config's own and `onions` for all others together. The tors are somebody else's:
when this process is killed the onions go on, and the next one finds them and leaves them as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.logger import Logger

from ron.kernel import HealthState
from ron.kernel.aio import within
from ron.proto.onions import (
    AddClientRequest,
    BindRequest,
    CreateRequest,
    DeleteRequest,
    DrainRequest,
    ExportAnswer,
    ExportRequest,
    OnionView,
    Port,
    Pow,
    RemoveClientRequest,
    RotateRequest,
)
from ron.services.oniond import model
from ron.services.oniond.audit import Value
from ron.services.oniond.autoscale import from_section, guards
from ron.services.oniond.config import OnionConfig
from ron.services.oniond.hosting import Hosting, Tors
from ron.services.oniond.model import Onion
from ron.services.oniond.readiness import OnionReadiness
from ron.services.oniond.registry import Asked, Registry, asked, unknown
from ron.services.oniond.scaling import ScaleFigures, ScaleView, Scaling
from ron.services.oniond.store import DATABASE, OnionStore, legacy_key
from ron.services.oniond.storehealth import StoreHealth
from ron.services.oniond.telemetry import Telemetry
from ron.services.oniond.upkeep import Upkeep
from ron.services.oniond.views import Listing, OnionStatus, status_of, view_of, views_of
from ron.tor.backends import BackendReport, Capability, require
from ron.tor.fleet import Stage
from ron.tor.onionkeys import new_key

# Every onion of the config is published within this time, or the start has failed.
BRING_UP_S = 120.0
_NOBODYS = "0" * 36
_log = Logger(namespace="ron.oniond")


class Audit(Protocol):
    """Where what must not go unnoticed is written."""

    async def record(self, event: str, /, **fields: Value) -> None:
        """Return when it is written. Raises `RonError`: then it must not happen."""
        ...


class OniondService(Service):
    """The onions of this host.

    directory: where the store is, None for memory only. audit: told before a key leaves. backend: what tor can do here,
    None for everything. now: Unix seconds. even: seconds of a clock that nobody sets, the reactor's unless
    given.
    """

    def __init__(
        self,
        reactor: Any,
        config: OnionConfig,
        *,
        directory: Path | None,
        tors: Tors,
        health: HealthState,
        audit: Audit,
        telemetry: Telemetry,
        backend: BackendReport | None = None,
        progress: Callable[[Stage], None] = lambda stage: None,
        now: Callable[[], float] = time.time,
        even: Callable[[], float] | None = None,
        wishes: Callable[[], OnionConfig] | None = None,
    ) -> None:
        self.telemetry = telemetry
        self.scale_figures = ScaleFigures()
        # told of each onion whether it is ready, again and again
        self.observers: list[Callable[[Onion, bool], None]] = []
        self._reactor = reactor
        self._config = config
        self._wishes = wishes or (lambda: config)
        self._directory = directory
        self._tors = tors
        self._health = health
        self._audit = audit
        self._backend = backend
        self._progress = progress
        self._now = now
        self._even = even or reactor.seconds
        self._apps: dict[str, tuple[Port, ...]] = {}
        self._pows: dict[str, Pow] = {}
        self._ids: dict[str, str] = {}
        self._loading: Deferred[None] = Deferred()
        self._make()

    # Life

    def add_app(self, app: str, ports: Sequence[Port], pow: Pow | None = None) -> None:
        """The config's own onion of `app`, from the next start on. pow: for where this host's tor can do it."""
        self._apps[app] = tuple(ports)
        if pow is not None and (self._backend is None or Capability.ONION_POW in self._backend.capabilities):
            self._pows[app] = pow
        self._health.missing(f"onion.{app}", "its descriptor is not published yet")

    def startService(self) -> None:
        """Read what there is, and look for the tors."""
        super().startService()
        self._make()
        self._loading = Deferred.fromCoroutine(self._load())
        # whoever waits for it gets the failure too
        self._loading.addErrback(self._not_loaded)

    async def bring_up(self) -> None:
        """Return when the config's onions can be found. Raises `RonError`, or `TimeoutError` after two minutes."""
        await self._loading
        for number, (app, onion_id) in enumerate(self._ids.items()):
            onion = self.find(onion_id)
            self._progress(Stage("onion", number, len(self._ids), f"publishing the descriptor of {app}"))
            await within(self._reactor, BRING_UP_S, self._hosting.ready(onion))
            self._progress(Stage("onion", number + 1, len(self._ids), onion.address))

    def stopService(self) -> Deferred[None]:
        """Take the onions down, let go of the tors, close the store."""
        super().stopService()
        self._loading.cancel()
        self._ids.clear()
        return Deferred.fromCoroutine(self._end())

    async def _end(self) -> None:
        self._upkeep.stop()
        self._scaling.stop()
        await self._hosting.stop()
        await self._store.stop()

    def _make(self) -> None:
        path = self._directory / DATABASE if self._directory else None
        self._store = OnionStore(path, reactor=self._reactor, observe=lambda report: self._store_health.observe(report))
        self._store_health = StoreHealth(self._health, self._store.probe)
        self._registry = Registry(
            self._store,
            now=self._now,
            max_onions=self._config.max_onions,
            max_per_app=self._config.max_per_app,
            changed=self.looks_different,
        )
        self._hosting = Hosting(
            self._reactor,
            self._registry,
            self._store,
            tors=self._tors,
            telemetry=self.telemetry,
            heed=self,
            now=self._now,
            guards=lambda onion: guards(self._wishes().relay_labels, onion.hints.regions),
        )
        self._readiness = OnionReadiness(self._health, self._registry, own=self._ids, standing=self._hosting.standing)
        self._listing = Listing(self._registry, self._hosting)
        self._scaling = Scaling(
            self._reactor,
            self._hosting,
            self.telemetry,
            self.scale_figures,
            find=self._registry.get,
            wishes=lambda: from_section(self._wishes()),
        )
        self._upkeep = Upkeep(
            self._reactor,
            self._registry,
            self._hosting,
            scaling=self._scaling,
            store=self._store_health,
            telemetry=self.telemetry,
            now=self._now,
            even=self._even,
        )

    async def _load(self) -> None:
        await self._store.start()
        applied = await self._registry.load()
        await self._declare()
        await self._hosting.start(applied)
        self.looks_different(None)
        self._readiness.tell()
        self._scaling.start()
        self._upkeep.start()

    def _not_loaded(self, failure: Any) -> Any:
        if failure.check(CancelledError) and not self.running:
            return None
        for app in self._apps:
            self._health.missing(f"onion.{app}", f"the onions could not be read: {failure.getErrorMessage()}")
        return failure

    async def _declare(self) -> None:
        """What the config names is there as it says; what it names no more rests, key and all."""
        there = {onion.app: onion for onion in self._registry if onion.origin == "config"}
        for app, ports in self._apps.items():
            known, pow_ = there.pop(app, None), self._pows.get(app)
            onion = await self._declared(app, ports) if known is None else known
            if (onion.ports, onion.pow, onion.state) != (ports, pow_, "active"):
                onion = await self._registry.change(onion.id, None, partial(_rebound, ports, pow_))
            self._ids[app] = onion.id
        for onion in there.values():
            await self._registry.change(onion.id, None, model.drained)

    async def _declared(self, app: str, ports: tuple[Port, ...]) -> Onion:
        key = legacy_key(self._directory, app) if self._directory else None
        request = CreateRequest(op_id=_NOBODYS, app=app, ports=ports, pow=self._pows.get(app))
        onion, _new = await self._registry.create(
            None,
            lambda: model.create(
                request, key or new_key(), now_s=self._now(), isolation=self._config.isolation, origin="config"
            ),
        )
        return onion

    # What the node asks

    def onion(self, app: str) -> str | None:
        """The address of the config's `app`, once it has one."""
        onion_id = self._ids.get(app)
        return self.find(onion_id).address if onion_id else None

    def scale(self, number: int | None = None) -> ScaleView:
        """The tors that share the onions; as many as `number` from now on. Raises as `Scaling.go_to` does."""
        return self._scaling.view() if number is None else self._scaling.go_to(number)

    def status(self) -> tuple[OnionStatus, ...]:
        """The config's onions."""
        return tuple(
            status_of(
                app, tuple(port.onion_port for port in ports), self._registry.get(self._ids.get(app, "")), self._hosting
            )
            for app, ports in self._apps.items()
        )

    # Calls. Each raises `RonError`; `may` is the app that the caller is narrowed to, None for an operator.

    async def create(self, request: CreateRequest) -> OnionView:
        """A new onion, or the one that this `op_id` has made already."""
        self._check_able(CLIENT_AUTH=bool(request.client_auth), ONION_POW=request.pow is not None)
        act, key = asked(request.app, "create", "", request), new_key()
        onion, new = await self._registry.create(
            act, lambda: model.create(request, key, now_s=self._now(), isolation=self._config.isolation)
        )
        if new:
            _log.info("onion {id} of {app} is there", event="onion_created", id=onion.id, app=onion.app)
        await self._hosting.host(onion)
        return await self._shown(onion, request.wait_s)

    async def bind(self, onion_id: str, request: BindRequest, may: str | None = None) -> OnionView:
        """Other ports; a drained onion serves again."""
        act = self._act("bind", onion_id, request, may)
        return await self._change(onion_id, act, lambda onion: model.bind(onion, request.ports), request.wait_s)

    async def rotate(self, onion_id: str, request: RotateRequest, may: str | None = None) -> OnionView:
        """A new key; the old address is served for a while."""
        act, key = self._act("rotate", onion_id, request, may), new_key()

        def rule(onion: Onion) -> Onion:
            return model.rotate(onion, key, now_s=self._now(), grace_s=request.grace_s)

        before = self.find(onion_id, may)
        await self._upkeep.follow_the_clock()
        view = await self._change(onion_id, act, rule, request.wait_s)
        if view.onion == model.address_of_blob(key.blob):
            await self._audit.record(
                "onion_rotated", app=view.app, old_onion=before.address, new_onion=view.onion, op_id=request.op_id
            )
        return view

    async def drain(self, onion_id: str, request: DrainRequest, may: str | None = None) -> OnionView:
        """No new visitors; `drained` when the last has gone or the deadline is over."""
        act = self._act("drain", onion_id, request, may)

        def rule(onion: Onion) -> Onion:
            return model.drain(onion, now_s=self._now(), deadline_s=request.deadline_s)

        await self._upkeep.follow_the_clock()
        return await self._change(onion_id, act, rule)

    async def add_client(self, onion_id: str, request: AddClientRequest, may: str | None = None) -> OnionView:
        """One more may find it."""
        self._check_able(CLIENT_AUTH=True)
        act = self._act("client.add", onion_id, request, may)
        onion = self.find(onion_id, may)
        await self._audit.record("client_added", app=onion.app, onion=onion.address, client=request.client.name)
        return await self._change(onion_id, act, lambda onion: model.add_client(onion, request.client))

    async def remove_client(
        self, onion_id: str, name: str, request: RemoveClientRequest, may: str | None = None
    ) -> OnionView:
        """One less."""
        act = self._act(f"client.remove {name}", onion_id, request, may)
        return await self._change(onion_id, act, lambda onion: model.remove_client(onion, name))

    async def delete(self, onion_id: str, request: DeleteRequest, may: str | None = None) -> None:
        """The service and its key are gone, visitors are hung up on."""
        if self._registry.has_acted(onion_id, request.op_id, may):
            return
        act, onion = self._act("delete", onion_id, request, may), self.find(onion_id, may)
        await self._audit.record("onion_deleted", app=onion.app, onion=onion.address, op_id=request.op_id)
        gone = await self._registry.delete(onion_id, act)
        await self._hosting.unhost(gone)
        _log.info("onion {id} of {app} is deleted", event="onion_deleted", id=gone.id, app=gone.app)

    async def export(self, onion_id: str, request: ExportRequest, by: str, may: str | None = None) -> ExportAnswer:
        """The key itself; written to the audit log before it leaves. by: the capability that asks."""
        self._act("export", onion_id, request, may)
        onion = self.find(onion_id, may)
        await self._audit.record("onion_exported", app=onion.app, onion=onion.address, cap_id=by, op_id=request.op_id)
        return ExportAnswer(id=onion.id, onion=onion.address, key=onion.key)

    def find(self, onion_id: str, may: str | None = None) -> Onion:
        """The onion. Raises the same NotFound for one that is not there and for another app's."""
        onion = self._registry.get(onion_id)
        if onion is None or (may is not None and onion.app != may):
            raise unknown(onion_id)
        return onion

    def list(self, may: str | None = None) -> tuple[OnionView, ...]:
        """All, or those of one app; the oldest first."""
        return views_of((onion for onion in self._registry if may is None or onion.app == may), self._hosting)

    def listed(self, may: str | None = None) -> bytes:
        """The same as JSON, the body of a `ListAnswer`."""
        return self._listing.answer(may)

    def view(self, onion: Onion) -> OnionView:
        """As its owner sees it, with the app's own way out."""
        return view_of(onion, self._hosting)

    def shown(self, onion: Onion) -> bytes:
        """The same as JSON."""
        return self._listing.one(onion)

    # For the hosting

    def looks_different(self, onion: Onion | None) -> None:
        """Views of it are made anew."""
        self._listing.changed(onion)

    def stands(self, onion: Onion, ready: bool) -> None:
        """Readiness; and for whoever follows what happens."""
        self._readiness.tell_of(onion)
        for observer in self.observers:
            observer(onion, ready)

    # Inside

    def _check_able(self, **wanted: bool) -> None:
        """Raises `RonError` (Unsupported) for what this host's tor cannot do."""
        if self._backend is not None:
            require(self._backend, *(Capability[name] for name, asked_for in wanted.items() if asked_for))

    def _act(self, kind: str, onion_id: str, request: Any, may: str | None) -> Asked:
        return asked(self.find(onion_id, may).app, kind, onion_id, request)

    async def _change(self, onion_id: str, act: Any, rule: Callable[[Onion], Onion], wait_s: float = 0.0) -> OnionView:
        onion = await self._registry.change(onion_id, act, rule)
        await self._hosting.host(onion)
        return await self._shown(onion, wait_s)

    async def _shown(self, onion: Onion, wait_s: float) -> OnionView:
        if wait_s > 0 and onion.state == "active":
            try:
                await within(self._reactor, wait_s, self._hosting.ready(onion))
            except DeadlineError:
                _log.debug("onion {id} is not ready yet", id=onion.id)
        return self.view(self.find(onion.id))


def _rebound(ports: tuple[Port, ...], pow_: Pow | None, onion: Onion) -> Onion:
    return msgspec.structs.replace(model.bind(onion, ports), pow=pow_)
