"""The client of the onion runtime's events, over a Unix socket, against the runtime itself."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, ensureDeferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory, Protocol

from ron.auth import Authority, Caveat, RootKeys
from ron.kernel import Metrics
from ron.proto.errors import ErrorCode, RonError
from ron.proto.exitcodes import Unreachable
from ron.proto.onionevents import EventView, Lagged
from ron.sdk import events as events_module
from ron.sdk.events import EventStream, connect, follow
from ron.services.oniond.events import KEPT, events_endpoint
from ron.services.oniond.telemetry import Telemetry
from ron.web import Edge, make_site
from tests.services.oniond.fakes import OnionTor, create
from tests.web.wire import until


class Following(OnionTor):
    """The runtime, with its events on a Unix socket."""

    def setUp(self) -> None:
        super().setUp()
        directory = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, directory)
        self.socket = directory / "oniond.sock"
        self.authority = Authority(RootKeys.generate(), audience="ron-node", now=lambda: self.now)
        edge = Edge(authority=self.authority, metrics=Metrics(), reactor=reactor)
        self.site = make_site(edge, [events_endpoint(self.service, lambda: self.now)])
        self.serve()

    def serve(self) -> None:
        self.listening = reactor.listenUNIX(str(self.socket), self.site, mode=0o600)
        self.addCleanup(until, lambda: not self.site.channels)
        self.addCleanup(lambda: self.listening.stopListening())

    def endpoint(self) -> UNIXClientEndpoint:
        return UNIXClientEndpoint(reactor, str(self.socket))

    def token(self, *caveats: tuple[str, str], scope: str = "onion:events") -> str:
        return self.authority.mint(Caveat(*caveat) for caveat in (("scope", scope), *caveats))

    async def stream(self, *caveats: tuple[str, str], after: int | None = None) -> EventStream:
        stream = await connect(reactor, self.endpoint(), self.token(*caveats), after=after)
        self.addCleanup(stream.close)
        return stream

    @property
    def telemetry(self) -> Telemetry:
        return self.service.telemetry

    def happens(self, times: int = 1) -> None:
        self.telemetry.watch("a" * 56, "chat")
        for _ in range(times):
            self.telemetry.heard("onion", "HS_DESC", f"UPLOADED {'a' * 56} UNKNOWN $A")

    async def test_an_onion_that_becomes_ready(self) -> None:
        await self.up()
        stream = await self.stream(("app", "chat"))
        view = await self.service.create(create(1, wait_s=5.0))
        kinds = []
        while True:
            told = await stream.next()
            assert isinstance(told, EventView)
            self.assertEqual(told.app, "chat")
            kinds.append(told.kind)
            if told.kind == "ready":
                self.assertEqual(told.detail, {"id": view.id, "ready": "true"})
                break
        self.assertIn("descriptor", kinds)

    async def test_what_was_missed(self) -> None:
        self.telemetry.tor_up("onion")
        first = await self.stream()
        self.happens(KEPT)
        seen = [await first.next() for _ in range(KEPT)]
        assert isinstance(seen[0], EventView)
        again = await self.stream(after=seen[0].seq)
        self.assertEqual([await again.next() for _ in range(KEPT - 1)], seen[1:])
        self.happens(KEPT)
        app = await self.stream(("app", "chat"), after=0)
        self.assertEqual(await app.next(), Lagged(KEPT))

    async def test_who_takes_nothing_is_not_sent_on_without_a_bound(self) -> None:
        self.telemetry.tor_up("onion")
        stream = await self.stream()
        self.happens(events_module.WAITING * 3)
        await until(lambda: len(stream._waiting) >= events_module.WAITING)
        for _ in range(events_module.WAITING * 3):
            self.assertIsInstance(await stream.next(), EventView)

    async def test_refused(self) -> None:
        for token, after, code in (
            (self.token(scope="onion:read"), None, ErrorCode.NO_CAPABILITY),
            ("nonsense", None, ErrorCode.NO_CAPABILITY),
            (self.token(), -1, ErrorCode.BAD_REQUEST),
        ):
            with self.assertRaises(RonError) as caught:
                await connect(reactor, self.endpoint(), token, after=after)
            self.assertIs(caught.exception.code, code)

    async def test_nobody_there(self) -> None:
        with self.assertRaises(Unreachable):
            await connect(reactor, UNIXClientEndpoint(reactor, "/nowhere.sock"), "x")

    async def test_somebody_else_there(self) -> None:
        class Babbler(Protocol):
            def dataReceived(self, data: bytes) -> None:
                assert self.transport is not None
                self.transport.write(b"220 ready\r\n\r\n")

        path = str(self.socket.with_name("other.sock"))
        listening = reactor.listenUNIX(path, Factory.forProtocol(Babbler))
        self.addCleanup(listening.stopListening)
        with self.assertRaises(RonError):
            await connect(reactor, UNIXClientEndpoint(reactor, path), "x")

    async def test_silence(self) -> None:
        self.patch(events_module, "SILENCE_S", 0.05)
        stream = await self.stream()
        with self.assertRaises(Unreachable):
            await stream.next()

    async def test_drained(self) -> None:
        stream = await self.stream()
        drained = ensureDeferred(self.site.drain(deadline_s=5.0))
        with self.assertRaises(Unreachable) as caught:
            await stream.next()
        self.assertIn("shutting down", caught.exception.message)
        self.assertEqual(await drained, 0)

    async def test_the_capability_ends(self) -> None:
        stream = await self.stream(("exp", "2027-01-15T08:00:01Z"))
        self.now += 2
        with self.assertRaises(RonError) as caught:
            await stream.next()
        self.assertIs(caught.exception.code, ErrorCode.NO_CAPABILITY)

    async def test_followed_over_a_restart(self) -> None:
        """Nothing twice, nothing missing."""
        self.telemetry.tor_up("onion")
        heard: list[EventView | Lagged] = []
        following: Deferred[None] = ensureDeferred(
            follow(reactor, self.endpoint(), self.token(("app", "chat")), heard.append)
        )
        await until(lambda: any(channel._socket for channel in self.site.channels))
        self.happens(2)
        await until(lambda: len(heard) == 2)
        await self.listening.stopListening()
        await self.site.drain(deadline_s=5.0)
        self.happens(3)
        self.serve()
        await until(lambda: len(heard) == 5)
        numbers = [event.seq for event in heard if isinstance(event, EventView)]
        self.assertEqual(numbers, list(range(numbers[0], numbers[0] + 5)))
        following.cancel()
        await self.assertFailure(following, CancelledError)

    async def test_followed_no_further_than_the_capability_goes(self) -> None:
        with self.assertRaises(RonError) as caught:
            await follow(reactor, self.endpoint(), self.token(scope="onion:read"), lambda told: None)
        self.assertIs(caught.exception.code, ErrorCode.NO_CAPABILITY)
