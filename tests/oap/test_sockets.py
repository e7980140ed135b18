"""OAP/1 over real sockets: a Unix socket, TLS 1.3 with ALPN, peers that do not read."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from ron.crypto import x509
from ron.kernel import Metrics
from ron.kernel.limits_config import LimitsConfig
from ron.kernel.tls import ClientTls, ServerTls
from ron.kernel.tls_listen import wrap_tls
from ron.kernel.unixsock import UnixListener
from ron.oap import ALPN, OapClient, OapServer, Request, Response
from ron.oap.frames import Decoder, Frame, encode
from ron.proto.errors import RonError
from tests.oap.ends import END, PROTO, REQ, RESP, START, WHOLE, frame, hello

PATIENCE_S = 20.0


class OnSockets(TestCase):
    timeout = 60

    def setUp(self) -> None:
        # not `mktemp`: the path of a Unix socket has at most 107 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="ron-oap-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.metrics = Metrics()
        self.requests: list[Request] = []
        self.server = self.make_server()
        self.addCleanup(self._end)

    def make_server(self, **limits: int) -> OapServer:
        return OapServer(reactor, self.echo, metrics=self.metrics, limits=LimitsConfig(**limits))

    async def echo(self, request: Request) -> Response:
        self.requests.append(request)
        return Response(payload=request.payload)

    async def _end(self) -> None:
        await self.server.drain(PATIENCE_S)
        self.assertEqual((self.server.buffered, self.server.concurrency.busy, len(self.server.connections)), (0, 0, 0))

    async def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            if time.monotonic() > deadline:
                self.fail("it did not happen")
            await deferLater(reactor, 0.01)

    def listen_unix(self) -> Path:
        listener = UnixListener(reactor, self.folder / "oap.sock", self.server, backlog=10)
        listener.listen()
        self.addCleanup(listener.stop)
        return listener.path

    def listen_tcp(self, factory: Any = None) -> int:
        port = reactor.listenTCP(0, factory or self.server, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    async def client(self, endpoint: IStreamClientEndpoint) -> OapClient:
        client = await OapClient.connect(reactor, endpoint)
        self.addCleanup(client.close)
        return client


class Unix(OnSockets):
    async def test_calls_at_a_time_large_ones_among_them(self) -> None:
        client = await self.client(UNIXClientEndpoint(reactor, str(self.listen_unix())))
        payloads = [os.urandom(size) for size in (0, 10, 70_000, 3_000_000, 10, 2_000_000)]
        calls = [Deferred.fromCoroutine(client.call(PROTO, 1, payload)) for payload in payloads]
        answers = await gatherResults(calls)
        self.assertEqual([answer.payload for answer in answers], payloads)
        self.assertEqual({request.peer for request in self.requests}, {"local"})

    async def test_nobody_there(self) -> None:
        nowhere = UNIXClientEndpoint(reactor, str(self.folder / "nowhere"))
        error = await self.assertFailure(Deferred.fromCoroutine(OapClient.connect(reactor, nowhere)), RonError)
        self.assertEqual(error.status, 503)

    async def test_closed_by_the_server(self) -> None:
        client = await self.client(UNIXClientEndpoint(reactor, str(self.listen_unix())))
        self.assertEqual(await self.server.drain(PATIENCE_S), 0)
        await self.until(lambda: client.over)


def talk(port: int, *frames: Frame) -> list[Frame]:
    """Say hello and these; what comes until the server hangs up. Blocking: for a thread."""
    heard, decoder = [], Decoder()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as peer:
        peer.sendall(b"".join(map(encode, (hello(), *frames))))
        while said := peer.recv(65536):
            heard += decoder.feed(said)
    return heard


class Tcp(OnSockets):
    async def test_a_violation_is_told_before_the_end(self) -> None:
        port = self.listen_tcp()
        _hello, good, bad = await deferToThread(talk, port, frame(WHOLE, 8, b"fine"), frame(REQ | END, 9))
        self.assertEqual((good.payload, bad.code, bad.corr_id, bad.flags), (b"fine", 400, 9, RESP | END))

    async def test_who_does_not_read_is_not_read_from_and_then_cut_off(self) -> None:
        self.server = self.make_server(write_timeout_ms=1000)
        port = self.listen_tcp()
        half = bytes(500_000)
        numbers = range(8, 68)
        asked = b"".join(encode(frame(REQ | START, n, half)) + encode(frame(REQ | END, n, half)) for n in numbers)
        raw = memoryview(encode(hello()) + asked)
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.setblocking(False)
            with contextlib.suppress(ConnectionError):  # how it notices that it was cut off
                while raw:
                    try:
                        raw = raw[peer.send(raw) :]
                    except BlockingIOError:
                        await deferLater(reactor, 0.01)
            await self.until(lambda: not self.server.connections)
        self.assertGreater(len(raw), 30_000_000)
        rejected = [
            self.metrics.registry.get_sample_value("rejected_total", {"reason": reason})
            for reason in ("slow_reader", "protocol")
        ]
        self.assertEqual(rejected, [1, None])

    async def test_a_slow_reader_stalls_nobody_else(self) -> None:
        port = self.listen_tcp()
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.setblocking(False)
            slow.send(encode(hello()) + encode(frame(WHOLE, 8, bytes(500_000))))
            client = await self.client(TCP4ClientEndpoint(reactor, "127.0.0.1", port))
            answer = await client.call(PROTO, 1, b"x" * 300_000)
            self.assertEqual(len(answer.payload), 300_000)


class Tls(OnSockets):
    """Behind the kernel's TLS, mutually authenticated."""

    def setUp(self) -> None:
        super().setUp()
        authority = x509.init_ca("test CA")
        self.ca = self._put("ca.pem", x509.certificate_pem(authority.certificate))
        self.files = {}
        for name in ("alpha", "beta"):
            issued = x509.issue(authority, name, dns=["localhost"], addresses=["127.0.0.1"])
            certificate = self._put(f"{name}.pem", x509.certificate_pem(issued.certificate))
            self.files[name] = certificate, self._put(f"{name}.key", x509.key_pem(issued.key))
        tls = ServerTls(*self.files["alpha"], self.ca, alpn=ALPN)
        self.port = self.listen_tcp(wrap_tls(reactor, self.server, tls, metrics=self.metrics))

    def _put(self, name: str, content: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content)
        path.chmod(0o600)
        return path

    def endpoint(self, alpn: tuple[bytes, ...] = ALPN) -> IStreamClientEndpoint:
        tls = ClientTls(self.ca, *self.files["beta"], "ron://node/alpha", alpn=alpn)
        endpoint: IStreamClientEndpoint = wrapClientTLS(tls, TCP4ClientEndpoint(reactor, "127.0.0.1", self.port))
        return endpoint

    async def test_a_peer_that_speaks_something_else(self) -> None:
        connecting = Deferred.fromCoroutine(OapClient.connect(reactor, self.endpoint((b"http/1.1",))))
        await self.assertFailure(connecting, RonError)
        self.assertEqual(self.requests, [])

    async def test_calls(self) -> None:
        client = await self.client(self.endpoint())
        payload = os.urandom(1_000_000)
        answer = await client.call(PROTO, 1, payload)
        self.assertEqual(answer.payload, payload)
        self.assertEqual(self.requests[0].identity, "ron://node/beta")

    async def test_what_was_agreed_on(self) -> None:
        def look() -> tuple[str | None, str | None, list[Frame]]:
            context = ssl.create_default_context(cafile=str(self.ca))
            context.load_cert_chain(*self.files["beta"])
            context.set_alpn_protocols(["ron/1"])
            with (
                socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as raw,
                context.wrap_socket(raw, server_hostname="localhost") as tls,
            ):
                tls.sendall(encode(hello()))
                return tls.version(), tls.selected_alpn_protocol(), list(Decoder().feed(tls.recv(65536)))

        version, alpn, heard = await deferToThread(look)
        self.assertEqual((version, alpn), ("TLSv1.3", "ron/1"))
        self.assertEqual([answer.app_proto_id for answer in heard], [0])

    async def test_draining_ends_tls_connections_too(self) -> None:
        client = await self.client(self.endpoint())
        await client.call(PROTO, 1, b"x")
        self.assertEqual(await self.server.drain(PATIENCE_S), 0)
        await self.until(lambda: client.over)
