"""Random bytes for receipts and ids, by the block.

In: a source. Out: bytes that were never handed out before.
"""

from __future__ import annotations

from collections.abc import Callable


class Entropy:
    """Random bytes by the block: a system call for each receipt would cost more than the rest of a recv.

    (It releases the interpreter lock, and has to queue behind the writer thread to get it back.)
    """

    BLOCK_BYTES = 4096

    def __init__(self, random_bytes: Callable[[int], bytes]) -> None:
        self._random_bytes = random_bytes
        self._block = b""
        self._used = 0

    def take(self, count: int) -> bytes:
        """`count` bytes (at most a block) that were never handed out before."""
        if self._used + count > len(self._block):
            self._block, self._used = self._random_bytes(self.BLOCK_BYTES), 0
        self._used += count
        return self._block[self._used - count : self._used]
