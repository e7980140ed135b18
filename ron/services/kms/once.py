"""An op_id is one act, however often it is asked for (I-14): what is remembered of an act, and what that says. Pure.

In: who asks, for what, under which op_id, and what is remembered under it. Out: do it, give the answer of then, or
`RonError`. The table that remembers across restarts is the store's.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

import msgspec
from blake3 import blake3

from ron.kernel.units import DAY_S
from ron.proto.errors import RonError, conflict, unavailable

# Longer than any retry of a client that means the same act; the store forgets what is older.
KEPT_S = 30 * DAY_S


class Remembered(NamedTuple):
    """An act. what: `act_digest`. at_s: Unix time at which it was asked for. answer: encoded, None while under way."""

    what: bytes
    at_s: float
    answer: bytes | None = None


class Step(enum.Enum):
    """What is to be done with a request."""

    DO = "do"
    ANSWER = "answer"


def act_digest(caller: str, kind: str, body: msgspec.Struct) -> bytes:
    """What a request asks for, in 32 bytes: two are one act only if all but their op_id is the same.

    caller: the capability's id. A digest, because a request may hold a key to wrap.
    """
    fields: dict[str, Any] = msgspec.to_builtins(body)
    fields.pop("op_id", None)
    return blake3(msgspec.json.encode([caller, kind, fields], order="deterministic")).digest()


def judge(known: Remembered | None, what: bytes, now_s: float, *, kept_s: float = KEPT_S) -> Step:
    """Do it, or give `known.answer`. Raises `RonError`: Conflict for an op_id of another act, StoreUnavailable while
    the same one is under way.

    One that is older than kept_s never was. A clock set back keeps it longer, which is the safe side.
    """
    if known is None or now_s - known.at_s > kept_s:
        return Step.DO
    if known.what != what:
        raise conflict("this op_id was used for another act", "a new act needs a new op_id")
    if known.answer is None:
        raise _under_way()
    return Step.ANSWER


def _under_way() -> RonError:
    return unavailable("this act is under way", "ask again with the same op_id")
