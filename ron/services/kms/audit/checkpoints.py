"""The signed checkpoints on disk, and the anchor: what the newest said, kept where the log's files are not.

In: checkpoints. Out: they are on disk when `add` returns. Blocks. Whoever takes away the end of the log and the newest
checkpoint with it has to reach the anchor too; what a backend's sealed counter or a witness holds, he cannot.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ron.crypto.merkle import EMPTY_ROOT
from ron.kernel.files import private_dir, sync_dir, write_private
from ron.services.kms.ports import Checkpoint

FILE = "checkpoints.jsonl"
_MAX_LINE = 512 * 1024
_Count = Annotated[int, Meta(ge=0)]
_Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class BadCheckpointError(ValueError):
    """The checkpoints that are kept are not those that were made."""


class Kept(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One line. number: from 1, without a gap."""

    number: _Count
    size: _Count
    root: _Hex
    note: str

    def checkpoint(self) -> Checkpoint:
        """Without its number."""
        return Checkpoint(self.size, bytes.fromhex(self.root), self.note.encode())


class Anchor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """number: of the newest checkpoint, 0 before the first. size, root: of that."""

    number: _Count = 0
    size: _Count = 0
    root: _Hex = EMPTY_ROOT.hex()


def anchor_of(one: Kept) -> Anchor:
    """What is noted outside of `one`, the newest."""
    return Anchor(number=one.number, size=one.size, root=one.root)


def kept(number: int, checkpoint: Checkpoint) -> Kept:
    """`checkpoint` as the `number`th."""
    return Kept(number=number, size=checkpoint.size, root=checkpoint.root.hex(), note=checkpoint.note.decode())


class CheckpointFile:
    """`path`, one JSON line a checkpoint, 0600. Call `scan` to its end before all else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes = 0

    def scan(self, *, mend: bool = True) -> Iterator[Kept]:
        """All that there are now, the oldest first. A torn last line is cut away, or with `mend` False passed over.
        Raises BadCheckpointError for what is none."""
        if not self._path.exists():
            return
        torn = False
        with self._path.open("rb") as lines:
            end = self._path.stat().st_size
            while self._bytes < end:
                line = lines.readline(_MAX_LINE)
                torn = not line.endswith(b"\n")
                if torn:
                    break
                yield _decoded(line)
                self._bytes += len(line)
        if torn and mend:
            os.truncate(self._path, self._bytes)

    def add(self, one: Kept) -> None:
        """Durably. Raises OSError; then nothing of it stays."""
        private_dir(self._path.parent)
        new = not self._path.exists()
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            line = msgspec.json.encode(one) + b"\n"
            # a try before this one may have left something
            os.ftruncate(handle, self._bytes)
            written = 0
            while written < len(line):
                written += os.pwrite(handle, line[written:], self._bytes + written)
            os.fdatasync(handle)
            self._bytes += len(line)
        finally:
            os.close(handle)
        if new:
            sync_dir(self._path.parent)


def newest_size(path: Path) -> int:
    """How many records the last checkpoint in the file says there are; 0 where that cannot be told. It is there to show
    progress by: nothing of it is checked."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _MAX_LINE))
            return _decoded(file.read().split(b"\n")[-2]).size
    except (OSError, IndexError, BadCheckpointError):
        return 0


def read_anchor(path: Path) -> Anchor | None:
    """None where there is none. Raises BadCheckpointError for what is none."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Anchor)
    except FileNotFoundError:
        return None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadCheckpointError(f"{path.name} is no anchor") from None


def write_anchor(path: Path, anchor: Anchor) -> None:
    """Durably, whole or not at all."""
    write_private(path, msgspec.json.encode(anchor) + b"\n")


def _decoded(line: bytes) -> Kept:
    try:
        return msgspec.json.decode(line, type=Kept)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadCheckpointError("a line among the checkpoints that is none") from None
