"""Remembers what was redeemed for as long as it could be taken again, so that nothing is redeemed twice.

In: a nonce and the second until which it matters. Out: whether it is the first time. Bounded; full refuses.
"""

from __future__ import annotations

import enum


class Claim(enum.Enum):
    """What became of a claim."""

    FIRST = "first"
    AGAIN = "again"
    FULL = "full"


class Spent:
    """At most `limit` nonces, in one set per second they end in: forgetting costs nothing per nonce."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_end: dict[int, set[str]] = {}
        self._count = 0
        self.forgotten_until_unix = 0

    def __len__(self) -> int:
        return self._count

    def claim(self, nonce: str, until_unix: int) -> Claim:
        """Take `nonce`, once. The caller has checked that `until_unix` lies ahead."""
        nonces = self._by_end.get(until_unix)
        if nonces is not None and nonce in nonces:
            return Claim.AGAIN
        if self._count >= self._limit:
            return Claim.FULL
        if nonces is None:
            nonces = self._by_end[until_unix] = set()
        nonces.add(nonce)
        self._count += 1
        return Claim.FIRST

    def forget(self, now_s: float) -> None:
        """Drop all that ends by `now_s`. What ended at or before `forgotten_until_unix` is not known any more, and must
        be refused even when the clock is set back."""
        for until_unix in [second for second in self._by_end if second <= now_s]:
            self._count -= len(self._by_end.pop(until_unix))
            self.forgotten_until_unix = max(self.forgotten_until_unix, until_unix)
