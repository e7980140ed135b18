"""One address before two heads, published, read back, repaired and visited on the private network.

Needs tor. Directories here keep what they are given: what they lose is made by not giving it to them.
"""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site
from txtorcon.torcontrolprotocol import TorProtocolError

from ron.kernel import HealthState, Metrics
from ron.proto.balance import HeadDescriptor
from ron.sdk import Api, onion_http
from ron.sdk.transport import connection_pool
from ron.services.balance.publishing.canary import Canary
from ron.services.balance.publishing.counters import Counters
from ron.services.balance.publishing.outside import Figures
from ron.services.balance.publishing.publisher import Master, Publication
from ron.services.balance.publishing.room import Publishing
from ron.services.balance.publishing.schedule import Asked, Found
from ron.tor.binary import find_tor
from ron.tor.control import ask
from ron.tor.descriptor.blinding import KeySigner
from ron.tor.descriptor.build import build
from ron.tor.descriptor.exchange import Exchange, Posted
from ron.tor.descriptor.hashring import HsDir
from ron.tor.isolated import IsolatedEndpoints
from ron.tor.onionkeys import address_of, new_key
from ron.tor.privnet import PrivateNetwork
from tests.live.support import NO_TOR

HEADS = ("head1", "head2")
VISITORS = ("visitor1", "visitor2")
STEP_S = 60
GET_TIMEOUT_S = 30
FAR_AHEAD_S = 10 * 86_400


class Forgetful(Exchange):
    """An exchange that leaves out `forgets` and says that it took what it was never given."""

    forgets = ""

    async def post(
        self, onion: str, dealt: Mapping[str, Sequence[HsDir]], taken: Callable[[str], None] = lambda name: None
    ) -> Posted:
        left = {text: [node for node in nodes if node.fingerprint != self.forgets] for text, nodes in dealt.items()}
        posted = await super().post(onion, {text: nodes for text, nodes in left.items() if nodes}, taken)
        return posted._replace(taken=posted.taken | ({self.forgets} if self.forgets else set()))


class Published(TestCase):
    """One network, one story: it takes longer to make a network than to tell all of it."""

    skip = NO_TOR
    timeout = 170

    async def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ron-publishing-"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.net = PrivateNetwork(
            reactor,
            directory=self.folder / "net",
            tor=find_tor(),
            clients=(*HEADS, *VISITORS),
            health=HealthState(),
            metrics=Metrics(),
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(self.net.take_down()))
        await self.net.bring_up()
        self.key = new_key()
        self.master = Master(name="shop", onion=address_of(self.key))
        self.onions = {name: await self.head(name) for name in HEADS}
        self.told: dict[str, HeadDescriptor] = {}
        self.make()

    def make(self) -> None:
        """The room as a service has it. One more knows nothing of what the one before has seen."""
        self.asked: list[Asked] = []
        self.room = Publishing(
            reactor,
            testing=True,
            tie=random.randrange(1000),
            signer=lambda service: KeySigner(self.key),
            holds=lambda: ["shop"],
            ask=lambda service, why: self.asked.append(why),
            every_s=lambda: 600.0,
            figures=Figures(Metrics()),
        )
        # only told of a new consensus does it look
        self.room.network._every_s = 600
        self.room.start()
        self.addCleanup(self.room.stop)

    async def head(self, name: str) -> str:
        """The address of a new onion on tor `name` that serves the page `name` for the master address."""
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        (folder / "ob_config").write_text(f"MasterOnionAddress {self.master.onion}\n")
        service = f'HiddenServiceDir="{folder}" HiddenServiceOnionBalanceInstance=1'
        control = self.net.tors[name].control
        await control.queue_command(f'SETCONF {service} HiddenServicePort="80 127.0.0.1:{self.page(name)}"')
        return (folder / "hostname").read_text().strip()

    def page(self, text: str) -> int:
        resource = Resource()
        resource.isLeaf = True
        resource.render_GET = lambda _request: text.encode()
        listening = reactor.listenTCP(0, Site(resource), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        return int(listening.getHost().port)

    async def until(self, true: Callable[[], object], what: str) -> None:
        deadline = reactor.seconds() + STEP_S
        while not true():
            self.assertLess(reactor.seconds(), deadline, what)
            await deferLater(reactor, 0.05)

    async def test_the_life_of_a_descriptor(self) -> None:
        self.tor = Forgetful(reactor, self.net.tors["head1"].control)
        await self.tor.open()
        await self.attached()
        await self.heads_are_told()

        everywhere = await self.publish(HEADS, 0)
        self.assertEqual(everywhere.told(reactor.seconds())[0].heads, HEADS)
        await self.held(everywhere)
        self.assertEqual((await self.canary().visit()).status, 200)
        self.assertEqual(self.asked, [])

        await self.publish(["head2"], 1)
        self.assertEqual(await self.get("visitor2"), b"head2")
        await self.lost_by_one_directory()
        await self.until(lambda: self.room.network.known().time != self.first_time, "the next consensus")
        await self.a_leader_whose_clock_was_ahead()

    async def attached(self) -> None:
        await self.room.attach(self.tor)
        await self.until(lambda: self.room.network.ring, "a consensus")
        self.first_time = self.room.network.known().time
        periods = [due.period for due in self.first_time.due()]
        await self.until(lambda: self.room.keys.ready("shop", periods), "keys, before they are needed")

    async def heads_are_told(self) -> None:
        """As its tor wrote it, before any directory has it; until all its introduction points stand."""
        for name, onion in self.onions.items():
            deadline = reactor.seconds() + STEP_S
            while len(getattr(self.room.shelf.newest(name), "points", ())) < 3:
                self.assertLess(reactor.seconds(), deadline, name)
                key = f"hs/service/desc/id/{onion.removesuffix('.onion')}"
                try:
                    text = await ask(reactor, self.net.tors[name].control, key)
                except TorProtocolError:
                    text = ""
                if text:
                    self.told[name] = HeadDescriptor(onion=onion, text=text.strip("\n") + "\n")
                    self.room.offer(name, self.told[name])
                await deferLater(reactor, 0.3)
        usable = self.room.usable()
        self.assertEqual((set(usable.heads), usable.out, usable.left_out), (set(HEADS), {}, {}))

    async def publish(self, wanted: Sequence[str], turn: int) -> Publication:
        """All five directories take both descriptors, posted at once though they are the same directories."""
        first: list[Publication] = []
        publication = await self.room.publish(self.master, wanted, turn, first.append)
        for placed in publication.placed:
            self.assertEqual(placed.posted, Posted(frozenset(placed.texts), frozenset(), frozenset()))
            self.assertEqual(len(placed.texts), 5)
        self.assertEqual((len(publication.placed), len(first)), (2, 1))
        return publication

    async def held(self, publication: Publication) -> None:
        """What the directories have is what the driver says."""
        await self.until(lambda: len(self.room.holding("shop")) == 5, "the first reading back")
        await self.until(lambda: set(self.room.holding("shop").values()) == {Found.HELD}, "all have it")
        asked_for = publication.placed[0]
        for text, nodes in asked_for.dealt:
            for node in nodes:
                self.assertEqual(await self.tor.fetch(self.master.onion, node), text)

    def canary(self) -> Canary:
        return Canary(
            reactor,
            service="shop",
            onion=self.master.onion,
            port=80,
            ways=lambda: IsolatedEndpoints(reactor, self.net.socks_port("visitor1")),
            ask=lambda service, why: self.asked.append(why),
            every_s=lambda: 60.0,
            figures=self.room.figures,
            random=random.random,
        )

    async def get(self, visitor: str) -> bytes:
        pool = connection_pool(reactor)
        client = onion_http(reactor, self.net.socks_port(visitor), pool)
        try:
            api = Api(reactor, client, f"http://{self.master.onion}", deadline_s=GET_TIMEOUT_S)
            return bytes((await api.fetch("GET", "/")).body)
        finally:
            await pool.closeCachedConnections()

    async def lost_by_one_directory(self) -> None:
        """It has the last descriptor, or none: read back and given again; the other period's by giving it to all."""
        self.tor.forgets = loser = self.room.network.known().directories[2].fingerprint
        publication = await self.publish(HEADS, 2)
        self.tor.forgets = ""
        await self.held(publication)
        other = publication.placed[1]
        posted = await self.tor.post(self.master.onion, dict(other.dealt))
        self.assertEqual(posted, Posted(frozenset({loser}), frozenset(other.texts) - {loser}, frozenset()))
        self.assertEqual(self.asked, [])

    async def a_leader_whose_clock_was_ahead(self) -> None:
        """It is dead; who comes next has heard nothing of it, and is refused until it has read one back."""
        points = self.room.usable().heads["head1"].points
        ahead = Counters(tie=2, now_s=lambda: time.time() + FAR_AHEAD_S)
        self.room.release("shop")
        for due in self.room.network.known().time.due():
            key = await self.room.keys.key("shop", due.period)
            text = build(key, points, ahead.next("shop", due.period))
            directories = self.room.network.known().to_store(key.blinded, due)
            self.assertEqual(len((await self.tor.post(self.master.onion, {text: directories})).taken), 5)
        self.room.detach()
        self.make()
        await self.attached()
        for name in HEADS:
            self.room.offer(name, self.told[name])
        await self.until(lambda: len(self.room.usable().heads) == 2, "both heads on the shelf")
        refused = await self.room.publish(self.master, HEADS, 3)
        self.assertEqual([len(placed.posted.refused) for placed in refused.placed], [5, 5])
        await self.until(lambda: Asked.FOREIGN in self.asked, "the order to publish above")
        await self.until(lambda: len(self.room.holding("shop")) == 5, "the counters read back")
        await self.held(await self.publish(HEADS, 4))
        self.assertIn(await self.get("visitor2"), (b"head1", b"head2"))
