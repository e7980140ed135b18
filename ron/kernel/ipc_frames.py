"""What is said between the processes of one node: MessagePack frames. Pure.

In: bytes, or what is to be told. Out: one of the frames below, checked as strictly as any body, or its bytes.
`ron.kernel.ipc_wire` puts them on a connection.
"""

from __future__ import annotations

from typing import Any, TypeAlias, cast

import msgspec
from twisted.python.failure import Failure

from ron.kernel.bus import KERNEL_TOPIC, Message
from ron.kernel.events import AnyKernelEvent, KernelEvent
from ron.proto.errors import ErrorCode, RonError, bad_request, too_large

VERSION = 1
MAX_FRAME_BYTES = 1024 * 1024


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="hello"):
    """First frame of a link. word: what proves that it may connect (a capability)."""

    v: int
    name: str
    word: str


class Welcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="welcome"):
    """The hub's answer."""

    v: int


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="event"):
    """A message; `kernel` on the topic `kernel`, `body` on all others."""

    ts: float
    topic: str
    origin: str
    corr_id: str
    kernel: AnyKernelEvent | None = None
    body: Any = None


class Serve(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="serve"):
    """The services the peer answers from now on."""

    services: tuple[str, ...]


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="call"):
    """A command. id: the sender's, unique while it is under way."""

    id: int
    service: str
    name: str
    body: Any
    corr_id: str
    deadline_ms: int


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="reply"):
    """The answer to `Order` `id`: `code` is None when all went well."""

    id: int
    body: Any = None
    code: ErrorCode | None = None
    message: str = ""
    hint: str | None = None
    status: int | None = None
    retry_after_s: int | None = None


Frame: TypeAlias = Hello | Welcome | Event | Serve | Order | Reply
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def decode_frame(raw: bytes) -> Frame:
    """One frame without its length. Raises `RonError(BadRequest)` on anything else than a well-formed frame."""
    try:
        frame: Frame = _decode(raw)
    except (msgspec.MsgspecError, RecursionError, TypeError, ValueError) as error:
        raise bad_request(f"not a frame of the bus: {type(error).__name__}") from None
    return frame


def encode_frame(frame: Frame) -> bytes:
    """`frame` for the wire, without its length.

    Raises `RonError`: BadRequest when something in it has no wire form (an open file, a number of 65 bits, half a
    surrogate pair, a list that holds itself), TooLarge when it is over 1 MiB.
    """
    try:
        raw = _encode(frame)
    except (msgspec.MsgspecError, ArithmeticError, RecursionError, TypeError, ValueError) as error:
        raise bad_request(f"it has no form for the bus: {type(error).__name__}") from None
    if len(raw) > MAX_FRAME_BYTES:
        raise too_large(f"{len(raw)} bytes do not fit the bus")
    return raw


def event_of(message: Message) -> Event:
    """`message` as a frame."""
    if isinstance(message.body, KernelEvent):
        body = cast(AnyKernelEvent, message.body)
        return Event(message.ts, message.topic, message.origin, message.corr_id, kernel=body)
    return Event(message.ts, message.topic, message.origin, message.corr_id, body=message.body)


def message_of(frame: Event) -> Message:
    """The message in `frame`, not numbered yet. Raises `RonError(BadRequest)` on a kernel event out of place."""
    if (frame.kernel is not None) != (frame.topic == KERNEL_TOPIC):
        raise bad_request("a kernel event out of place")
    body = frame.kernel if frame.kernel is not None else frame.body
    return Message(0, frame.ts, frame.topic, frame.origin, frame.corr_id, body)


def reply_of(result: Any, number: int) -> Reply:
    """The answer to order `number`: a value, or a `Failure`."""
    if not isinstance(result, Failure):
        return Reply(number, result)
    error = result.value
    if not isinstance(error, RonError):
        return Reply(number, code=ErrorCode.INTERNAL, message="it was given up")
    return Reply(number, None, error.code, error.message, error.hint, error.status, error.retry_after_s)


def error_of(reply: Reply) -> RonError:
    """The error in `reply`, as it was raised over there."""
    code = reply.code if reply.code is not None else ErrorCode.INTERNAL
    return RonError(code, reply.message, hint=reply.hint, status=reply.status, retry_after_s=reply.retry_after_s)
