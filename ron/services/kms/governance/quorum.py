"""`Governance`: takes what people signed, keeps it, and answers the service's `Quorum` port.

In: signed objects, a capability's id with each; clocks; the book; where events go. Out: cases; permissions, each good
for once and for exactly what was decided; freezes and verify modes.

Order of each act: it is judged, it is on disk, the audit log has it, it takes effect. While the audit log does not take
an event, nothing further is decided, and what waits for it is not in effect.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.proto.clock import rfc3339
from ron.proto.errors import ErrorCode, RonError, bad_request, unavailable
from ron.proto.governance import SignedObject, SignerSet
from ron.services.kms.governance.actions import GLOBAL, TENANT
from ron.services.kms.governance.appeals import VERBS
from ron.services.kms.governance.book import Book, Genesis, Kind, Record
from ron.services.kms.governance.hours import Hours
from ron.services.kms.governance.ledger import Change, Ledger, apply, check_successor, prepared
from ron.services.kms.governance.proposals import DEADLOCK_S, LOCK_S, Case
from ron.services.kms.governance.signers import refused, statement_of, who_signed
from ron.services.kms.ports import AuditEntry

if TYPE_CHECKING:
    from ron.kernel.clock import Clock

TICK_S = 15.0
_log = Logger(namespace="ron.kms")
FREEZE = "freeze"
_DEADLOCK, _LOCK = "deadlock", "lock"
# What records of governance in the audit log say of its book: which it is, how many records it had, the newest's hash.
BOOK, BOOK_RECORDS, BOOK_HEAD = "book", "book_records", "book_head"
_PUT_BACK = "put the newest copy back in its place"


class Governance:
    """Of one service. `load` it, then `settle`; `stop` it.

    clock: steady. now: Unix seconds. announce: the audit log's `append`. noted: hears what happened, for metrics: what
    was done (`propose`, `approve`, `execute`, `use`, …; `freeze` when one begins) and the proposal's state, "" where
    that is what it was before.
    """

    def __init__(
        self,
        clock: Clock,
        now: Callable[[], float],
        book: Book,
        announce: Callable[[AuditEntry], Awaitable[object]],
        *,
        noted: Callable[[str, str], None] = lambda _what, _state: None,
    ) -> None:
        self._clock = clock
        self._now = now
        self._announce = announce
        self._noted = noted
        self._one_at_a_time = DeferredLock()
        # on disk, not yet in the audit log, and therefore without effect
        self._waiting: tuple[Record, Change] | None = None
        # used permissions whose event the audit log has not taken yet
        self._untold: list[Record] = []
        self._timer: IDelayedCall | None = None
        self._stopped = False
        # why the book is not believed
        self._doubt = ""
        self.book = book
        self.ledger = Ledger()
        self.hours = Hours(clock, now)

    def load(self, initial: SignerSet, *, micronode: bool = False) -> None:
        """Read the book; an empty one begins with `initial`. Raises `RonError` when it is not whole, or another's.

        The newest record is in effect only once `settle` has told the audit log of it: it may not know.
        """
        self.book.open()
        try:
            self._replay(initial, micronode)
        except BaseException:
            self.book.close()
            raise

    def _replay(self, initial: SignerSet, micronode: bool) -> None:
        self.hours = Hours(self._clock, self._now, self.book.newest_at)
        if not self.book.records:
            start = Genesis(book=secrets.token_hex(16), signers=initial, micronode=micronode)
            first = self.book.next(self.hours.unix(), kind="genesis", genesis=start)
            prepared(Ledger(), first)
            self.book.append(first)
        *before, newest = self.book.records
        for record in before:
            apply(self.ledger, record)
        self._waiting = (newest, prepared(self.ledger, newest))
        if newest.kind == "genesis" or newest.event == "use":
            # without signers nothing works, and what is used up is so at once
            self._take_effect()
            self._untold.append(newest)
        self._spans()

    async def settle(self) -> None:
        """Tell the audit log what it may not know yet. Raises what it raises; then ask again."""
        await self._one_at_a_time.run(lambda: Deferred.fromCoroutine(self._settle()))
        self._schedule()

    def stop(self) -> None:
        """No more timers; the book is let go of."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.book.close()

    # what people say

    async def propose(self, signed: SignedObject, actor: str = "") -> Case:
        """A new proposal; the same one again changes nothing. Raises `RonError`."""
        return self._case(await self._act("propose", actor, signed=signed))

    async def state(self, signed: SignedObject, actor: str = "", *, about: str | None = None) -> Case | None:
        """A signer's word on a proposal, which is the answer, or of a dispute; the same again changes nothing. about:
        the proposal it was sent for, "" for none: it must be of that. Raises `RonError`."""
        if about is not None and statement_of(signed).proposal != about:
            raise bad_request("this word is of another proposal than it was sent for")
        change = await self._act("state", actor, signed=signed)
        return self._case(change) if change.case is not None else None

    async def execute(self, proposal: str, actor: str = "") -> Case:
        """Carry out what was approved, or have its permission ready; again changes nothing. Raises `RonError`."""
        return self._case(await self._act("event", actor, event="execute", proposal=proposal))

    def compare(self, said: Mapping[str, object]) -> None:
        """said: what the newest record of the audit log that tells of a book says of it, nothing where none does.

        Raises `RonError` (Conflict) for a book that is older than that, and for another that does not go on from it.
        Then nothing is decided any more: told to the audit log, it would be believed at the next start.
        """
        if not said:
            return
        book, records, head = str(said[BOOK]), int(str(said[BOOK_RECORDS])), str(said[BOOK_HEAD])
        try:
            if book == self.ledger.book:
                self.book.expect(records, head)
            else:
                archived = self.book.archived(book)
                archived.expect(records, head)
                check_successor(archived.records, self.book.records[0])
        except RonError as error:
            self._doubt = error.message
            raise

    def _check_doubt(self) -> None:
        if self._doubt:
            raise unavailable(self._doubt, _PUT_BACK)

    # what the service asks (`Quorum`)

    def require(self, action: str, scope: str, change: Mapping[str, str], proposal: str | None) -> None:
        """Take up the permission that `proposal` gives. Raises `RonError` (403) unless it was executed for exactly this
        and has neither run out nor been used; StoreUnavailable when that cannot be written down.

        It is used when this returns. Whoever then cannot do what it allows gives it back (`give_back`).
        """
        if proposal is None:
            raise refused(f"{action} takes a quorum", f"ronctl governance propose --scope {scope} …")
        try:
            case = self.ledger.case(proposal)
        except RonError:
            raise refused("there is no such proposal") from None
        wanted = case.proposal
        if (wanted.action, wanted.scope, wanted.change) != (action, scope, dict(change)):
            raise refused("this proposal is for something else", "propose exactly what is to be done")
        self.hours.check()
        if case.is_over(self.hours.unix()):
            raise refused("this proposal has run out", "make a new one")
        self._note(self._next("event", "", event="use", proposal=proposal))

    def permission(self, action: str, scope: str, change: Mapping[str, str]) -> str | None:
        """An executed proposal for exactly this that `require` would take up; None where there is none."""
        at = self.hours.unix()
        for case in self.ledger.cases.values():
            said = case.proposal
            usable = case.state == "executed" and not case.used and not case.is_over(at)
            if usable and (said.action, said.scope, said.change) == (action, scope, dict(change)):
                return said.id
        return None

    def give_back(self, proposal: str) -> None:
        """What was allowed could not be done: it may be tried again until the proposal runs out. Raises `RonError`."""
        self._note(self._next("event", "", event="return", proposal=proposal))

    def frozen(self, tenant: str) -> str | None:
        """Why `tenant` may not sign now: the id of the proposal that froze it, or everybody."""
        if not self.ledger.freezes:
            return None
        for scope in (GLOBAL, TENANT + tenant):
            freeze = self.ledger.freezes.get(scope)
            if freeze is not None and not self.hours.is_over(FREEZE, freeze.proposal):
                return freeze.proposal
        return None

    def pq_mode(self, tenant: str) -> str | None:
        """The verify mode that was decided for `tenant`, else for everybody; None where the config's holds."""
        modes = self.ledger.pq_modes
        return modes.get(TENANT + tenant) or modes.get(GLOBAL)

    # how it is done

    def _case(self, change: Change) -> Case:
        if change.case is None:
            raise AssertionError("unreachable: only disputes are about no case")
        return change.case

    async def _act(self, kind: Kind, actor: str, **fields: object) -> Change:
        async def act() -> Change:
            await self._settle()
            self.hours.check()
            record = self._next(kind, actor, **fields)
            change = self.ledger.prepare(record)
            self._check_spans(change)
            if change.commit is not None:
                self._check_room(kind)
                self.book.append(record)
                self._waiting = (record, change)
                await self._settle()
            return change

        try:
            done = await self._one_at_a_time.run(lambda: Deferred.fromCoroutine(act()))
        except RonError as error:
            if error.code is ErrorCode.NO_CAPABILITY:
                self._tell_refusal(kind, actor, fields)
            raise
        self._schedule()
        return done

    def _tell_refusal(self, kind: Kind, actor: str, fields: Mapping[str, object]) -> None:
        """Somebody tried what they may not. Nothing waits for it: a refusal is one with or without the audit log."""
        signed = fields.get("signed")
        extra: dict[str, str | int | bool] = {"book": self.ledger.book}
        if isinstance(signed, SignedObject):
            extra["signer"] = signed.key_id
        entry = AuditEntry(
            op=f"governance.{kind}",
            result=ErrorCode.NO_CAPABILITY.value,
            ts=rfc3339(self.hours.unix()),
            actor=actor,
            extra=extra,
        )

        async def tell() -> None:
            await self._announce(entry)

        Deferred.fromCoroutine(tell()).addErrback(_unsettled)

    def _next(self, kind: Kind, actor: str, **fields: object) -> Record:
        return self.book.next(self.hours.unix(), kind=kind, actor=actor[:200], **fields)

    def _check_room(self, kind: Kind) -> None:
        if kind == "propose" and not self.book.room(vital=False):
            raise unavailable("the book of governance is nearly full", "archive it, and begin a new one")

    def _check_spans(self, change: Change) -> None:
        """What has to last has lasted by the steady clock too, whatever the dates of records say."""
        breaks_tie = change.what == "tiebreak" and change.commit is not None
        if breaks_tie and change.case is not None and not self.hours.is_over(_DEADLOCK, change.case.proposal.id):
            raise refused("this is no deadlock yet", "after 24 hours without a decision")

    def _note(self, record: Record) -> None:
        """Write down a permission's use at once; the audit log hears of it as soon as it can."""
        self._check_doubt()
        if self._waiting is not None:
            raise unavailable("a decision is being written down", "come back in a moment")
        change = self.ledger.prepare(record)
        self.book.append(record)
        self._waiting = (record, change)
        self._take_effect()
        self._untold.append(record)
        self.settle_later()

    def settle_later(self) -> None:
        """Settle without anybody waiting for it."""
        Deferred.fromCoroutine(self.settle()).addErrback(_unsettled)

    async def _settle(self) -> None:
        self._check_doubt()
        while self._untold:
            await self._tell(self._untold[0])
            del self._untold[0]
        if self._waiting is not None:
            await self._tell(self._waiting[0])
            self._take_effect()

    async def _tell(self, record: Record) -> None:
        """At least once: after a crash the log may have it twice, with the same number."""
        await self._announce(self._event_of(record))

    def _event_of(self, record: Record) -> AuditEntry:
        change = self._waiting[1] if self._waiting is not None and self._waiting[0] is record else None
        case = change.case if change is not None else self.ledger.cases.get(record.proposal)
        what = change.what if change is not None else (record.event or record.kind)
        extra: dict[str, str | int | bool] = {
            BOOK: self.ledger.book or (record.genesis.book if record.genesis is not None else ""),
            BOOK_RECORDS: record.seq + 1,
            BOOK_HEAD: self.book.hash_of(record.seq),
        }
        if record.signed is not None:
            extra |= who_signed(record.signed)
        tenant = ""
        if case is not None:
            proposal = case.proposal
            extra |= {"proposal": proposal.id, "action": proposal.action, "scope": proposal.scope, "state": case.state}
            tenant = proposal.scope.removeprefix(TENANT) if proposal.scope != GLOBAL else ""
        if what in VERBS:
            extra["disputed"] = what != "resolve"
        return AuditEntry(
            op=f"governance.{what}", result="ok", ts=rfc3339(record.at), tenant=tenant, actor=record.actor, extra=extra
        )

    def _take_effect(self) -> None:
        """What waits is in effect from now on."""
        if self._waiting is None:
            return
        (_record, change), self._waiting = self._waiting, None
        case, what = change.case, change.what
        before = self.ledger.cases.get(case.proposal.id) if case is not None else None
        if change.commit is not None:
            change.commit()
        self._spans()
        state = case.state if case is not None and (before is None or before.state != case.state) else ""
        if state == "executed" and case is not None and case.proposal.change.get("freeze") == "on":
            what = "freeze"
        self._noted(what, state)
        proposal = case.proposal.id if case is not None else ""
        _log.info("governance: {what}", event="kms_governance", what=what, proposal=proposal, state=state)

    def _spans(self) -> None:
        """Begin to measure what has begun."""
        for freeze in self.ledger.freezes.values():
            self.hours.begin(FREEZE, freeze.proposal, freeze.since, self.ledger.profile.freeze_s)
        for case in self.ledger.open_cases():
            if case.state == "pending":
                self.hours.begin(_DEADLOCK, case.proposal.id, case.opened_at, DEADLOCK_S)
                if (tie := case.tiebreak) is not None:
                    self.hours.begin(_LOCK, case.proposal.id, tie.at, LOCK_S)

    # what time does

    def _schedule(self) -> None:
        if self._timer is None and not self._stopped and (self.ledger.freezes or self.ledger.open_cases()):
            self._timer = self._clock.callLater(TICK_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        ticked = Deferred.fromCoroutine(self.overdue())
        ticked.addErrback(_unsettled)
        ticked.addBoth(lambda _done: self._schedule())

    async def overdue(self) -> None:
        """Note what ended by itself: proposals that ran out, locks that opened, freezes that are over."""
        at = self.hours.unix()
        for case in self.ledger.open_cases():
            name = case.proposal.id
            if case.is_over(at):
                await self._act("event", "", event="expire", proposal=name)
                self.hours.forget(name)
            elif self.hours.is_over(_LOCK, name):
                await self._act("event", "", event="carry", proposal=name)
        for freeze in list(self.ledger.freezes.values()):
            if self.hours.is_over(FREEZE, freeze.proposal):
                await self._act("event", "", event="thaw", proposal=freeze.proposal)
                self.hours.forget(freeze.proposal)


def _unsettled(failure: Failure) -> None:
    """Tried again with the next thing that happens; what is no refusal of ours is a fault, and logged as one."""
    if failure.check(RonError):
        why = failure.getErrorMessage()
        _log.warn("governance waits: {why}", event="kms_governance_unsettled", why=why)
    else:
        _log.failure("governance could not go on", failure, event="kms_governance_unsettled")
