"""Calls to other nodes and theirs to us: numbered, bounded, each with a deadline.

In: questions of the rooms, messages with a number. Out: answers; `RonError`s travel back as what they are.
A call fails at once when the link that carried it is gone, so that nobody waits for who cannot answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.python.failure import Failure

from ron.kernel.aio import within
from ron.proto.errors import ErrorCode, RonError, backpressure, too_large, unavailable
from ron.services.balance.mesh.codec import encode
from ron.services.balance.mesh.handlers import Handlers, opened, refusal
from ron.services.balance.mesh.link import Link
from ron.services.balance.mesh.outbox import Item
from ron.services.balance.mesh.wire import MAX_BODY_BYTES

Answer = TypeVar("Answer", bound=msgspec.Struct)
ANSWER = "mesh/answer"
# Of ours that wait, in all; of one peer's that are being worked on.
MAX_WAITING = 1024
MAX_SERVED = 64
# However long the caller waits, its question is given up then.
SERVE_S = 60.0


class Calls:
    """Both directions. send: queues an item for a node, returns the link it will take, None when there is none."""

    def __init__(self, reactor: Any, handlers: Handlers, send: Callable[[str, Item], Link | None]) -> None:
        self._reactor = reactor
        self._handlers = handlers
        self._send = send
        self._waiting: dict[int, tuple[str, Link | None, Deferred[bytes]]] = {}
        self._serving: Counter[str] = Counter()
        self._last = 0

    async def call(self, to: str, kind: str, body: msgspec.Struct, answer: type[Answer], deadline_s: float) -> Answer:
        """`Mesh.call`. Raises `RonError`: also TooLarge, and Backpressure when too many wait."""
        packed = packed_body(body)
        if len(self._waiting) >= MAX_WAITING:
            raise backpressure("too many calls wait for their answers")
        self._last = corr = self._last + 1
        waiting: Deferred[bytes] = Deferred()
        # the queue may drop it before `_send` returns
        self._waiting[corr] = (to, None, waiting)
        link = self._send(to, Item(kind, corr, packed))
        if link is None:
            del self._waiting[corr]
            raise unavailable(f"{to} is not connected")
        if corr in self._waiting:
            self._waiting[corr] = (to, link, waiting)
        try:
            return opened(await within(self._reactor, deadline_s, waiting), answer)
        except DeadlineError:
            raise RonError(ErrorCode.TIMEOUT, f"{to} did not answer {kind} in {deadline_s:g} s") from None
        finally:
            self._waiting.pop(corr, None)

    def answered(self, sender: str, corr: int, body: bytes) -> None:
        """An answer. To a call of another, or to none, it is nothing."""
        to, _link, waiting = self._waiting.get(corr, ("", None, None))
        if to == sender and waiting is not None and not waiting.called:
            waiting.callback(body)

    def asked(self, sender: str, kind: str, corr: int, body: bytes) -> None:
        """A call of another node's."""
        if self._serving[sender] >= MAX_SERVED:
            self._reply(refusal(backpressure(f"{MAX_SERVED} calls are being answered")), sender, corr)
            return
        self._serving[sender] += 1
        answering = Deferred.fromCoroutine(self._handlers.answer(sender, kind, body))
        answering.addTimeout(SERVE_S, self._reactor)
        answering.addErrback(_given_up)
        answering.addCallback(self._served, sender, corr)

    def _served(self, answer: bytes, sender: str, corr: int) -> None:
        self._serving[sender] -= 1
        if not self._serving[sender]:
            del self._serving[sender]
        if len(answer) > MAX_BODY_BYTES:
            answer = refusal(too_large(f"the answer would be {len(answer)} bytes"))
        self._reply(answer, sender, corr)

    def _reply(self, answer: bytes, sender: str, corr: int) -> None:
        self._send(sender, Item(ANSWER, corr, answer))

    def unsent(self, items: Iterable[Item]) -> None:
        """These were dropped from a queue: whoever waits for an answer need not."""
        for item in items:
            if item.kind != ANSWER:
                self._fail(item.corr, backpressure("the peer does not keep up"))

    def link_down(self, link: Link) -> None:
        """What went this way is not answered."""
        lost = [corr for corr, (_to, used, _waiting) in self._waiting.items() if used is link]
        for corr in lost:
            self._fail(corr, unavailable(f"the link to {link.name} is gone"))

    def _fail(self, corr: int, error: RonError) -> None:
        _to, _link, waiting = self._waiting.get(corr, ("", None, None))
        if waiting is not None and not waiting.called:
            waiting.errback(error)


def packed_body(body: msgspec.Struct) -> bytes:
    """`body` as it travels. Raises `RonError` (TooLarge)."""
    packed = encode(body)
    if len(packed) > MAX_BODY_BYTES:
        raise too_large(f"the mesh takes no body of {len(packed)} bytes", hint=f"at most {MAX_BODY_BYTES}")
    return packed


def _given_up(failure: Failure) -> bytes:
    failure.trap(DeadlineError)
    return refusal(RonError(ErrorCode.TIMEOUT, f"not answered in {SERVE_S:g} s"))
