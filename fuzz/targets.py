"""What is fuzzed: everything that takes bytes from somebody else before it knows who that is.

In: a target's name. Out: a function of bytes that returns when all is well: a refusal (`RonError`) is, and so is an
answer. Whatever else it raises is a finding. Each target also checks what must never be accepted.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import socket
import tempfile
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path

from fuzz import kms
from fuzz.finding import Finding

Target = Callable[[bytes], None]
_NOW_S = 1_800_000_000
_RESOURCE = "POST /v1/send"
_POW_KEY = b"fuzz" * 8


def config() -> Target:
    """The config loader and the rules across keys. First byte even: TOML, odd: YAML; then the file."""
    from ron.kernel.config import convert, parse
    from ron.proto.errors import RonError
    from ron.services.configs import SCHEMAS, daemon_of

    folder = Path(tempfile.mkdtemp(prefix="ron-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    files = (folder / "node.toml", folder / "node.yaml")

    def one(raw: bytes) -> None:
        path = files[raw[0] & 1 if raw else 0]
        path.write_bytes(raw[1:])
        with contextlib.suppress(RonError):
            tables = parse(path)
            schema, check = SCHEMAS[daemon_of(tables)]
            check(convert(tables, schema))

    return one


def macaroon() -> Target:
    """The authority. First byte 0: a token's text, 1: its binary form, else: bytes written over a good token.

    Of the last, the second byte says where. Whatever differs from the good token is a forgery.
    """
    from ron.auth import Authority, Caveat, RootKeys, Wanted
    from ron.proto.errors import RonError

    authority = Authority(RootKeys.generate(), audience="fuzz", now=lambda: float(_NOW_S))
    good = authority.mint([Caveat("scope", "mailbox:send"), Caveat("exp", "2099-01-01T00:00:00Z")])
    binary = urlsafe_b64decode(good + "=" * (-len(good) % 4))
    wanted = Wanted("mailbox:send", "POST", "/v1/send")
    authority.admit(good, wanted)

    def token_of(raw: bytes) -> str:
        if raw[:1] == b"\0":
            return raw[1:].decode("latin-1")
        if raw[:1] == b"\1":
            return urlsafe_b64encode(raw[1:]).rstrip(b"=").decode()
        at = raw[1] % len(binary) if len(raw) > 1 else 0
        patched = binary[:at] + raw[2:] + binary[at + len(raw[2:]) :]
        return urlsafe_b64encode(patched).rstrip(b"=").decode()

    def one(raw: bytes) -> None:
        token = token_of(raw)
        try:
            authority.admit(token, wanted)
        except RonError:
            return
        if token != good:
            raise Finding("a token that was never minted is admitted")

    return one


def pow_solution() -> Target:
    """The gate. The first two bytes turn the clock by up to ± 9 h; then the text of `PoW-Solution`."""
    from ron.auth.pow import PowGate, PowSettings
    from ron.kernel import Metrics
    from ron.proto.errors import RonError

    now_s = float(_NOW_S)
    settings = PowSettings(auto_tune=False, difficulty=4)
    gate = PowGate(_POW_KEY, settings, lambda: now_s, Metrics(), hash_rate_per_s=1e6, entropy=lambda size: bytes(size))
    known = gate.challenge(_RESOURCE)

    def one(raw: bytes) -> None:
        nonlocal now_s
        now_s = float(_NOW_S + int.from_bytes(raw[:2], "big", signed=True))
        solution = raw[2:].decode("latin-1")
        try:
            gate.redeem(solution, _RESOURCE)
        except RonError:
            return
        if solution.rpartition(".")[0] != known:
            raise Finding("a challenge that was never given out is taken")

    return one


def bus_frames() -> Target:
    """The hub of the bus. First byte 0: one frame; 1: a stream before the greeting; else: after it."""
    from twisted.internet.error import ConnectionLost
    from twisted.internet.task import Clock
    from twisted.internet.testing import StringTransport
    from twisted.python.failure import Failure

    from ron.kernel import Metrics
    from ron.kernel.bus import Bus
    from ron.kernel.ipc import VERSION, BusHub, Hello, decode_frame, encode_frame
    from ron.proto.errors import RonError

    metrics = Metrics()
    ours, theirs = socket.socketpair()
    hello = encode_frame(Hello(VERSION, "fuzz", "word"))
    greeting = len(hello).to_bytes(4, "big") + hello

    def stream(raw: bytes, greeted: bool) -> None:
        clock = Clock()
        hub = BusHub(clock, Bus(clock, metrics), Path("unused"), admit=lambda hello: None)
        peers = [hub.buildProtocol(object()) for _ in range(2)]
        for peer in peers:
            transport = StringTransport()
            transport.socket = ours
            peer.makeConnection(transport)
        peers[1].dataReceived(greeting)
        middle = len(raw) // 2
        for piece in ((greeting if greeted else b"") + raw[:middle], raw[middle:]):
            if not peers[0].transport.disconnected:
                peers[0].dataReceived(piece)
            clock.advance(0.1)
        for peer in peers:
            peer.connectionLost(Failure(ConnectionLost()))
        clock.advance(0.1)

    def one(raw: bytes) -> None:
        if raw[:1] in (b"", b"\0"):
            with contextlib.suppress(RonError):
                encode_frame(decode_frame(raw[1:]))
        else:
            stream(raw[1:], greeted=raw[0] != 1)

    atexit.register(theirs.close)
    return one


def oap_frames() -> Target:
    """OAP/1. First byte 0: frames alone, cut where the second says; 1: a server before HELLO; 2: after it; 3: a client
    that waits for an answer; else: one payload of COMP."""
    from twisted.internet.defer import Deferred
    from twisted.internet.error import ConnectionLost
    from twisted.internet.task import Clock
    from twisted.internet.testing import StringTransport
    from twisted.python.failure import Failure

    from ron.kernel import Metrics
    from ron.kernel.limits_config import LimitsConfig
    from ron.oap import HelloAnswer, OapClient, OapServer, Request, Response
    from ron.oap import hello as control
    from ron.oap.compression import MAX_TIMES, inflate
    from ron.oap.connection import Connection
    from ron.oap.frames import Decoder, Flags, Frame, encode
    from ron.proto.errors import RonError

    metrics, limits = Metrics(), LimitsConfig(body_bytes=4096)
    whole, last = Flags.REQ | Flags.START | Flags.END, Flags.RESP | Flags.END
    greeting = encode(Frame(flags=whole, app_proto_id=0, corr_id=1))
    answer = control.encode(HelloAnswer(server_version="fuzz"))
    greeted = encode(Frame(flags=last, app_proto_id=0, corr_id=1, payload=answer))

    async def echo(request: Request) -> Response:
        return Response(payload=request.payload, compress=True)

    def frames(raw: bytes) -> None:
        cut, found = (raw[0] if raw else 0), []
        decoder = Decoder(1024)
        with contextlib.suppress(RonError):
            for piece in (raw[1 : cut + 1], raw[cut + 1 :]):
                for frame in decoder.feed(piece):
                    found.append(encode(frame, 1024))
        again = [encode(frame, 1024) for frame in Decoder(1024).feed(b"".join(found))]
        if again != found or decoder.waiting_bytes > 4 + 1024:
            raise Finding("what was taken does not come back")

    def talk(connection: Connection, clock: Clock, first: bytes, raw: bytes) -> None:
        middle = len(raw) // 2
        for piece in (first + raw[:middle], raw[middle:]):
            connection.dataReceived(piece)
            clock.advance(0.1)
        connection.connectionLost(Failure(ConnectionLost()))
        clock.advance(60)

    def server(raw: bytes, first: bytes) -> None:
        clock = Clock()
        factory = OapServer(clock, echo, metrics=metrics, limits=limits)
        connection = factory.buildProtocol(None)
        connection.makeConnection(StringTransport())
        talk(connection, clock, first, raw)
        if factory.buffered or factory.concurrency.busy or factory.connections:
            raise Finding("something is left of a connection that is gone")

    def client(raw: bytes) -> None:
        clock = Clock()
        connection = OapClient(clock, limits=limits)
        connection.makeConnection(StringTransport())
        waiting = [Deferred.fromCoroutine(connection.ping(2.0))]
        connection.dataReceived(greeted)
        corr_id = "01890a5d-ac96-774b-0000-000000000007"
        waiting.append(Deferred.fromCoroutine(connection.call(0x0201, 1, b"?", corr_id=corr_id)))
        talk(connection, clock, b"", raw)
        for each in waiting:
            each.addErrback(lambda failure: None if failure.check(RonError) else failure)
            if not each.called:
                raise Finding("a call that never ends")

    def one(raw: bytes) -> None:
        kind, rest = raw[:1], raw[1:]
        if kind == b"\0":
            frames(rest)
        elif kind in (b"\1", b"\2"):
            server(rest, greeting if kind == b"\2" else b"")
        elif kind == b"\3":
            client(rest)
        else:
            with contextlib.suppress(RonError):
                if len(inflate(rest, max_frame=4096)) > MAX_TIMES * 4096:
                    raise Finding("more than may be")

    return one


def mesh() -> Target:
    """RustBalance's mesh. First byte 0: bytes written over a good message, the second says where; 1: a stream of
    frames; 2: a dialler's opening and reply; 3: a listener's greeting; else: entries of the book.
    """
    from nacl.signing import SigningKey

    from ron.services.balance.mesh.book import LocalBook, number_of
    from ron.services.balance.mesh.codec import Unfit, decode, encode
    from ron.services.balance.mesh.entries import write
    from ron.services.balance.mesh.handshake import Claim, Dialling, Listening, Own
    from ron.services.balance.mesh.sync import Written
    from ron.services.balance.mesh.tokens import Token
    from ron.services.balance.mesh.wire import Envelope, Frames, Refused, framed, seal, unseal
    from ron.services.balance.ports import Member

    key, cluster = SigningKey(b"fuzz" * 8), b"fuzz" * 4
    public = bytes(key.verify_key)
    envelope = Envelope(cluster, "a", "b", 1, b"boot8888", 1, 1, "beat", 0, b"body")
    good = seal(envelope, key)
    claim = Claim("a", public, 1, b"boot8888", 0, 1, b"", ("127.0.0.1:9470",))
    own = Own(cluster, claim, key, Token(version=1, secret=b"fuzz" * 8), b"binding")
    member = Member(name="a", number=number_of("a", public), key=public)
    first = write("member/a", encode(member), 1, "a", key, cluster)
    # the corpus has it altered: whoever mends it has not forged it
    second = write("promote", b"\x80", 2, "a", key, cluster)

    def message(raw: bytes) -> None:
        at = raw[0] % len(good) if raw else 0
        patched = good[:at] + raw[1:] + good[at + len(raw[1:]) :]
        with contextlib.suppress(Refused):
            unseal(patched, cluster=cluster, sender="a", to="b", key=public)
            if patched != good:
                raise Finding("a message that nobody signed is taken")

    def stream(raw: bytes) -> None:
        frames, found = Frames(1024), []
        middle = len(raw) // 2
        with contextlib.suppress(Refused):
            for piece in (raw[:middle], raw[middle:]):
                found += [framed(frame) for frame in frames.feed(piece)]
        if not raw.startswith(b"".join(found)) or frames.waiting_bytes > 4 + 1024:
            raise Finding("what was taken does not come back")

    def hello(raw: bytes, *, greeting: bool) -> None:
        with contextlib.suppress(Refused):
            if greeting:
                Dialling(own).greeted(raw)
                raise Finding("a greeting that answers nothing is taken")
            listening = Listening(own)
            listening.opened(raw)
            listening.replied(raw)
            raise Finding("a reply that answers nothing is taken")

    def book(raw: bytes) -> None:
        copy = LocalBook(cluster, "a", key, (first,))
        with contextlib.suppress(Unfit):
            copy.take(decode(raw, Written).entries)
        if not {first, second}.issuperset(copy.entries):
            raise Finding("an entry that nobody signed is taken")

    def one(raw: bytes) -> None:
        kind, rest = raw[:1], raw[1:]
        if kind == b"\0":
            message(rest)
        elif kind == b"\1":
            stream(rest)
        elif kind in (b"\2", b"\3"):
            hello(rest, greeting=kind == b"\3")
        else:
            book(rest)

    return one


def alarm() -> Target:
    """Fails at the first input that begins with `!`: shows that a finding is noticed. Not run unless asked for."""

    def one(raw: bytes) -> None:
        if raw[:1] == b"!":
            raise Finding("the alarm works")

    return one


# In this order by default, without the alarm.
TARGETS: dict[str, Callable[[], Target]] = {
    "config": config,
    "macaroon": macaroon,
    "pow": pow_solution,
    "bus": bus_frames,
    "oap": oap_frames,
    "mesh": mesh,
    "json_api": kms.json_api,
    "codec_bundle": kms.codec_bundle,
    "grpc_api": kms.grpc_api,
    "pkcs11_adapter": kms.pkcs11_adapter,
    "alarm": alarm,
}
