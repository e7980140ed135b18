"""The key service hosted: backend, log and quorum made and joined, its listener, the operators' socket.

In: `[kms]`, the home. Out: the service for the supervisor, and sites. One code path: `twistd -n ron-kms` and a ron-node
with `kms.enabled` both host this.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed

from ron.auth.ceilings import CeilingFigures
from ron.auth.register import Minted
from ron.crypto.notes import KeySet
from ron.crypto.secrets import harden_process
from ron.kernel.config import ConfigError
from ron.kernel.files import socket_path
from ron.kernel.health import Readiness
from ron.nodes.listeners import BoundSocket, Listening
from ron.nodes.parts import Host, Part
from ron.nodes.parts.kms_backends import make_backend
from ron.nodes.parts.kms_doors import KmsDoors
from ron.nodes.parts.kms_export import sender
from ron.nodes.runtime import Runtime
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.proto.governance import SignerSet
from ron.sdk.transport import connection_pool
from ron.services.kms import api, openapi
from ron.services.kms.audit import DiskShelf, MemoryShelf, Meters, Settings, TransparencyLog
from ron.services.kms.audit.export import Exporter, Send
from ron.services.kms.config import KmsConfig
from ron.services.kms.governance.api import endpoints as governance_endpoints
from ron.services.kms.governance.book import Book
from ron.services.kms.governance.meters import GovernanceMeters
from ron.services.kms.governance.quorum import Governance
from ron.services.kms.governance.signers import MACRONODE, MICRONODE, Profile, read_signers
from ron.services.kms.ports import Quorum
from ron.services.kms.readiness import KmsReadiness
from ron.services.kms.rules import socket_of
from ron.services.kms.service import KmsService, Sign
from ron.services.kms.store import DATABASE
from ron.services.sections import TlsConfig
from ron.web import Endpoint
from ron.web.health import NodeView
from ron.web.site import RonSite

CONTROL_SOCKET = "run/kms.sock"
FOLDER = "kms"
# Beside the log, not in it: whoever takes the log's end away leaves this.
ANCHOR = "audit-anchor.json"
EXPORTED = "audit-exported.json"
# What records of governance say of its book: how many there were.
BOOK = "book_records"
LISTENER = "kms"


class NoQuorum:
    """Nobody was named who could decide: what takes a quorum is not done."""

    def require(self, action: str, scope: str, change: Mapping[str, str], proposal: str | None) -> None:
        """Raises `RonError` (403)."""
        raise RonError(
            ErrorCode.NO_CAPABILITY, f"{action} takes a quorum, and there is none", hint="see governance.signers"
        )

    def frozen(self, tenant: str) -> str | None:
        """Nobody is."""
        return None

    def pq_mode(self, tenant: str) -> str | None:
        """As the config says."""
        return None


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
        self._check_files(config, prefix)
        self._pool = connection_pool(runtime.reactor)
        self._send = sender(runtime.reactor, self._pool, config.audit, prefix) if config.audit.export_url else None
        self._exporter: Exporter | None = None
        self.where = control_socket(runtime, config)
        self._socket = BoundSocket(socket_of(config.bind_addr, f"{prefix}bind_addr"), f"{prefix}bind_addr")
        self.address = self._socket.address
        backend = make_backend(config, runtime.home, prefix)
        self.governance = self._governance(config)
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
        )
        self._figures = CeilingFigures(runtime.auth.ceiling, self._capabilities, time.time)
        self._figures.register(runtime.metrics.registry)
        self._ready: tuple[object, ...] = ()
        runtime.health.observe(self._tell_ready)
        self.doors = self._make_doors(config, prefix)
        self.service = _Life(self)
        self._sites: list[RonSite] = []
        self._listening: list[Listening] = []
        self._observed = self.config
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

    def control_site(self) -> RonSite:
        """What the operators' socket answers."""
        endpoints = [*self._endpoints(), *self._runtime.admin_endpoints()]
        return self._runtime.site(endpoints, body_limit=self._body_limit, view=self._view, name="kms-control")

    def public_site(self) -> RonSite:
        """What the listener answers."""
        return self._runtime.site(self._endpoints(), body_limit=self._body_limit, view=self._view, name=LISTENER)

    # `NodeView`

    def readiness(self) -> Readiness:
        """With what an operator asks next."""
        found = self._runtime.health.snapshot()
        try:
            snapshot = self.desk.snapshot()
        except RonError:
            snapshot = None
        return KmsReadiness(**msgspec.structs.asdict(found), snapshot=snapshot)

    def exposition(self) -> bytes:
        """The process's."""
        return self._runtime.exposition()

    # Life

    def start(self) -> None:
        """Begin."""
        self.desk.startService()

    async def stop(self) -> None:
        """Accept no more, finish, end."""
        listening, self._listening = self._listening, []
        for one in listening:
            await one.stop_accepting()
        self._runtime.count_cut_off(await self.doors.stop())
        for site in self._sites:
            self._runtime.count_cut_off(await site.drain(self._runtime.drain_s))
        if self._exporter is not None:
            await self._exporter.stop()
        await self._pool.closeCachedConnections()
        await self.desk.stopService()
        if self.governance is not None:
            self.governance.stop()
        self._socket.close()

    # Within

    @property
    def _body_limit(self) -> int:
        return self.config.limits.max_body_bytes

    def _capabilities(self) -> list[Minted]:
        try:
            return [entry for entry, revoked in self._runtime.auth.listed() if not revoked]
        except RonError:
            # a register that cannot be read is told elsewhere; figures do without
            return []

    def _endpoints(self) -> list[Endpoint]:
        more = governance_endpoints(self.governance) if self.governance is not None else []
        return [*api.endpoints(self.desk, openapi.served), *more]

    def _listen(self) -> None:
        if self._listening:
            return
        site, tls = self.public_site(), self.config.tls
        self._sites.append(site)
        if tls.enabled:
            files = TlsConfig(certificate=tls.cert_path, key=tls.key_path)
            self._listening.append(self._runtime.listen_tls(self._socket.fileno(), site, LISTENER, files))
        else:
            self._listening.append(self._runtime.listen(self._socket.fileno(), site))
        self.doors.start()
        self.desk.guard.ok("listener_bound")

    def _make_doors(self, config: KmsConfig, prefix: str) -> KmsDoors:
        home, tls = self._runtime.home, config.tls
        return KmsDoors(
            self._runtime,
            self.desk,
            grpc_addr=config.grpc_addr,
            oap_addr=config.oap_addr,
            tls=(home / tls.cert_path, home / tls.key_path) if tls.enabled else None,
            message_bytes=self._body_limit,
            prefix=prefix,
        )

    def _log(self, origin: str, keys: Sequence[KeySet], sign: Sign) -> TransparencyLog:
        config, runtime = self.config, self._runtime
        settings = Settings(origin, checkpoint_ops=config.audit.checkpoint_interval_ops)
        if config.service.amnesia:
            shelf: Any = MemoryShelf()
        else:
            shelf = DiskShelf(runtime.home / config.audit.dir, runtime.home / FOLDER / ANCHOR)
        meters = Meters(runtime.metrics)
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
        self._signers = _signers(home / config.governance.signers, profile)
        book = Book(None if config.service.amnesia else home / config.governance.dir)
        return Governance(
            self._runtime.reactor,
            time.time,
            book,
            lambda entry: self.desk.log.append(entry),
            noted=GovernanceMeters(self._runtime.metrics).noted,
        )

    async def _opened(self) -> None:
        """The log is there: what governance has decided may take effect, and its records may go on."""
        if self._send is not None:
            await self._export(self._send)
        if self.governance is not None:
            self.governance.load(self._signers, micronode=self.config.governance.micronode)
            said = self.desk.newest(BOOK)
            try:
                if said.get("book") == self.governance.ledger.book:
                    self.governance.expect(int(said[BOOK]), str(said["book_head"]))
                await self.governance.settle()
            except RonError as error:
                # the book is an older copy, or the log takes nothing: what was frozen is, and verifying goes on
                self.desk.distrust(error.message)

    def _changed(self, version: int) -> None:
        old, self._observed = self._observed, self.config
        self.desk.apply(old, self._observed)
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

    def _check_files(self, config: KmsConfig, prefix: str) -> None:
        """What must be on this machine, and what must not. Raises `ConfigError`."""
        book = self._runtime.home / config.governance.dir
        if config.service.amnesia and book.is_dir() and any(book.iterdir()):
            # it could not even be read: there is no store to remember with
            raise ConfigError(
                "a quorum governs the keys of this home, and amnesia would forget both",
                key=f"{prefix}service.amnesia",
                hint="set it to false, or use another home",
            )
        if not config.tls.enabled:
            return
        for name, text in (("cert_path", config.tls.cert_path), ("key_path", config.tls.key_path)):
            path = self._runtime.home / text
            if not path.is_file():
                raise ConfigError(f"there is no file {path}", key=f"{prefix}tls.{name}", hint="name its PEM file")
            if name == "key_path" and path.stat().st_mode & 0o077:
                raise ConfigError(f"others may read {path}", key=f"{prefix}tls.{name}", hint=f"chmod 600 {path}")


class _Life(Service):
    """For the supervisor. lives: how often it was started; stores, threads and metrics are good for one."""

    def __init__(self, hosted: HostedKms) -> None:
        self._hosted = hosted
        self.lives = 0

    def startService(self) -> None:
        """Begin, once."""
        super().startService()
        self.lives += 1
        if self.lives == 1:
            self._hosted.start()

    def stopService(self) -> Deferred[None]:
        """End; fires when nothing of it is left."""
        if not self.running:
            return succeed(None)
        super().stopService()
        return Deferred.fromCoroutine(self._hosted.stop()) if self.lives == 1 else succeed(None)


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


def control_socket(runtime: Runtime, config: KmsConfig) -> Path:
    """Where operators reach it."""
    if config.control.startswith("/"):
        return socket_path(Path(config.control))
    return socket_path(runtime.home / (config.control or CONTROL_SOCKET))


def _signers(path: Path, profile: Profile) -> SignerSet:
    try:
        return read_signers(path.read_bytes(), int(time.time()), profile=profile)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}", key="governance.signers", hint="`ronctl governance`") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}", key="governance.signers", hint="see docs/kms") from None
    except RonError as error:
        raise ConfigError(f"{path}: {error.message}", key="governance.signers", hint=error.hint or "docs/kms") from None
