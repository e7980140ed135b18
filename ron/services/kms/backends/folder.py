"""The directory of a key store: whole files or none, private, and one process at a time.

In: names and bytes. Out: after `write` and `shred` return, the disk has it so. Mode 0700, files 0600. Blocks.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ron.kernel.files import DirectoryLock, read_private, sync_dir, write_private
from ron.proto.errors import RonError
from ron.services.kms.backends.errors import DamagedError, ForeignFileError

_LOCK = ".lock"
# What `write_private` leaves behind when it is killed before the rename
_TEMPORARY = re.compile(r"\.[a-z0-9]+(\.key)?\.[0-9a-f]{12}\Z")


class KeyFolder:
    """`directory`, made when it is missing. `acquire` first."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock: DirectoryLock | None = None

    def acquire(self) -> None:
        """Raises `RonError` (Conflict) while another process has it."""
        self._lock = DirectoryLock(self.directory)

    def release(self) -> None:
        """Let others have it; more than once is fine."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def sweep(self) -> set[str]:
        """What lies there, once half-written files are gone. Raises `ForeignFileError` for what is no plain file."""
        names = set()
        for entry in list(os.scandir(self.directory)):
            if entry.name == _LOCK:
                continue
            if not entry.is_file(follow_symlinks=False):
                raise ForeignFileError(
                    f"{entry.path} is no file of the key store", hint="nothing else may lie there: move it away"
                )
            if _TEMPORARY.match(entry.name):
                Path(entry.path).unlink()
            else:
                names.add(entry.name)
        return names

    def read(self, name: str, max_bytes: int) -> bytes:
        """All of it. Raises `FileNotFoundError`; `DamagedError` for a longer one and one that others may read."""
        path = self.directory / name
        if path.stat().st_size > max_bytes:
            raise DamagedError(f"{path} is longer than such a file gets", hint="restore it from the backup")
        try:
            return read_private(path)
        except RonError as error:
            raise DamagedError(error.message, hint=error.hint or "") from None

    def write(self, name: str, raw: bytes) -> None:
        """Atomic and durable. Raises `OSError`, and then the old file may be there or the new one: see `holds`."""
        write_private(self.directory / name, raw)

    def holds(self, name: str, raw: bytes) -> bool:
        """Are these the bytes a reader sees?"""
        try:
            return (self.directory / name).read_bytes() == raw
        except OSError:
            return False

    def shred(self, name: str) -> None:
        """Overwrite the file and remove it; nothing happens where there is none.

        On flash, on a file system that writes elsewhere, and in backups a copy outlives this: it is sealed, no more.
        """
        path = self.directory / name
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            os.pwrite(handle, bytes(os.fstat(handle).st_size), 0)
            os.fsync(handle)
        finally:
            os.close(handle)
        path.unlink()
        sync_dir(self.directory)
