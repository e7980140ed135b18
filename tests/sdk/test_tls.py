"""Calls over TLS on loopback: only the server that was meant hears them, and it knows who calls."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol

from ron.kernel.backoff import Backoff
from ron.kernel.tls import ClientTls, ServerTls
from ron.kernel.tls_listen import listen_tls
from ron.proto.addresses import HostPort
from ron.proto.errors import ErrorCode, RonError
from ron.proto.exitcodes import Unreachable
from ron.sdk import Api, client, tls_http
from ron.web import Call, Endpoint, make_site
from tests.kernel.certificates import OTHER_CA, Folder
from tests.web.wire import OnTheWire, closing, until


class Note(msgspec.Struct):
    """An answer."""

    text: str


class Plain(Protocol):
    """What web servers say to those who speak TLS to their plain port."""

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        self.transport.loseConnection()


class OverTls(OnTheWire):
    """The node alpha, which lets beta in and nobody else."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(client, "Backoff", lambda **_bounds: Backoff(base_s=0.001, ceiling_s=0.002, rng=random.Random(1)))
        self.folder = Folder(Path(self.mktemp()))
        self.alpha, self.beta = self.folder.node("alpha"), self.folder.node("beta")
        self.calls: list[Call] = []

    def listen(self, *, mutual: bool = True, host: str = "127.0.0.1") -> int:
        self.site = site = make_site(
            self.edge, [Endpoint(method="GET", path="/x", handler=self.answer, scope="note:read")]
        )
        tls = ServerTls(*self.alpha, self.folder.ca if mutual else None)
        allowed = {"ron://node/beta"} if mutual else None
        port = listen_tls(reactor, HostPort(host, 0), site, tls, metrics=self.metrics, allowed=allowed)
        self.addCleanup(until, lambda: not site.channels)
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    def answer(self, call: Call) -> Note:
        self.calls.append(call)
        return Note("hello")

    def tls(self, expected: str = "ron://node/alpha", **files: Any) -> ClientTls:
        certificate, key = files.get("own", self.beta)
        return ClientTls(files.get("ca", self.folder.ca), certificate, key, expected)

    def api(self, url: str, tls: ClientTls) -> Api:
        token = self.bearer(("scope", "note:read"))["Authorization"].removeprefix("Bearer ")
        return Api(reactor, closing(self, tls_http(reactor, tls)), url, token, tries=2)

    async def call(self, port: int, tls: ClientTls, host: str = "127.0.0.1") -> Note:
        return await self.api(f"https://{host}:{port}", tls).call("GET", "/x", Note)

    async def turned_down(self, port: int, tls: ClientTls, *words: str) -> None:
        with self.assertRaises(Unreachable) as caught:
            await self.call(port, tls)
        for word in words:
            self.assertIn(word, caught.exception.one_line())
        self.assertEqual(self.calls, [])

    def rejected(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("rejected_total", {"reason": reason}) or 0.0


class WhomTheSdkCalls(OverTls):
    """The server must be the one that is expected."""

    async def test_another_node(self) -> None:
        await self.turned_down(self.listen(), self.tls("ron://node/gamma"), "verify failed", "ron://node/gamma")
        await until(lambda: self.rejected("tls") == 2)

    async def test_another_host_name(self) -> None:
        await self.turned_down(self.listen(), self.tls("other.internal"), "verify failed", "other.internal")

    async def test_another_ca(self) -> None:
        await self.turned_down(self.listen(), self.tls(ca=self.folder.other_ca), "verify failed")

    async def test_a_server_that_speaks_plain_http(self) -> None:
        port = reactor.listenTCP(0, Factory.forProtocol(Plain), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        await self.turned_down(port.getHost().port, self.tls(), "no TLS", "wrong version number")

    async def test_a_url_without_tls_is_not_called_at_all(self) -> None:
        self.serve([Endpoint(method="GET", path="/x", handler=self.answer, scope=None)])
        for url in (f"http://127.0.0.1:{self.port}", f" https://127.0.0.1:{self.port}", "127.0.0.1"):
            with self.assertRaises(RonError) as caught:
                await self.api(url, self.tls()).call("GET", "/x", Note)
            self.assertIs(caught.exception.code, ErrorCode.BAD_REQUEST)
        self.assertEqual(self.calls, [])

    async def test_nobody_there(self) -> None:
        port = reactor.listenTCP(0, self.serve([]), interface="127.0.0.1")
        number = port.getHost().port
        await port.stopListening()
        await self.turned_down(number, self.tls(), "does not answer")

    async def test_the_right_one_under_each_of_its_names(self) -> None:
        port = self.listen()
        for expected in ("ron://node/alpha", "localhost", "127.0.0.1"):
            self.assertEqual(await self.call(port, self.tls(expected)), Note("hello"))

    async def test_at_an_ipv6_address(self) -> None:
        self.alpha = self.folder.node("alpha", addresses=["::1"])
        self.assertEqual(await self.call(self.listen(host="::1"), self.tls("::1"), "[::1]"), Note("hello"))

    async def test_connections_are_kept(self) -> None:
        port = self.listen()
        api = self.api(f"https://127.0.0.1:{port}", self.tls())
        channels = set()
        for _ in range(3):
            await api.call("GET", "/x", Note)
            channels.update(self.site.channels)
        self.assertEqual(len(channels), 1)


class WhoCalls(OverTls):
    """The server lets in whom it knows; a good capability does not help a stranger."""

    async def test_without_a_certificate(self) -> None:
        await self.turned_down(self.listen(), self.tls(own=(None, None)), "certificate required", "client certificate")

    async def test_with_one_of_another_ca(self) -> None:
        stranger = self.folder.node("beta", OTHER_CA, file="stranger")
        await self.turned_down(self.listen(), self.tls(own=stranger), "unknown ca")

    async def test_with_one_of_a_node_that_is_not_on_the_list(self) -> None:
        await self.turned_down(self.listen(), self.tls(own=self.folder.node("gamma")))
        await until(lambda: self.rejected("identity") == 2)

    async def test_the_server_need_not_ask(self) -> None:
        self.assertEqual(await self.call(self.listen(mutual=False), self.tls(own=(None, None))), Note("hello"))

    async def test_tls_is_no_capability(self) -> None:
        port = self.listen()
        api = Api(reactor, closing(self, tls_http(reactor, self.tls())), f"https://127.0.0.1:{port}")
        with self.assertRaises(RonError) as caught:
            await api.call("GET", "/x", Note)
        self.assertEqual((caught.exception.code, caught.exception.status), (ErrorCode.NO_CAPABILITY, 401))

    async def test_a_renewed_certificate_is_shown_from_then_on(self) -> None:
        port, own = self.listen(), self.folder.node("gamma", file="own")
        tls = self.tls(own=own)
        api = self.api(f"https://127.0.0.1:{port}", tls)
        with self.assertRaises(Unreachable):
            await api.call("GET", "/x", Note)
        self.folder.node("beta", file="own")
        tls.reload()
        self.assertEqual(await api.call("GET", "/x", Note), Note("hello"))
