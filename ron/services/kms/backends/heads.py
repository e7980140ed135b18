"""Where key stores stand, for the audit log: how many changes each has seen, and a digest that names the last.

In: a store's own counter and digest, or those of several. Out: one counter and one digest with the backends' names in
it, and each store's own again. The names are there because a config may name another backend than the log remembers:
what was said of one says nothing of another. A digest of 32 bytes is the file backend's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, NamedTuple, Protocol, runtime_checkable

import msgspec
from msgspec import Meta

from ron.services.kms.backends.errors import RolledBackError

PLAIN = "file"
DIGEST_BYTES = 32


class Head(NamedTuple):
    """counter: changes, from 0. digest: 32 bytes in a store, any in the log."""

    counter: int
    digest: bytes


@runtime_checkable
class Counting(Protocol):
    """A backend whose own store counts its changes."""

    def head(self) -> tuple[int, bytes]:
        """How many, and a digest."""

    def check_head(self, counter: int, digest: bytes) -> None:
        """Raises `RolledBackError` unless it is the store that was there once, then or later."""


_Counter = Annotated[int, Meta(ge=0)]
_Digest = Annotated[bytes, Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
_Named = dict[Annotated[str, Meta(max_length=32)], tuple[_Counter, _Digest]]


def told(name: str, counter: int, digest: bytes) -> Head:
    """What the backend `name` says of itself. digest: 32 bytes."""
    return Head(counter, digest if name == PLAIN else _encoded({name: (counter, digest)}))


def joined(heads: Iterable[tuple[int, bytes]]) -> Head:
    """Several as one, whose counter is the sum: it grows with each. Raises `RolledBackError` as `own`."""
    named: _Named = {}
    for counter, digest in heads:
        named |= _named(counter, digest)
    if set(named) == {PLAIN}:
        return Head(*named[PLAIN])
    return Head(sum(counter for counter, _digest in named.values()), _encoded(named))


def own(name: str, counter: int, digest: bytes) -> Head | None:
    """What (counter, digest) says of the backend `name`; None where it speaks of others only.

    Raises `RolledBackError` for what nobody says: it came out of the audit log, so it was not said by this program.
    """
    found = _named(counter, digest).get(name)
    return None if found is None else Head(*found)


def older(name: str, at: int, known: int) -> RolledBackError:
    """The store of `name` is at change `at`, and did not come of change `known`."""
    return RolledBackError(
        f"the key store of the backend {name} is at change {at}, and that is not what came of change {known}, "
        "which the audit log remembers",
        hint="an older or another copy was restored: put the newest one back, or decide a rollback by quorum",
    )


def _encoded(named: _Named) -> bytes:
    return msgspec.msgpack.encode(named, order="sorted")


def _named(counter: int, digest: bytes) -> _Named:
    if len(digest) == DIGEST_BYTES:
        return {PLAIN: (counter, digest)}
    try:
        return msgspec.msgpack.decode(digest, type=_Named)
    except msgspec.MsgspecError:
        raise RolledBackError(
            "the audit log says of the key store what this program cannot read",
            hint="was the log written by a newer version? start that one",
        ) from None
