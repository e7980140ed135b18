"""Where a log is kept: in files, or under amnesia in memory. The log itself does not know which.

In: leaves, tiles, checkpoints. Out: what was put, again. Blocks: it is called in the log's own thread, but for `read`
and `tile`, which may be called at any time.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from ron.crypto.merkle import HASH_BYTES
from ron.kernel.files import DirectoryLock, private_dir, sync_dir, write_private
from ron.proto.errors import not_found, unavailable
from ron.services.kms.audit.checkpoints import (
    FILE,
    Anchor,
    CheckpointFile,
    Kept,
    read_anchor,
    write_anchor,
)
from ron.services.kms.audit.files import SEGMENT_BYTES, LeafFiles
from ron.services.kms.audit.tiles import TILE_BYTES, WIDTH, tile_path

# Leaves that amnesia keeps; the hashes, 33 bytes a record, it keeps all.
MEMORY_BYTES = 64 * 1024 * 1024
LEAVES = "leaves"
COSIGNED = "cosigned.note"
# The verifier keys, to be handed to auditors; the newest checkpoint with what witnesses said to it.
Aside = Literal["log.vkeys", "cosigned.note"]


class Shelf(Protocol):
    """Leaves, tiles, checkpoints and the anchor of one log."""

    def open(self) -> None:
        """Take it. Raises `RonError` (Conflict) while another process has it, OSError."""

    def leaves(self) -> Iterator[bytes]:
        """All, once, before anything is added. Raises BadLeafError where it goes no further."""

    def checkpoints(self) -> Iterator[Kept]:
        """All, once, before one is added. Raises BadCheckpointError."""

    def anchor(self) -> Anchor | None:
        """None: there is none. Raises BadCheckpointError."""

    def anchored(self) -> bool:
        """Is there a place for an anchor?"""

    def append(self, leaves: Sequence[bytes]) -> None:
        """Durably, all or none. Raises OSError."""

    def probe(self) -> None:
        """Raises OSError unless there is room."""

    def add_checkpoint(self, one: Kept) -> None:
        """Durably. Raises OSError. The anchor comes after it: ahead of the log it would call the log broken."""

    def set_anchor(self, anchor: Anchor) -> None:
        """Durably. Raises OSError."""

    def read(self, start: int, count: int, limit_bytes: int) -> list[bytes]:
        """Leaves from `start`, at least one where there is one. Raises `RonError` (NotFound) for what was let go."""

    def put_tile(self, level: int, number: int, hashes: bytes) -> None:
        """A tile is full. It is kept for `tile` at once and for good after `flush_tiles`."""

    def flush_tiles(self, *, missing_only: bool = False) -> None:
        """Write what was put. missing_only: a tile that is there and says something else stays, for it is evidence.
        What the disk does not take is tried again next time."""

    def first_altered(self) -> int | None:
        """The first leaf that is not what its tile on the disk says, of those that `missing_only` left there."""

    def tile(self, level: int, number: int) -> bytes:
        """A full tile. Raises `RonError` (StoreUnavailable) when it cannot be read."""

    def keep(self, name: Aside, content: bytes) -> None:
        """Put something beside the log that can be had again elsewhere. Raises OSError."""

    def kept(self, name: Aside) -> bytes | None:
        """What was put there, if it still is."""

    def close(self) -> None:
        """Let others have it."""


class DiskShelf:
    """`directory`: `leaves/`, `tile/`, `checkpoints.jsonl`, for one process at a time. anchor: a file that is best on
    another disk, or None."""

    def __init__(self, directory: Path, anchor: Path | None, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        if anchor is not None and anchor.absolute().is_relative_to(directory.absolute()):
            raise ValueError("an anchor within the log's directory holds nothing")
        self._directory = directory
        self._anchor = anchor
        self._leaves = LeafFiles(directory / LEAVES, segment_bytes=segment_bytes)
        self._checkpoints = CheckpointFile(directory / FILE)
        self._lock: DirectoryLock | None = None
        self._full: dict[tuple[int, int], bytes] = {}

    def open(self) -> None:
        """See `Shelf.open`."""
        private_dir(self._directory)
        self._lock = DirectoryLock(self._directory)
        private_dir(self._directory / LEAVES)
        # the folders themselves outlive a power cut
        for directory in (self._directory, self._directory.parent):
            sync_dir(directory)

    def leaves(self) -> Iterator[bytes]:
        """See `Shelf.leaves`."""
        return self._leaves.scan()

    def checkpoints(self) -> Iterator[Kept]:
        """See `Shelf.checkpoints`."""
        return self._checkpoints.scan()

    def anchor(self) -> Anchor | None:
        """See `Shelf.anchor`."""
        return read_anchor(self._anchor) if self._anchor is not None else None

    def anchored(self) -> bool:
        """See `Shelf.anchored`."""
        return self._anchor is not None

    def append(self, leaves: Sequence[bytes]) -> None:
        """See `Shelf.append`."""
        self._leaves.append(leaves)

    def probe(self) -> None:
        """See `Shelf.probe`."""
        self._leaves.probe()

    def add_checkpoint(self, one: Kept) -> None:
        """See `Shelf.add_checkpoint`."""
        self._checkpoints.add(one)

    def set_anchor(self, anchor: Anchor) -> None:
        """See `Shelf.set_anchor`."""
        if self._anchor is not None:
            write_anchor(self._anchor, anchor)

    def read(self, start: int, count: int, limit_bytes: int) -> list[bytes]:
        """See `Shelf.read`."""
        try:
            return self._leaves.read(start, count, limit_bytes)
        except OSError as error:
            raise unavailable(f"the audit log cannot be read: {error.strerror}") from None

    def put_tile(self, level: int, number: int, hashes: bytes) -> None:
        """See `Shelf.put_tile`."""
        self._full[level, number] = hashes

    def flush_tiles(self, *, missing_only: bool = False) -> None:
        """See `Shelf.flush_tiles`. Not synced: a tile is made anew from the leaves where it is missing or wrong."""
        for (level, number), hashes in self._full.copy().items():
            path = self._directory / tile_path(level, number)
            there = _read_tile(path)
            if there is not None and there != hashes and missing_only:
                continue
            if there != hashes:
                try:
                    _write_tile(path, hashes)
                except OSError:
                    return
            del self._full[level, number]

    def first_altered(self) -> int | None:
        """See `Shelf.first_altered`."""
        for (level, number), hashes in sorted(self._full.items()):
            there = _read_tile(self._directory / tile_path(level, number))
            if level == 0 and there is not None:
                for place in range(0, TILE_BYTES, HASH_BYTES):
                    if there[place : place + HASH_BYTES] != hashes[place : place + HASH_BYTES]:
                        return number * WIDTH + place // HASH_BYTES
        return None

    def tile(self, level: int, number: int) -> bytes:
        """See `Shelf.tile`."""
        hashes = self._full.get((level, number)) or _read_tile(self._directory / tile_path(level, number))
        if hashes is None:
            raise unavailable("a tile of the audit log cannot be read", "start the service anew: it makes them again")
        return hashes

    def keep(self, name: Aside, content: bytes) -> None:
        """See `Shelf.keep`."""
        if self.kept(name) != content:
            write_private(self._directory / name, content)

    def kept(self, name: Aside) -> bytes | None:
        """See `Shelf.kept`."""
        try:
            return (self._directory / name).read_bytes()
        except OSError:
            return None

    def close(self) -> None:
        """See `Shelf.close`."""
        self._leaves.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None


class MemoryShelf:
    """Amnesia: nothing is on a disk and nothing is left at the end. The oldest leaves go when they are too many."""

    def __init__(self, *, limit_bytes: int = MEMORY_BYTES) -> None:
        self._limit = limit_bytes
        # the index of the first that is kept, and these; replaced as one, for a reader in another thread
        self._window: tuple[int, list[bytes]] = (0, [])
        self._bytes = 0
        self._tiles: dict[tuple[int, int], bytes] = {}
        self._aside: dict[Aside, bytes] = {}

    def open(self) -> None:
        """Nothing to take."""

    def leaves(self) -> Iterator[bytes]:
        """None: it begins with the process."""
        return iter(())

    def checkpoints(self) -> Iterator[Kept]:
        """None."""
        return iter(())

    def anchor(self) -> Anchor | None:
        """None."""
        return None

    def anchored(self) -> bool:
        """No."""
        return False

    def append(self, leaves: Sequence[bytes]) -> None:
        """See `Shelf.append`."""
        first, kept = self._window
        kept.extend(leaves)
        self._bytes += sum(map(len, leaves))
        if self._bytes > self._limit:
            gone = 0
            # a quarter at once: each time that is a copy of the rest
            while self._bytes > self._limit * 3 // 4:
                self._bytes -= len(kept[gone])
                gone += 1
            self._window = (first + gone, kept[gone:])

    def probe(self) -> None:
        """There is room."""

    def add_checkpoint(self, one: Kept) -> None:
        """The log itself knows the newest."""

    def set_anchor(self, anchor: Anchor) -> None:
        """There is none."""

    def read(self, start: int, count: int, limit_bytes: int) -> list[bytes]:
        """See `Shelf.read`."""
        first, kept = self._window
        if start < first:
            raise not_found(f"records before {first} were let go: this service keeps nothing on disk")
        found = kept[start - first :][:count]
        used = 0
        for number, leaf in enumerate(found):
            used += len(leaf)
            if used > limit_bytes and number:
                return found[:number]
        return found

    def put_tile(self, level: int, number: int, hashes: bytes) -> None:
        """See `Shelf.put_tile`."""
        self._tiles[level, number] = hashes

    def flush_tiles(self, *, missing_only: bool = False) -> None:
        """They are where they are."""

    def first_altered(self) -> int | None:
        """None: nobody else can write them."""
        return None

    def tile(self, level: int, number: int) -> bytes:
        """See `Shelf.tile`."""
        return self._tiles[level, number]

    def keep(self, name: Aside, content: bytes) -> None:
        """See `Shelf.keep`."""
        self._aside[name] = content

    def kept(self, name: Aside) -> bytes | None:
        """See `Shelf.kept`."""
        return self._aside.get(name)

    def close(self) -> None:
        """Forget all."""
        self._window, self._tiles, self._aside = (0, []), {}, {}


def _read_tile(path: Path) -> bytes | None:
    """None for what is not there or is no full tile."""
    try:
        hashes = path.read_bytes()
    except OSError:
        return None
    return hashes if len(hashes) == TILE_BYTES else None


def _write_tile(path: Path, hashes: bytes) -> None:
    private_dir(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        temporary.write_bytes(hashes)
        temporary.chmod(0o600)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
