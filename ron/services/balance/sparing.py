"""How often something is done at another's word: a few times in a row, and then now and again.

In: who or what asks, the time. Out: yes or no. Any member may ask for work; none is to keep the others busy with it.
"""

from __future__ import annotations

from collections.abc import Collection

from ron.kernel.limits import TokenBucket

# A head's descriptor that is not here is asked for so often at first, and more seldom while it is of no use.
ASK_AGAIN_S, ASK_SELDOM_S = 1.0, 16.0


class Sparingly:
    """For each key `often` times in a row, then once in `every_s`. Keys are few, and the caller's to forget."""

    def __init__(self, often: int, every_s: float) -> None:
        self._often = often
        self._every_s = every_s
        self._buckets: dict[str, TokenBucket] = {}

    def may(self, key: str, now_s: float) -> bool:
        """Whether it is done now; then it counts."""
        if key not in self._buckets:
            self._buckets[key] = TokenBucket(1 / self._every_s, self._often, now_s)
        return self._buckets[key].take(1, now_s) == 0.0

    def keep_only(self, keys: Collection[str]) -> None:
        """Forget all others."""
        self._buckets = {key: bucket for key, bucket in self._buckets.items() if key in keys}


class Wanted:
    """A head's descriptor that is not here: when it is looked for. The same one more and more seldom."""

    def __init__(self) -> None:
        self._digest = ""
        self._pause_s = ASK_AGAIN_S
        self._next_s = float("-inf")

    def now(self, digest: str, now_s: float) -> bool:
        """Whether to look for it."""
        if now_s < self._next_s and (digest == self._digest or self._pause_s <= ASK_AGAIN_S):
            return False
        self._pause_s = min(2 * self._pause_s, ASK_SELDOM_S) if digest == self._digest else ASK_AGAIN_S
        self._digest, self._next_s = digest, now_s + self._pause_s
        return True
