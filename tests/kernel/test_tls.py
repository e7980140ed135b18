"""TLS over real sockets on loopback, with Python's own `ssl` (another OpenSSL) on the other side wherever it can be."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509 as x509_library
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtensionOID
from hypothesis import example, given, settings
from hypothesis import strategies as st
from OpenSSL import SSL, crypto
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions, TLSVersion
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import Agent, readBody
from twisted.web.resource import Resource
from twisted.web.server import Site

from ron.crypto import x509
from ron.kernel import HealthState, Metrics
from ron.kernel import tls as room
from ron.kernel.tls import ClientTls, ServerTls, peer_identity
from ron.kernel.tls_listen import listen_tls, wrap_tls
from ron.kernel.tls_watch import CertificateWatch
from ron.proto.addresses import HostPort
from ron.proto.errors import RonError
from tests.kernel.certificates import CA, OTHER_CA, Folder, put

DAY = timedelta(days=1)
PATIENCE_S = 20.0


def serial(path: Path) -> int:
    return x509.load_certificate(path.read_bytes()).serial_number


class Echo(Protocol):
    """Says back what it hears, and remembers who spoke."""

    def connectionMade(self) -> None:
        self.factory.peers.append(peer_identity(self.transport))

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


class EchoFactory(Factory):
    protocol = Echo
    noisy = False

    def __init__(self) -> None:
        self.peers: list[str | None] = []


class Told(Protocol):
    """A Twisted client: sends `hello` at once; `end` fires when the connection is gone, with what came back or why
    nothing did."""

    def __init__(self) -> None:
        self.end: Deferred[bytes] = Deferred()
        self._heard = b""

    def connectionMade(self) -> None:
        self.transport.write(b"hello")

    def dataReceived(self, data: bytes) -> None:
        self._heard += data
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.end.callback(self._heard or reason)


def foreign(ca: Path | None, own: tuple[Path, Path] | None = None, **options: Any) -> ssl.SSLContext:
    """A client that is not ours, as strict as Python can be."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if ca is not None:
        context.load_verify_locations(ca)
    if own is not None:
        context.load_cert_chain(*own)
    for name, value in options.items():
        setattr(context, name, value)
    return context


def talk(port: int, context: ssl.SSLContext) -> dict[str, Any]:
    """Connect, say hello, hear it back. Blocking: for a thread. Raises what `ssl` raises."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"hello")
        heard = tls.recv(100)
        if not heard:
            raise ConnectionError("closed")
        shown = x509_library.load_der_x509_certificate(tls.getpeercert(True) or b"")
        return {
            "heard": heard,
            "version": tls.version(),
            "alpn": tls.selected_alpn_protocol(),
            "serial": shown.serial_number,
        }


class OnLoopback(TestCase):
    """A folder of certificates and a server on a port."""

    def setUp(self) -> None:
        self.folder = Folder(Path(self.mktemp()))
        self.metrics, self.app = Metrics(), EchoFactory()
        self.alpha = self.folder.node("alpha")
        self.beta = self.folder.node("beta")

    def serve(self, tls: ServerTls, **options: Any) -> int:
        port = listen_tls(reactor, HostPort("127.0.0.1", 0), self.app, tls, metrics=self.metrics, **options)
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    def serve_by_clock(self, clock: Clock, tls: ServerTls, **options: Any) -> int:
        wrapped = wrap_tls(clock, self.app, tls, metrics=self.metrics, **options)
        port = reactor.listenTCP(0, wrapped, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        return int(port.getHost().port)

    def mutual(self, **options: Any) -> int:
        return self.serve(ServerTls(*self.alpha, self.folder.ca), **options)

    def rejected(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("rejected_total", {"reason": reason}) or 0.0

    async def refused(self, port: int, context: ssl.SSLContext, reason: str = "tls") -> None:
        """The client is turned away, counted once, and the application never hears of it."""
        before = self.rejected(reason)
        try:
            told = await deferToThread(talk, port, context)
        except (ssl.SSLError, OSError):
            pass
        else:
            self.fail(f"let in: {told}")
        await self.until(lambda: self.rejected(reason) == before + 1)
        self.assertEqual(self.app.peers, [])

    async def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            if time.monotonic() > deadline:
                self.fail("it did not happen")
            await deferLater(reactor, 0.01)

    async def ask(self, port: int, tls: ClientTls) -> bytes:
        """What a Twisted client hears. Raises why the connection ended."""
        told = Told()
        factory = Factory.forProtocol(lambda: told)
        factory.noisy = False
        end = told.end
        await wrapClientTLS(tls, TCP4ClientEndpoint(reactor, "127.0.0.1", port)).connect(factory)
        return await end.addTimeout(PATIENCE_S, reactor)


class WhoIsLetIn(OnLoopback):
    """mTLS: the server's side."""

    async def test_no_certificate(self) -> None:
        await self.refused(self.mutual(), foreign(self.folder.ca))

    async def test_a_certificate_of_another_ca_of_the_same_name(self) -> None:
        stranger = self.folder.node("beta", OTHER_CA, file="stranger")
        await self.refused(self.mutual(), foreign(self.folder.ca, stranger))

    async def test_an_expired_certificate(self) -> None:
        late = self.folder.node("beta", file="late", valid_days=1, now=datetime.now(UTC) - 2 * DAY)
        await self.refused(self.mutual(), foreign(self.folder.ca, late))

    async def test_a_certificate_signed_by_a_node(self) -> None:
        node, signer = x509.issue(CA, "mallory"), x509.issue(CA, "alpha")
        forged = x509_library.CertificateBuilder(
            issuer_name=signer.certificate.subject,
            subject_name=node.certificate.subject,
            public_key=node.key.public_key(),
            serial_number=1,
            not_valid_before=node.certificate.not_valid_before_utc,
            not_valid_after=node.certificate.not_valid_after_utc,
            extensions=[e for e in node.certificate.extensions if e.oid != ExtensionOID.AUTHORITY_KEY_IDENTIFIER],
        ).sign(signer.key, SHA256())
        chain = x509.certificate_pem(forged) + x509.certificate_pem(signer.certificate)
        own = put(self.folder.path / "forged.pem", chain), put(self.folder.path / "forged.key", x509.key_pem(node.key))
        await self.refused(self.mutual(), foreign(self.folder.ca, own))

    async def test_the_right_ca_but_not_on_the_list(self) -> None:
        port = self.mutual(allowed={"ron://node/gamma"})
        await self.refused(port, foreign(self.folder.ca, self.beta), "identity")

    async def test_a_certificate_that_names_two_nodes_names_none(self) -> None:
        node = x509.issue(CA, "beta")
        two = [x509_library.UniformResourceIdentifier(f"ron://node/{name}") for name in ("beta", "gamma")]
        both = x509_library.CertificateBuilder(
            issuer_name=CA.certificate.subject,
            subject_name=node.certificate.subject,
            public_key=node.key.public_key(),
            serial_number=1,
            not_valid_before=node.certificate.not_valid_before_utc,
            not_valid_after=node.certificate.not_valid_after_utc,
            extensions=[e for e in node.certificate.extensions if e.oid != ExtensionOID.SUBJECT_ALTERNATIVE_NAME],
        ).add_extension(x509_library.SubjectAlternativeName(two), critical=False)
        pem = x509.certificate_pem(both.sign(CA.key, SHA256()))
        own = put(self.folder.path / "both.pem", pem), put(self.folder.path / "both.key", x509.key_pem(node.key))
        await self.refused(self.mutual(allowed={"ron://node/beta"}), foreign(self.folder.ca, own), "identity")

    async def test_a_list_without_client_certificates_lets_nobody_in(self) -> None:
        port = self.serve(ServerTls(*self.alpha), allowed={"ron://node/beta"})
        await self.refused(port, foreign(self.folder.ca, self.beta), "identity")

    async def test_tls_1_2(self) -> None:
        await self.refused(
            self.serve(ServerTls(*self.alpha)), foreign(self.folder.ca, maximum_version=ssl.TLSVersion.TLSv1_2)
        )

    async def test_a_client_that_wants_another_protocol(self) -> None:
        context = foreign(self.folder.ca)
        context.set_alpn_protocols(["h2", "ron/1"])
        await self.refused(self.serve(ServerTls(*self.alpha)), context)

    async def test_plain_http_is_closed_without_an_answer(self) -> None:
        def plain(port: int) -> bytes:
            with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as raw:
                raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return raw.recv(1000)

        answer = await deferToThread(plain, self.serve(ServerTls(*self.alpha)))
        self.assertNotIn(b"HTTP", answer)
        await self.until(lambda: self.rejected("tls") == 1)
        self.assertEqual((self.app.peers, self.flushLoggedErrors()), ([], []))

    async def test_the_right_client(self) -> None:
        context = foreign(self.folder.ca, self.beta)
        context.set_alpn_protocols(["h2", "http/1.1"])
        told = await deferToThread(talk, self.mutual(allowed={"ron://node/beta"}), context)
        self.assertEqual((told["heard"], told["version"], told["alpn"]), (b"hello", "TLSv1.3", "http/1.1"))
        self.assertEqual(self.app.peers, ["ron://node/beta"])
        self.assertEqual(self.rejected("tls") + self.rejected("identity"), 0)

    async def test_without_mutual_tls_nobody_has_an_identity(self) -> None:
        told = await deferToThread(talk, self.serve(ServerTls(*self.alpha)), foreign(self.folder.ca, self.beta))
        self.assertEqual((told["heard"], told["alpn"], self.app.peers), (b"hello", None, [None]))

    async def test_our_order_of_protocols_counts(self) -> None:
        context = foreign(self.folder.ca)
        context.set_alpn_protocols(["http/1.1", "ron/1"])
        port = self.serve(ServerTls(*self.alpha, alpn=(b"ron/1", b"http/1.1")))
        self.assertEqual((await deferToThread(talk, port, context))["alpn"], "ron/1")

    async def test_a_session_is_never_resumed(self) -> None:
        context, port = foreign(self.folder.ca, self.beta), self.mutual()

        def once(session: ssl.SSLSession | None = None) -> tuple[ssl.SSLSession | None, bool | None]:
            raw = socket.create_connection(("127.0.0.1", port))
            with context.wrap_socket(raw, server_hostname="localhost", session=session) as tls:
                tls.sendall(b"x")
                self.assertEqual(tls.recv(1), b"x")
                return tls.session, tls.session_reused

        def twice() -> bool | None:
            return once(once()[0])[1]

        self.assertFalse(await deferToThread(twice))
        self.assertEqual(self.app.peers, ["ron://node/beta"] * 2)


class TheDeadline(OnLoopback):
    """Connections that do not get through the handshake. The clock is ours, the sockets are real."""

    async def cut_off_after(self, opening: bytes, trickle: bytes = b"") -> None:
        clock = Clock()
        port = self.serve_by_clock(clock, ServerTls(*self.alpha))
        raw = socket.create_connection(("127.0.0.1", port))
        self.addCleanup(raw.close)
        raw.sendall(opening)
        await self.until(lambda: bool(clock.getDelayedCalls()))
        for octet in trickle:
            clock.advance(0.1)
            raw.sendall(bytes([octet]))
            await deferLater(reactor, 0.01)
        clock.advance(1.9 - clock.seconds())
        raw.setblocking(False)
        with self.assertRaises(BlockingIOError):
            raw.recv(1)
        self.assertEqual(self.rejected("handshake"), 0)
        clock.advance(0.2)
        self.assertEqual(self.rejected("handshake"), 1)
        await self.until(lambda: is_closed(raw))
        self.assertEqual((self.app.peers, clock.getDelayedCalls(), self.rejected("tls")), ([], [], 0))

    async def test_silence(self) -> None:
        await self.cut_off_after(b"")

    async def test_half_a_client_hello(self) -> None:
        await self.cut_off_after(client_hello()[:100])

    async def test_a_byte_now_and_then(self) -> None:
        hello = client_hello()
        await self.cut_off_after(hello[:50], trickle=hello[50:65])

    async def test_a_whole_client_hello_and_then_nothing(self) -> None:
        clock = Clock()
        port = self.serve_by_clock(clock, ServerTls(*self.alpha))
        raw = socket.create_connection(("127.0.0.1", port))
        self.addCleanup(raw.close)
        raw.sendall(client_hello())
        await self.until(lambda: has_data(raw))
        clock.advance(2.1)
        self.assertEqual(self.rejected("handshake"), 1)

    async def test_a_finished_handshake_is_left_alone(self) -> None:
        clock = Clock()
        port = self.serve_by_clock(clock, ServerTls(*self.alpha))
        context = foreign(self.folder.ca)

        def connect() -> ssl.SSLSocket:
            return context.wrap_socket(socket.create_connection(("127.0.0.1", port)), server_hostname="localhost")

        tls = await deferToThread(connect)
        self.addCleanup(tls.close)
        await self.until(lambda: len(self.app.peers) == 1)
        self.assertEqual(clock.getDelayedCalls(), [])
        clock.advance(60)
        self.assertEqual(self.rejected("handshake"), 0)
        tls.setblocking(False)
        with self.assertRaises(ssl.SSLWantReadError):
            tls.recv(1)

    async def test_no_more_than_so_many_at_a_time(self) -> None:
        clock = Clock()
        port = self.serve_by_clock(clock, ServerTls(*self.alpha), max_handshakes=2)
        waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
        for raw in waiting:
            self.addCleanup(raw.close)
        await self.until(lambda: len(clock.getDelayedCalls()) == 2)
        await self.refused(port, foreign(self.folder.ca), "handshakes")
        clock.advance(2.1)
        self.assertEqual(self.rejected("handshake"), 2)
        await self.until(lambda: all(is_closed(raw) for raw in waiting))
        raw = socket.create_connection(("127.0.0.1", port))
        tls = await deferToThread(foreign(self.folder.ca).wrap_socket, raw, server_hostname="localhost")
        self.addCleanup(tls.close)
        await self.until(lambda: len(self.app.peers) == 1)

    async def test_who_hangs_up_early_leaves_no_timer(self) -> None:
        clock = Clock()
        port = self.serve_by_clock(clock, ServerTls(*self.alpha))
        raw = socket.create_connection(("127.0.0.1", port))
        await self.until(lambda: bool(clock.getDelayedCalls()))
        raw.close()
        await self.until(lambda: not clock.getDelayedCalls())
        self.assertEqual(self.rejected("handshake"), 0)


@functools.cache
def client_hello() -> bytes:
    outgoing = ssl.MemoryBIO()
    session = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


def has_data(raw: socket.socket) -> bool:
    raw.setblocking(False)
    try:
        return bool(raw.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def is_closed(raw: socket.socket) -> bool:
    raw.setblocking(False)
    try:
        return raw.recv(1000) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


class WhomWeCall(OnLoopback):
    """The client's side, against our server."""

    def client(self, expected: str, ca: Path | None = None) -> ClientTls:
        return ClientTls(ca or self.folder.ca, *self.beta, expected)

    async def turned_down(self, port: int, tls: ClientTls) -> None:
        with self.assertRaises(SSL.Error):
            await self.ask(port, tls)
        await self.until(lambda: self.rejected("tls") == 1)
        # neither our certificate nor a byte of what we wanted to say went out
        self.assertEqual(self.app.peers, [])

    async def test_another_node(self) -> None:
        await self.turned_down(self.mutual(), self.client("ron://node/gamma"))

    async def test_a_node_whose_name_only_begins_like_it(self) -> None:
        await self.turned_down(self.mutual(), self.client("ron://node/alph"))

    async def test_another_dns_name(self) -> None:
        await self.turned_down(self.mutual(), self.client("other.internal"))

    async def test_another_address(self) -> None:
        await self.turned_down(self.mutual(), self.client("127.0.0.2"))

    async def test_another_ca(self) -> None:
        await self.turned_down(self.mutual(), self.client("ron://node/alpha", self.folder.other_ca))

    async def test_an_expired_server(self) -> None:
        past = datetime.now(UTC) - 2 * DAY
        late = self.folder.node("alpha", file="late", valid_days=1, now=past)
        port = self.serve(ServerTls(*late, self.folder.ca, now=past.timestamp))
        await self.turned_down(port, self.client("ron://node/alpha"))

    async def test_a_server_that_speaks_tls_1_2_only(self) -> None:
        key = load_pem_private_key(self.alpha[1].read_bytes(), None)
        options = CertificateOptions(
            privateKey=crypto.PKey.from_cryptography_key(key),
            certificate=crypto.X509.from_cryptography(x509.load_certificate(self.alpha[0].read_bytes())),
            insecurelyLowerMinimumTo=TLSVersion.TLSv1_2,
            lowerMaximumSecurityTo=TLSVersion.TLSv1_2,
        )
        port = reactor.listenSSL(0, self.app, options, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        with self.assertRaises(SSL.Error):
            await self.ask(port.getHost().port, self.client("ron://node/alpha"))

    async def test_the_right_one_under_each_of_its_names(self) -> None:
        port = self.mutual()
        for expected in ("ron://node/alpha", "localhost", "127.0.0.1"):
            self.assertEqual(await self.ask(port, self.client(expected)), b"hello")
        self.assertEqual(self.app.peers, ["ron://node/beta"] * 3)

    async def test_without_a_certificate_of_ours(self) -> None:
        port = self.serve(ServerTls(*self.alpha))
        tls = ClientTls(self.folder.ca, None, None, "ron://node/alpha")
        self.assertEqual(await self.ask(port, tls), b"hello")
        self.assertIsNone(tls.not_after)

    async def test_as_an_agents_policy(self) -> None:
        class Secure(Resource):
            isLeaf = True

            def render_GET(self, request: Any) -> bytes:
                return f"{request.isSecure()} {peer_identity(request.channel.transport)}".encode()

        site = Site(Secure())
        site.noisy = False
        tls = ServerTls(*self.alpha, self.folder.ca)
        port = listen_tls(reactor, HostPort("127.0.0.1", 0), site, tls, metrics=self.metrics)
        self.addCleanup(port.stopListening)
        agent = Agent(reactor, self.client("ron://node/alpha"))
        answer = await agent.request(b"GET", b"https://127.0.0.1:%d/" % port.getHost().port)
        self.assertEqual(await readBody(answer), b"True ron://node/beta")


class NewFilesWhileServing(OnLoopback):
    """Renewal without a restart."""

    def setUp(self) -> None:
        super().setUp()
        self.clock, self.health = Clock(), HealthState()
        self.tls = ServerTls(*self.alpha, self.folder.ca)
        self.watch = CertificateWatch(self.clock, health=self.health, metrics=self.metrics)
        self.watch.add("gateway", self.tls)
        self.watch.startService()
        self.addCleanup(self.watch.stopService)
        self.port = self.serve(self.tls)

    async def seen(self) -> int:
        told = await deferToThread(talk, self.port, foreign(self.folder.ca, self.beta))
        return int(told["serial"])

    async def test_new_connections_see_the_new_certificate_and_old_ones_go_on(self) -> None:
        context, old = foreign(self.folder.ca, self.beta), serial(self.alpha[0])

        def connect() -> ssl.SSLSocket:
            return context.wrap_socket(socket.create_connection(("127.0.0.1", self.port)), server_hostname="localhost")

        def hear(tls: ssl.SSLSocket) -> bytes:
            tls.sendall(b"still here")
            return tls.recv(100)

        connection = await deferToThread(connect)
        self.addCleanup(connection.close)
        self.folder.node("alpha")
        self.assertEqual(await self.seen(), old)
        self.clock.advance(1)
        self.assertEqual(await self.seen(), serial(self.alpha[0]))
        self.assertNotEqual(serial(self.alpha[0]), old)
        self.assertEqual(await deferToThread(hear, connection), b"still here")
        self.assertEqual(self.health.snapshot().degraded, ())

    async def test_bad_files_leave_the_old_one_and_say_so(self) -> None:
        old, (certificate, key) = serial(self.alpha[0]), self.alpha
        good = certificate.read_bytes()
        expired = self.folder.node("alpha", file="late", valid_days=1, now=datetime.now(UTC) - 2 * DAY)[0].read_bytes()
        another = self.folder.node("alpha", file="another")[0].read_bytes()
        for bad in (b"", b"garbage", good[:-100], key.read_bytes(), expired, another):
            put(certificate, bad)
            self.clock.advance(1)
            self.assertEqual(await self.seen(), old)
            snapshot = self.health.snapshot()
            self.assertEqual((snapshot.ready, snapshot.degraded), (True, ("tls.gateway",)))
            self.assertIn(certificate.name, snapshot.reasons["tls.gateway"])
            self.assertIn("fix: ", snapshot.reasons["tls.gateway"])
        put(certificate, good)
        self.clock.advance(1)
        self.assertEqual(self.health.snapshot().degraded, ())

    async def test_gone_or_a_directory(self) -> None:
        old, certificate = serial(self.alpha[0]), self.alpha[0]
        certificate.rename(certificate.with_suffix(".away"))
        self.clock.advance(1)
        self.assertEqual((await self.seen(), self.health.snapshot().degraded), (old, ("tls.gateway",)))
        certificate.mkdir()
        self.clock.advance(1)
        self.assertEqual((await self.seen(), self.health.snapshot().degraded), (old, ("tls.gateway",)))

    async def test_the_two_files_may_come_one_after_the_other(self) -> None:
        old = serial(self.alpha[0])
        certificate, key = self.folder.node("alpha", file="next")
        put(self.alpha[1], key.read_bytes())
        self.clock.advance(1)
        self.assertEqual(await self.seen(), old)
        put(self.alpha[0], certificate.read_bytes())
        self.clock.advance(1)
        self.assertEqual((await self.seen(), self.health.snapshot().degraded), (serial(certificate), ()))

    async def test_a_ca_that_is_dropped_lets_nobody_in_any_more(self) -> None:
        await self.seen()
        self.app.peers.clear()
        put(self.folder.ca, self.folder.other_ca.read_bytes())
        self.clock.advance(1)
        trusting = foreign(None, self.beta, check_hostname=False, verify_mode=ssl.CERT_NONE)
        await self.refused(self.port, trusting)

    async def test_a_client_follows_its_files_too(self) -> None:
        client = ClientTls(self.folder.ca, *self.beta, "ron://node/alpha")
        self.watch.add("to-alpha", client)
        beta = self.folder.node("beta-two", file="beta")
        self.clock.advance(1)
        self.assertEqual(await self.ask(self.port, client), b"hello")
        self.assertEqual((beta, self.app.peers), (self.beta, ["ron://node/beta-two"]))


class RunningOut(SynchronousTestCase):
    """What health and metrics say of time."""

    def setUp(self) -> None:
        self.folder = Folder(Path(self.mktemp()))
        self.now, self.clock = time.time(), Clock()
        self.health, self.metrics = HealthState(), Metrics()
        self.files = self.folder.node("alpha", valid_days=90)
        tls = ServerTls(*self.files, now=lambda: self.now)
        self.watch = CertificateWatch(self.clock, health=self.health, metrics=self.metrics, now=lambda: self.now)
        self.watch.add("edge", tls)
        self.watch.startService()

    def after(self, days: float) -> tuple[bool, str, float]:
        self.now += days * 86400
        self.clock.advance(1)
        snapshot = self.health.snapshot()
        left = self.metrics.registry.get_sample_value("tls_certificate_expiry_seconds", {"name": "edge"})
        return snapshot.ready, snapshot.reasons.get("tls.edge", ""), round((left or 0) / 86400)

    def test_it_is_told_in_time(self) -> None:
        self.assertEqual(self.after(0), (True, "", 90))
        self.assertEqual(self.after(75.9), (True, "", 14))
        self.assertEqual(self.after(0.2), (True, "the certificate expires in 13 days; fix: ronctl ca renew", 14))
        ready, reason, left = self.after(15)
        self.assertEqual((ready, left), (False, -1))
        self.assertIn("expired", reason)

    def test_renewed_all_is_well(self) -> None:
        self.after(100)
        self.folder.node("alpha", now=datetime.fromtimestamp(self.now, UTC))
        self.assertEqual(self.after(0), (True, "", 90))

    def test_health_hears_only_news(self) -> None:
        heard: list[object] = []
        self.health.observe(heard.append)
        for _ in range(10):
            self.after(0)
        self.assertEqual(heard, [])


class BadFiles(SynchronousTestCase):
    """What is refused at the start."""

    def setUp(self) -> None:
        self.folder = Folder(Path(self.mktemp()))
        self.certificate, self.key = self.folder.node("alpha")

    def refused(self, *words: str) -> None:
        error = self.assertRaises(RonError, ServerTls, self.certificate, self.key, self.folder.ca)
        for word in (*words, "fix: "):
            self.assertIn(word, error.one_line())

    def test_missing(self) -> None:
        self.certificate.unlink()
        self.refused("alpha.pem", "No such file")

    def test_a_fifo_does_not_make_us_wait(self) -> None:
        self.certificate.unlink()
        os.mkfifo(self.certificate)
        self.refused("alpha.pem")

    def test_a_disk_image(self) -> None:
        put(self.certificate, bytes(2 * 1024 * 1024))
        self.refused("alpha.pem")

    def test_a_key_that_others_may_read(self) -> None:
        self.key.chmod(0o644)
        self.refused("alpha.key", "chmod 600")

    def test_another_key(self) -> None:
        put(self.key, x509.key_pem(x509.issue(CA, "alpha").key))
        self.refused("alpha.key is not the key of")

    def test_an_encrypted_key(self) -> None:
        put(self.key, x509.key_pem(x509.issue(CA, "alpha").key, b"secret"))
        self.refused("alpha.key", "passphrase")

    def test_not_valid_yet_and_not_any_more(self) -> None:
        for shift in (-100, 100):
            self.folder.node("alpha", now=datetime.now(UTC) + shift * DAY)
            self.refused("valid from")

    def test_an_empty_list_of_cas(self) -> None:
        put(self.folder.ca, b"")
        self.refused("ca.pem")

    def test_half_a_client(self) -> None:
        self.assertRaises(RonError, ClientTls, self.folder.ca, self.certificate, None, "ron://node/a")

    def test_a_name_nobody_can_have(self) -> None:
        for name in ("", "älpha.internal"):
            self.assertRaises(RonError, ClientTls, self.folder.ca, None, None, name)

    @settings(max_examples=100, deadline=None)
    @given(st.binary(max_size=400), st.sampled_from(["certificate", "key", "ca"]))
    def test_any_garbage(self, content: bytes, where: str) -> None:
        target = {"certificate": self.certificate, "key": self.key, "ca": self.folder.ca}[where]
        good = target.read_bytes()
        try:
            put(target, content)
            self.refused(target.name)
        finally:
            put(target, good)


class BadBytes(SynchronousTestCase):
    """Whatever comes in before the handshake is done: no exception, no application."""

    def setUp(self) -> None:
        self.app, self.clock = EchoFactory(), Clock()
        folder = Folder(Path(self.mktemp()))
        self.factory = wrap_tls(self.clock, self.app, ServerTls(*folder.node("alpha")), metrics=Metrics())

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.binary(min_size=1, max_size=200), max_size=5), st.integers(0, 600))
    @example([b"\x16\x03\x01\xff\xff"], 0)
    @example([b"\x16\x03\x01\x40\x00" + b"\x01" * 16384], 0)
    @example([b"\x80\x2e\x01\x00\x02"], 0)
    def test_garbage(self, pieces: list[bytes], prefix: int) -> None:
        protocol = self.factory.buildProtocol(None)
        assert protocol is not None
        transport = StringTransport()
        transport.abortConnection = transport.loseConnection
        protocol.makeConnection(transport)
        for piece in [client_hello()[:prefix], *pieces]:
            if piece:
                protocol.dataReceived(piece)
        self.clock.advance(3)
        self.assertTrue(transport.disconnecting)
        protocol.connectionLost(Failure(ConnectionError()))
        self.assertEqual((self.app.peers, self.clock.getDelayedCalls()), ([], []))


class Identity(SynchronousTestCase):
    """Without TLS there is nobody."""

    def test_the_same_identities_on_both_floors(self) -> None:
        self.assertEqual(room.IDENTITY_PREFIX, x509.IDENTITY_PREFIX)

    def test_other_transports(self) -> None:
        for transport in (StringTransport(), object(), None):
            self.assertIsNone(peer_identity(transport))
