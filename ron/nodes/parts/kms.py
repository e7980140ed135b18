"""The key service hosted: backend, log and quorum made and joined, its listener, the operators' socket.

In: `[kms]`, the home. Out: the service for the supervisor, and sites. One code path: `twistd -n ron-kms` and a ron-node
with `kms.enabled` both host this.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.logger import Logger

import ron
from ron.auth.ceilings import CeilingFigures
from ron.auth.register import Minted
from ron.crypto.notes import KeySet
from ron.crypto.secrets import harden_process
from ron.kernel.health import Readiness
from ron.nodes.listeners import BoundSocket, Listening
from ron.nodes.parts import Host, Part
from ron.nodes.parts.kms_backends import make_backend
from ron.nodes.parts.kms_doors import KmsDoors
from ron.nodes.parts.kms_export import sender
from ron.nodes.parts.kms_founding import Life, NoQuorum, check_files, control_socket, signers_of
from ron.nodes.parts.kms_witness import KmsWitnessing
from ron.nodes.parts.kms_workers import Workers, lender_of
from ron.nodes.runtime import Runtime
from ron.proto.errors import RonError, unavailable
from ron.proto.ids import uuid4_text
from ron.sdk.transport import connection_pool
from ron.services.kms import api, openapi
from ron.services.kms.audit import DiskShelf, MemoryShelf, Meters, Settings, TransparencyLog
from ron.services.kms.audit.export import Exporter, Send
from ron.services.kms.backends.measured import BackendMeters
from ron.services.kms.config import KmsConfig
from ron.services.kms.governance.api import endpoints as governance_endpoints
from ron.services.kms.governance.book import Book
from ron.services.kms.governance.meters import GovernanceMeters
from ron.services.kms.governance.quorum import BOOK_RECORDS, Governance
from ron.services.kms.governance.signers import MACRONODE, MICRONODE
from ron.services.kms.ports import Backend, Quorum
from ron.services.kms.readiness import KmsReadiness
from ron.services.kms.rules import check_workers, socket_of
from ron.services.kms.service import KmsService, Sign
from ron.services.kms.status import KmsStatus, status_endpoint
from ron.services.kms.store import DATABASE
from ron.services.kms.workers.gate import GatedDesk, gated
from ron.services.sections import TlsConfig
from ron.web import Endpoint
from ron.web.health import NodeView
from ron.web.site import RonSite

FOLDER = "kms"
# Beside the log, not in it: whoever takes the log's end away leaves this.
ANCHOR = "audit-anchor.json"
EXPORTED = "audit-exported.json"
LISTENER = "kms"
_log = Logger(namespace="ron.kms")


class HostedKms:
    """One process's key service. prefix: of its readiness keys. view: whose health the listeners show; its own, with
    a snapshot, without one.

    Raises `RonError` for a config this machine cannot follow, and for an address that cannot be listened on.
    """

    def __init__(self, runtime: Runtime, *, prefix: str = "", view: NodeView | None = None) -> None:
        self._runtime = runtime
        self._view = view or self
        config = self.config
        harden_process()
        check_workers(config, prefix)
        check_files(config, runtime.home, prefix)
        self._pool = connection_pool(runtime.reactor)
        self._send = sender(runtime.reactor, self._pool, config.audit, prefix) if config.audit.export_url else None
        self._exporter: Exporter | None = None
        self.where = control_socket(runtime, config)
        self._socket = BoundSocket(socket_of(config.bind_addr, f"{prefix}bind_addr"), f"{prefix}bind_addr")
        self.address = self._socket.address
        self.governance = self._governance(config)
        self._meters = Meters(runtime.metrics)
        backend = make_backend(config, runtime.home, prefix, BackendMeters(runtime.metrics))
        quorum: Quorum = self.governance if self.governance is not None else NoQuorum()
        folder = runtime.home / FOLDER
        self.desk = KmsService(
            runtime.reactor,
            lambda: self.config,
            path=None if config.service.amnesia else folder / DATABASE,
            backend=backend,
            make_log=self._log,
            quorum=quorum,
            health=runtime.health,
            metrics=runtime.metrics,
            now_s=time.time,
            chatty=lambda: bool(runtime.config.current.log.level == "debug"),
            prefix=prefix,
            opened=self._opened,
            announce=self._publish,
            spans=runtime.spans if runtime.tracing.enabled else None,
        )
        self._witnessing = KmsWitnessing(
            runtime.reactor,
            self._pool,
            self.desk,
            self._meters,
            config.audit,
            home=runtime.home,
            folder=folder,
            section=prefix,
        )
        self._figures = CeilingFigures(runtime.auth.ceiling, self._capabilities, time.time)
        self._figures.register(runtime.metrics.registry)
        self._ready: tuple[object, ...] = ()
        runtime.health.observe(self._tell_ready)
        self.workers: Workers | None = None
        self._front: api.KmsDesk = GatedDesk(self.desk, self._settled) if config.workers else self.desk
        self.doors = self._make_doors(config, prefix)
        if config.workers:
            self.workers = self._make_workers(config.workers, backend, prefix)
        self.service = Life(self)
        self._sites: list[RonSite] = []
        self._listening: list[Listening] = []
        self._observed = self.config
        self._began_s = runtime.reactor.seconds()
        runtime.config.on_change(self._changed)

    @property
    def config(self) -> KmsConfig:
        """As it is in force."""
        found: KmsConfig = self._runtime.config.current.kms
        return found

    # For whoever hosts it

    async def ready(self) -> None:
        """It answers. Raises what starting it raised, and StoreUnavailable for a second life in one process."""
        if self.service.lives > 1:
            raise unavailable("the key service has ended in this process", hint="start the process anew")
        await self.desk.ready()
        self._listen()
        if self.workers is not None:
            await self.workers.start(self._endpoints(), self._view, self.config.limits.max_body_bytes)

    def control_site(self) -> RonSite:
        """What the operators' socket answers."""
        status = status_endpoint(self._status)
        return self._site([*self._endpoints(), status, *self._runtime.admin_endpoints()], "kms-control")

    def public_site(self) -> RonSite:
        """What the listener answers."""
        return self._site(self._endpoints(), LISTENER)

    # `NodeView`

    def readiness(self) -> Readiness:
        """With what an operator asks next."""
        found = self._runtime.health.snapshot()
        try:
            snapshot = self.desk.snapshot()
        except RonError:
            snapshot = None
        return KmsReadiness(**msgspec.structs.asdict(found), snapshot=snapshot)

    def exposition(self) -> bytes | Awaitable[bytes]:
        """The process's, with what its workers have counted."""
        return self._runtime.exposition() if self.workers is None else self.workers.exposition()

    def _status(self) -> KmsStatus:
        runtime, found = self._runtime, self.readiness()
        scheme = "https" if self.config.tls.enabled else "http"
        return KmsStatus(
            version=ron.__version__,
            uptime_s=round(runtime.reactor.seconds() - self._began_s, 1),
            config_version=runtime.config.version,
            kms_url=f"{scheme}://{self.address}",
            ready=found.ready,
            missing=found.missing,
            degraded=found.degraded,
            reasons=found.reasons,
            snapshot=found.snapshot if isinstance(found, KmsReadiness) else None,
            grpc_addr=str(self.doors.grpc_address) if self.doors.grpc_address is not None else None,
            oap_addr=str(self.doors.oap_address) if self.doors.oap_address is not None else None,
        )

    # Life

    def start(self) -> None:
        """Begin."""
        self.desk.startService()

    async def stop(self) -> None:
        """Accept no more, finish, end."""
        if self.workers is not None:
            await self.workers.stop()
        await self._leave()
        self._runtime.count_cut_off(await self.doors.stop())
        for site in self._sites:
            self._runtime.count_cut_off(await site.drain(self._runtime.drain_s))
        if self._exporter is not None:
            await self._exporter.stop()
        await self._witnessing.stop()
        await self._pool.closeCachedConnections()
        await self.desk.stopService()
        if self.governance is not None:
            self.governance.stop()
        self._socket.close()

    # Within

    def _site(self, endpoints: Sequence[Endpoint], name: str) -> RonSite:
        config = self.config
        site = self._runtime.site(endpoints, body_limit=config.limits.max_body_bytes, view=self._view, name=name)
        if config.observability.correlation_id_mode == "uuidv4":
            site.new_corr_id = uuid4_text
        return site

    def _capabilities(self) -> list[Minted]:
        try:
            return [entry for entry, revoked in self._runtime.auth.listed() if not revoked]
        except RonError:
            # a register that cannot be read is told elsewhere; figures do without
            return []

    def _endpoints(self) -> list[Endpoint]:
        more = governance_endpoints(self.governance) if self.governance is not None else []
        if self.workers is not None:
            more = [gated(one, self._settled) for one in more]
        return [*api.endpoints(self._front, openapi.served), *self._witnessing.endpoints(), *more]

    async def _settled(self) -> None:
        """Every worker goes by what has changed."""
        if self.workers is not None:
            await self.workers.settled()

    def _listen(self) -> None:
        if self._listening:
            return
        if not self._sites:
            self._sites.append(self.public_site())
        site, tls = self._sites[0], self.config.tls
        if tls.enabled:
            files = TlsConfig(certificate=tls.cert_path, key=tls.key_path)
            self._listening.append(self._runtime.listen_tls(self._socket.fileno(), site, LISTENER, files))
        else:
            self._listening.append(self._runtime.listen(self._socket.fileno(), site))
        self.doors.start()
        self.desk.guard.ok("listener_bound")

    async def _leave(self) -> None:
        listening, self._listening = self._listening, []
        for one in listening:
            await one.stop_accepting()

    def _manned(self, live: int) -> None:
        """So many workers accept. While there are some it is their business, and connections that are here stay."""
        if live:
            leaving = Deferred.fromCoroutine(self._leave())
            leaving.addCallback(lambda _none: Deferred.fromCoroutine(self.doors.leave_oap()))
            leaving.addErrback(lambda failure: _log.failure("the listener", failure, event="kms_listener_failed"))
        else:
            self._listen()

    def _make_workers(self, count: int, backend: Backend, prefix: str) -> Workers:
        doors = self.doors
        return Workers(
            self._runtime,
            self.desk,
            self._front,
            lender_of(backend),
            [self._socket, *([doors.oap_socket] if doors.oap_socket is not None else [])],
            count=count,
            governance=self.governance,
            manned=self._manned,
            prefix=prefix,
        )

    def _make_doors(self, config: KmsConfig, prefix: str) -> KmsDoors:
        home, tls = self._runtime.home, config.tls
        return KmsDoors(
            self._runtime,
            self._front,
            grpc_addr=config.grpc_addr,
            oap_addr=config.oap_addr,
            tls=(home / tls.cert_path, home / tls.key_path) if tls.enabled else None,
            message_bytes=config.limits.max_body_bytes,
            prefix=prefix,
        )

    def _log(self, origin: str, keys: Sequence[KeySet], sign: Sign) -> TransparencyLog:
        config, runtime = self.config, self._runtime
        settings = Settings(origin, checkpoint_ops=config.audit.checkpoint_interval_ops)
        if config.service.amnesia:
            shelf: Any = MemoryShelf()
        else:
            shelf = DiskShelf(runtime.home / config.audit.dir, runtime.home / FOLDER / ANCHOR)
        meters = self._meters
        self._log_made = TransparencyLog(settings, shelf, reactor=runtime.reactor, keys=keys, sign=sign, meters=meters)
        self._origin = origin
        return self._log_made

    async def _export(self, send: Send) -> None:
        """Begin to send records on. Raises `RonError` where nothing tells how far that had come."""
        runtime = self._runtime
        path = None if self.config.service.amnesia else runtime.home / FOLDER / EXPORTED
        exporter = Exporter(runtime.reactor, self._log_made, self._origin, send, path=path, metrics=runtime.metrics)
        self._exporter = exporter
        try:
            await exporter.start()
        except OSError as error:
            raise unavailable(f"{path} cannot be read: {error.strerror}", "look at the home") from None

    def _governance(self, config: KmsConfig) -> Governance | None:
        if not config.governance.signers:
            return None
        home = self._runtime.home
        profile = MICRONODE if config.governance.micronode else MACRONODE
        self._signers = signers_of(home / config.governance.signers, profile)
        book = Book(None if config.service.amnesia else home / config.governance.dir)
        meters = GovernanceMeters(self._runtime.metrics)

        def noted(what: str, state: str) -> None:
            meters.noted(what, state)
            if self.workers is not None:
                self.workers.look()

        made = Governance(
            self._runtime.reactor,
            time.time,
            book,
            lambda entry: self.desk.log.append(entry),
            noted=noted,
        )
        meters.watch(lambda: made.ledger.open_cases(), time.time)
        meters.watch_disputes(lambda: made.ledger.disputes.values(), time.time)
        return made

    async def _opened(self) -> None:
        """The log is there: what governance has decided may take effect, and its records may go on."""
        if self._send is not None:
            await self._export(self._send)
        self._witnessing.start(self._log_made)
        if self.governance is not None:
            self.governance.load(self._signers, micronode=self.config.governance.micronode)
            try:
                self.governance.compare(self.desk.newest(BOOK_RECORDS))
                await self.governance.settle()
            except RonError as error:
                # the book is an older copy, or the log takes nothing: what was frozen is, and verifying goes on
                self.desk.distrust(error.message)

    def _changed(self, version: int) -> None:
        old, self._observed = self._observed, self.config
        self.desk.apply(old, self._observed)
        if self.workers is not None:
            self.workers.look()
        bus, pq = self._runtime.bus, self._observed.pq
        bus.publish({"version": version}, topic="kms.config.updated")
        bus.publish({"pq_mode": pq.verify_mode, "rollout_percent": pq.rollout_percent}, topic="kms.policy.hint")

    def _publish(self, topic: str, body: dict[str, Any]) -> None:
        self._runtime.bus.publish(body, topic=topic)

    def _tell_ready(self, found: Readiness) -> None:
        told = (found.ready, found.missing, found.degraded)
        if told != self._ready:
            self._ready = told
            body = {"ready": found.ready, "missing": list(found.missing), "degraded": list(found.degraded)}
            self._runtime.bus.publish(body, topic="kms.ready")


class KmsPart(Part):
    """In a ron-node."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._hosted = HostedKms(host.runtime, prefix="kms.", view=host.view or host.runtime)
        self.service: Any = self._hosted.service

    async def ready(self) -> None:
        """As `HostedKms.ready`."""
        await self._hosted.ready()

    def sites(self) -> Mapping[str, RonSite]:
        """The operators' socket."""
        return {LISTENER: self._hosted.control_site()}

    def where(self, _listener: str) -> Path:
        """A Unix socket of its own."""
        return self._hosted.where
