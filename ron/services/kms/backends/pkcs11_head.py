"""How many changes a token has seen of ours: one data object in it, which is made anew with each of them.

In: a session, what is about to change. Out: a head that grows, for the audit log to remember. PKCS#11 has no counter of
its own to ask, so this one is as old as the token's other objects: a token that was put back as a whole shows it. The
change is counted before it is made: what returned was counted, what was killed half-way counts and is harmless.

Several hosts may share a token, and PKCS#11 locks nothing: two of them that count at the same time leave two heads.
Both are then part of the past of the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from blake3 import blake3
from msgspec import Meta
from pkcs11 import Attribute, Object, ObjectClass, Session

from ron.services.kms.backends import pkcs11_objects as objects
from ron.services.kms.backends.pkcs11_records import APPLICATION, MAX_RECORD_BYTES, DamagedRecordError

LABEL = "ron-kms head"
HISTORY = 48
"""Earlier heads in one: how far the audit log may lag behind and still be compared."""
_CONTEXT = b"ron-kms/1 token head"
_Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
_Counter = Annotated[int, Meta(ge=0, le=2**62)]


class TokenHead(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """digest: of this change and all before it. before: earlier heads, the newest last. v: of this format."""

    v: Literal[1] = 1
    counter: _Counter
    digest: _Digest
    before: Annotated[tuple[tuple[_Counter, _Digest], ...], Meta(max_length=HISTORY)] = ()


START = TokenHead(counter=0, digest=blake3(_CONTEXT).digest())
"""Of a token in which nothing was changed yet."""


def decode(raw: bytes) -> TokenHead:
    """Raises `DamagedRecordError` for what the token did not get from us."""
    try:
        if len(raw) > MAX_RECORD_BYTES:
            raise ValueError
        return msgspec.msgpack.decode(raw, type=TokenHead)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise DamagedRecordError(LABEL) from None


def successor(found: Sequence[TokenHead], change: bytes) -> TokenHead:
    """The head after all that were found, at least one. change: what is done. Pure."""
    past = {(counter, digest) for one in found for counter, digest in (*one.before, (one.counter, one.digest))}
    ordered = sorted(past)
    digest = blake3(b"".join((_CONTEXT, *(one.digest for one in sorted(found, key=_place)), change))).digest()
    return TokenHead(counter=ordered[-1][0] + 1, digest=digest, before=tuple(ordered[-HISTORY:]))


def newest(found: Sequence[TokenHead]) -> TokenHead:
    """The one to go by."""
    return max(found, key=_place, default=START)


def knows(found: Sequence[TokenHead], counter: int, digest: bytes) -> bool:
    """Was it in this state once, or is it now? Pure."""
    return any((counter, digest) in (*one.before, (one.counter, one.digest)) for one in found or (START,))


def read(session: Session) -> list[TokenHead]:
    """All that are in the token: none in a new one. Raises `DamagedRecordError`."""
    return [decode(objects.value_of(one)) for one in _all(session)]


def count(session: Session, change: bytes) -> TokenHead:
    """One more change; the head that is in the token from now on. Raises `DamagedRecordError`."""
    old = _all(session)
    made = successor([decode(objects.value_of(one)) for one in old] or [START], change)
    objects.put(session, LABEL, msgspec.msgpack.encode(made))
    for one in old:
        one.destroy()
    return made


def _place(head: TokenHead) -> tuple[int, bytes]:
    return head.counter, head.digest


def _all(session: Session) -> list[Object]:
    at = {Attribute.CLASS: ObjectClass.DATA, Attribute.APPLICATION: APPLICATION, Attribute.LABEL: LABEL}
    return list(session.get_objects(at))
