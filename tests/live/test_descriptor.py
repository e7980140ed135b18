"""Descriptors of ours on the private network: one address before two heads, for tor's own directories and clients.

Needs tor. The heads are onions that tor itself runs and publishes, told of the master addresses in `ob_config`.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import Site

from ron.kernel import HealthState, Metrics
from ron.proto.errors import ErrorCode, RonError
from ron.sdk import Api, onion_http
from ron.sdk.transport import connection_pool
from ron.tor.binary import find_tor
from ron.tor.clientauth import ClientPublic, Credential, add_credential, generate
from ron.tor.descriptor.blinding import KeySigner, blind
from ron.tor.descriptor.build import build, certify
from ron.tor.descriptor.exchange import Exchange
from ron.tor.descriptor.hashring import HsDir, node_index
from ron.tor.descriptor.intropoints import Backend, IntroPoint, common_extras, read_backend
from ron.tor.descriptor.periods import Due
from ron.tor.descriptor.refused import Reason
from ron.tor.descriptor.revisions import next_revision
from ron.tor.descriptor.sampling import deal
from ron.tor.onionkeys import OnionKey, address_of, new_key, public_key
from ron.tor.privnet import PrivateNetwork
from tests.live.support import NO_TOR

HEADS = ("head1", "head2")
VISITORS = ("visitor1", "visitor2", "visitor3")
GET_TIMEOUT_S = 30
STEP_S = 60


class MasterAddress(TestCase):
    """One network, one story: it takes longer to make a network than to tell all of it."""

    skip = NO_TOR
    timeout = 170

    async def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ron-descriptor-"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.network = PrivateNetwork(
            reactor,
            directory=self.folder / "net",
            tor=find_tor(),
            clients=(*HEADS, *VISITORS),
            health=HealthState(),
            metrics=Metrics(),
        )
        self.addCleanup(lambda: Deferred.fromCoroutine(self.network.take_down()))
        await self.network.bring_up()
        self.uploads: dict[str, list[list[str]]] = {name: [] for name in HEADS}
        self.master, self.restricted = new_key(), new_key()
        self.seen: dict[tuple[OnionKey, Due], int] = {}
        self.onions = [await self.head(name) for name in HEADS]

    async def head(self, name: str) -> str:
        """The address of a new onion on tor `name` that serves the page `name`, for both masters."""
        folder = self.folder / name
        folder.mkdir(mode=0o700)
        masters = "".join(f"MasterOnionAddress {address_of(key)}\n" for key in (self.master, self.restricted))
        (folder / "ob_config").write_text(masters)
        control = self.network.tors[name].control
        await control.add_event_listener("HS_DESC", lambda event: self.uploads[name].append(event.split()))
        service = f'HiddenServiceDir="{folder}" HiddenServiceOnionBalanceInstance=1'
        await control.queue_command(f'SETCONF {service} HiddenServicePort="80 127.0.0.1:{self.page(name)}"')
        return (folder / "hostname").read_text().strip()

    def page(self, text: str) -> int:
        resource = Resource()
        resource.isLeaf = True
        resource.render_GET = lambda _request: text.encode()
        listening = reactor.listenTCP(0, Site(resource), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        return int(listening.getHost().port)

    async def test_one_address_before_two_heads(self) -> None:
        await self.published_by_tor()
        self.exchange = Exchange(reactor, self.network.tors["head1"].control)
        await self.exchange.open()
        self.ring = await self.exchange.ring(testing=True)
        self.assert_ring_is_tors()
        first, second = [await self.backend(onion) for onion in self.onions]
        self.extras = common_extras([first, second])
        both = [*first.points, *second.points]

        await self.post(self.master, first.points)
        self.assertEqual(await self.get("visitor1", self.master), b"head1")
        await self.post(self.master, both)
        self.assertIn(await self.get("visitor2", self.master), (b"head1", b"head2"))
        await self.read_back(both)
        await self.post(self.master, second.points)
        self.assertEqual(await self.get("visitor3", self.master), b"head2")
        await self.old_revisions_are_refused()
        await self.distinct_descriptors({first.onion: first.points, second.onion: second.points})
        await self.what_is_not_there()
        await self.for_clients_only(both)

    async def published_by_tor(self) -> None:
        """Both descriptors of each head: tor uploads to all five directories, for two periods."""
        deadline = reactor.seconds() + STEP_S
        while any(sum(words[0] == "UPLOADED" for words in self.uploads[name]) < 10 for name in HEADS):
            self.assertLess(reactor.seconds(), deadline, self.uploads)
            await deferLater(reactor, 0.1)

    def assert_ring_is_tors(self) -> None:
        """tor tells with each upload at which place of the ring it sees the directory: period, value and keys fit."""
        self.assertEqual(len(self.ring.directories), 5)
        ours = {
            (node.fingerprint, node_index(node.identity, due.srv, due.period).hex().upper())
            for node in self.ring.directories
            for due in self.ring.time.due()
        }
        for name in HEADS:
            told = [words for words in self.uploads[name] if words[0] == "UPLOAD"]
            tors = {(words[3][1:41], words[5].removeprefix("HSDIR_INDEX=")) for words in told}
            self.assertEqual(tors, ours)

    async def backend(self, onion: str) -> Backend:
        text = await self.exchange.fetch(onion)
        backend = read_backend(text, onion, [due.period for due in self.ring.time.due()], time.time())
        self.assertEqual(len(backend.points), 3)
        self.assertEqual(backend.period, self.ring.time.asked_for().period)
        return backend

    async def post(self, key: OnionKey, points: Sequence[IntroPoint], clients: Sequence[ClientPublic] = ()) -> None:
        """Both due descriptors, each to its directories; all of them take it."""
        for due in self.ring.time.due():
            signed = await certify(KeySigner(key), due.period, time.time())
            revision = next_revision(due.period, time.time(), seen=self.seen.get((key, due), 0))
            self.seen[key, due] = revision
            text = build(signed, points, revision, clients=clients, extras=self.extras)
            directories = self.ring.to_store(signed.blinded, due)
            posted = await self.exchange.post(address_of(key), {text: directories})
            self.assertEqual(posted.taken, {directory.fingerprint for directory in directories}, posted)
            self.last = text, directories

    async def get(self, visitor: str, key: OnionKey) -> bytes:
        pool = connection_pool(reactor)
        client = onion_http(reactor, self.network.socks_port(visitor), pool)
        try:
            api = Api(reactor, client, f"http://{address_of(key)}", deadline_s=GET_TIMEOUT_S)
            return bytes((await api.fetch("GET", "/")).body)
        finally:
            await pool.closeCachedConnections()

    async def read_back(self, points: Sequence[IntroPoint]) -> None:
        """What each directory has is what it was given."""
        for directory in self.ring.to_fetch(blind(public_key(self.master), self.ring.time.period)):
            text = await self.exchange.fetch(address_of(self.master), directory)
            periods = [due.period for due in self.ring.time.due()]
            backend = read_backend(text, address_of(self.master), periods, time.time())
            self.assertEqual((backend.points, backend.extras), (tuple(points), self.extras))

    async def old_revisions_are_refused(self) -> None:
        """Directories take nothing that does not have a higher counter: not even the same once more."""
        text, directories = self.last
        posted = await self.exchange.post(address_of(self.master), {text: directories})
        self.assertEqual((posted.refused, posted.taken), ({d.fingerprint for d in directories}, frozenset()))

    async def distinct_descriptors(self, heads: Mapping[str, Sequence[IntroPoint]]) -> None:
        """Room for one point only, so that each head has a descriptor of its own; directories keep different ones."""
        due = self.ring.time.asked_for()
        signed = await certify(KeySigner(self.master), due.period, time.time())
        revision = next_revision(due.period, time.time(), seen=self.seen[self.master, due])
        dealt = {
            build(signed, points, revision, extras=self.extras): directories
            for points, directories in deal(heads, self.ring.to_store(signed.blinded, due), 0, 1)
        }
        self.assertEqual(len(dealt), 2)
        self.assertEqual(len((await self.exchange.post(address_of(self.master), dealt)).taken), 5)
        for text, directories in dealt.items():
            for directory in directories:
                self.assertEqual(await self.exchange.fetch(address_of(self.master), directory), text)

    async def what_is_not_there(self) -> None:
        error = await self.failing(self.exchange.fetch(address_of(new_key())))
        self.assertIs(error.code, ErrorCode.NOT_FOUND)
        stranger = HsDir(fingerprint="A" * 40, identity=bytes(32))
        for text, directory in ((self.last[0], stranger), ("hs-descriptor 3\n", self.ring.directories[0])):
            refused = await self.failing(self.exchange.post(address_of(self.master), {text: [directory]}))
            self.assertIs(refused.reason, Reason.MALFORMED)

    async def for_clients_only(self, points: Sequence[IntroPoint]) -> None:
        """Restricted discovery on a master address, over heads that know nothing of it."""
        client = generate()
        await self.post(self.restricted, points, clients=[client.public, generate().public])
        credential = Credential(address_of(self.restricted), client)
        await add_credential(reactor, self.network.tors["visitor1"].control, credential)
        self.assertIn(await self.get("visitor1", self.restricted), (b"head1", b"head2"))
        await self.failing(self.get("visitor2", self.restricted))

    async def failing(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return await self.assertFailure(Deferred.fromCoroutine(coroutine), RonError)
