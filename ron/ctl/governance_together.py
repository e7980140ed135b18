"""`ronctl governance approve --folder` and `aggregate`, as they run: letters looked for, a deadline, the service told.

In: the service, a folder, a key and a share. Out: the proposal as it stands then. Rules and cryptography are in
`governance_joint`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click
import msgspec
from twisted.internet.task import deferLater

from ron.ctl.control import confirm
from ron.ctl.governance_ceremony import POLL_S, read_share
from ron.ctl.governance_joint import Call, Part, Quorum, Session, called, check_call, topic_of
from ron.ctl.governance_post import Postbox
from ron.ctl.governance_text import question
from ron.proto.errors import RonError, conflict, not_found
from ron.proto.governance import JointStatement, Proposal, ProposalView
from ron.services.kms.governance.canonical import decode_canonical
from ron.services.kms.governance.signers import key_id

if TYPE_CHECKING:
    from nacl.signing import SigningKey

    from ron.sdk.governance import Governance

T = TypeVar("T")


class Together(NamedTuple):
    """with_: roles or key ids of the others, for whoever begins; empty for who joins. wait_s: for the others.

    now: Unix time.
    """

    folder: Path
    share: Path
    with_: tuple[str, ...]
    wait_s: float
    reason: str = ""
    ask_first: bool = False
    now: Callable[[], float] = time.time


class Calls:
    """The calls about a proposal that lie in a folder. key: one's own; None only reads."""

    def __init__(self, folder: Path, quorum: Quorum, proposal: str, key: SigningKey | None) -> None:
        self._quorum = quorum
        self._box = Postbox(folder, list(quorum.numbers), topic_of(proposal), key)
        self._found: list[tuple[int, Call]] = []

    def put(self, call: Call) -> None:
        """Begin."""
        self._box.go_on()
        self._box.put(msgspec.json.encode(call))

    def found(self) -> list[tuple[int, Call]]:
        """All of them with who wrote each, oldest first by their own time."""
        for post in self._box.new(own=True):
            try:
                call = msgspec.json.decode(post.body, type=Call)
                _statement(call)
            except (msgspec.MsgspecError, RonError):
                continue
            self._found.append((self._quorum.numbers[post.sender], call))
        return sorted(self._found, key=lambda one: _at(one[1]))


def _at(call: Call) -> int:
    return _statement(call).at


async def approve_together(
    reactor: Any, service: Governance, proposal: str, key: SigningKey, how: Together
) -> ProposalView:
    """One's own part in a joint approval; whoever began it hands it in. Raises `RonError`, naming who kept silent."""
    quorum, content = await _read(service, proposal)
    own = key_id(bytes(key.verify_key))
    share = read_share(how.share, key)
    calls = Calls(how.folder, quorum, proposal, key)
    if how.with_:
        call = called(quorum, proposal, content, [own, *map(quorum.found, how.with_)], how.reason, how.now())
        began = quorum.number_of(own)
    else:
        began, call = await _until(
            reactor, how, lambda: _asked(how, quorum, calls, key, own), lambda: "anybody who began"
        )
    check_call(call, quorum, proposal, content, own, how.now())
    if how.ask_first:
        by = ", ".join(quorum.told(quorum.number_of(one)) for one in _statement(call).by)
        click.echo(f"{question(decode_canonical(content, Proposal))}\ntogether: {by}", err=True)
        confirm("approve?")
    if how.with_:
        calls.put(call)
    session = Session(how.folder, quorum, call, began, key)
    part = Part(session, share, quorum.number_of(own))
    try:
        await _until(reactor, how, lambda: part.step() or None, lambda: _silent(session))
        if how.with_:
            await _until(reactor, how, lambda: _looked(session), lambda: _silent(session))
    finally:
        part.drop()
    signed = session.signed()
    return await service.vote(proposal, signed) if signed is not None else await service.proposal(proposal)


async def aggregate(
    service: Governance, proposal: str, folder: Path, *, now: Callable[[], float] = time.time
) -> ProposalView:
    """Put a joint approval together from what lies in the folder, and hand it in. Anybody may.

    Raises `RonError`: NotFound where no session is whole, Conflict naming whose share does not fit.
    """
    quorum, content = await _read(service, proposal)
    blamed: RonError | None = None
    for began, call in reversed(Calls(folder, quorum, proposal, None).found()):
        try:
            check_call(call, quorum, proposal, content, None, now())
            session = Session(folder, quorum, call, began)
            session.look()
            signed = session.signed()
        except RonError as error:
            blamed = blamed or error
            continue
        if signed is not None:
            return await service.vote(proposal, signed)
    raise blamed or not_found("nothing in that folder is a whole approval of this proposal")


async def _read(service: Governance, proposal: str) -> tuple[Quorum, bytes]:
    """Who decides, and the bytes of what is decided, whatever else the service shows of it."""
    standing, view = await service.standing(), await service.proposal(proposal)
    content = view.object.encode()
    read = decode_canonical(content, Proposal)
    if read.id != proposal or read.book != standing.book:
        raise conflict("the service shows another proposal than was asked for", "do not sign; look at its log")
    return Quorum(standing), content


def _asked(how: Together, quorum: Quorum, calls: Calls, key: SigningKey, own: str) -> tuple[int, Call] | None:
    """The newest call that names us and that we have not answered."""
    for began, call in reversed(calls.found()):
        if own not in _statement(call).by or began == quorum.number_of(own):
            continue
        if not Session(how.folder, quorum, call, began, key).box.is_begun():
            return began, call
    return None


def _looked(session: Session) -> bool | None:
    session.look()
    return True if session.signed() is not None else None


def _silent(session: Session) -> str:
    return ", ".join(session.waits_for) or session.quorum.told(session.began)


def _statement(call: Call) -> JointStatement:
    return decode_canonical(call.statement.encode(), JointStatement)


async def _until(reactor: Any, how: Together, look: Callable[[], T | None], silent: Callable[[], str]) -> T:
    """What `look` finds in the end. Raises `RonError` (Conflict) naming who kept silent."""
    end_s = reactor.seconds() + how.wait_s
    while (found := look()) is None:
        if reactor.seconds() >= end_s:
            raise conflict(
                f"nothing came from {silent()}", "all of you approve at the same time, with the same --folder"
            )
        await deferLater(reactor, POLL_S, lambda: None)
    return found
