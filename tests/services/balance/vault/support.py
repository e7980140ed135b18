"""What the vault's tests share: nodes with vaults on an in-memory mesh, and a clock. There are no tests here."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Literal, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.frost.keys import KeyShare
from ron.crypto.hpke import PrivateKey, Suite
from ron.kernel import HealthState, Metrics
from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.ports import ServiceRecord
from ron.services.balance.vault.service import KeyVault
from ron.services.balance.vault.telemetry import figures
from ron.tor.descriptor.blinding import blind, identity_of, verify
from ron.tor.descriptor.certs import Certificate, Purpose, expiry_h
from ron.tor.descriptor.periods import TimePeriod
from tests.crypto.test_frost_support import secret_from
from tests.services.balance.hub import Hub, HubNode

T = TypeVar("T")
NOW_S = 1_800_000_000
PERIOD = TimePeriod(number=20_833, length_min=1440, start_s=20_833 * 86_400 + 43_200)
PERIODS = tuple(PERIOD.shifted(by) for by in (-1, 0, 1))
CLUSTER = b"test cluster"
WEB = "web"
Mode = Literal["operator", "token"]


class Node:
    """A vault on its mesh, in one run."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self.seal = PrivateKey.generate(Suite.PQ)
        self.mesh: HubNode = cluster.hub.node(name, seal_key=self.seal.public.raw)
        self.health = HealthState()
        self.metrics = Metrics()
        self.floors: dict[str, int] = {}
        self.vault = KeyVault(
            cluster.clock,
            self.mesh,
            seal=self.seal,
            cluster=CLUSTER,
            approval=cluster.approval,
            periods=lambda: PERIODS,
            health=self.health,
            metrics=self.metrics,
            floor=self.floors.get,
            now=lambda: NOW_S + cluster.clock.seconds(),
        )
        answer = self.mesh.handlers.answer

        async def recorded(sender: str, kind: str, body: bytes) -> bytes:
            answered = await answer(sender, kind, body)
            cluster.wire += [(kind, body), (kind, answered)]
            return answered

        self.mesh.handlers.answer = recorded  # type: ignore[method-assign]
        self.vault.startService()

    def share(self, service: str = WEB) -> KeyShare | None:
        """The one in use."""
        epoch = self.vault._ring.current(service)
        return epoch.share if epoch is not None else None

    def refusals(self) -> dict[str, float]:
        """By reason."""
        return {labels[0]: value for labels, value in figures(self.metrics, "balance_vault_refused_total").items()}


class Cluster(SynchronousTestCase):
    """Nodes `a` to `e`, as many as a test wants. wire: everything that was called and answered."""

    approval: Mode = "operator"

    def setUp(self) -> None:
        self.clock = Clock()
        self.hub = Hub(self.clock, seed=3)
        self.nodes: dict[str, Node] = {}
        self.wire: list[tuple[str, bytes]] = []
        self.addCleanup(lambda: [node.vault.stopService() for node in self.nodes.values() if node.vault.running])

    def start(self, names: str) -> list[Node]:
        """These nodes; one that was there before starts again."""
        for name in names:
            self.nodes[name] = Node(self, name)
        return [self.nodes[name] for name in names]

    def kill(self, name: str) -> None:
        """Without a word."""
        self.hub.kill(name)
        self.nodes[name].vault.stopService()

    def pass_s(self, seconds: float, step_s: float = 0.01) -> None:
        self.clock.pump(itertools.repeat(step_s, round(seconds / step_s)))

    def begin(self, asked: Coroutine[Any, Any, T]) -> Deferred[T]:
        return Deferred.fromCoroutine(asked)

    def done(self, asked: Coroutine[Any, Any, T], seconds: float = 1.0) -> T:
        """What comes of it within so many seconds."""
        waiting = self.begin(asked)
        self.pass_s(seconds)
        return self.successResultOf(waiting)

    def refused(self, asked: Coroutine[Any, Any, Any], seconds: float = 1.0) -> RonError:
        """How it fails within so many seconds."""
        waiting = self.begin(asked)
        self.pass_s(seconds, 0.05)
        error = self.failureResultOf(waiting, RonError).value
        assert isinstance(error, RonError)
        return error

    def approve_all(self, by: str, names: str) -> None:
        for name in names:
            if name != by:
                self.nodes[by].vault.approve(name)
        self.pass_s(0.1)

    def born(self, names: str, threshold: int, key: bytearray | None = None) -> ServiceRecord:
        """A threshold address among fresh nodes, ordered at the first."""
        first = self.start(names)[0]
        self.pass_s(0.1)
        self.approve_all(first.name, names)
        return self.done(first.vault.share(WEB, threshold=threshold, among=list(names), key=key), 5.0)

    def message(self, onion: str, period: TimePeriod = PERIOD, expires_h: int | None = None) -> bytes:
        """A certificate to be signed now."""
        by = blind(identity_of(onion), period).public
        ends = expires_h if expires_h is not None else expiry_h(NOW_S + self.clock.seconds())
        return Certificate(Purpose.SIGN_DESCRIPTOR, bytes(range(32)), by=by, expires_h=ends).message

    def sign(self, at: str, onion: str, seconds: float = 1.0, period: TimePeriod = PERIOD) -> None:
        """`at` gets a signature that verifies."""
        message = self.message(onion, period)
        made = self.done(self.nodes[at].vault.signer(WEB).sign(period, message), seconds)
        self.assertTrue(verify(blind(identity_of(onion), period).public, message, made))

    def not_signed(self, at: str, onion: str, seconds: float = 10.0) -> RonError:
        error = self.refused(self.sign_(at, onion), seconds)
        self.assertEqual(error.code, ErrorCode.STORE_UNAVAILABLE)
        return error

    async def sign_(self, at: str, onion: str) -> bytes:
        return await self.nodes[at].vault.signer(WEB).sign(PERIOD, self.message(onion))

    def secrets_of(self, names: str) -> list[bytes]:
        """Shares of these nodes."""
        return [share.secret for name in names if (share := self.nodes[name].share()) is not None]

    def secret(self, names: str) -> bytes:
        """The key, as whoever seized these nodes would reckon it."""
        shares = [share for name in names if (share := self.nodes[name].share()) is not None]
        return secret_from(shares).to_bytes(32, "little")


Answerer = Callable[[str, Any], Awaitable[Any]]


def spellings(secret: bytes) -> Sequence[bytes]:
    """A secret as it may be found on a disk: raw, hex, or inside base64 at any of its three offsets."""
    import base64

    found = [secret, secret.hex().encode(), secret.hex().upper().encode()]
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + secret)
        # the ends depend on what stands beside
        found += [encoded[4:-4], encoded[4:-4].replace(b"+", b"-").replace(b"/", b"_")]
    return found
