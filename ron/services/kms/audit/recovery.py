"""Reading a log from its beginning: is it what its checkpoints and its anchor say?

In: a shelf, the keys that sign checkpoints. Out: where the log stands, what its records said last of what stands beside
it, and the first thing that is wrong with it. What can be read is read whatever is wrong, so that it can be shown.
Blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ron.crypto.merkle import leaf_hash
from ron.crypto.notes import BadNoteError, KeySet, open_by, parse_head
from ron.services.kms.audit.checkpoints import Anchor, BadCheckpointError, Kept, anchor_of
from ron.services.kms.audit.leaves import BadLeafError, KeySeqs, Said, decode, key_of
from ron.services.kms.audit.shelf import Shelf
from ron.services.kms.audit.tiles import Tiles
from ron.services.kms.ports import Checkpoint

# Records read, and how many there should be at least, 0 when nobody knows.
Progress = Callable[[int, int], None]
_EVERY = 16_384


class Recovered(NamedTuple):
    """number: of the newest checkpoint, 0 without one. said: what records said of what stands beside the log. trouble:
    why nothing may be written, None when all is well."""

    tiles: Tiles
    seqs: KeySeqs
    latest: Checkpoint | None
    number: int
    said: Said
    trouble: str | None


def recover(shelf: Shelf, origin: str, keys: Sequence[KeySet], progress: Progress) -> Recovered:
    """Raises OSError for a disk that cannot be read at all."""
    reading = _Reading(shelf, progress)
    reading.leaves()
    reading.rest_of_checkpoints()
    latest = reading.newest(origin, keys)
    reading.anchor()
    trouble = reading.trouble
    shelf.flush_tiles(missing_only=trouble is not None)
    altered = shelf.first_altered() if trouble is not None else None
    if altered is not None:
        trouble = f"{trouble}; record {altered} is the first that its tile does not know"
    return Recovered(reading.tiles, reading.seqs, latest, reading.number, reading.said, trouble)


class _Reading:
    """trouble: the first that was found."""

    def __init__(self, shelf: Shelf, progress: Progress) -> None:
        self.tiles = Tiles(shelf.tile, shelf.put_tile)
        self.seqs = KeySeqs()
        self.number = 0
        self.said = Said()
        self.trouble: str | None = None
        self._shelf = shelf
        self._progress = progress
        self._checked = 0
        self._last: Kept | None = None
        self._checkpoints = self._in_order()
        self._next = next(self._checkpoints, None)

    def leaves(self) -> None:
        """Every leaf that there is, and every root that a checkpoint says."""
        expected = self._anchor_size()
        self._roots()
        try:
            for leaf in self._shelf.leaves():
                self._leaf(leaf)
                self.tiles.append(leaf_hash(leaf))
                self._roots()
                if self.tiles.size % _EVERY == 0:
                    self._shelf.flush_tiles(missing_only=True)
                    self._progress(self.tiles.size, expected)
        except BadLeafError as error:
            self._wrong(str(error))
        self._progress(self.tiles.size, max(expected, self.tiles.size))

    def rest_of_checkpoints(self) -> None:
        """Those of records that are not there."""
        while self._next is not None:
            missing = self._next.size - self.tiles.size
            self._wrong(f"{missing} records are missing after record {self.tiles.size - 1}, which a checkpoint has")
            self._passed()

    def newest(self, origin: str, keys: Sequence[KeySet]) -> Checkpoint | None:
        """The newest checkpoint, if it is this log's own."""
        if self._last is None:
            return None
        checkpoint = self._last.checkpoint()
        try:
            head = parse_head(open_by(checkpoint.note, keys)[0])
        except BadNoteError as error:
            self._wrong(f"the newest checkpoint: {error}")
            return None
        if (head.origin, head.size, head.root) != (origin, checkpoint.size, checkpoint.root):
            self._wrong("the newest checkpoint is of another log or another head")
            return None
        return checkpoint

    def anchor(self) -> None:
        """What was noted outside still holds."""
        try:
            anchor = self._shelf.anchor()
        except BadCheckpointError as error:
            self._wrong(str(error))
            return
        if anchor is not None:
            self._held_by(anchor)
        elif self._shelf.anchored():
            if self.tiles.size or self.number:
                self._wrong("the anchor is gone, and the log is not new")
            else:
                self._shelf.set_anchor(Anchor())

    def _held_by(self, anchor: Anchor) -> None:
        if anchor.size > self.tiles.size:
            self._wrong(f"the anchor knows {anchor.size} records, there are {self.tiles.size}")
        elif anchor.number > self.number:
            self._wrong(f"the anchor knows {anchor.number} checkpoints, there are {self.number}")
        elif self.tiles.root(anchor.size).hex() != anchor.root:
            self._wrong(f"the first {anchor.size} records are not those that the anchor knows")
        elif self.trouble is None and self._last is not None and anchor.number < self.number:
            # a crash came between checkpoint and anchor
            self._shelf.set_anchor(anchor_of(self._last))

    def _leaf(self, leaf: bytes) -> None:
        index = self.tiles.size
        try:
            entry = decode(leaf)
        except BadLeafError as error:
            self._wrong(f"record {index}: {error}")
            return
        if not self.seqs.accept(key_of(entry), entry.kid_seq):
            self._wrong(f"record {index}: its number among those of its key does not follow the one before")
        self.said.note(entry)

    def _roots(self) -> None:
        """The checkpoints of the tree as it is now."""
        while self._next is not None and self._next.size <= self.tiles.size:
            if self.tiles.root(self._next.size).hex() != self._next.root:
                self._wrong(f"a record from {self._checked} to {self._next.size - 1} is not the one that was signed")
            self._checked = self._next.size
            self._passed()

    def _passed(self) -> None:
        self._last = self._next
        self.number += 1
        self._next = next(self._checkpoints, None)

    def _in_order(self) -> Iterator[Kept]:
        """The checkpoints, until one is not the one that follows."""
        last = Kept(number=0, size=0, root="0" * 64, note="")
        try:
            for one in self._shelf.checkpoints():
                if one.number != last.number + 1 or (one.size <= last.size and last.number):
                    self._wrong(f"checkpoint {one.number} does not follow checkpoint {last.number}")
                    return
                yield one
                last = one
        except BadCheckpointError as error:
            self._wrong(str(error))

    def _anchor_size(self) -> int:
        try:
            anchor = self._shelf.anchor()
        except BadCheckpointError:
            return 0
        return anchor.size if anchor is not None else 0

    def _wrong(self, why: str) -> None:
        self.trouble = self.trouble or why
