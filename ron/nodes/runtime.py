"""What every process of ours has: home, config, bus, health, metrics, capabilities, limits, traces, log; nothing twice.

In: a config holder and the process's name. Out: the shared things that parts are made with, and sites to listen with.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import LoopingCall
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.auth import AUDIENCE, Authority
from ron.auth.files import AuthFiles
from ron.auth.pow import PowGate, PowSettings
from ron.auth.replay import ReplayGuard
from ron.kernel import Bus, Config, HealthState, KernelEvent, Metrics
from ron.kernel.anomaly import Anomaly, AnomalyWatch
from ron.kernel.breaker import Circuits
from ron.kernel.bus import Message, Subscription
from ron.kernel.config import ConfigError
from ron.kernel.files import DirectoryLock, private_dir
from ron.kernel.logs import JsonLogObserver, open_log_file
from ron.kernel.openspans import OpenSpans
from ron.kernel.profiling import Profiler
from ron.kernel.slo import Degradation
from ron.kernel.steady import steady
from ron.kernel.threads import BoundedPool
from ron.kernel.tls import ReloadableTls, ServerTls
from ron.kernel.tls_listen import wrap_tls
from ron.kernel.tls_watch import CertificateWatch
from ron.kernel.tracing import Tracing
from ron.nodes.admincap import ADMIN_CAP, AdminCapability
from ron.nodes.inneredge import inner_edge
from ron.nodes.listeners import Listening, allow_descriptors
from ron.nodes.ram import ram_directory
from ron.nodes.replay import SharedReplay, serve_replay
from ron.services.configs import home_directory, not_built
from ron.services.sections import DosConfig, LogSection, TlsConfig
from ron.web import Edge, Endpoint, make_site
from ron.web.admin import AdminApi
from ron.web.caps import cap_endpoints
from ron.web.health import NodeView, health_endpoints
from ron.web.pow import pow_endpoints
from ron.web.profiling import profiling_endpoints
from ron.web.site import BODY_LIMIT_BYTES, RonSite

if TYPE_CHECKING:
    from ron.ctl.console import StageConsole

# Root keys and revocations written by another process are in force here after this long at most.
AUTH_REFRESH_S = 1.0
# Queues are looked at, for spikes, this often.
WATCH_S = 1.0
SLO_TOPIC = "slo"
# Beyond the connections themselves: stores, logs, tors, the bus.
SPARE_DESCRIPTORS = 1024
REPLAY_WINDOW_S = 24 * 3600
REPLAY_CAPACITY = 65_536
_log = Logger(namespace="ron.node")


class Runtime:
    """The shared things of one process, made before the reactor runs.

    name: of the process, as the log and the bus know it. owner: this process owns the home; its children do not.
    ram: under amnesia, the owner's folder in memory. shared: other processes go by our keys, so that amnesia keeps
    them in that folder; otherwise in this process.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        name: str,
        config: Config[Any],
        owner: bool = True,
        ram: Path | None = None,
        shared: bool = False,
    ) -> None:
        steady(reactor)
        self.reactor = reactor
        self.name = name
        allow_descriptors(config.current.limits.connections + SPARE_DESCRIPTORS)
        self.config = config
        sections = config.current
        self.amnesia: bool = sections.onion.amnesia
        self.home = private_dir(home_directory())
        self.lock = DirectoryLock(self.home) if owner else None
        self.health = HealthState()
        self.metrics = Metrics()
        self.metrics.follow_health(self.health)
        self.metrics.follow_disk(self.home)
        self.bus = Bus(reactor, self.metrics, origin=name)
        self._exits: list[Callable[[], object]] = []
        self.ram = ram or self._own_ram()
        # where what must survive one process of ours is kept: the disk, or under amnesia memory; None for nowhere
        self.keep: Path | None = self.ram or self.home
        if self.amnesia and not (shared or ram):
            self.keep = None
        self.auth = AuthFiles(self.keep and self.keep / "auth", time.time, health=self.health)
        self._raise_ceiling(sections)
        self.authority: Authority = self.auth.authority(AUDIENCE)
        self.authority.counts.register(self.metrics.registry)
        self._admin = AdminCapability(self.home / ADMIN_CAP, self.auth, self.authority)
        self.observer = JsonLogObserver(self._sink(sections.log), service=name, level=sections.log.level)
        self.tracing = Tracing(
            name,
            sections.observability.otel_endpoint,
            sampling=sections.observability.sampling,
            incident_sampling=sections.observability.incident_sampling,
            amnesia=self.amnesia,
            metrics=self.metrics,
        )
        self.spans = OpenSpans(self.tracing)
        self.bus.trace_with(self.spans)
        self.slo = Degradation(sections.slo, reactor, health=self.health, metrics=self.metrics)
        self.slo.observe(self._tell_slo)
        self._pow = self._gate(sections.dos)
        self.edge = Edge(
            authority=self.authority,
            metrics=self.metrics,
            reactor=reactor,
            limits=sections.limits,
            slo=self.slo,
            tracer=self.tracing if self.tracing.enabled else None,
            spans=self.spans,
            pow=self._pow,
        )
        self.circuits = Circuits(reactor.seconds, metrics=self.metrics)
        self.anomalies = AnomalyWatch(self.metrics, reactor.seconds)
        self.anomalies.on_anomaly(self._tell_anomaly)
        self.profiler = Profiler(reactor, amnesia=self.amnesia)
        self.cut_off = 0
        self._burning: set[str] = set()
        self._files_pool = BoundedPool(reactor, name="auth", threads=1)
        self._services = MultiService()
        self._certificates: CertificateWatch | None = None
        self._auth_in_files = self.keep is not None
        self._console: StageConsole | None = None
        self._progress: Subscription | None = None
        self._config_trouble = False
        self._auth_trouble = ""
        self._loops = [
            self._loop(self._refresh_auth, AUTH_REFRESH_S),
            self._loop(self._watch_queues, WATCH_S),
            self._loop(self._forgive_config, WATCH_S),
        ]
        if owner:
            serve_replay(self.bus, ReplayGuard(REPLAY_WINDOW_S, REPLAY_CAPACITY, time.time))
        config.on_change(self._announce)
        config.on_refused(self._config_refused)
        config.observe(self._apply)
        for key, sentence in not_built(config.current):
            _log.warn("{key}: {sentence}", event="config_not_built", key=key, sentence=sentence)
            self.health.degraded(f"config.{key}", sentence)
        if self.tracing.problem:
            self.health.degraded("tracing", self.tracing.problem)

    # Life

    def start(self) -> None:
        """Begin what goes on in the background: keys, revocations, certificates, the config file, queues, the SLO."""
        self._files_pool.start()
        self._services.startService()
        self.slo.start()
        self.bus.observe(self._count_restarts, name="anomalies")
        self.bus.observe(self._hear_slo, SLO_TOPIC, name="slo")
        for loop, interval_s in self._loops:
            loop.start(interval_s, now=False)
        self.config.watch(self.reactor)

    def stop(self) -> None:
        """The last thing a process does."""
        for loop, _interval_s in self._loops:
            if loop.running:
                loop.stop()
        self.config.stop_watching()
        self.slo.stop()
        self._services.stopService()
        self._files_pool.stop()
        for leave in reversed(self._exits):
            leave()
        if self.lock is not None:
            self.lock.release()

    async def flush(self) -> None:
        """Send what is still to be sent: the last thing but the end."""
        await deferToThread(self.tracing.shutdown)

    def at_exit(self, leave: Callable[[], object]) -> None:
        """Call `leave` when the process stops; the last first."""
        self._exits.append(leave)

    # Listening

    def site(
        self,
        endpoints: Sequence[Endpoint],
        *,
        body_limit: int = BODY_LIMIT_BYTES,
        health: bool = True,
        view: NodeView | None = None,
        name: str = "http",
    ) -> RonSite:
        """A site of this process, with the health endpoints unless it is an inner one. view: whose health, not ours.

        name: of the listener, for metrics."""
        more = health_endpoints(view or self, name=self.name) if health else []
        edge = self.edge if health else inner_edge(self.edge)
        return make_site(edge, [*endpoints, *more], body_limit=body_limit, name=name)

    def admin_endpoints(self) -> list[Endpoint]:
        """What operators ask of a node."""
        replay = SharedReplay(self.bus)
        pool = self._files_pool if self._auth_in_files else None
        allowed = self.config.current.profiling.allowed(amnesia=self.amnesia)
        return [
            *AdminApi(self.bus, self.reactor, time.time).endpoints(),
            *cap_endpoints(self.authority, self.auth, replay, pool=pool),
            *profiling_endpoints(self.profiler, allowed),
            *pow_endpoints(self._pow, replay, self.bus),
        ]

    def listen(self, where: int | Path, site: RonSite) -> Listening:
        """Answer on a descriptor that listens already, or on a Unix socket."""
        return Listening(self.reactor, where, site)

    def listen_tls(self, where: int | Path, site: RonSite, name: str, tls: TlsConfig) -> Listening:
        """The same behind TLS 1.3. Raises `TlsError` when its files cannot be used."""
        return Listening(self.reactor, where, site, self._behind_tls(site, name, tls))

    def watch_certificates(self, contexts: Mapping[str, ReloadableTls]) -> None:
        """Take new files of these into use by themselves, and say when one is about to expire."""
        if self._certificates is None:
            self._certificates = CertificateWatch(self.reactor, health=self.health, metrics=self.metrics)
            self._certificates.setServiceParent(self._services)
        for name, context in contexts.items():
            self._certificates.add(name, context)

    @property
    def drain_s(self) -> float:
        """What connections have for finishing at the end."""
        return float(self.config.current.shutdown.drain_s)

    def count_cut_off(self, count: int) -> None:
        """So many connections did not finish in time."""
        if count:
            self.cut_off += count
            self.metrics.aborted.labels("connection").inc(count)
            _log.warn("{count} connections were cut off", event="drain_cut_off", count=count)

    @property
    def reduced_fan_out(self) -> bool:
        """True while any process of the node burns its promise: leave out what was not asked for."""
        return bool(self._burning)

    # What the health endpoints show

    def readiness(self) -> Any:
        """Ours."""
        return self.health.snapshot()

    def exposition(self) -> bytes:
        """Ours."""
        self.edge.traffic.flush()
        return self.metrics.render()

    # For whoever started us

    def write_admin_capability(self) -> Path:
        """`admin.cap` (0600): kept while it still verifies, otherwise minted anew."""
        return self._admin.write()

    def show_progress(self) -> None:
        """Progress that any process publishes goes to this one's terminal, until the first `say`."""
        from ron.ctl.console import StageConsole  # rich is a tenth of a second, and children have no terminal

        console = self._console = StageConsole(sys.__stdout__)  # type: ignore[arg-type]

        def show(message: Message) -> None:
            stage = message.body
            console.show(stage["name"], stage["done"], stage["total"], stage["detail"])

        self._progress = self.bus.observe(show, "progress", name="console")

    def say(self, text: str) -> None:
        """Text for whoever started us, after the progress."""
        if self._progress is not None:
            self._progress.close()
        if self._console is not None:
            self._console.close()
        # whoever started us may have gone, and its pipe with it; we go on
        with contextlib.suppress(OSError, ValueError):
            sys.__stdout__.write(text + "\n")  # type: ignore[union-attr]
            sys.__stdout__.flush()  # type: ignore[union-attr]

    # Inside

    def _own_ram(self) -> Path | None:
        if not self.amnesia:
            return None
        ram = ram_directory(self.home)
        self.at_exit(lambda: shutil.rmtree(ram, ignore_errors=True))
        self.at_exit(self._leave_no_folder)
        return ram

    def _leave_no_folder(self) -> None:
        """Sockets are gone by now, and with them all that their folder was for."""
        with contextlib.suppress(OSError):
            (self.home / "run").rmdir()

    def _sink(self, log: LogSection) -> Any:
        if log.to == "file":
            return open_log_file(self.home / "log" / f"{self.name}.jsonl")
        return sys.__stderr__ if log.to == "stderr" else None

    def _raise_ceiling(self, sections: Any) -> None:
        """Where there is a key service, its config says how many capabilities for keys a tenant may have."""
        kms = getattr(sections, "kms", None)
        if kms is not None and getattr(kms, "enabled", True):
            wanted = kms.governance
            self.auth.ceiling.apply(wanted.capabilities_active, wanted.capabilities_per_minute)

    def _gate(self, dos: DosConfig) -> PowGate | None:
        if not dos.proof_of_work:
            return None
        settings = PowSettings(
            auto_tune=dos.pow_auto_tune,
            target_ms=dos.pow_target_ms,
            upper_bound=dos.pow_upper_bound,
            difficulty=dos.pow_difficulty,
        )
        return PowGate(os.urandom(32), settings, time.time, self.metrics)

    def _behind_tls(self, site: RonSite, name: str, tls: TlsConfig) -> IProtocolFactory:
        client_ca = self.home / tls.client_ca if tls.client_ca else None
        context = ServerTls(self.home / tls.certificate, self.home / tls.key, client_ca)
        self.watch_certificates({name: context})
        handshake_s = self.edge.limits.handshake_timeout_ms / 1000
        allowed = frozenset(tls.clients) or None
        return wrap_tls(self.reactor, site, context, metrics=self.metrics, handshake_s=handshake_s, allowed=allowed)

    def _loop(self, work: Callable[[], Any], interval_s: float) -> tuple[LoopingCall, float]:
        loop = LoopingCall(work)
        loop.clock = self.reactor
        return loop, interval_s

    def _refresh_auth(self) -> Deferred[None]:
        """Files are read and written in a thread; health hears of it here.

        Nothing may end these rounds: a process that made no more of them would never hear of a revocation.
        """
        refreshed = deferToThread(self._poll_auth).addCallbacks(self._auth_went_well, self._auth_failed)
        return refreshed.addCallback(lambda _none: self.auth.report())

    def _poll_auth(self) -> None:
        keys_changed = self.auth.poll()
        if self.lock is not None:
            self._admin.keep_up(keys_changed=keys_changed)

    def _auth_went_well(self, _none: None) -> None:
        self._auth_trouble = ""

    def _auth_failed(self, failure: Failure) -> None:
        trouble, self._auth_trouble = self._auth_trouble, failure.getErrorMessage()
        if trouble != self._auth_trouble:
            _log.failure("capabilities could not be looked after", failure, event="auth_refresh_failed")

    def _watch_queues(self) -> None:
        depths: Mapping[str, int] = self.bus.depths
        for service, depth in depths.items():
            self.anomalies.observe("queue", service, depth)

    def _count_restarts(self, message: Message) -> None:
        if isinstance(message.body, KernelEvent.ServiceCrashed):
            self.anomalies.observe("restart", message.body.service)

    def _tell_anomaly(self, anomaly: Anomaly) -> None:
        self.bus.publish(anomaly, topic="anomaly")

    def _tell_slo(self, slo: Degradation) -> None:
        self._note_burning(self.name, slo.burning)
        self.bus.publish({"burning": slo.burning}, topic=SLO_TOPIC)

    def _hear_slo(self, message: Message) -> None:
        self._note_burning(message.origin, bool(message.body["burning"]))

    def _note_burning(self, process: str, burning: bool) -> None:
        (self._burning.add if burning else self._burning.discard)(process)
        self.tracing.incident(bool(self._burning))

    def _announce(self, version: int) -> None:
        self.metrics.config_version.set(version)
        self.metrics.config_reloads.labels("applied").inc()
        self.health.ok("config")
        self.bus.publish(KernelEvent.ConfigUpdated(version))

    def _config_refused(self, error: ConfigError) -> None:
        """The old config goes on; an operator who looks at readiness sees why nothing changed."""
        self.metrics.config_reloads.labels("refused").inc()
        self._config_trouble = True
        self.health.degraded("config", f"the file was not taken: {error.one_line()}")

    def _forgive_config(self) -> None:
        """A file that says again what is in force changes nothing, so that nobody announces that it was mended."""
        if self._config_trouble and self.config.last_error is None:
            self._config_trouble = False
            self.health.ok("config")

    def _apply(self, _old: Any, new: Any) -> None:
        """What takes effect without a restart."""
        self.edge.apply(new.limits)
        self._raise_ceiling(new)
        self.slo.apply(new.slo)
        self.observer.set_level(new.log.level)
