"""One set of layer-2 and layer-3 guards for all heads: whoever leads keeps it in the book, everybody goes by it.

In: the relays as this node's tor knows them, the book. Out: the set in the book, and this node's head pinned to it.
Only the leader's set counts: any member can write one, of relays of its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.proto.balance import NodeName
from ron.proto.errors import RonError
from ron.services.balance.heads.guards import Guards, choose_guards, read_relays
from ron.services.balance.ports import Book

KEY = "vanguards"
EVERY_S = 60.0
_log = Logger(namespace="ron.balance")


class Pinned(Protocol):
    """A head whose tor can be told which relays to use."""

    async def set_guards(self, layer2: Sequence[str], layer3: Sequence[str]) -> None: ...


class SharedGuards:
    """wanted: whether heads share guards, read each time. leads: does this node? trusted: is a set of that node's to be
    gone by? relays: tor's answer to `ns/all`; raises `RonError` while there is none. now_s: Unix time. rng:
    `SystemRandom`."""

    def __init__(
        self,
        reactor: Any,
        book: Book,
        head: Pinned,
        *,
        wanted: Callable[[], bool],
        leads: Callable[[], bool],
        trusted: Callable[[NodeName], bool],
        relays: Callable[[], Awaitable[str]],
        now_s: Callable[[], float],
        rng: Random,
    ) -> None:
        self._book = book
        self._head = head
        self._wanted = wanted
        self._leads = leads
        self._trusted = trusted
        self._relays = relays
        self._now_s = now_s
        self._rng = rng
        self._pinned = Guards()
        self._loop = LoopingCall(self._look)
        self._loop.clock = reactor
        book.on_change(self._changed)

    def start(self) -> None:
        """Look at once, then every minute."""
        self._loop.start(EVERY_S)

    def stop(self) -> None:
        """Leave them as they are."""
        if self._loop.running:
            self._loop.stop()

    def _look(self) -> Deferred[None]:
        looking = Deferred.fromCoroutine(self._look_once())
        return looking.addErrback(_not_done)

    async def _look_once(self) -> None:
        if self._wanted() and self._leads():
            relays = read_relays(await self._relays())
            before = self._told()
            chosen = choose_guards(relays, self._now_s(), before, self._rng)
            # another's, though the same, is written anew: whoever comes later believes the leader
            if chosen != before or not self._is_believed():
                self._book.put(KEY, chosen)
        await self._pin()

    async def _pin(self) -> None:
        found = self._told() if self._wanted() else Guards()
        if found != self._pinned:
            await self._head.set_guards(*found.fingerprints())
            self._pinned = found
            _log.info("the head's guards are the cluster's", event="balance_guards_pinned")

    def _is_believed(self) -> bool:
        return self._trusted(self._book.author_of(KEY))

    def _told(self) -> Guards:
        """The set in the book; while it is nobody's to be believed, the one that this node goes by already."""
        return (self._book.get(KEY, Guards) or Guards()) if self._is_believed() else self._pinned

    def _changed(self, key: str) -> None:
        if key == KEY and self._loop.running:
            Deferred.fromCoroutine(self._pin()).addErrback(_not_done)


def _not_done(failure: Failure) -> None:
    if failure.check(RonError):
        _log.warn("guards were not set: {why}", event="balance_guards", why=failure.getErrorMessage())
    else:
        _log.failure("looking after guards broke", failure, event="balance_guards_broke")
