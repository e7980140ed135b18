"""A node of a RustBalance cluster hosted: its rooms made and joined, its two tors, the operators' socket.

In: `[balance]`, the node's files, tors that somebody else runs. Out: the service for the supervisor and the site of the
control API. One code path: `twistd -n ron-balance` and a ron-node with `balance.enabled` both host this.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from txtorcon import TorControlProtocol

from ron.crypto.hpke import PrivateKey, Suite
from ron.crypto.secrets import harden_process
from ron.kernel.aio import cancellable, within
from ron.kernel.files import private_dir, socket_path
from ron.nodes.parts import Host, Part
from ron.nodes.parts.tornet import BALANCE_ROLES, BusTorHost
from ron.nodes.runtime import Runtime
from ron.proto.addresses import HostPort, parse_host_port
from ron.proto.balance import ServiceName
from ron.proto.errors import RonError, bad_request, unavailable
from ron.services.balance import api
from ron.services.balance.canaries import Canaries
from ron.services.balance.cluster import Cluster, Standing, Timing
from ron.services.balance.conductor import Conductor, to_prepare
from ron.services.balance.config import BalanceConfig
from ron.services.balance.gate import MeshGate
from ron.services.balance.heads.head import TorHead
from ron.services.balance.mesh.files import NodeFiles
from ron.services.balance.mesh.mesh import MeshService
from ron.services.balance.operations import OperatorsDesk
from ron.services.balance.publishing.canary import Canary
from ron.services.balance.publishing.outside import Figures
from ron.services.balance.publishing.room import Publishing
from ron.services.balance.records import Records
from ron.services.balance.service import BalanceService
from ron.services.balance.telemetry import Telemetry
from ron.services.balance.vanguards import SharedGuards
from ron.services.balance.vault.service import KeyVault
from ron.services.balance.views import Outlook
from ron.tor.attached import AttachedTor
from ron.tor.control import ANSWER_TIMEOUT_S, ask
from ron.tor.descriptor.exchange import Exchange
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.isolated import IsolatedEndpoints
from ron.web.site import RonSite

HEAD_ROLE, OUTSIDE_ROLE = BALANCE_ROLES
CONTROL_SOCKET = "run/balance.sock"
HEAD_FOLDER = "balance-head"
CA_FOLDER = "ca"
# The consensus is there as soon as the tor is up; without one there is nothing to be ready for.
READY_POLL_S = 0.2
READY_S = 60.0
_log = Logger(namespace="ron.balance")


class HostedBalance:
    """One process's node of a cluster. where: the operators' socket. ended: called once when this node may not go on:
    it has left (None), was removed, or is a copy of another one that runs.

    Raises `RonError` for files that are not there or damaged, and for an address that cannot be listened on.
    """

    def __init__(self, runtime: Runtime, ended: Callable[[RonError | None], None]) -> None:
        config: BalanceConfig = runtime.config.current.balance
        harden_process()
        self._runtime = runtime
        self.where = control_socket(runtime, config)
        self._files = files = _files(runtime, config)
        reactor, health, metrics = runtime.reactor, runtime.health, runtime.metrics
        self._tors = BusTorHost(runtime.bus)
        self._outside_port = 0
        self._seal = PrivateKey.generate(Suite.PQ)
        self.mesh = MeshService(
            reactor,
            files=files,
            listen=_address(config.listen, "balance.listen"),
            health=health,
            metrics=metrics,
            advertise=(config.advertise,) if config.advertise else (),
            seeds=config.seeds,
            socks=_address(config.socks, "balance.socks") if config.socks else None,
            seal_key=self._seal.public.raw,
            on_end=ended,
        )
        self.cluster = Cluster(files.name, Timing.of(config), now_s=reactor.seconds(), unix_ms=now_ms())
        self.vault = KeyVault(
            reactor,
            self.mesh,
            seal=self._seal,
            cluster=files.cluster,
            approval=config.approval,
            periods=self._periods,
            health=health,
            metrics=metrics,
            floor=self._floor,
            allow_unlocked=config.allow_unlocked,
        )
        self._records = Records(self.mesh.book, self._wishes, self.vault)
        self.room = Publishing(
            reactor,
            testing=runtime.config.current.onion.network != "public",
            tie=self.mesh.me.number % 1000,
            signer=self.vault.signer,
            holds=lambda: to_prepare(self.vault, self._records, leads=self.conductor.leads),
            ask=lambda service, why: self._ask(service, str(why)),
            every_s=lambda: float(self._wishes().publish_every_s),
            figures=Figures(metrics),
            on_heads=lambda name: self.node.shelf_changed(name),
            on_ring=lambda ring: self.node.ring_changed(ring),
        )
        self.conductor = Conductor(
            reactor,
            cluster=self.cluster,
            vault=self.vault,
            records=self._records,
            room=self.room,
            told=lambda: self.node.tell(),
        )
        self.head = TorHead(
            reactor,
            host=self._tors,
            tor=HEAD_ROLE,
            folder=private_dir((runtime.ram or runtime.home) / HEAD_FOLDER),
            masters=(),
            ports=tuple(port for service in config.services for port in service.ports),
            config=self._wishes,
            metrics=metrics,
            health=health,
            socks_port=lambda: self._outside_port,
        )
        self.canaries = Canaries(self._canary)
        self.guards = SharedGuards(
            reactor,
            self.mesh.book,
            self.head,
            wanted=lambda: self._wishes().vanguards,
            leads=lambda: self.conductor.leads,
            relays=self._relays,
            now_s=time.time,
            rng=random.SystemRandom(),
        )
        self._telemetry = Telemetry(metrics)
        self.node = BalanceService(
            reactor,
            self._wishes,
            mesh=self.mesh,
            vault=self.vault,
            head=self.head,
            cluster=self.cluster,
            conductor=self.conductor,
            records=self._records,
            room=self.room,
            visits=self.canaries,
            health=health,
            now_ms=now_ms,
            masters_changed=self.head.set_masters,
            stands=self._stands,
        )
        self._outlook = Outlook(
            self.node,
            cluster=files.cluster.hex(),
            vault=self.vault,
            holding=self.room.holding,
            reachable=self.canaries.reachable,
            pace_s=lambda: float(self._wishes().publish_every_s),
            now_s=time.time,
        )
        self.desk = OperatorsDesk(
            reactor,
            self.node,
            self._outlook,
            self.vault,
            MeshGate(self.mesh, files, runtime.home / CA_FOLDER),
            self._wishes,
            now_ms,
            leave=lambda: ended(None),
        )
        self._outside = AttachedTor(
            reactor, name=OUTSIDE_ROLE, host=self._tors, on_up=self._attach, on_down=self.room.detach
        )
        runtime.watch_certificates({"balance.mesh": self.mesh.listener_tls, "balance.dial": self.mesh.dialler_tls})
        self.service = _Rooms(self)

    # For whoever hosts it

    async def ready(self) -> None:
        """The Tor network is known: from now on this node can serve and publish. Raises what starting it raised.

        Without a network it is there all the same after a minute, and says what it lacks: it has its place in the mesh.
        """
        await self.service.started()
        reactor = self._runtime.reactor
        give_up_s = reactor.seconds() + READY_S
        while self.room.network.ring is None and reactor.seconds() < give_up_s:
            await deferLater(reactor, READY_POLL_S)

    def site(self) -> RonSite:
        """What the operators' socket answers."""
        endpoints = [*api.endpoints(self.desk, self._runtime.reactor), *self._runtime.admin_endpoints()]
        return self._runtime.site(endpoints, body_limit=api.BODY_LIMIT_BYTES, name="balance")

    # Life

    async def start(self) -> None:
        """From the inside out: what is asked of a room finds it there."""
        self.room.start()
        try:
            self.mesh.startService()
        except CannotListenError as error:
            hint = "set balance.listen, or stop what listens there"
            raise unavailable(f"the mesh cannot listen: {error.socketError}", hint=hint) from None
        if self.mesh.ended is not None:
            raise self.mesh.ended
        self.vault.startService()
        self.node.startService()
        await self.head.start()
        self._outside.start()
        self.guards.start()

    async def stop(self) -> None:
        """From the outside in; secrets last, when nobody signs any more, and whatever else goes wrong."""
        self.guards.stop()
        self.canaries.follow({})
        try:
            self.node.stopService()
            self._outside.stop()
            await self.head.stop()
        finally:
            self.room.stop()
            self.vault.stopService()
            if self.mesh.running:
                await self.mesh.stopService()

    # Within

    def _wishes(self) -> BalanceConfig:
        found: BalanceConfig = self._runtime.config.current.balance
        return found

    def _floor(self, service: ServiceName) -> int | None:
        found = [one for one in self._wishes().services if one.name == service and one.mode == "threshold"]
        return found[0].threshold if found else None

    def _periods(self) -> tuple[TimePeriod, ...]:
        ring = self.room.network.ring
        if ring is None:
            return ()
        now = ring.time.period
        return tuple(sorted({now.shifted(-1), now, now.shifted(1), *(due.period for due in ring.time.due())}))

    def _ask(self, service: ServiceName, why: str) -> None:
        self.node.ask_to_publish(f"{service}: {why}")

    async def _attach(self, control: TorControlProtocol) -> None:
        self._outside_port = await self._tors.socks_port(OUTSIDE_ROLE)
        exchange = Exchange(self._runtime.reactor, control)
        await exchange.open()
        await self.room.attach(exchange)

    def _canary(self, service: ServiceName, onion: str) -> Canary:
        reactor = self._runtime.reactor
        wanted = next(one for one in self._wishes().services if one.name == service)
        return Canary(
            reactor,
            service=service,
            onion=onion,
            port=int(wanted.ports[0].partition(":")[0]),
            ways=lambda: IsolatedEndpoints(reactor, self._outside_port),
            ask=lambda name, why: self._ask(name, str(why)),
            every_s=lambda: float(self._wishes().canary_s),
            figures=self.room.figures,
            random=random.random,
            fresh=self._forget_onions,
            speaks="tcp",
        )

    async def _relays(self) -> str:
        if self._outside.control is None:
            raise unavailable("its tor is not there")
        return await ask(self._runtime.reactor, self._outside.control, "ns/all")

    async def _forget_onions(self) -> None:
        control = self._outside.control
        if control is not None:
            await within(self._runtime.reactor, ANSWER_TIMEOUT_S, control.signal("NEWNYM"))

    def _stands(self, standing: Standing) -> None:
        self._telemetry.stands(self._outlook.view(standing))


class _Rooms(Service):
    """The life of all of it, for the supervisor."""

    def __init__(self, hosted: HostedBalance) -> None:
        self._hosted = hosted
        self._start: Deferred[None] | None = None
        self._error = unavailable("it has ended in this process", hint="start the process anew")

    def startService(self) -> None:
        """Begin, once. A second time `started` says what was wrong, or that the process has to be started anew."""
        super().startService()
        if self._start is not None:
            self._start = fail(self._error)
            return
        self._start = Deferred.fromCoroutine(self._hosted.start())
        self._start.addErrback(self._not_started)

    async def started(self) -> None:
        """Return once it has begun. Raises what beginning raised."""
        if self._start is not None:
            await cancellable(self._start)

    def stopService(self) -> Deferred[None]:
        """End; fires when nothing of it is left."""
        if not self.running:
            return succeed(None)
        super().stopService()
        if self._start is not None:
            # it must not go on behind our back
            self._start.addErrback(lambda _failure: None)
            self._start.cancel()
        return Deferred.fromCoroutine(self._hosted.stop())

    def _not_started(self, failure: Failure) -> Failure:
        if isinstance(failure.value, RonError):
            self._error = failure.value
        elif not failure.check(CancelledError):
            _log.failure("this node did not start", failure, event="balance_not_started")
        return failure


class BalancePart(Part):
    """In a ron-node."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._hosted = HostedBalance(host.runtime, self._ended)
        self.service: Any = self._hosted.service

    async def ready(self) -> None:
        """As `HostedBalance.ready`."""
        await self._hosted.ready()

    def sites(self) -> dict[str, RonSite]:
        """The operators' socket."""
        return {"balance": self._hosted.site()}

    def where(self, _listener: str) -> Path:
        """A Unix socket of its own."""
        return self._hosted.where

    def _ended(self, error: RonError | None) -> None:
        """The rest of the node goes on; readiness has the reason."""
        _log.warn(
            "this node is in its cluster no more: {why}",
            event="balance_ended",
            why=error.one_line() if error is not None else "it has left",
        )
        self._hosted.service.stopService().addErrback(
            lambda failure: _log.failure("leaving the cluster broke", failure, event="balance_end_failed")
        )


def control_socket(runtime: Runtime, config: BalanceConfig) -> Path:
    """Where the operators' API listens."""
    if config.control.startswith("/"):
        return socket_path(Path(config.control))
    return socket_path(runtime.home / (config.control or CONTROL_SOCKET))


def now_ms() -> int:
    """Unix milliseconds."""
    return int(time.time() * 1000)


def _files(runtime: Runtime, config: BalanceConfig) -> NodeFiles:
    files = NodeFiles.open(runtime.home / config.directory)
    if files.name != config.node:
        raise bad_request(
            f"the files in {runtime.home / config.directory} are of node {files.name}, not {config.node}",
            hint="set balance.node, or balance.directory",
        )
    return files


def _address(text: str, key: str) -> HostPort:
    try:
        return parse_host_port(text)
    except ValueError as error:
        raise bad_request(f"{key}: {error}", hint="an IP address and a port, 10.7.0.1:9470") from None
