"""When the head of the log is signed, and that it was: every so many records or seconds, when asked, and at the end.

In: how the log grows; what signs. Out: checkpoints that are on disk and that the signer's own keys verify.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.crypto.notes import BadNoteError, Head, KeySet, open_by, parse_head, parse_note, with_signatures
from ron.kernel.aio import occurred, within
from ron.proto.errors import RonError, unavailable
from ron.services.kms.audit.checkpoints import Anchor, anchor_of, kept
from ron.services.kms.audit.meters import Meters
from ron.services.kms.audit.shelf import Aside, Shelf
from ron.services.kms.audit.thread import DiskThread
from ron.services.kms.ports import Checkpoint

# The signed note of a text. It has the deadline of a checkpoint, and is cancelled at it.
Sign = Callable[[bytes], Awaitable[bytes]]
# A service that could not make one is not ready; it shall not wait a whole interval to be again.
RETRY_S = 5.0
_log = Logger(namespace="ron.kms.audit")


class Checkpointer:
    """head: the size and root that are on disk. keys[0] belong to `sign`. latest: the newest, with its cosignatures;
    witnessed: the newest that has some. watchers: told of each that is made."""

    def __init__(
        self,
        origin: str,
        *,
        reactor: Any,
        thread: DiskThread,
        shelf: Shelf,
        head: Callable[[], tuple[int, bytes]],
        keys: Sequence[KeySet],
        sign: Sign,
        meters: Meters,
        every_ops: int,
        every_s: float,
        deadline_s: float,
    ) -> None:
        self.latest: Checkpoint | None = None
        self.witnessed: Checkpoint | None = None
        self.watchers: list[Callable[[Checkpoint], None]] = []
        self.keys = list(keys)
        self.failing = False
        self._origin = origin
        self._reactor = reactor
        self._thread = thread
        self._shelf = shelf
        self._head = head
        self._sign = sign
        self._meters = meters
        self._every_ops = every_ops
        self._every_s = every_s
        self._deadline_s = deadline_s
        self._number = 0
        self._signed_size = -1
        self._unanchored: Anchor | None = None
        self._uncovered_since_s: float | None = None
        self._making: Deferred[None] | None = None
        self._timer: IDelayedCall | None = None
        self._running = False
        self._begun = False

    def begin(self, latest: Checkpoint | None, number: int, root: Callable[[int], bytes]) -> str | None:
        """`latest` is the newest there is, the `number`th. root: of the first so many records. What is wrong, by what
        witnesses have signed; None for nothing."""
        self.latest, self._number = latest, number
        self._signed_size = latest.size if latest is not None else -1
        trouble = self._recall(root)
        if latest is not None and self.witnessed is not None and self.witnessed.size == latest.size:
            self.latest = self.witnessed
        self._begun = True
        self._show_keys()
        return trouble

    def start(self) -> None:
        """Make them from now on; at once, if there is what none covers."""
        self._running = True
        self.grown(self._head()[0])
        self._tick()

    def pause(self) -> None:
        """Make none any more: the log is not what it was."""
        self._running = False
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    async def stop(self, *, last: bool) -> None:
        """last: with one of the end of the log, if that can be had."""
        self.pause()
        if self._making is not None:
            await occurred(self._making)
        if last and self._head()[0] > max(self._signed_size, 0):
            try:
                await self.make()
            except RonError as error:
                _log.error("no last checkpoint: {why}", event="audit_checkpoint_failed", why=error.message)

    def use(self, keys: KeySet, sign: Sign) -> None:
        """These sign from now on; the older ones still count for what is there."""
        self.keys.insert(0, keys)
        self._sign = sign
        if self._begun:
            self._show_keys()

    def grown(self, size: int) -> None:
        """So many records are on disk."""
        covered = max(self._signed_size, 0)
        if size > covered and self._uncovered_since_s is None:
            self._uncovered_since_s = self._reactor.seconds()
        if self._running and self._making is None and size - covered >= self._every_ops:
            self._make_and_log()

    @property
    def age_s(self) -> float:
        """Since when there are records that no checkpoint covers; 0 while there are none."""
        since_s = self._uncovered_since_s
        return 0.0 if since_s is None else float(self._reactor.seconds() - since_s)

    def cosigned(self, checkpoint: Checkpoint, lines: Sequence[bytes], enough: int) -> None:
        """See `TransparencyLog.cosigned`."""
        known = [one for one in (self.witnessed, self.latest) if one is not None and one.size == checkpoint.size]
        made = checkpoint._replace(note=with_signatures((known or [checkpoint])[0].note, lines))
        if self.latest is not None and self.latest.size == made.size:
            self.latest = made
        if self.witnessed is None or self._replaces(made, self.witnessed, enough):
            self.witnessed = made
            self._keep("cosigned.note", made.note)

    def make(self) -> Deferred[Checkpoint]:
        """One of the head as it is on disk. Fails with `RonError` (StoreUnavailable)."""
        return Deferred.fromCoroutine(self._in_time())

    def _show_keys(self) -> None:
        """Each set with an empty line after it, as `ronctl audit verify --key` reads them."""
        sets = ("".join(f"{key.vkey()}\n" for key in keys) for keys in self.keys)
        self._keep("log.vkeys", "\n".join(sets).encode())

    def _replaces(self, made: Checkpoint, before: Checkpoint, enough: int) -> bool:
        return made.size >= before.size and self._cosignatures(made) >= min(enough, self._cosignatures(before))

    def _cosignatures(self, checkpoint: Checkpoint) -> int:
        """Of others than the log itself."""
        return len({one.name for one in parse_note(checkpoint.note).signatures} - {self._origin})

    def _recall(self, root: Callable[[int], bytes]) -> str | None:
        """The checkpoint that was kept with its cosignatures, if it is one of this log's; else why the log is not what
        its own keys have signed once. One that cannot be read says nothing: witnesses are asked again."""
        note = self._shelf.kept("cosigned.note")
        if note is None:
            return None
        try:
            head = parse_head(open_by(note, self.keys)[0])
        except BadNoteError as error:
            _log.warn("the cosignatures that were kept: {why}", event="audit_cosignatures_lost", why=str(error))
            return None
        if head.origin != self._origin:
            return None
        size = self._head()[0]
        if head.size > size:
            return f"witnesses have signed for {head.size} records, there are {size}"
        if root(head.size) != head.root:
            return f"the first {head.size} records are not those that witnesses have signed for"
        self.witnessed = Checkpoint(head.size, head.root, note)
        return None

    def _keep(self, name: Aside, content: bytes) -> None:
        def failed(failure: Failure) -> None:
            _log.warn("{name} is not kept: {why}", event="audit_aside_failed", name=name, why=str(failure.value))

        self._thread.run(self._shelf.keep, name, content).addErrback(failed)

    async def _in_time(self) -> Checkpoint:
        while self._making is not None:
            await self._wait(self._making)
        if self.latest is not None and self._head()[0] == self._signed_size and self._unanchored is None:
            return self.latest
        # it goes on when nobody waits any more: whether it got to the disk must be known before the next one
        work = Deferred.fromCoroutine(self._work())
        if not work.called:
            self._making = work
            work.addBoth(self._through)
            await self._wait(work)
        if self.latest is None or self.failing:
            raise unavailable("no checkpoint could be made")
        return self.latest

    async def _wait(self, work: Deferred[None]) -> None:
        try:
            await within(self._reactor, self._deadline_s, occurred(work))
        except DeadlineError:
            self._meters.late("checkpoint")
            self._failed("its deadline has passed")
            raise unavailable("no checkpoint could be made in time") from None

    async def _work(self) -> None:
        try:
            if self._head()[0] != self._signed_size:
                await self._sign_head()
            if self._unanchored is not None:
                await self._thread.run(self._shelf.set_anchor, self._unanchored)
        except (BadNoteError, RonError, OSError, DeadlineError) as error:
            self._failed(str(error) or type(error).__name__)
        except Exception:  # noqa: BLE001 - whatever a signer raises, the log lives on and says that it has no checkpoint
            _log.failure("a checkpoint", event="audit_checkpoint_failed")
            self._failed("the signer failed")
        else:
            self._unanchored, self.failing = None, False
            self._meters.checkpoint("ok")

    def _through(self, _none: None) -> None:
        self._making = None

    async def _signed(self, text: bytes) -> bytes:
        async def signing() -> bytes:
            return await self._sign(text)

        keys = self.keys[0]
        note = await within(self._reactor, self._deadline_s, signing())
        if open_by(note, [keys])[0] != text:
            raise BadNoteError("the signer signed something else")
        return note

    async def _sign_head(self) -> None:
        """The checkpoint is there from here on, whatever becomes of its anchor."""
        size, root = self._head()
        since_s = self._reactor.seconds()
        note = await self._signed(Head(self._origin, size, root).text())
        checkpoint = Checkpoint(size, root, note)
        one = kept(self._number + 1, checkpoint)
        await self._thread.run(self._shelf.add_checkpoint, one)
        self.latest, self._signed_size, self._unanchored = checkpoint, size, anchor_of(one)
        self._number += 1
        self._uncovered_since_s = since_s if self._head()[0] > size else None
        head = root.hex()
        _log.info("checkpoint of {size}", event="audit_checkpoint_ok", size=checkpoint.size, head=head)
        self._tell(checkpoint)

    def _tell(self, checkpoint: Checkpoint) -> None:
        for watcher in self.watchers:
            try:
                watcher(checkpoint)
            except Exception:  # noqa: BLE001 - a watcher's mistake is no doubt about the checkpoint
                _log.failure("watching checkpoints", event="audit_watcher_failed")

    def _failed(self, why: str) -> None:
        self.failing = True
        self._meters.checkpoint("err")
        self._meters.broken()
        _log.error("no checkpoint: {why}", event="audit_checkpoint_failed", why=why)
        self._tick_in(min(self._every_s, RETRY_S))

    def _tick_in(self, delay_s: float) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if self._running:
            self._timer = self._reactor.callLater(delay_s, self._tick)

    def _tick(self) -> None:
        if self._running:
            self._tick_in(self._every_s)
            if self._head()[0] > max(self._signed_size, 0) or self._unanchored is not None:
                self._make_and_log()

    def _make_and_log(self) -> None:
        # why it failed was logged where it did
        self.make().addErrback(lambda failure: failure.trap(RonError) and None)
