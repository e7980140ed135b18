"""One run of a cluster's node in this process: its rooms, joined, from their start to their end.

In: the runtime, files made by `ronctl balance init` or `join`. Out: a mesh, a vault, a head, a publisher and who
decides for them; figures for as long as it lasts. A run is started once: what comes after it is another, with a seal
key, a vault and a place in the mesh of its own.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from twisted.internet.error import CannotListenError
from txtorcon import TorControlProtocol

from ron.crypto.hpke import PrivateKey, Suite
from ron.kernel import Metrics
from ron.kernel.aio import within
from ron.kernel.files import private_dir
from ron.nodes.parts.tornet import BALANCE_ROLES, BusTorHost
from ron.nodes.runtime import Runtime
from ron.proto.addresses import HostPort, parse_host_port
from ron.proto.balance import ServiceName
from ron.proto.errors import RonError, bad_request, unavailable
from ron.services.balance.canaries import Canaries
from ron.services.balance.cluster import Cluster, Standing, Timing
from ron.services.balance.conductor import Conductor, to_prepare
from ron.services.balance.config import BalanceConfig
from ron.services.balance.gate import MeshGate
from ron.services.balance.heads.head import TorHead
from ron.services.balance.heads.targets import read_target
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

HEAD_ROLE, OUTSIDE_ROLE = BALANCE_ROLES
HEAD_FOLDER = "balance-head"
CA_FOLDER = "ca"


class BalanceRooms:
    """ended: called once when this node may not go on. used: it was started. Raises `RonError` for files that are not
    there or damaged, and for an address that is none."""

    def __init__(self, runtime: Runtime, ended: Callable[[RonError | None], None]) -> None:
        config: BalanceConfig = runtime.config.current.balance
        self.used = False
        self._over = False
        self._runtime = runtime
        self._figures = _Forwarded(runtime.metrics)
        reactor, health, metrics = runtime.reactor, runtime.health, self._figures.metrics
        files = _files(runtime, config)
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
            silence_s=config.silence_s,
            remove_by=config.remove_by,
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
            services={service.name: service.ports for service in config.services},
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
            trusted=lambda name: name in (self.mesh.name, self.cluster.standing.leader),
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
            refused=lambda: self.mesh.refused,
            turned=lambda: self.mesh.turned,
        )
        self.desk = OperatorsDesk(
            reactor,
            self.node,
            self._outlook,
            self.vault,
            MeshGate(self.mesh, files, runtime.home / CA_FOLDER, config.remove_by),
            self._wishes,
            now_ms,
            leave=lambda: ended(None),
        )
        self._outside = AttachedTor(
            reactor, name=OUTSIDE_ROLE, host=self._tors, on_up=self._attach, on_down=self.room.detach
        )

    # Life

    async def start(self) -> None:
        """From the inside out: what is asked of a room finds it there. Once."""
        self.used = True
        self._figures.begin()
        tls = {"balance.mesh": self.mesh.listener_tls, "balance.dial": self.mesh.dialler_tls}
        self._runtime.watch_certificates(tls)
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
        """From the outside in; secrets last, when nobody signs any more, and whatever else goes wrong. Once."""
        if not self.used or self._over:
            return
        self._over = True
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
            self._figures.end()

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

    def _unreachable(self, service: ServiceName, why: str) -> None:
        """Another descriptor helps, unless it is known that no head's target answers."""
        if service not in self.cluster.standing.plan.refusing:
            self._ask(service, why)

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
            port=read_target(wanted.ports[0]).onion_port,
            ways=lambda: IsolatedEndpoints(reactor, self._outside_port),
            ask=lambda name, why: self._unreachable(name, str(why)),
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


class _Forwarded:
    """The runtime's metrics for one run: what it registers is shown beside the rest while the run lasts, and a later
    run may register the same names."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = copy.copy(metrics)
        self.metrics.registry = CollectorRegistry()
        self._all = metrics.registry
        self._shown = False

    def begin(self) -> None:
        """From now on they are shown."""
        self._shown = True
        self._all.register(self)

    def end(self) -> None:
        """Not any more."""
        if self._shown:
            self._shown = False
            self._all.unregister(self)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield from self.metrics.registry.collect()


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
