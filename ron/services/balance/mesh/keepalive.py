"""Pings: whether the other end of a link lives, how its clock goes, and what its book's digest is."""

from __future__ import annotations

from collections import deque

import msgspec

from ron.services.balance.mesh.clocks import Sample, sample
from ron.services.balance.mesh.wire import Key, Number

PING, PONG = "mesh/ping", "mesh/pong"
# Pings of one link that may still be answered.
OUTSTANDING = 8


class Ping(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """From the dialler. sent_us: Unix, by its clock."""

    sent_us: Number
    digest: Key


class Pong(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """From the listener, by its clock but for `sent_us`, which is the ping's."""

    sent_us: Number
    arrived_us: Number
    answered_us: Number
    digest: Key


class Pings:
    """Those of one link that were not answered yet. A pong to no ping of ours is nothing."""

    def __init__(self) -> None:
        self._sent_us: deque[int] = deque(maxlen=OUTSTANDING)

    def ping(self, now_us: int, digest: bytes) -> Ping:
        """One more."""
        self._sent_us.append(now_us)
        return Ping(now_us, digest)

    def answered(self, pong: Pong) -> bool:
        """Whether it answers one of ours; from then on it does not."""
        if pong.sent_us not in self._sent_us:
            return False
        self._sent_us.remove(pong.sent_us)
        return True


def measured(pong: Pong, now_us: int) -> Sample | None:
    """What the pong, back at `now_us`, says of the other clock; None for times that cannot be."""
    return sample(pong.sent_us, pong.arrived_us, pong.answered_us, now_us)
