"""Who in this process hears which kind of message and who answers which kind of call; how an error travels back.

In: (sender, kind, body as MessagePack). Out: handlers called with bodies that were decoded strictly, answers as bytes.
A body that does not fit its shape is `Unfit`; a handler's own defect is logged and is nobody else's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta
from twisted.logger import Logger

from ron.proto.balance import NodeName
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict
from ron.services.balance.mesh.codec import Unfit, decode, encode

Body = TypeVar("Body", bound=msgspec.Struct)
Heard = Callable[[NodeName, Any], None]
Answerer = Callable[[NodeName, Any], Awaitable[msgspec.Struct]]
# Kinds that begin so are the mesh's own.
OWN_KINDS = "mesh/"
# Of an error's message, hint and code on the wire.
ERROR_CHARS = 1000
_Text = Annotated[str, Meta(max_length=ERROR_CHARS)]
_log = Logger(namespace="ron.balance.mesh")


class Failed(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A `RonError` as an answer. code is one of ours, or Internal is made of it."""

    code: Annotated[str, Meta(max_length=40)]
    message: _Text
    hint: _Text | None = None
    retry_after_s: Annotated[int, Meta(ge=0, le=86_400)] | None = None


class Answered(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The answer to a call: a body, or what went wrong."""

    body: Annotated[bytes, Meta(max_length=256 * 1024)]
    failed: Failed | None = None


class Handlers:
    """One handler a kind. `deliver` is for messages, `answer` for calls."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[type[msgspec.Struct], Heard]] = {}
        self._served: dict[str, tuple[type[msgspec.Struct], Answerer]] = {}

    def __contains__(self, kind: object) -> bool:
        return kind in self._heard or kind in self._served

    def listen(self, kind: str, shape: type[msgspec.Struct], handler: Heard) -> None:
        """`Mesh.listen`. Raises `RonError` (Conflict) when somebody hears `kind` already."""
        if kind in self._heard:
            raise conflict(f"messages of kind {kind} have a handler already")
        self._heard[kind] = (shape, handler)

    def serve(self, kind: str, shape: type[msgspec.Struct], handler: Answerer) -> None:
        """`Mesh.serve`. Raises `RonError` (Conflict) when somebody answers `kind` already."""
        if kind in self._served:
            raise conflict(f"calls of kind {kind} have a handler already")
        self._served[kind] = (shape, handler)

    def deliver(self, sender: NodeName, kind: str, body: bytes) -> None:
        """Give a message to its handler. Raises `Unfit`."""
        entry = self._heard.get(kind)
        if entry is None:
            raise Unfit(f"nobody hears {kind!r}")
        shape, handler = entry
        decoded = decode(body, shape)
        try:
            handler(sender, decoded)
        except Exception:  # noqa: BLE001 - one handler's defect must not end the link that all others use
            _log.failure("a handler of {kind} failed", event="mesh_handler_failed", kind=kind)

    async def answer(self, sender: NodeName, kind: str, body: bytes) -> bytes:
        """An encoded `Answered`. Never raises."""
        try:
            return encode(Answered(await self._answer(sender, kind, body)))
        except RonError as error:
            return refusal(error)
        except Exception:  # noqa: BLE001 - the caller must not wait for its deadline
            _log.failure("a handler of calls {kind} failed", event="mesh_handler_failed", kind=kind)
            return refusal(RonError(ErrorCode.INTERNAL, f"the handler of {kind} failed"))

    async def _answer(self, sender: NodeName, kind: str, body: bytes) -> bytes:
        entry = self._served.get(kind)
        if entry is None:
            raise RonError(ErrorCode.UNSUPPORTED, f"nobody answers {kind[:64]!r}")
        shape, handler = entry
        try:
            decoded = decode(body, shape)
        except Unfit as problem:
            raise bad_request(f"a call of kind {kind} with a malformed body: {problem}") from None
        return encode(await handler(sender, decoded))


def for_rooms(kind: str) -> str:
    """`kind`, if it is not one of the mesh's own. Raises `RonError` (BadRequest)."""
    if kind.startswith(OWN_KINDS):
        raise bad_request(f"{kind} is a kind of the mesh's own")
    return kind


def opened(answer: bytes, shape: type[Body]) -> Body:
    """What a call returns for this answer. Raises the `RonError` that it carries, Internal for one that is none."""
    try:
        answered = decode_answer(answer)
        if answered.failed is None:
            return decode(answered.body, shape)
    except Unfit as problem:
        raise RonError(ErrorCode.INTERNAL, f"the peer's answer is malformed: {problem}") from None
    raise _error(answered.failed)


def decode_answer(answer: bytes) -> Answered:
    """Raises `Unfit`."""
    return decode(answer, Answered)


def refusal(error: RonError) -> bytes:
    """An encoded `Answered` that says `error`."""
    hint = error.hint[:ERROR_CHARS] if error.hint else None
    failed = Failed(error.code.value, error.message[:ERROR_CHARS], hint, error.retry_after_s)
    return encode(Answered(b"", failed))


def _error(failed: Failed) -> RonError:
    try:
        code = ErrorCode(failed.code)
    except ValueError:
        code = ErrorCode.INTERNAL
    return RonError(code, failed.message, hint=failed.hint, retry_after_s=failed.retry_after_s)
