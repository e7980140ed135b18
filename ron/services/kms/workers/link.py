"""The pair between the owner and a worker: a socket pair that has no name, so that nobody else can take part.

In: one end of it. Out: frames both ways, in order; word of its end. The first word and the master key cross it before
any frame, without being copied among Python's objects.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec
from twisted.internet import tcp
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from ron.crypto.secrets import SecretBuffer
from ron.proto.errors import RonError, bad_request
from ron.services.kms.workers.frames import MAX_FRAME_BYTES, Downward, Start, Upward, encode_frame

F = TypeVar("F")
# A turn of the other's reactor under load is shorter.
STALLED_S = 0.25
_LENGTH = struct.Struct(">I")
_MAX_START_BYTES = 1024 * 1024
_log = Logger(namespace="ron.kms.workers")


@implementer(IPushProducer)
class Link(Int32StringReceiver, Generic[F]):
    """One end. decode: a frame of the other's. heard: told of each. lost: told once, when nothing more will come."""

    MAX_LENGTH = MAX_FRAME_BYTES
    # no interface of Twisted's has all that a socket's transport can
    transport: Any

    def __init__(self, decode: Callable[[bytes], F], heard: Callable[[F], None], lost: Callable[[], None]) -> None:
        self._decode = decode
        self._heard = heard
        self._lost = lost
        self._reactor: Any = None
        self._paused_s: float | None = None
        self.over = False

    def join(self, end: socket.socket, reactor: Any) -> None:
        """Speak over `end`, which is taken over."""
        end.setblocking(False)
        self._reactor = reactor
        # Twisted adopts no connection that has no address
        transport = tcp.Server(end, self, ("pair", 0), None, 0, reactor)  # type: ignore[arg-type]
        self.makeConnection(transport)

    @property
    def congested(self) -> bool:
        """The other has not read for a while; what is sent all the same waits here."""
        return self._paused_s is not None and self._reactor.seconds() - self._paused_s >= STALLED_S

    def connectionMade(self) -> None:
        """Hear of what piles up."""
        self.transport.registerProducer(self, True)

    def tell(self, frame: Upward | Downward) -> None:
        """Send it; nothing happens once the pair is over."""
        if not self.over:
            self.sendString(encode_frame(frame))

    def close(self) -> None:
        """End it at once."""
        if not self.over:
            self.transport.abortConnection()

    def stringReceived(self, raw: bytes) -> None:
        """A frame. One that cannot be read ends the pair: there is no telling what else would be wrong."""
        try:
            frame = self._decode(raw)
        except RonError as error:
            _log.error("the pair: {why}", event="kms_pair_broken", why=error.message)
            self.close()
            return
        self._heard(frame)

    def lengthLimitExceeded(self, length: int) -> None:
        """As for any frame that is none."""
        _log.error("the pair: a frame of {length} bytes", event="kms_pair_broken", length=length)
        self.close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The other has gone."""
        self.over = True
        self._lost()

    def pauseProducing(self) -> None:
        """The buffer is full, which one large batch does to it."""
        self._paused_s = self._reactor.seconds()

    def resumeProducing(self) -> None:
        """It is not any more."""
        self._paused_s = None

    def stopProducing(self) -> None:
        """The pair ends."""


def give(end: socket.socket, start: Start, master: memoryview) -> None:
    """The owner's first word. Blocks only where a worker does not read and the pair is full, which this is too small
    for. Raises `OSError`."""
    raw = msgspec.msgpack.encode(start)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_START_BYTES)
    end.sendall(_LENGTH.pack(len(raw)) + raw)
    end.sendall(master)


def take(end: socket.socket, *, allow_unlocked: Callable[[Start], bool]) -> tuple[Start, SecretBuffer]:
    """A worker's first word, and the master key in locked memory. Blocks until it is there.

    Raises `RonError` (BadRequest) when the owner went away or is none; `NotLockedError`.
    """
    length = _LENGTH.unpack(_received(end, _LENGTH.size))[0]
    if length > _MAX_START_BYTES:
        raise bad_request("the owner's first word is too long")
    try:
        start = msgspec.msgpack.decode(_received(end, length), type=Start)
    except msgspec.MsgspecError as error:
        raise bad_request(f"the owner's first word is damaged: {error}") from None
    secret = SecretBuffer(start.secret_bytes, allow_unlocked=allow_unlocked(start))
    with secret.open() as view:
        _fill(end, view)
    return start, secret


def _received(end: socket.socket, count: int) -> bytes:
    raw = bytearray(count)
    with memoryview(raw) as view:
        _fill(end, view)
    return bytes(raw)


def _fill(end: socket.socket, view: memoryview) -> None:
    done = 0
    while done < len(view):
        came = end.recv_into(view[done:])
        if not came:
            raise bad_request("the owner has gone")
        done += came
