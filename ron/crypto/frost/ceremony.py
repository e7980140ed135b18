"""A ceremony as one participant sees it: dealings, shares, confirmations, and complaints in between. Sans-IO.

In: raw messages with the sender the channel vouches for. Out: messages to send (`outgoing`), at the end a `KeyShare`,
or `failure` with names. The states are drawn in docs/threshold.rst, and a test compares the two. Secret shares leave in
messages marked `private`, which the caller encrypts to their one receiver; the others are the caller's to broadcast.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from automat import TypeMachineBuilder

from ron.crypto import group
from ron.crypto.frost import dealing, shamir, wire
from ron.crypto.frost.dealing import Dealing
from ron.crypto.frost.errors import InvalidGroupError, Reason, Refused
from ron.crypto.frost.keys import DIGEST_BYTES, GroupKey, KeyShare
from ron.crypto.frost.plan import Plan
from ron.crypto.frost.wire import Frame, Kind

_MEMBER = struct.Struct(">H")


class Steps(Protocol):
    """What moves a ceremony."""

    def all_dealt(self) -> None: ...
    def all_shared(self) -> None: ...
    def all_confirmed(self) -> None: ...
    def give_up(self) -> None: ...


class Progress:
    """The core of the state machine. state: as drawn in docs/threshold.rst."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = "dealing"


# (state, event) → next. Whatever is not here cannot happen.
TRANSITIONS: dict[tuple[str, str], str] = {
    ("dealing", "all_dealt"): "sharing",
    ("dealing", "give_up"): "failed",
    ("sharing", "all_shared"): "confirming",
    ("sharing", "give_up"): "failed",
    ("confirming", "all_confirmed"): "done",
    ("confirming", "give_up"): "failed",
}
STATES = ("dealing", "sharing", "confirming", "done", "failed")
_OVER = ("done", "failed")
# Messages overtake each other: what comes before its state is kept, what comes after it is refused.
_HANDLED: dict[Kind, tuple[str, ...]] = {
    Kind.DEALING: ("dealing",),
    Kind.SHARE: ("sharing",),
    Kind.CONFIRMATION: ("confirming",),
    Kind.COMPLAINT: ("sharing", "confirming"),
    Kind.JUSTIFICATION: ("sharing", "confirming"),
}
_OF_RECEIVERS = (Kind.CONFIRMATION, Kind.COMPLAINT)


def _enter(name: str) -> Any:
    def act(_steps: Steps, progress: Progress) -> None:
        progress.state = name

    return act


def _build() -> Any:
    builder = TypeMachineBuilder(Steps, Progress)
    states = {name: builder.state(name) for name in STATES}
    for (before, event), after in TRANSITIONS.items():
        states[before].upon(getattr(Steps, event)).to(states[after])(_enter(after))
    return builder.build()


machine = _build()


class Outgoing(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message to send. to: the only receiver, or None for every other participant. private: encrypt it."""

    to: int | None
    private: bool
    body: bytes


class Ceremony:
    """One participant's part. Made by `ron.crypto.frost.dkg` and `ron.crypto.frost.resharing`."""

    def __init__(
        self,
        plan: Plan,
        me: int,
        *,
        constant: bytes | None = None,
        share: KeyShare | None = None,
        token_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """`constant` is what a dealer deals, `share` the one that a refresh adds to."""
        if me not in plan.participants or (constant is not None) != (me in plan.dealers):
            raise InvalidGroupError("not a participant of this plan, or with another part in it")
        self.plan = plan
        self.me = me
        self.group: GroupKey | None = None
        """The group that comes out, from the state `confirming` on."""
        self.pending: KeyShare | None = None
        """The new share from the state `confirming` on: to be stored, and not to be used before `done`."""
        self.failure: Refused | None = None
        self.complaints: set[tuple[int, int]] = set()
        """(who complained, of whom): one of the two is at fault, and over several ceremonies it shows which."""
        self._session = plan.digest
        self._progress = Progress()
        self._step: Steps = machine(self._progress)
        self._old = share
        self._outbox: list[Outgoing] = []
        self._early: list[Frame] = []
        self._seen: dict[tuple[Kind, int, bytes], bytes] = {}
        self._dealings: dict[int, Dealing] = {}
        self._shares: dict[int, bytearray] = {}
        self._confirmed: set[int] = set()
        self._justified: set[tuple[int, int]] = set()
        self._polynomial: shamir.Polynomial | None = None
        if constant is not None:
            self._polynomial, own = dealing.deal(plan, me, constant, token_bytes=token_bytes)
            self._dealings[me] = own
            self._send(Kind.DEALING, own.encode())
            self._advance()

    @property
    def state(self) -> str:
        """One of `STATES`."""
        return self._progress.state

    @property
    def result(self) -> KeyShare | None:
        """The new share, once every receiver has confirmed that it has one; None for a mere dealer."""
        return self.pending if self.state == "done" else None

    @property
    def waiting_for(self) -> frozenset[int]:
        """Who has to send something before this participant can go on."""
        if self.state == "dealing":
            return frozenset(self.plan.dealers) - set(self._dealings)
        if self.state == "sharing":
            return frozenset(self.plan.dealers) - set(self._shares)
        missing = set(self.plan.receivers) - self._confirmed if self.state == "confirming" else set()
        # Who complains cannot confirm before the dealer has answered.
        unanswered = {pair for pair in self.complaints - self._justified if pair[0] in missing}
        return frozenset(missing - {accuser for accuser, _ in unanswered} | {accused for _, accused in unanswered})

    def outgoing(self) -> list[Outgoing]:
        """What is to be sent by now, each message once. Look here after every `receive`, refused or not."""
        taken, self._outbox = self._outbox, []
        return taken

    def receive(self, sender: int, raw: bytes) -> None:
        """A message from a participant. Raises `Refused`: its `members` count, which need not be this `sender`.

        A `harmless` refusal changes nothing. After a `BAD_SHARE`, which is complained of, its dealer has one more
        chance, before everybody's eyes. Every other refusal ends the ceremony: `state` is then `failed`.
        """
        try:
            self._early.append(self._admit(sender, raw))
            self._drain()
        except Refused as refused:
            if not refused.harmless and refused.reason is not Reason.BAD_SHARE:
                self._fail(refused)
            raise

    def give_up(self) -> None:
        """The caller's deadline has passed: fail, naming those who kept silent. Does nothing when it is over."""
        if self.state not in _OVER:
            self._fail(Refused(Reason.SILENT, self.waiting_for, f"nothing came while {self.state}"))

    def _admit(self, sender: int, raw: bytes) -> Frame:
        """The message, when its sender may send one of its kind, and not for the second time."""
        if self.state in _OVER:
            raise Refused(Reason.OUT_OF_PLACE, [sender], f"the ceremony is {self.state}")
        if sender not in self.plan.participants or sender == self.me:
            raise Refused(Reason.STRANGER, [sender], "not another participant of this ceremony")
        message = wire.unframe(raw, session=self._session, sender=sender)
        allowed = self.plan.receivers if message.kind in _OF_RECEIVERS else self.plan.dealers
        if message.kind not in _HANDLED or sender not in allowed:
            raise Refused(Reason.OUT_OF_PLACE, [sender], "a message that has no place here")
        self._refuse_second(message)
        if STATES.index(self.state) > STATES.index(_HANDLED[message.kind][-1]):
            raise Refused(Reason.OUT_OF_PLACE, [sender], f"a {message.kind.name.lower()} while {self.state}")
        return message

    def _refuse_second(self, message: Frame) -> None:
        # Now and not when its state comes: a message kept for later must not turn out to be none.
        if message.kind is Kind.CONFIRMATION:
            wire.check_length(message, DIGEST_BYTES)
        about = _about(self.plan, message)
        digest = hashlib.sha512(message.body).digest()
        first = self._seen.setdefault((message.kind, message.sender, about), digest)
        if first is not digest:
            reason = Reason.REPEATED if first == digest else Reason.EQUIVOCATED
            raise Refused(reason, [message.sender], "a second message in the place of the first")

    def _drain(self) -> None:
        """Handle whatever the state allows, until it allows nothing more."""
        complained: Refused | None = None
        while message := self._next():
            try:
                _HANDLERS[message.kind](self, message)
            except Refused as refused:
                if refused.reason is not Reason.BAD_SHARE:
                    raise
                complained = refused
            self._advance()
        if complained:
            raise complained

    def _next(self) -> Frame | None:
        for place, message in enumerate(self._early):
            if self.state in _HANDLED[message.kind]:
                return self._early.pop(place)
        return None

    def _advance(self) -> None:
        if self.state == "dealing" and len(self._dealings) == len(self.plan.dealers):
            self._step.all_dealt()
            self._share_out()
        if self.state == "sharing" and (
            self.me not in self.plan.receivers or len(self._shares) == len(self.plan.dealers)
        ):
            self._combine()
            self._step.all_shared()
        if self.state == "confirming" and self._confirmed == set(self.plan.receivers):
            self._step.all_confirmed()
            self._wipe()

    def _handle_dealing(self, message: Frame) -> None:
        self._dealings[message.sender] = dealing.dealing_in(self.plan, message)

    def _share_out(self) -> None:
        """To every receiver its share, with what this dealer was told the dealings are."""
        if self._polynomial is None:
            return
        for receiver in self.plan.receivers:
            share = self._polynomial.at(receiver)
            if receiver == self.me:
                self._shares[self.me] = bytearray(share)
            else:
                self._send(Kind.SHARE, share + self._told(), to=receiver)

    def _told(self) -> bytes:
        return b"".join(self._dealings[dealer].digest() for dealer in self.plan.dealers)

    def _handle_share(self, message: Frame) -> None:
        share, told = message.body[: group.SCALAR_BYTES], message.body[group.SCALAR_BYTES :]
        whole = len(told) == len(self._told())
        if whole and told != self._told():
            self._dispute(message.sender, told)
        if not whole or not dealing.share_fits(self.plan, self._dealings[message.sender], self.me, share):
            self.complaints.add((self.me, message.sender))
            self._send(Kind.COMPLAINT, _MEMBER.pack(message.sender))
            raise Refused(Reason.BAD_SHARE, [message.sender], "a share that does not fit its dealing")
        self._shares[message.sender] = bytearray(share)

    def _dispute(self, sender: int, told: bytes) -> None:
        """Either somebody told two members different things, or `sender` does not tell what it heard."""
        size = dealing.DIGEST_BYTES
        differing = [
            dealer
            for place, dealer in enumerate(self.plan.dealers)
            if told[place * size : (place + 1) * size] != self._dealings[dealer].digest()
        ]
        raise Refused(Reason.DISPUTED, [sender, *differing], "not the same dealings were broadcast to all")

    def _handle_complaint(self, message: Frame) -> None:
        (accused,) = _MEMBER.unpack(message.body)
        self.complaints.add((message.sender, accused))
        if accused == self.me and self._polynomial is not None:
            # The one who complains has, or should have, this share already: nobody learns what he must not know.
            answer = _MEMBER.pack(message.sender) + self._polynomial.at(message.sender)
            self._justified.add((message.sender, self.me))
            self._send(Kind.JUSTIFICATION, answer)

    def _handle_justification(self, message: Frame) -> None:
        accuser, share = _MEMBER.unpack_from(message.body)[0], message.body[_MEMBER.size :]
        if not dealing.share_fits(self.plan, self._dealings[message.sender], accuser, share):
            raise Refused(Reason.UNJUSTIFIED, [message.sender], "a share that does not fit, before everybody's eyes")
        self._justified.add((accuser, message.sender))
        if accuser == self.me:
            # Asked for or not: a dealer that answers first and then sends something wrong must not leave us waiting.
            self._shares[message.sender] = bytearray(share)

    def _combine(self) -> None:
        ordered = [self._dealings[dealer] for dealer in self.plan.dealers]
        self.group = dealing.resulting_group(self.plan, ordered)
        if self.me not in self.plan.receivers:
            return
        secret = shamir.scalar_total(bytes(share) for share in self._shares.values())
        if self._old is not None:
            secret = group.scalar_add(secret, self._old.secret)
        self.pending = KeyShare(identifier=self.me, secret=secret, group=self.group)
        self._confirmed.add(self.me)
        self._send(Kind.CONFIRMATION, self.group.digest)

    def _handle_confirmation(self, message: Frame) -> None:
        if self.group is None or message.body != self.group.digest:
            raise Refused(Reason.DISPUTED, [message.sender], "another group than this participant's came out")
        self._confirmed.add(message.sender)

    def _send(self, kind: Kind, body: bytes, to: int | None = None) -> None:
        framed = wire.frame(kind, self._session, self.me, body)
        self._outbox.append(Outgoing(to=to, private=to is not None, body=framed))

    def _fail(self, refused: Refused) -> None:
        self.failure = refused
        self._step.give_up()
        self._wipe()

    def _wipe(self) -> None:
        if self._polynomial is not None:
            self._polynomial.wipe()
        for share in self._shares.values():
            shamir.wipe(share)
        self._early.clear()
        self._old = None


_HANDLERS: dict[Kind, Callable[[Ceremony, Frame], None]] = {
    Kind.DEALING: Ceremony._handle_dealing,
    Kind.SHARE: Ceremony._handle_share,
    Kind.CONFIRMATION: Ceremony._handle_confirmation,
    Kind.COMPLAINT: Ceremony._handle_complaint,
    Kind.JUSTIFICATION: Ceremony._handle_justification,
}


def _about(plan: Plan, message: Frame) -> bytes:
    """The member that a complaint or its answer is about, checked; nothing for other kinds. Raises `Refused`."""
    if message.kind not in (Kind.COMPLAINT, Kind.JUSTIFICATION):
        return b""
    complaint = message.kind is Kind.COMPLAINT
    wire.check_length(message, _MEMBER.size + (0 if complaint else group.SCALAR_BYTES))
    about = message.body[: _MEMBER.size]
    (member,) = _MEMBER.unpack(about)
    if member == message.sender or member not in (plan.dealers if complaint else plan.receivers):
        raise Refused(Reason.MALFORMED, [message.sender], "a complaint that concerns nobody")
    return about
