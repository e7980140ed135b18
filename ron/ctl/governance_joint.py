"""`ronctl governance approve --folder`: several signers approve a proposal with one signature of their joint key.

In: a proposal as each of them reads it, shares, a folder of letters. Out: a `JointStatement`, signed; or who gave a
share that does not fit. Two rounds of RFC 9591: nonces are in the memory of each signer's process and on no disk, so
all of them are there at the same time. Whoever begins gathers; anybody who reads the folder can put the whole together.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from ron.crypto.frost.errors import FrostError, InvalidGroupError, Refused
from ron.crypto.frost.session import Coordinator, Request, Signer, package_signers
from ron.ctl.governance_post import Postbox
from ron.proto.errors import RonError, bad_request, conflict
from ron.proto.governance import MAX_OBJECT, GovernanceView, JointStatement, SignedObject
from ron.services.kms.governance.canonical import canonical, decode_canonical, digest
from ron.services.kms.governance.joint import group_of, numbered
from ron.services.kms.governance.signers import key_id

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from ron.crypto.frost.keys import GroupKey, KeyShare

SKEW_S = 300
_NONCE_BYTES = 32
_COMMITMENT, _PACKAGE, _SHARE = 1, 2, 3


class Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What whoever begins asks the others for. statement: canonical JSON. nonce: 32 fresh bytes, in hex."""

    statement: Annotated[str, Meta(max_length=MAX_OBJECT)]
    nonce: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Quorum:
    """Those who vote, and their joint key, as the service says. Raises `RonError` where they have none."""

    def __init__(self, standing: GovernanceView) -> None:
        if not standing.group:
            raise bad_request("the signers have no joint key", "ronctl governance keygen --threshold, action signers")
        self.book = standing.book
        self.group: GroupKey = group_of(standing.group)
        self.group_text = standing.group
        self.threshold = standing.threshold
        publics = {one.public: one for one in standing.signers if one.role != "auditor"}
        self.members = numbered(list(publics))
        self.numbers = {public: number for number, public in self.members.items()}
        self._roles = {one.key_id: (one.role, one.public) for one in publics.values()}
        if tuple(self.members) != self.group.members:
            raise conflict("the joint key is not that of those who vote", "ronctl governance list --signers")

    def found(self, name: str) -> str:
        """The id of who is meant by a role or a key id. Raises `RonError` (BadRequest) where that is nobody or two."""
        fits = [one for one, (role, _public) in self._roles.items() if name in (one, role)]
        if len(fits) != 1:
            raise bad_request(f"{name} is not one of those who vote", "--with ROLE or --with KEY-ID")
        return fits[0]

    def number_of(self, name: str) -> int:
        """The FROST identifier of a key id."""
        return self.numbers[self._roles[name][1]]

    def told(self, number: int) -> str:
        """A member for people."""
        name = key_id(self.members[number])
        return f"{self._roles[name][0]} ({name})"


def topic_of(proposal: str) -> str:
    """Under which letters about a proposal are found."""
    return hashlib.sha256(b"ron-kms/1 joint approval\0" + proposal.encode()).hexdigest()


class Session:
    """One signature, as the folder has it: what is asked for, what came. It holds no secret. Call `look` for more.

    began: the number of whoever began it.
    """

    def __init__(self, folder: Path, quorum: Quorum, call: Call, began: int, key: SigningKey | None = None) -> None:
        self.quorum = quorum
        self.statement = decode_canonical(call.statement.encode(), JointStatement)
        self.content = call.statement
        self.began = began
        self.request = Request(message=digest(call.statement.encode()), nonce=bytes.fromhex(call.nonce))
        self.name = self.request.session(quorum.group)
        self.box = Postbox(folder, list(quorum.numbers), self.name.hex(), key)
        self.signers = [quorum.number_of(one) for one in self.statement.by]
        self._coordinator = Coordinator(quorum.group, self.request, began, self.signers)
        self.package: bytes | None = None
        self._packed = False
        self._early: list[tuple[int, bytes]] = []

    def look(self) -> None:
        """Read what came. Raises `RonError` (Conflict) naming whoever sent what does not belong there."""
        for post in self.box.new():
            self.take(self.quorum.numbers[post.sender], post.body)

    def take(self, sender: int, body: bytes) -> None:
        """A letter: its first byte says what it is."""
        kind, raw = body[:1], body[1:]
        if kind == bytes((_PACKAGE,)) and sender == self.began:
            self.package = self.package or raw
            return
        if kind == bytes((_SHARE,)) and not self._packed:
            # letters overtake each other
            self._early.append((sender, body))
            return
        try:
            self._coordinator.receive(sender, raw)
        except Refused as refused:
            if not refused.harmless:
                raise self.blamed(refused) from None

    @property
    def waits_for(self) -> list[str]:
        """Whose letter is missing, for people."""
        return [self.quorum.told(number) for number in sorted(self._coordinator.waiting_for)]

    def packed(self) -> bytes | None:
        """Round two's message, once all commitments are there."""
        try:
            made = self._coordinator.package()
        except InvalidGroupError:
            return None
        self._packed = True
        early, self._early = self._early, []
        for sender, body in early:
            self.take(sender, body)
        return made

    def signed(self) -> SignedObject | None:
        """The whole, once all shares are there. Raises `RonError` (Conflict) naming whose share does not fit."""
        if self.packed() is None or self._coordinator.waiting_for:
            return None
        try:
            signature = self._coordinator.signature()
        except Refused as refused:
            raise self.blamed(refused) from None
        return SignedObject(
            object=self.content, key_id=self.statement.signer, signature=base64.b64encode(signature).decode()
        )

    def blamed(self, refused: Refused) -> RonError:
        """For people: who it was."""
        names = ", ".join(self.quorum.told(number) for number in refused.members if number in self.quorum.members)
        return conflict(
            f"no joint signature: {refused.reason.value} by {names}",
            "sign with others, or each by themselves: ronctl governance approve without --folder",
        )


class Part:
    """One signer's part in a session. Call `step` until it says that it is done."""

    def __init__(self, session: Session, share: KeyShare, own: int) -> None:
        if share.group != session.quorum.group or share.identifier != own:
            raise bad_request(
                "this share is of another joint key", "ronctl governance list --signers shows which holds"
            )
        self.session = session
        self._own = own
        self._signer = Signer(share, session.request, session.began)
        self._has_signed = False
        commitment = self._signer.commitment()
        session.take(own, bytes((_COMMITMENT,)) + commitment)
        session.box.put(bytes((_COMMITMENT,)) + commitment)

    def step(self) -> bool:
        """Read and answer. True once our share is given. Raises `RonError` (Conflict) where that must not be."""
        self.session.look()
        if self._has_signed:
            return True
        package = self.session.package
        if self._own == self.session.began and (packed := self.session.packed()) is not None:
            package = packed
            self.session.box.put(bytes((_PACKAGE,)) + packed)
        if package is None:
            return False
        self._sign(package)
        return True

    def drop(self) -> None:
        """Wipe the nonces: it came to nothing."""
        self._signer.drop()

    def _sign(self, package: bytes) -> None:
        session = self.session
        try:
            if sorted(package_signers(package, session.name, session.began)) != sorted(session.signers):
                raise conflict("others are to sign than the statement names", "do not sign with whoever began this")
            share = self._signer.sign(session.began, package)
        except FrostError as error:
            raise conflict(f"nothing was signed: {error}", "begin again") from None
        self._has_signed = True
        session.take(self._own, bytes((_SHARE,)) + share)
        session.box.put(bytes((_SHARE,)) + share)


def called(quorum: Quorum, proposal: str, content: bytes, by: Sequence[str], reason: str, now_s: float) -> Call:
    """What begins it: an approval of the proposal whose bytes were read, by these key ids. now_s: Unix time. Raises
    `RonError`."""
    if len(set(by)) < quorum.threshold:
        raise bad_request(f"{quorum.threshold} have to agree", "--with ROLE for each of the others")
    made = {
        "book": quorum.book,
        "signer": key_id(quorum.group.public),
        "by": sorted(set(by)),
        "at": int(now_s),
        "proposal": proposal,
        "digest": digest(content).hex(),
        "reason": reason,
    }
    try:
        statement = msgspec.convert(made, JointStatement)
    except msgspec.ValidationError as error:
        raise bad_request(f"this cannot be said: {error}".replace("`", "")) from None
    return Call(statement=canonical(statement).decode(), nonce=secrets.token_hex(_NONCE_BYTES))


def check_call(
    call: Call, quorum: Quorum, proposal: str, content: bytes, own: str | None, now_s: float
) -> JointStatement:
    """What another signer asks us to sign: an approval of what we have read, by a quorum that we (`own`) are part of.

    Raises `RonError` (Conflict) for anything else.
    """
    statement = decode_canonical(call.statement.encode(), JointStatement)
    expected = (quorum.book, key_id(quorum.group.public), proposal, digest(content).hex())
    if (statement.book, statement.signer, statement.proposal, statement.digest) != expected:
        raise conflict("this asks for a signature under something else", "do not sign; look at the proposal again")
    if list(statement.by) != sorted(set(map(quorum.found, statement.by))) or len(statement.by) < quorum.threshold:
        raise conflict("this does not name a quorum", "do not sign")
    if own is not None and own not in statement.by:
        raise conflict("you are not one of those it names", "only they can sign it")
    if statement.at > now_s + SKEW_S:
        raise conflict("this is of the future", "one of the two clocks is wrong")
    return statement
