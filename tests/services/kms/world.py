"""A key service with a real log and a real backend, both in memory or in a folder, and a site in memory before it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from ron.auth import Authority, Caveat, RootKeys
from ron.crypto.notes import KeySet
from ron.crypto.sealing import ScryptCost
from ron.kernel import HealthState, Metrics
from ron.kernel.config import convert
from ron.kernel.openspans import OpenSpans
from ron.kernel.tracing import Tracing
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.proto.kms import Alg, Attestation, Kid
from ron.services.kms import openapi
from ron.services.kms.api import endpoints
from ron.services.kms.audit import DiskShelf, MemoryShelf, Meters, Settings, TransparencyLog
from ron.services.kms.backends.file import FileBackend
from ron.services.kms.backends.heads import Counting
from ron.services.kms.backends.inmem import InMemoryBackend
from ron.services.kms.backends.unlocking import ByPassphrase
from ron.services.kms.config import KmsConfig
from ron.services.kms.ports import Backend, Held
from ron.services.kms.service import KmsService, Sign
from ron.web import Edge, make_site
from tests.web.wire import Response, request, split_response

B3 = "7f" * 32
PATIENCE_S = 20.0
UNKNOWN = "core/audit/ed25519/00000000-0000-4000-8000-00000000ffff#v1"


class Faulty:
    """A real backend that can be away, slow to come to an end, or give evidence."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.name = inner.name
        self.quick = inner.quick
        if isinstance(inner, Counting):
            self.head, self.check_head = inner.head, inner.check_head
        self.away = False
        self.evidence: str | None = None
        self.signed: list[tuple[Kid, Alg, bytes]] = []

    def _check(self) -> None:
        if self.away:
            raise unavailable("the backend is away")

    def open(self) -> None:
        self._check()
        self.inner.open()

    def close(self) -> None:
        self.inner.close()

    def probe(self) -> None:
        self._check()
        self.inner.probe()

    def held(self) -> Sequence[Held]:
        self._check()
        return self.inner.held()

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        self._check()
        return self.inner.generate(kid, algs)

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        self._check()
        self.signed.append((kid, alg, message))
        return self.inner.sign(kid, alg, message)

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        self._check()
        return self.inner.unwrap(kid, suite, envelope, info)

    def destroy(self, kid: Kid) -> None:
        self._check()
        self.inner.destroy(kid)

    def attest(self, kid: Kid | None) -> Attestation | None:
        self._check()
        return Attestation(class_="test-device", evidence=self.evidence) if self.evidence else self.inner.attest(kid)


class Votes:
    """A quorum that has decided. allowed: (action, scope, change) that may be done, by proposal."""

    def __init__(self) -> None:
        self.allowed: dict[str, tuple[str, str, dict[str, str]]] = {}
        self.freezes: dict[str, str] = {}
        self.modes: dict[str, str] = {}

    def require(self, action: str, scope: str, change: Mapping[str, str], proposal: str | None) -> None:
        if self.allowed.get(proposal or "") != (action, scope, dict(change)):
            raise RonError(ErrorCode.NO_CAPABILITY, "a quorum has not decided this")
        del self.allowed[proposal or ""]

    def frozen(self, tenant: str) -> str | None:
        return self.freezes.get(tenant)

    def pq_mode(self, tenant: str) -> str | None:
        return self.modes.get(tenant)


class Answer(NamedTuple):
    """What came back."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def code(self) -> str:
        return str(self.body["error"]["code"])


class World(TestCase):
    """One service for each test. home: where it keeps everything; without one all is in memory."""

    timeout = 60
    sections: ClassVar[dict[str, Any]] = {}
    on_disk = False
    tracing: Tracing | None = None
    spans: OpenSpans | None = None

    async def setUp(self) -> None:
        self.home = _made(self.mktemp())
        self.votes = Votes()
        self.keys = RootKeys.generate()
        self.ahead_s = 0.0
        self.drawn: list[bytes] = []
        self.wishes: KmsConfig = convert({"security": {"sign_rate_limit_rps": 100_000}, **self.sections}, KmsConfig)
        await self.begin()

    async def begin(self) -> None:
        """Start it; what is in the home is what it was."""
        self.health, self.metrics = HealthState(), Metrics()
        self.backend = Faulty(self.make_backend())
        self.before_start()
        self.service = KmsService(
            reactor,
            lambda: self.wishes,
            path=self.home / "kms" / "kms.sqlite3" if self.on_disk else None,
            backend=self.backend,
            make_log=self.make_log,
            quorum=self.votes,
            health=self.health,
            metrics=self.metrics,
            now_s=lambda: time.time() + self.ahead_s,
            spans=self.spans,
        )
        self.authority = Authority(self.keys, audience="ron-node", now=time.time)
        edge = Edge(
            authority=self.authority, metrics=self.metrics, reactor=reactor, tracer=self.tracing, spans=self.spans
        )
        self.site = make_site(edge, endpoints(self.service, openapi.served), body_limit=1024 * 1024)
        self.token: str | None = self.bearer(("scope", "*"))
        self.service.startService()
        await self.service.ready()

    def before_start(self) -> None:
        """For a test that starts with something broken."""

    def make_backend(self) -> Backend:
        if not self.on_disk:
            return InMemoryBackend(allow_unlocked=True)
        secret = bytearray(b"correct horse battery")
        cheap = ByPassphrase(secret.copy, cost=ScryptCost(log_n=6), allow_unlocked=True)
        return FileBackend(self.home / "sealed", cheap, entropy=self.draw, allow_unlocked=True)

    def draw(self, into: memoryview) -> None:
        """Randomness for keys, remembered."""
        into[:] = secrets.token_bytes(len(into))
        self.drawn.append(bytes(into))

    def make_log(self, origin: str, keys: Sequence[KeySet], sign: Sign) -> TransparencyLog:
        shelf: Any = DiskShelf(self.home / "audit", self.home / "anchor.json") if self.on_disk else MemoryShelf()
        settings = Settings(origin, checkpoint_s=3600.0)
        return TransparencyLog(settings, shelf, reactor=reactor, keys=keys, sign=sign, meters=Meters(self.metrics))

    async def tearDown(self) -> None:
        await self.end()

    async def end(self) -> None:
        await self.service.stopService()

    async def again(self) -> None:
        """A restart."""
        await self.end()
        await self.begin()

    # Asking

    def bearer(self, *caveats: tuple[str, str]) -> str:
        return self.authority.mint(Caveat(*caveat) for caveat in caveats)

    async def ask(
        self, method: str, path: str, body: Any = None, *, prefix: str = "/v1/kms", more: Mapping[str, str] = {}
    ) -> Answer:
        """body: what JSON can say, or the bytes themselves. more: headers."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token is not None else {}
        headers |= more
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        channel, transport = self.site.buildProtocol(None), StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(request(method, prefix + path, headers, raw))
        try:
            response = await self._response(transport)
        finally:
            channel.connectionLost(Failure(connectionDone.value))
        decoded = json.loads(response.body) if response.headers.get("content-type") == "application/json" else None
        return Answer(response.status, decoded if decoded is not None else response.body, response.headers)

    async def _response(self, transport: StringTransport) -> Response:
        for _ in range(int(PATIENCE_S / 0.002)):
            whole = split_response(transport.value())
            if whole is not None:
                return whole[0]
            pause: Deferred[None] = deferLater(reactor, 0.002)
            await pause
        raise AssertionError("no answer")

    async def done(self, method: str, path: str, body: Any = None) -> Any:
        """The answer, which must be a good one."""
        answer = await self.ask(method, path, body)
        self.assertEqual(answer.status, 200, answer.body)
        return answer.body

    async def refused(self, status: int, code: str, method: str, path: str, body: Any = None) -> str:
        """The message of a refusal."""
        answer = await self.ask(method, path, body)
        self.assertEqual((answer.status, answer.code), (status, code), answer.body)
        return str(answer.body["error"]["message"])

    async def create(self, alg: str = "ed25519", tenant: str = "core", purpose: str = "audit", **more: Any) -> str:
        """A new key's kid."""
        made = await self.done("POST", "/keys", {"tenant": tenant, "purpose": purpose, "alg": alg, **more})
        return str(made["kid"])

    async def sign(self, kid: str, **more: Any) -> Any:
        return await self.done("POST", "/sign", {"kid_or_set": {"kid": kid}, "payload_b3": B3, **more})

    async def verify(self, sigs: Any, kid: str | None = None, **more: Any) -> Any:
        named = {"kid_or_set": {"kid": kid}} if kid is not None else {}
        return await self.done("POST", "/verify", {"payload_b3": B3, "sigs": sigs, **named, **more})

    async def until(self, true: Any, what: str) -> None:
        for _ in range(int(PATIENCE_S / 0.01)):
            if true():
                return
            pause: Deferred[None] = deferLater(reactor, 0.01)
            await pause
        self.fail(f"{what} did not happen")

    def records(self) -> list[dict[str, Any]]:
        """The audit log, decoded."""
        return [json.loads(leaf) for leaf in self.service.log.entries(0, 1000)]

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def _made(path: str) -> Path:
    home = Path(path).absolute()
    home.mkdir(parents=True)
    return home


def at(kid: str) -> str:
    """A key's name in a path."""
    return f"/keys/{quote(kid, safe='')}"


def op_id(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012d}"


def bare(kid: str) -> str:
    """Without its version."""
    return kid.partition("#")[0]
