"""Checking a log without its service: every record, every root, every checkpoint's signatures, and new keys by the old.

In: the keys that are trusted; a log's directory, or leaves and checkpoints from elsewhere, in order. Out: how far it
holds, and the first thing that does not. Nothing is written. The tree is made anew, so that each checkpoint of it is
consistent with those before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ron.crypto.merkle import EMPTY_ROOT, HASH_BYTES, CompactRange, leaf_hash
from ron.crypto.notes import BadNoteError, Head, KeySet, NoteKey, UnknownSignerError, open_by, parse_head, parse_vkey
from ron.services.kms.audit import continuity
from ron.services.kms.audit.checkpoints import FILE, BadCheckpointError, CheckpointFile, Kept, newest_size
from ron.services.kms.audit.files import LeafFiles
from ron.services.kms.audit.leaves import BadLeafError, KeySeqs, decode, key_of
from ron.services.kms.audit.shelf import LEAVES
from ron.services.kms.audit.tiles import TILE_BYTES, WIDTH, tile_path
from ron.services.kms.ports import AuditEntry

_EVERY = 4096
# Checkpoints whose roots are remembered: a continuity record follows its own within a moment.
_REMEMBERED = 1024


class BrokenLogError(Exception):
    """index: of the first record that is wrong, None when that cannot be told. why: without it."""

    def __init__(self, index: int | None, why: str) -> None:
        super().__init__(why)
        self.index = index
        self.why = why


class Verdict(NamedTuple):
    """records: how many hold. root: of these. checkpoints: whose signatures hold; others: by keys that are not trusted,
    whose roots hold. signed: how many records the newest that holds covers. broken: None when all is well."""

    records: int
    root: bytes
    checkpoints: int
    others: int
    signed: int
    broken: BrokenLogError | None


class Claim(NamedTuple):
    """A continuity record's head that is still to be proved. record: its index."""

    record: int
    head: Head


class Step(NamedTuple):
    """Records checked, and how many there should be at least. verdict: at the end."""

    records: int
    of: int
    verdict: Verdict | None = None


class Verification:
    """The log so far. keys: trusted, any of the sets. noted: heads from elsewhere (noted before, signed by witnesses)
    which must hold. hint: what a tile says that a leaf's hash is, to name a record by; it is believed in nothing.

    claims: heads that continuity records name and no checkpoint here has: whoever can get a proof should (`Claim`).
    """

    def __init__(
        self,
        keys: Sequence[KeySet],
        *,
        noted: Sequence[Head] = (),
        hint: Callable[[int], bytes | None] = lambda _index: None,
    ) -> None:
        self.tree = CompactRange()
        self.claims: list[Claim] = []
        self._keys = [tuple(one) for one in keys]
        # by an old key, the one that follows it
        self._after: dict[tuple[NoteKey, ...], tuple[NoteKey, ...]] = {}
        self._seen: deque[tuple[int, bytes]] = deque([(0, EMPTY_ROOT)], maxlen=_REMEMBERED)
        self._noted = list(noted)
        self._hint = hint
        self._seqs = KeySeqs()
        self._suspect: int | None = None
        self._checkpoints = 0
        self._others = 0
        self._signed = 0
        self._reached: Head | None = None

    def add(self, leaf: bytes) -> None:
        """The next record. Raises BrokenLogError."""
        index = self.tree.size
        try:
            entry = decode(leaf)
        except BadLeafError as error:
            raise BrokenLogError(index, str(error)) from None
        if not self._seqs.accept(key_of(entry), entry.kid_seq):
            raise BrokenLogError(index, "its number among those of its key does not follow the one before")
        hashed = leaf_hash(leaf)
        if self._suspect is None and self._hint(index) not in (None, hashed):
            self._suspect = index
        self.tree.append(hashed)
        self._new_keys(index, entry)
        for head in self._noted:
            if head.size == self.tree.size:
                self._compare(head)

    def opened(self, note: bytes) -> Head | None:
        """What a checkpoint says, None for one by keys that are not trusted. Raises BrokenLogError for none at all."""
        try:
            text, keys = open_by(note, self._keys)
            head = parse_head(text)
        except UnknownSignerError:
            return None
        except BadNoteError as error:
            raise BrokenLogError(None, f"a checkpoint is none: {error}") from None
        self._retire(tuple(keys))
        return head

    def _retire(self, keys: tuple[NoteKey, ...]) -> None:
        """These have begun to sign: from here on those before them are anybody's."""
        gone = {old for old, new in self._after.items() if new == keys}
        for old in gone:
            del self._after[old]
            if old in self._keys:
                self._keys.remove(old)
            self._retire(old)

    def reached(self, head: Head) -> None:
        """The tree is now as large as a checkpoint that trusted keys signed. Raises BrokenLogError."""
        self._compare(head)
        if self._reached is not None and self._reached.origin != head.origin:
            raise BrokenLogError(None, "a checkpoint is of another log than the one before it")
        self._checkpoints += 1
        self._seen.append((head.size, head.root))
        self._signed, self._reached, self._suspect = head.size, head, None

    def reached_other(self, size: int, root: bytes) -> None:
        """The same of one by keys that are not trusted."""
        self._compare(Head("", size, root))
        self._seen.append((size, root))
        self._others += 1

    def finish(self) -> None:
        """There is no more. Raises BrokenLogError when there should be."""
        for head in self._noted:
            if head.size > self.tree.size:
                raise BrokenLogError(None, f"the noted checkpoint has {head.size} records, here are fewer")
        if self.tree.size and not self._checkpoints:
            raise BrokenLogError(None, "no checkpoint by keys that are trusted covers it")

    def verdict(self, broken: BrokenLogError | None = None) -> Verdict:
        """As it stands."""
        size, root = self.tree.size, self.tree.root()
        return Verdict(size, root, self._checkpoints, self._others, self._signed, broken)

    def _compare(self, head: Head) -> None:
        if head.root != self.tree.root():
            last = head.size - 1
            why = f"it is not the one that was signed (of records {self._signed} to {last})"
            if self._suspect is None:
                why = f"a record from {self._signed} to {last} is not the one that was signed"
            raise BrokenLogError(self._suspect, why)

    def _new_keys(self, index: int, entry: AuditEntry) -> None:
        """A continuity record by trusted keys makes its new keys trusted. Others say nothing to us: an auditor who has
        the newest keys alone meets those of the older ones."""
        note = continuity.of(entry)
        for keys in self._keys if note is not None else ():
            try:
                record = continuity.verify(note or b"", keys)
            except BadNoteError:
                continue
            if record.head.size > index:
                raise BrokenLogError(index, "its continuity record is of a longer log than this one was then")
            if (record.head.size, record.head.root) not in self._seen:
                self.claims.append(Claim(index, record.head))
            if record.new not in self._keys:
                self._keys.insert(0, record.new)
            self._after[keys] = record.new
            return


def read_keys(text: str) -> list[KeySet]:
    """The keys of a file: a `vkey` a line, `#` begins a comment; an empty line ends a set, all of which must sign.

    Raises BadNoteError."""
    sets: list[list[NoteKey]] = [[]]
    for line in map(str.strip, text.splitlines()):
        if not line:
            sets.append([])
        elif not line.startswith("#"):
            sets[-1].append(parse_vkey(line))
    found: list[KeySet] = [tuple(keys) for keys in sets if keys]
    if not found:
        raise BadNoteError("there is no verifier key in it")
    return found


def is_log(directory: Path) -> bool:
    """Does this look like the directory of such a log?"""
    return (directory / LEAVES).is_dir() or (directory / FILE).is_file()


def verify_directory(directory: Path, keys: Sequence[KeySet], noted: Sequence[Head] = ()) -> Iterator[Step]:
    """Steps, the last with the verdict. The service may be running. Raises OSError for what cannot be read."""
    verification = Verification(keys, noted=noted, hint=_Hints(directory))
    broken, expected = None, newest_size(directory / FILE)
    try:
        # how many there are is looked up before the leaves: what they cover is there by then
        checkpoints = _Checkpoints(verification, CheckpointFile(directory / FILE).scan(mend=False))
        checkpoints.pass_reached()
        for leaf in LeafFiles(directory / LEAVES).scan(mend=False):
            verification.add(leaf)
            checkpoints.pass_reached()
            if verification.claims:
                # the service makes a checkpoint right before such a record
                raise BrokenLogError(verification.claims[0].record, "its continuity record is of another history")
            if verification.tree.size % _EVERY == 0:
                yield Step(verification.tree.size, max(expected, verification.tree.size))
        checkpoints.finish()
        verification.finish()
    except BrokenLogError as error:
        broken = error
    except (BadLeafError, BadCheckpointError) as error:
        broken = BrokenLogError(None, str(error))
    records = verification.tree.size
    yield Step(records, records, verification.verdict(broken))


class _Checkpoints:
    """Those of a directory, each when the tree is as large."""

    def __init__(self, verification: Verification, kept: Iterator[Kept]) -> None:
        self._verification = verification
        self._kept = kept
        self._last: Kept | None = None
        self._next = next(kept, None)
        self._newest_is_ours = True

    def pass_reached(self) -> None:
        """Check those of the tree as it is."""
        while self._next is not None and self._next.size == self._verification.tree.size:
            self._in_order(self._next)
            self._check(self._next)
            self._last, self._next = self._next, next(self._kept, None)

    def finish(self) -> None:
        """There are no more records."""
        if self._next is not None:
            self._in_order(self._next)
            raise BrokenLogError(None, f"checkpoint {self._next.number} has {self._next.size} records, here are fewer")
        if not self._newest_is_ours:
            raise BrokenLogError(None, "the newest checkpoint is not by keys that are trusted")

    def _check(self, one: Kept) -> None:
        said = one.checkpoint()
        head = self._verification.opened(said.note)
        self._newest_is_ours = head is not None
        if head is None:
            self._verification.reached_other(said.size, said.root)
            return
        if (head.size, head.root) != (said.size, said.root):
            raise BrokenLogError(None, f"checkpoint {one.number} is signed for another head than it says")
        self._verification.reached(head)

    def _in_order(self, one: Kept) -> None:
        number, size = (self._last.number, self._last.size) if self._last is not None else (0, -1)
        if one.number != number + 1 or one.size <= size:
            raise BrokenLogError(None, f"checkpoint {one.number} does not follow checkpoint {number}")


class _Hints:
    """Leaf hashes as the tiles of a directory have them; None where there is no whole tile."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._number = -1
        self._hashes = b""

    def __call__(self, index: int) -> bytes | None:
        number, place = divmod(index, WIDTH)
        if number != self._number:
            self._number, self._hashes = number, self._read(number)
        return self._hashes[place * HASH_BYTES : (place + 1) * HASH_BYTES] or None

    def _read(self, number: int) -> bytes:
        try:
            hashes = (self._directory / tile_path(0, number)).read_bytes()
        except OSError:
            return b""
        return hashes if len(hashes) == TILE_BYTES else b""
