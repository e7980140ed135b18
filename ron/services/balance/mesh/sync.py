"""How the copies of the book become one, and every node has the present token.

In: entries as they are written, digests in pings. Out: the same book everywhere; `token.json` that fits its notice.
A writing goes to all connected nodes at once. Where digests differ all the same, each takes the other's whole book.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.proto.errors import RonError, not_found
from ron.services.balance.mesh.book import LocalBook
from ron.services.balance.mesh.entries import MAX_ENTRIES, TOKEN, Entry
from ron.services.balance.mesh.files import NodeFiles
from ron.services.balance.mesh.handlers import Handlers
from ron.services.balance.mesh.meters import Meters
from ron.services.balance.mesh.tokens import Token, TokenNotice, notice_of
from ron.services.balance.mesh.wire import Key
from ron.services.balance.ports import Mesh

WRITTEN, PULL, ASK_TOKEN = "mesh/book", "mesh/pull", "mesh/token"
PAGE_BYTES = 128 * 1024
CALL_S = 10.0
# Two books that stay different though each has had the other's: not tried again sooner.
STUBBORN_S = 30.0
SAVE_AFTER_S = 0.05
_log = Logger(namespace="ron.balance.mesh")


class Written(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A message: entries as they were written."""

    entries: Annotated[tuple[Entry, ...], Meta(max_length=64)]


class Pull(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A call: the entries whose keys come after this one."""

    after: Annotated[str, Meta(max_length=100)] = ""


class Page(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The answer: some of them in the keys' order. more: there are others."""

    entries: Annotated[tuple[Entry, ...], Meta(max_length=MAX_ENTRIES)]
    more: bool


class AskToken(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A call of a member that was away: the token with this digest, which is in the book."""

    digest: Key


class Saver:
    """Writes the book's file in a thread, the newest content, one writing at a time."""

    def __init__(self, reactor: Any, files: NodeFiles, book: LocalBook) -> None:
        self._reactor = reactor
        self._files = files
        self._book = book
        self._due: IDelayedCall | None = None
        self._saving: Deferred[Any] | None = None
        self._ended = False

    def changed(self) -> None:
        """Save soon."""
        if self._due is None and not self._ended:
            self._due = self._reactor.callLater(SAVE_AFTER_S, self._save)

    def _save(self) -> None:
        self._due = None
        if self._saving is not None:
            self.changed()
            return
        self._saving = deferToThread(self._files.keep_book, tuple(self._book.entries))
        self._saving.addErrback(_not_saved)
        self._saving.addBoth(self._saved)

    def _saved(self, _none: object) -> None:
        self._saving = None

    async def end(self) -> None:
        """Save what is not saved, and nothing after that."""
        self._ended = True
        if self._saving is not None:
            await self._saving
        if self._due is not None:
            self._due.cancel()
            self._due = None
            await deferToThread(self._files.keep_book, tuple(self._book.entries)).addErrback(_not_saved)


class Sync:
    """Of one node. is_vouched: whether what this peer says of who the members are is believed."""

    def __init__(
        self,
        reactor: Any,
        mesh: Mesh,
        book: LocalBook,
        files: NodeFiles,
        meters: Meters,
        *,
        is_vouched: Callable[[str], bool],
    ) -> None:
        self._reactor = reactor
        self._mesh = mesh
        self._book = book
        self._files = files
        self._meters = meters
        self._is_vouched = is_vouched
        self._pulling: set[str] = set()
        self._tried: dict[str, tuple[bytes, bytes, float]] = {}
        self._asking = False

    def serve(self, handlers: Handlers) -> None:
        """Hear and answer the others."""
        handlers.listen(WRITTEN, Written, self.written)
        handlers.serve(PULL, Pull, self.page)
        handlers.serve(ASK_TOKEN, AskToken, self.give_token)

    # -- the book ---------------------------------------------------------------------------------------------------

    def written(self, sender: str, body: Written) -> None:
        """Entries of another's."""
        self._take(sender, body.entries)

    async def page(self, _sender: str, body: Pull) -> Page:
        """Our entries, for who asks."""
        chosen: list[Entry] = []
        size = 0
        for entry in self._book.entries:
            if entry.key <= body.after:
                continue
            size += len(entry.value) + len(entry.key) + 200
            if size > PAGE_BYTES:
                return Page(tuple(chosen), True)
            chosen.append(entry)
        return Page(tuple(chosen), False)

    def compare(self, peer: str, digest: bytes) -> None:
        """The digest of a peer's book: take the book if it is another."""
        ours = self._book.digest()
        if digest == ours or peer in self._pulling:
            return
        before = self._tried.get(peer)
        now_s = self._reactor.seconds()
        if before is not None and before[:2] == (ours, digest) and now_s - before[2] < STUBBORN_S:
            return
        self._tried[peer] = (ours, digest, now_s)
        self._pulling.add(peer)
        Deferred.fromCoroutine(self._pull(peer)).addErrback(_failed).addBoth(lambda _none: self._pulling.discard(peer))

    async def _pull(self, peer: str) -> None:
        entries: list[Entry] = []
        more, whole = True, False
        try:
            while more and len(entries) <= MAX_ENTRIES:
                after = entries[-1].key if entries else ""
                page = await self._mesh.call(peer, PULL, Pull(after), Page, deadline_s=CALL_S)
                entries += page.entries
                more = page.more and bool(page.entries) and page.entries[-1].key > after
            whole = True
        except RonError as error:
            _log.debug("no book of {peer}: {problem}", event="mesh_pull_failed", peer=peer, problem=error.one_line())
        # half a book is good too
        self._take(peer, entries)
        if whole:
            self._book.fresh = False

    def _take(self, sender: str, entries: Iterable[Entry]) -> None:
        for entry, reason in self._book.take(entries, vouched=self._is_vouched(sender)):
            self._meters.refused(sender, reason, f"entry {entry.key} of {entry.author}")

    # -- the token --------------------------------------------------------------------------------------------------

    def present_token(self) -> Token | None:
        """Ours, if it is the present one; whoever shows another may not join."""
        notice = self._book.get(TOKEN, TokenNotice)
        return self._files.token if notice is None or notice == notice_of(self._files.token) else None

    async def give_token(self, sender: str, body: AskToken) -> Token:
        """For a member that does not have it."""
        token = self.present_token()
        if token is None or notice_of(token).digest != body.digest or sender not in self._mesh.members():
            raise not_found("this node does not have that token")
        return token

    def fetch_token(self) -> None:
        """Ask the others for the present token, if ours is not."""
        if not self._asking and self.present_token() is None:
            self._asking = True
            Deferred.fromCoroutine(self._fetch_token()).addErrback(_failed).addBoth(self._asked)

    def _asked(self, _none: object) -> None:
        self._asking = False

    async def _fetch_token(self) -> None:
        for name, peer in self._mesh.peers().items():
            notice = self._book.get(TOKEN, TokenNotice)
            if notice is None or not peer.connected:
                continue
            try:
                token = await self._mesh.call(name, ASK_TOKEN, AskToken(notice.digest), Token, deadline_s=CALL_S)
            except RonError:
                continue
            if notice_of(token) == self._book.get(TOKEN, TokenNotice):
                await deferToThread(self._files.keep_token, token)
                return


def _not_saved(failure: Failure) -> None:
    _log.failure("the book could not be saved", failure, event="mesh_book_not_saved")


def _failed(failure: Failure) -> None:
    _log.failure("the book could not be compared", failure, event="mesh_sync_failed")
