"""A node's head on the private network: found, visited, shut, back again, and nobody who was there notices.

Needs tor. A master descriptor is written here as the leader would.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from txtorcon.socks import TorSocksEndpoint

from ron.kernel import HealthState, Metrics
from ron.proto.errors import RonError
from ron.services.balance.config import BalanceConfig, BalancedService
from ron.services.balance.heads.door import Door
from ron.services.balance.heads.head import TorHead
from ron.tor.binary import find_tor
from ron.tor.circuits import close
from ron.tor.control import ask
from ron.tor.descriptor.blinding import KeySigner
from ron.tor.descriptor.build import build, certify
from ron.tor.descriptor.exchange import Exchange
from ron.tor.descriptor.intropoints import Backend, read_backend
from ron.tor.descriptor.revisions import next_revision
from ron.tor.onionkeys import address_of, new_key
from ron.tor.privnet import PrivateNetwork
from tests.live.support import NO_TOR

CHUNK = os.urandom(4096)
STEP_S = 40.0
NO_ENTRY_S = 4


class Echo(Protocol):
    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class Session(Protocol):
    """Sends a chunk, awaits it back, sends the next, for as long as it is left to."""

    def __init__(self) -> None:
        self.rounds = 0
        self.wrong = False
        self.lost = False
        self._heard = b""

    def connectionMade(self) -> None:
        self.transport.write(CHUNK)

    def dataReceived(self, data: bytes) -> None:
        self._heard += data
        if len(self._heard) >= len(CHUNK):
            self.wrong |= self._heard != CHUNK
            self.rounds += 1
            self._heard = b""
            self.transport.write(CHUNK)

    def connectionLost(self, _reason: Failure | None = None) -> None:
        self.lost = True


class Host:
    """The network as who runs the tors."""

    def __init__(self, network: PrivateNetwork) -> None:
        self._network = network

    async def control_port(self, name: str) -> int:
        return self._network.control_port(name)

    async def restart(self, name: str) -> None:
        self._network.restart(name)


class HeadOnItsTor(TestCase):
    """One network, one story."""

    skip = NO_TOR
    timeout = 170

    async def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ron-heads-"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.network = PrivateNetwork(
            reactor,
            directory=self.folder / "net",
            tor=find_tor(),
            clients=("head", "visitor1", "visitor2"),
            health=HealthState(),
            metrics=Metrics(),
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(self.network.take_down()))
        await self.network.bring_up()
        self.target = reactor.listenTCP(0, Factory.forProtocol(Echo), interface="127.0.0.1")
        self.addCleanup(lambda: self.target.stopListening())
        self.number = self.target.getHost().port
        self.masters = [new_key(), new_key()]
        self.health, self.changes = HealthState(), 0
        self.config = self.configured(30.0)
        self.head = self.made()
        self.head.on_change(self.changed)
        self.seen = 0
        await self.head.start()
        self.addCleanup(lambda: Deferred.fromCoroutine(self.head.stop()))

    def made(self) -> TorHead:
        return TorHead(
            reactor,
            host=Host(self.network),
            tor="head",
            folder=self.folder / "onions",
            masters=[address_of(self.masters[0])],
            services={"site": self.config.services[0].ports},
            config=lambda: self.config,
            metrics=Metrics(),
            health=self.health,
        )

    def configured(self, limit_per_s: float) -> BalanceConfig:
        service = BalancedService(name="site", ports=(f"80:127.0.0.1:{self.number}",))
        return BalanceConfig(services=(service,), ghost_grace_s=1, quiet_s=1, siege_introductions_per_s=limit_per_s)

    def changed(self) -> None:
        self.changes += 1

    async def test_a_life(self) -> None:
        self.exchange = Exchange(reactor, self.network.tors["visitor1"].control)
        await self.exchange.open()
        first = await self.served()
        self.assertEqual((self.folder / "onions").stat().st_mode & 0o777, 0o700)
        await self.published(first)
        session = await self.session("visitor1")
        await self.shut_for_new_visitors(first, session)
        second = await self.back_with_another_onion(first, session)
        await self.the_control_connection_is_lost(session)
        await self.an_onion_as_target(second)
        await self.the_old_onion_goes_with_its_last_visitor(session, second)
        await self.other_masters()
        await self.attacks_are_closed_and_counted()
        await self.under_siege()
        await self.the_target_fails()
        await self.tor_is_reloaded()
        await self.tor_is_killed()

    async def until(self, condition: Callable[[], object], what: str) -> None:
        began_s = time.monotonic()
        while not condition():
            self.assertLess(time.monotonic() - began_s, STEP_S, f"{what}: {self.head.report()}")
            await deferLater(reactor, 0.05)

    async def served(self) -> Backend:
        """It is up, and what it says of itself is what publishers can use."""
        await self.until(lambda: self.head.report().mode == "serving", "serving")
        await self.until(lambda: self.head.report().healthy, "healthy")
        report, descriptor = self.head.report(), self.head.descriptor()
        assert descriptor is not None
        self.assertEqual((report.onion, len(report.descriptor)), (descriptor.onion, 64))
        self.assertTrue(self.health.snapshot().ready)
        return await self.backend()

    async def backend(self) -> Backend:
        descriptor = self.head.descriptor()
        assert descriptor is not None
        self.ring = await self.exchange.ring(testing=True)
        periods = [due.period for due in self.ring.time.due()]
        backend = read_backend(descriptor.text, descriptor.onion, periods, time.time())
        self.assertEqual(len(backend.points), 3)
        return backend

    async def published(self, backend: Backend, master: int = 0) -> None:
        key = self.masters[master]
        for due in self.ring.time.due():
            signed = await certify(KeySigner(key), due.period, time.time())
            self.seen = next_revision(due.period, time.time(), seen=self.seen)
            text = build(signed, backend.points, self.seen, extras=backend.extras)
            posted = await self.exchange.post(address_of(key), {text: self.ring.to_store(signed.blinded, due)})
            self.assertEqual(len(posted.taken), 5)

    async def session(self, visitor: str) -> Session:
        socks = TCP4ClientEndpoint(reactor, "127.0.0.1", self.network.socks_port(visitor))
        endpoint = TorSocksEndpoint(socks, address_of(self.masters[0]), 80)
        session: Session = await connectProtocol(endpoint, Session())
        self.addCleanup(session.transport.abortConnection)
        await self.until(lambda: session.rounds > 3, "a session")
        self.assertEqual(self.head.report().sessions, 1)
        return session

    async def visit(self, visitor: str, user: str, timeout_s: float = STEP_S, master: int = 0) -> bool:
        """Whether a visitor with a circuit of its own gets in."""
        port, onion = self.network.socks_port(visitor), address_of(self.masters[master])
        return bool(await deferToThread(_gets_in, port, onion, user, timeout_s))

    async def goes_on(self, session: Session) -> None:
        before = session.rounds
        await self.until(lambda: session.rounds > before + 3, "the session going on")
        self.assertEqual((session.wrong, session.lost), (False, False))

    async def shut_for_new_visitors(self, first: Backend, session: Session) -> None:
        self.assertTrue(await self.visit("visitor2", "before"))
        self.head.ghost()
        self.assertEqual(self.head.report().mode, "ghost")
        await self.until(lambda: self.head.report().descriptor == "", "shut")
        self.assertFalse(await self.visit("visitor2", "late", NO_ENTRY_S))
        await self.goes_on(session)
        onions = self.head._onions
        await self.until(lambda: self.head._visits.points(first.onion) == 0, "no introduction points")
        self.assertEqual((onions.number, self.head.report().mode), (1, "ghost"))

    async def back_with_another_onion(self, first: Backend, session: Session) -> Backend:
        self.head.serve()
        await self.until(lambda: self.head.report().mode == "serving", "serving again")
        second = await self.backend()
        self.assertNotEqual(second.onion, first.onion)
        self.assertFalse(set(second.points) & set(first.points))
        await self.published(second)
        # a client that just failed keeps the old descriptor for a while; one that asks for the first time has the new
        self.assertTrue(await self.visit("visitor2", "back"))
        await self.goes_on(session)
        return second

    async def the_control_connection_is_lost(self, session: Session) -> None:
        """tor goes on without us; we find it as we left it, the shut onion too."""
        before = self.head.report()
        control = self.head._attached.control
        assert control is not None
        control.transport.abortConnection()
        await self.until(lambda: self.head.report().mode == "down", "down")
        await self.until(lambda: self.head.report().mode == "serving", "serving again")
        after = self.head.report()
        self.assertEqual((after.onion, after.descriptor), (before.onion, before.descriptor))
        self.assertEqual((after.sessions, self.head._onions.number), (before.sessions, 2))
        await self.goes_on(session)

    async def an_onion_as_target(self, second: Backend) -> None:
        """A door of another node's, whose target is this head's onion."""
        door = Door(
            reactor,
            folder=self.folder / "door",
            services={"site": [f"80:{second.onion}:80"]},
            socks_port=lambda: self.network.socks_port("visitor2"),
            told=lambda: None,
            refused=lambda: None,
        )
        await door.open()
        self.addCleanup(lambda: Deferred.fromCoroutine(door.close()))
        (line,) = door.lines
        path = line.removeprefix("80 unix:")
        visitor: Session = await connectProtocol(UNIXClientEndpoint(reactor, path), Session())
        await self.until(lambda: visitor.rounds > 3, "a session through the proxy")
        await self.until(lambda: door.healthy, "the onion probed")
        self.assertFalse(visitor.wrong)
        visitor.transport.loseConnection()
        await self.until(lambda: visitor.lost, "its end")
        await door.close()

    async def the_old_onion_goes_with_its_last_visitor(self, session: Session, second: Backend) -> None:
        session.transport.loseConnection()
        for visitor in ("visitor1", "visitor2"):
            await self.hang_up(visitor)
        await self.until(lambda: self.head._onions.number == 1, "one onion left")
        self.assertEqual(self.head.report().onion, second.onion)
        await self.until(lambda: len(list((self.folder / "onions").iterdir())) == 1, "its key removed")
        self.assertTrue(await self.visit("visitor1", "still"))

    async def hang_up(self, visitor: str) -> None:
        """Clients keep their circuits for ten minutes after the last request."""
        control = self.network.tors[visitor].control
        for line in (await ask(reactor, control, "circuit-status")).splitlines():
            if "PURPOSE=HS_CLIENT_REND" in line:
                await close(reactor, control, line.split()[0])

    async def other_masters(self) -> None:
        before = self.head.report().onion
        self.head.set_masters([address_of(key) for key in self.masters])
        await self.until(lambda: self.head.report().onion != before, "an onion for both")
        await self.published(await self.backend(), master=1)
        self.assertTrue(await self.visit("visitor1", "second", master=1))

    async def attacks_are_closed_and_counted(self) -> None:
        """Whoever knows introduction points that are still there: they are left open here."""
        self.head._visits.shut(self.head.report().onion)
        for number in range(5):
            # on a busy machine an answer may be out before its circuit is closed
            if not await self.visit("visitor1", f"attacker{number}", NO_ENTRY_S, master=1):
                break
        else:
            self.fail("they all got in")
        await self.until(lambda: self.head.report().attacks >= 1, "an attack counted")
        self.head._visits.forget(self.head.report().onion)

    async def under_siege(self) -> None:
        self.config = self.configured(1.0)
        visits = [self.visit("visitor1", f"crowd{number}", 20, master=1) for number in range(12)]
        waiting = [Deferred.fromCoroutine(visit) for visit in visits]
        await self.until(lambda: self.head.report().under_siege, "under siege")
        for one in waiting:
            await one
        self.config = self.configured(30.0)
        await self.until(lambda: not self.head.report().under_siege, "the siege over")

    async def the_target_fails(self) -> None:
        before = self.changes
        await self.target.stopListening()
        await self.until(lambda: self.head.report().failing, "its target missed")
        # there for visitors all the same: whoever comes is refused, and need not search
        self.assertEqual((self.head.report().mode, self.head.report().healthy), ("serving", False))
        self.assertIn("balance.head", self.health.snapshot().degraded)
        self.target = reactor.listenTCP(self.number, Factory.forProtocol(Echo), interface="127.0.0.1")
        await self.until(lambda: self.head.report().healthy, "its target back")
        self.assertGreaterEqual(self.changes, before + 2)

    async def tor_is_reloaded(self) -> None:
        """It forgets what no torrc names; nobody should do it, and it is mended."""
        report = self.head.report()
        await self.network.tors["head"].control.signal("RELOAD")
        await self.until(lambda: self.head.report().mode == "starting", "gone")
        await self.until(lambda: self.head.report().mode == "serving", "serving again")
        self.assertEqual(self.head.report().onion, report.onion)
        self.assertNotEqual(self.head.report().descriptor, report.descriptor)

    async def tor_is_killed(self) -> None:
        onion = self.head.report().onion
        relays = [node.fingerprint for node in self.ring.directories]
        await self.head.set_guards(relays[:4], relays)
        self.network.restart("head")
        await self.until(lambda: self.head.report().mode == "down", "down")
        self.assertIsNone(self.head.descriptor())
        await self.until(lambda: self.head.report().mode == "serving", "serving again")
        self.assertEqual(self.head.report().onion, onion)
        control = self.network.tors["head"].control
        kept = (await control.get_conf("HSLayer2Nodes"))["HSLayer2Nodes"]
        self.assertEqual(kept, ",".join(f"${one}" for one in relays[:4]))
        await self.assertFailure(Deferred.fromCoroutine(self.head.set_guards(["$" + "A" * 40], [])), RonError)


def _gets_in(socks_port: int, onion: str, user: str, timeout_s: float) -> bool:
    """Blocks. user: tor keeps visitors of different names on different circuits."""
    try:
        with socket.create_connection(("127.0.0.1", socks_port), timeout=timeout_s) as visitor:
            name = user.encode()
            visitor.sendall(b"\x05\x01\x02")
            visitor.recv(2)
            visitor.sendall(b"\x01" + bytes([len(name)]) + name + b"\x01x")
            visitor.recv(2)
            visitor.sendall(b"\x05\x01\x00\x03" + bytes([len(onion)]) + onion.encode() + (80).to_bytes(2, "big"))
            if visitor.recv(10)[1:2] != b"\x00":
                return False
            visitor.sendall(b"hello")
            return visitor.recv(5) == b"hello"
    except OSError:
        return False
