"""Calls to peers through a SOCKS port that wants a login, as tor's does; whatever is wrong there is a `RonError`."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import TestCase

from ron.kernel.aio import within
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.services.oniond.federation.messages import MAX_BODY_BYTES, RosterListing
from ron.services.oniond.federation.peers import OnionPeers
from ron.tor.onionkeys import address_of, new_key

PEER = address_of(new_key())
LISTING = RosterListing(protocol="ron-federation/1", onion=PEER, version=1, keys=(b"k" * 32,))


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


class Tor(Protocol):
    """RFC 1928 and 1929 by the letter; then `factory.said` to whatever is asked for."""

    factory: TorFactory

    def connectionMade(self) -> None:
        self.step, self.received, self.factory.open = self.greeted, b"", self.factory.open + 1

    def connectionLost(self, reason: Any = None) -> None:
        self.factory.open -= 1

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        self.step()

    def take(self, count: int) -> bytes:
        taken, self.received = self.received[:count], self.received[count:]
        return taken

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        # byte by byte: nobody may rely on what comes in one piece
        for at in range(len(data)):
            self.transport.write(data[at : at + 1])

    def greeted(self) -> None:
        if len(self.received) >= 3:
            assert self.take(3) == b"\x05\x01\x02"
            self.step = self.logged_in
            self.write(self.factory.method)

    def logged_in(self) -> None:
        if len(self.received) < 2 or len(self.received) < 3 + self.received[1]:
            return
        name = self.received[2 : 2 + self.received[1]]
        password = self.received[3 + len(name) :]
        if len(password) < self.received[2 + len(name)]:
            return
        self.take(len(self.received))
        self.factory.logins.append((name, password))
        self.step = self.asked
        self.write(self.factory.status)

    def asked(self) -> None:
        if len(self.received) < 5 or len(self.received) < 7 + self.received[4]:
            return
        head = self.take(5)
        host, port = self.take(head[4]), struct.unpack("!H", self.take(2))[0]
        assert head[:4] == b"\x05\x01\x00\x03"
        self.factory.asked.append((host.decode(), port))
        self.step = self.served
        if self.factory.reply is not None:
            self.write(b"\x05" + self.factory.reply + b"\x00\x01" + bytes(6))

    def served(self) -> None:
        head, blank, _body = self.received.partition(b"\r\n\r\n")
        if blank and head.split()[1] not in self.factory.paths:
            self.factory.paths.append(head.split()[1])
            assert self.transport is not None
            self.transport.write(self.factory.said)


class TorFactory(Factory):
    protocol = Tor
    noisy = False

    def __init__(self) -> None:
        self.method, self.status, self.reply = b"\x05\x02", b"\x01\x00", b"\x00"
        self.said = answer(msgspec.json.encode(LISTING))
        self.logins: list[tuple[bytes, bytes]] = []
        self.asked: list[tuple[str, int]] = []
        self.paths: list[bytes] = []
        self.open = 0


class Calling(TestCase):
    """One call, one login, one connection."""

    timeout = 60

    def setUp(self) -> None:
        self.tor = TorFactory()
        port = reactor.listenTCP(0, self.tor, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        self.addCleanup(self.all_hung_up)

        async def socks(_onion: str) -> int:
            return int(port.getHost().port)

        self.peers = OnionPeers(reactor, socks)

    async def all_hung_up(self) -> None:
        """No call leaves a connection behind, however it ended."""
        for _ in range(200):
            if not self.tor.open:
                return
            pause: Deferred[None] = Deferred()
            reactor.callLater(0.01, pause.callback, None)
            await pause
        self.fail(f"{self.tor.open} connections are open")

    async def fails(self, code: ErrorCode) -> RonError:
        error: RonError = await self.assertFailure(Deferred.fromCoroutine(self.peers.roster(PEER)), RonError)
        self.assertEqual(error.code, code, error.message)
        return error

    async def test_each_call_logs_in_as_somebody_else(self) -> None:
        for _ in range(2):
            self.assertEqual(await self.peers.roster(PEER), LISTING)
            self.tor.paths.clear()
        self.assertEqual(self.tor.asked, [(PEER, 80)] * 2)
        (first, password), (second, other) = self.tor.logins
        self.assertEqual(len({first, password, second, other}), 4)

    async def test_a_socks_port_that_will_not(self) -> None:
        for method, status, reply in (
            (b"\x05\x00", b"", b""),
            (b"\x05\xff", b"", b""),
            (b"HT", b"", b""),
            (b"\x05\x02", b"\x01\x01", b""),
            (b"\x05\x02", b"\x01\x00", b"\x04"),
            (b"\x05\x02", b"\x01\x00", b"\x01"),
        ):
            self.tor.method, self.tor.status, self.tor.reply = method, status, reply
            await self.fails(ErrorCode.STORE_UNAVAILABLE)

    async def test_no_socks_port_at_all(self) -> None:
        async def closed(_onion: str) -> int:
            return 1

        async def none(_onion: str) -> int:
            raise unavailable("no tor")

        for socks in (closed, none):
            self.peers = OnionPeers(reactor, socks)
            await self.fails(ErrorCode.STORE_UNAVAILABLE)

    async def test_refusals_tell_nothing_of_the_peers_own_words(self) -> None:
        words = b'{"code":"Internal","message":"\\u001b[2J look here","ts":"","request_id":""}'
        for status, code in (
            ("403 No", ErrorCode.NO_CAPABILITY),
            ("429 No", ErrorCode.BACKPRESSURE),
            ("503 No", ErrorCode.BACKPRESSURE),
            ("404 No", ErrorCode.CONFLICT),
            ("302 Found", ErrorCode.CONFLICT),
            ("500 No", ErrorCode.CONFLICT),
        ):
            self.tor.said = answer(words, status)
            self.tor.paths.clear()
            self.assertNotIn("look", (await self.fails(code)).one_line())

    async def test_answers_of_another_shape(self) -> None:
        good = msgspec.json.encode(LISTING)
        deep = b"[" * 20_000
        for body in (b"", b"{}", b"null", good[:-1], good.replace(b"/1", b"/2"), b"\xff", deep):
            self.tor.said = answer(body)
            self.tor.paths.clear()
            await self.fails(ErrorCode.CONFLICT)

    async def test_an_answer_without_end(self) -> None:
        self.tor.said = answer(b" " * (MAX_BODY_BYTES + 1))
        await self.fails(ErrorCode.CONFLICT)

    async def test_an_answer_that_breaks_off(self) -> None:
        self.tor.said = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"
        call = Deferred.fromCoroutine(within(reactor, 0.3, self.peers.roster(PEER)))
        await self.assertFailure(call, Exception)

    async def test_whoever_gives_up_hangs_up(self) -> None:
        """tor goes on looking for an onion for two minutes, as long as the connection is there."""
        self.tor.reply = None
        call = Deferred.fromCoroutine(within(reactor, 0.2, self.peers.roster(PEER)))
        await self.assertFailure(call, Exception)
        self.assertEqual(self.tor.asked, [(PEER, 80)])
