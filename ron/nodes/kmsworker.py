"""One worker of the key service in a process of its own: `twistd -n ron-kms-worker`, started by ron-kms.

In: the pair as descriptor 3, listening sockets as those after it; config and master key over the pair. Out: `/v1/kms`
on the owner's address. Whatever ends the pair ends this process at once: nothing could be put on record any more, so
nothing may be answered.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

import msgspec
from twisted.logger import Logger
from twisted.python.usage import Options as TwistedOptions

from ron.crypto.secrets import SecretBuffer, harden_process
from ron.kernel import Config, memory
from ron.kernel.health import Readiness
from ron.kernel.metrics import Family
from ron.nodes.daemon import Daemon, complain
from ron.nodes.kms import NAME as OWNER
from ron.nodes.kms import HostedConfig, KmsLayers
from ron.nodes.kmsforward import Forwarder
from ron.nodes.listeners import GivenSocket, Listening
from ron.nodes.parts.kms_doors import KmsDoors
from ron.nodes.runtime import Runtime
from ron.proto.errors import RonError, bad_request
from ron.proto.exitcodes import Exit
from ron.proto.ids import uuid4_text
from ron.services.configs import SCHEMAS
from ron.services.kms.api import PATH, endpoints
from ron.services.kms.workers.frames import Feels, Start, decode_downward
from ron.services.kms.workers.link import Link, take
from ron.services.kms.workers.service import Surroundings, WorkerService
from ron.services.sections import TlsConfig
from ron.web.site import RonSite, make_site

NAME = "ron-kms-worker"
PAIR, HTTP, OAP = 3, 4, 5
# What a worker answers over HTTP.
OWN = frozenset(("POST", f"{PATH}/{op}") for op in ("sign", "verify", "wrap", "unwrap"))
_log = Logger(namespace="ron.kms.workers")


class Options(TwistedOptions):
    """Options of `twistd ron-kms-worker`."""

    synopsis = "Usage: twistd [twistd options] ron-kms-worker"
    longdesc = "One worker of a key service. ron-kms starts it; people start ron-kms with workers = N."


def makeService(_options: Options) -> Daemon:
    """The service for twistd; complains in one line and exits when it was not started by ron-kms."""
    from twisted.internet import reactor

    try:
        harden_process()
        start, master, end = _begin()
        schema, check = SCHEMAS[OWNER]
        config: Config[HostedConfig] = Config(KmsLayers(schema, check))
        config.adopt(share(msgspec.json.decode(start.config, type=HostedConfig), start.workers))
        return KmsWorker(Runtime(reactor, name=start.name, config=config, owner=False), config, start, master, end)
    except RonError as error:
        complain(NAME, error)


def _begin() -> tuple[Start, SecretBuffer, socket.socket]:
    """What we are, and the pair. Raises `RonError` where nobody is at the other end."""
    try:
        end = socket.socket(fileno=PAIR)
    except OSError:
        raise _not_a_worker() from None
    if end.family != socket.AF_UNIX:
        raise _not_a_worker()
    end.setblocking(True)
    start, master = take(end, allow_unlocked=_allow_unlocked)
    return start, master, end


def _allow_unlocked(start: Start) -> bool:
    return msgspec.json.decode(start.config, type=HostedConfig).kms.security.allow_unlocked


def share(config: HostedConfig, workers: int) -> HostedConfig:
    """`config` as one of `workers` goes by it: what is worked on at a time is dealt out, so that all of them together
    do no more than was configured."""
    limits = msgspec.structs.replace(config.limits, concurrency=max(1, config.limits.concurrency // workers))
    return msgspec.structs.replace(config, limits=limits)


class KmsWorker(Daemon):
    """The worker's service, its listener, its end of the pair."""

    def __init__(
        self,
        runtime: Runtime,
        config: Config[HostedConfig],
        start: Start,
        master: SecretBuffer,
        end: socket.socket,
    ) -> None:
        super().__init__(runtime)
        self._config = config
        self._start = start
        self._pair = end
        self._link = Link(decode_downward, self._heard, self._lost)
        around = Surroundings(
            reactor=runtime.reactor,
            wishes=lambda: config.current.kms,
            adopt=self._adopt,
            metrics=runtime.metrics,
            exported=self._exported,
            now_s=time.time,
            chatty=lambda: bool(config.current.log.level == "debug"),
            spans=runtime.spans if runtime.tracing.enabled else None,
        )
        self._service = WorkerService(
            around,
            master,
            workers=start.workers,
            send=self._link.tell,
            go=self._go,
            congested=lambda: self._link.congested,
        )
        self._forwarder = Forwarder(runtime.reactor, Path(start.forward), runtime.edge)
        self._site: RonSite | None = None
        self._listening: Listening | None = None
        self._doors: KmsDoors | None = None
        self._ending = False
        self._felt: Any = None

    async def begin(self) -> None:
        """Hear what the owner has to say. It also says when to listen."""
        self._service.start()
        # what is the matter with us stands in the owner's readiness
        self.runtime.health.observe(self._feel)
        self._link.join(self._pair, self.runtime.reactor)
        self._feel(self.runtime.health.snapshot())

    async def end(self) -> None:
        """Accept no more, finish, let go of the pair."""
        if self._listening is not None:
            await self._listening.stop_accepting()
        if self._doors is not None:
            self.runtime.count_cut_off(await self._doors.stop())
        if self._site is not None:
            self.runtime.count_cut_off(await self._site.drain(self.runtime.drain_s))
        await self._forwarder.close()
        # the pair closes with the process
        self._ending = True
        self._service.stop()

    # The pair

    def _heard(self, frame: Any) -> None:
        self._service.heard(frame)

    def _lost(self) -> None:
        if not self._ending:
            # not in order, for that would let calls under way be answered; memory is the system's to wipe
            os._exit(int(Exit.FAILED))

    def _feel(self, readiness: Readiness) -> None:
        told = readiness.missing, readiness.degraded, readiness.reasons
        if told != self._felt:
            self._felt = told
            self._link.tell(Feels(readiness))

    def _adopt(self, raw: bytes) -> None:
        config = share(msgspec.json.decode(raw, type=HostedConfig), self._start.workers)
        try:
            self._config.adopt(config)
        except RonError as error:
            # the owner took it; a worker that cannot must not go on with another
            _log.error("the owner's config: {why}", event="config_not_followed", why=error.message)
            self.leave(Exit.FAILED)

    def _exported(self) -> tuple[Family, ...]:
        self.runtime.edge.traffic.flush()
        return tuple(self.runtime.metrics.export())

    # Listening

    def _go(self) -> None:
        runtime, config = self.runtime, self._config.current.kms
        try:
            hot = [one for one in endpoints(self._service, _nothing) if (one.method, one.path) in OWN]
            site = make_site(runtime.edge, hot, body_limit=config.limits.max_body_bytes, name="kms")
            if config.observability.correlation_id_mode == "uuidv4":
                site.new_corr_id = uuid4_text
            self._forwarder.serve(site)
            self._site = site
            self._listening = self._listen(site)
            if self._start.oap:
                self._doors = self._open_doors()
        except RonError as error:
            _log.error("{why}", event="start_failed", why=error.one_line())
            runtime.say(error.one_line())
            self.leave(Exit.FAILED)
            return
        # what was told of keys stays for good
        memory.settle()

    def _listen(self, site: RonSite) -> Listening:
        tls = self._config.current.kms.tls
        if tls.enabled:
            files = TlsConfig(certificate=tls.cert_path, key=tls.key_path)
            listening = self.runtime.listen_tls(HTTP, site, "kms", files)
        else:
            listening = self.runtime.listen(HTTP, site)
        listening.one_by_one()
        return listening

    def _open_doors(self) -> KmsDoors:
        config, home = self._config.current.kms, self.runtime.home
        tls = (home / config.tls.cert_path, home / config.tls.key_path) if config.tls.enabled else None
        doors = KmsDoors(
            self.runtime,
            self._service,
            oap_addr=config.oap_addr,
            tls=tls,
            message_bytes=config.limits.max_body_bytes,
            oap_socket=GivenSocket(OAP),
        )
        doors.start()
        return doors


def _nothing() -> bytes:
    return b""


def _not_a_worker() -> RonError:
    return bad_request("this is a worker of a key service, started by ron-kms", hint="run: twistd -n ron-kms")
