"""One OAP/1 connection, either end: frames in, frames out, at the pace of whoever reads them.

In: bytes of the transport, payloads to be sent. Out: frames for the ends (`ron.oap.server`, `ron.oap.client`), long
payloads in chunks that wait for the reader. A peer that breaks the protocol is told why and hung up on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ron.kernel.limits_config import LimitsConfig
from ron.oap import hello
from ron.oap.compression import deflate, inflate
from ron.oap.frames import CHUNK_BYTES, MAX_FRAME_BYTES, Decoder, Flags, Frame, Violation, encode
from ron.oap.hello import CONTROL
from ron.oap.streams import Side, Streams
from ron.proto.clock import now_rfc3339
from ron.proto.errors import RonError, too_large, unavailable

_END = Flags.RESP | Flags.END
_log = Logger(namespace="ron.oap")


@implementer(IPushProducer)
class Connection(Protocol):
    """What both ends have in common. over: nothing that still comes in counts. why: the reason it ended."""

    def __init__(self, reactor: Any, side: Side, limits: LimitsConfig, max_inflight: int) -> None:
        self.reactor = reactor
        self.limits = limits
        self.streams = Streams(side, max_inflight)
        self.decoder = Decoder()
        self.peer_max_frame = MAX_FRAME_BYTES
        self.chunk_bytes = CHUNK_BYTES
        self.over = False
        self.paused = False
        self.why: RonError | None = None
        self.lost: Deferred[None] = Deferred()
        self._room: list[Deferred[None]] = []

    # -- the transport ----------------------------------------------------------------------------------------------

    def connectionMade(self) -> None:
        """Flow control from the first byte on."""
        cast(Any, self.transport).registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """Take the frames that are whole; the first that must not be there ends the connection."""
        received = () if self.over else self.decoder.feed(data)
        try:
            for frame in received:
                self.frame_received(frame)
                if self.over:
                    return
        except Violation as violation:
            self.violated(violation)

    def pauseProducing(self) -> None:
        """The peer does not read as fast as we write."""
        self.paused = True

    def resumeProducing(self) -> None:
        """It has read what there was."""
        self.paused = False
        waiting, self._room = self._room, []
        for waiter in waiting:
            waiter.callback(None)

    def stopProducing(self) -> None:
        """The connection is over; `connectionLost` tells who waits."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Whoever waits for this peer is told."""
        self.over = True
        waiting, self._room = self._room, []
        for waiter in waiting:
            waiter.errback(self.gone())
        self.lost.callback(None)

    def gone(self) -> RonError:
        """What whoever waits for this connection is told once it is over: why, where the peer said so."""
        return self.why or unavailable("the connection is gone")

    def abort(self) -> None:
        """End it at once, whatever is still to be sent."""
        self.over = True
        cast(Any, self.transport).abortConnection()

    def hang_up(self) -> None:
        """End it once what was written is sent."""
        self.over = True
        transport = cast(Any, self.transport)
        # or it would wait for a producer that has nothing more to say
        transport.unregisterProducer()
        transport.loseConnection()

    # -- for the ends -----------------------------------------------------------------------------------------------

    def frame_received(self, frame: Frame) -> None:
        """One frame. Raises `Violation`."""
        raise NotImplementedError

    def violated(self, violation: Violation) -> None:
        """The peer broke the protocol."""
        _log.debug("OAP: hung up on a peer: {reason}", event="oap_violation", reason=violation.message)
        self.abort()

    # -- sending ----------------------------------------------------------------------------------------------------

    def write(self, frame: Frame) -> None:
        """Send `frame`, whatever the conversation's state. Raises `RonError` when it cannot be encoded."""
        cast(Any, self.transport).write(encode(frame, self.peer_max_frame))

    def control(self, code: int, corr_id: int, payload: bytes = b"") -> None:
        """An EVENT about the connection or one of its conversations."""
        self.write(Frame(flags=Flags.EVENT, app_proto_id=CONTROL, code=code, corr_id=corr_id, payload=payload))

    def refuse(self, error: RonError, corr_id: int, proto: int, request_id: str = "") -> None:
        """Answer `error`, past the machine: for what is refused before it is a conversation, or after it was one."""
        payload = hello.refusal(error, ts=now_rfc3339(), request_id=request_id)
        self.write(Frame(flags=_END, app_proto_id=proto, code=error.status, corr_id=corr_id, payload=payload))

    async def room(self) -> None:
        """Return when the peer reads. Raises `RonError` (StoreUnavailable) when it is gone."""
        if self.over:
            raise self.gone()
        if self.paused:
            waiter: Deferred[None] = Deferred(self._forget_waiter)
            self._room.append(waiter)
            await waiter

    def _forget_waiter(self, waiter: Deferred[None]) -> None:
        if waiter in self._room:
            self._room.remove(waiter)

    def acknowledge(self, frame: Frame, received: int) -> None:
        """Say how much has come, when `frame` asks; not to who does not even read that."""
        if frame.flags & Flags.ACK_REQ and not self.paused:
            self.control(hello.ACK, frame.corr_id, hello.encode(hello.Ack(received=received)))


def pieces(payload: bytes, size: int) -> Iterator[tuple[bytes, bool]]:
    """`payload` in pieces of `size`, each with whether it is the last; one empty piece when there is nothing."""
    last = max(0, len(payload) - 1) // size * size
    for at in range(0, last + 1, size):
        yield payload[at : at + size], at == last


def packed(flags: Flags, piece: bytes, *, compress: bool) -> tuple[Flags, bytes]:
    """`piece` as it is sent, with the flags it needs.

    The first of a request is compressed even if it grows: COMP in it is how the other end knows that it may use COMP.
    """
    smaller = deflate(piece, always=bool(flags & Flags.START)) if compress else None
    return (flags, piece) if smaller is None else (flags | Flags.COMP, smaller)


class Assembly:
    """The payload of one conversation as it comes in. received: bytes as they were sent. size: inflated."""

    __slots__ = ("_pieces", "limit", "received", "size")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.received = 0
        self.size = 0
        self._pieces: list[bytes] = []

    def add(self, frame: Frame) -> int:
        """Take the payload of `frame`; how many bytes more that is. Raises `RonError` 400 and 413."""
        payload = inflate(frame.payload) if frame.flags & Flags.COMP else frame.payload
        if self.size + len(payload) > self.limit:
            raise too_large("the payload is over the limit", f"at most {self.limit} bytes")
        self.received += len(frame.payload)
        self.size += len(payload)
        self._pieces.append(payload)
        return len(payload)

    def whole(self) -> bytes:
        """All of it, which is given away."""
        given, self._pieces = self._pieces, []
        return given[0] if len(given) == 1 else b"".join(given)
