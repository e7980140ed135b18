"""Disputes: who marks them, what is to be said of them and by when, and how they end (GOVERNANCE §7). Pure.

In: a signer's statement, what is known of its subject. Out: the dispute as it is then; `RonError` for what may not be
said. Nothing is rolled back by any of it: a remedy is a proposal of its own.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ron.kernel.units import DAY_S, HOUR_S
from ron.proto.errors import bad_request, conflict
from ron.proto.governance import Signer, Statement
from ron.services.kms.governance.signers import AUDITOR, refused

# The goals of the specification: heard within an hour, sorted within a day, decided within another day.
HEARD_S = HOUR_S
SORTED_S = DAY_S
DECIDED_S = DAY_S
MAX_DISPUTES = 500
MAX_TIMES = 4
# Each a day more, with its reason on record.
MAX_EXTENSIONS = 3
VERBS = frozenset({"dispute", "acknowledge", "triage", "extend", "resolve"})
Goal = Literal["acknowledge", "triage", "resolve"]


class Due(NamedTuple):
    """What is to be said next, and until when (Unix seconds)."""

    goal: Goal
    until: int


class Dispute(NamedTuple):
    """A mark, made at `at`; times: how often. heard_at, sorted_at: when somebody acknowledged and sorted it, 0 for not
    yet. extended: days more. resolution: what was published about it, None while it is open."""

    statement: Statement
    at: int
    times: int = 1
    resolution: str | None = None
    heard_at: int = 0
    sorted_at: int = 0
    extended: int = 0

    @property
    def due(self) -> Due | None:
        """None for one that is resolved."""
        if self.resolution is not None:
            return None
        if not self.heard_at:
            return Due("acknowledge", self.at + HEARD_S)
        if not self.sorted_at:
            return Due("triage", self.at + SORTED_S)
        return Due("resolve", self.sorted_at + (1 + self.extended) * DECIDED_S)


def said(statement: Statement, one: Signer, known: Dispute | None, at: int, *, room: bool) -> Dispute | None:
    """What becomes of `known` when `one` says this at `at`; None where nothing does. room: for one more subject."""
    if not (statement.subject and statement.reason) or statement.proposal or statement.digest:
        raise bad_request("a dispute names its subject and a reason, and no proposal", "--subject request:ID")
    if statement.verb in ("dispute", "resolve"):
        if one.role != AUDITOR or statement.role != AUDITOR:
            raise refused("disputes are marked and resolved by an auditor")
    elif statement.role != one.role:
        raise refused("this signer has another role")
    if statement.verb == "dispute":
        return _marked(statement, known, at, room=room)
    if known is None or known.resolution is not None:
        raise conflict("there is no open dispute about this")
    if statement.verb == "resolve":
        return known._replace(resolution=statement.reason)
    return _on_its_way(statement, known, at)


def _marked(statement: Statement, known: Dispute | None, at: int, *, room: bool) -> Dispute | None:
    if known is not None and known.resolution is None:
        return None
    times = known.times + 1 if known is not None else 1
    if times > MAX_TIMES or not room:
        raise conflict("too many disputes are marked", "resolve it among people, and archive the book")
    return Dispute(statement, at, times)


def _on_its_way(statement: Statement, known: Dispute, at: int) -> Dispute | None:
    if statement.verb == "acknowledge":
        return None if known.heard_at else known._replace(heard_at=at)
    if statement.verb == "triage":
        return None if known.sorted_at else known._replace(heard_at=known.heard_at or at, sorted_at=at)
    if known.extended >= MAX_EXTENSIONS:
        raise conflict("it was extended as often as it may be", "resolve it")
    return known._replace(extended=known.extended + 1)
