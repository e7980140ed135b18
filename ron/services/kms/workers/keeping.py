"""One batch of a worker's records on its way to the disk: the worker is told once the fate of each is known.

In: what the log says of each, in any order. Out: one `Kept`.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ron.proto.errors import ErrorCode, RonError
from ron.services.kms.workers.frames import Batch, Kept, Trouble


class Keeping:
    """tell: the worker."""

    __slots__ = ("_at", "_complete", "_left", "_number", "_refused", "_tell")

    def __init__(self, batch: Batch, tell: Callable[[Kept], None]) -> None:
        self._number = batch.number
        self._tell = tell
        self._at = [-1] * len(batch.entries)
        self._refused: dict[int, Trouble] = {}
        self._left = len(batch.entries)
        self._complete = False

    def refuse(self, place: int, error: RonError) -> None:
        """This one is not kept: whoever waits for it hears why."""
        self._refused[place] = Trouble.of(error)
        self._one_less()

    def refuse_all(self, error: RonError) -> None:
        """None of them is."""
        for place in range(len(self._at)):
            self.refuse(place, error)
        self.all_told()

    def follow(self, place: int, outcome: Deferred[int]) -> None:
        """This one is on its way."""
        outcome.addCallbacks(self._kept, self._not_kept, callbackArgs=(place,), errbackArgs=(place,))

    def all_told(self) -> None:
        """No more come: tell the worker, at once where nothing is under way."""
        self._complete = True
        self._finish()

    def _kept(self, index: int, place: int) -> None:
        self._at[place] = index
        self._one_less()

    def _not_kept(self, failure: Failure, place: int) -> None:
        error = failure.value
        if not isinstance(error, RonError):
            error = RonError(ErrorCode.INTERNAL, "the record was not kept")
        self.refuse(place, error)

    def _one_less(self) -> None:
        self._left -= 1
        self._finish()

    def _finish(self) -> None:
        # an empty batch had notes alone: it is told, too, for the worker counts its batches
        if self._complete and not self._left:
            self._tell(Kept(self._number, tuple(self._at), self._refused))
