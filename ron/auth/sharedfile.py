"""A small private file that several processes read and write by turns, and the lock they take turns with.

In: a path, and what to do with new content. Out: the newest content that could be read; a fault while it cannot.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from twisted.logger import Logger

from ron.kernel.files import private_dir, write_private
from ron.proto.errors import ErrorCode, RonError, unavailable

LOCK_WAIT_S = 2.0
_LOCK_POLL_S = 0.01
_log = Logger(namespace="ron.auth")

Signature = tuple[int, int, int]


class LockBusy(RonError):
    """Another writer had the lock for as long as we would wait."""

    def __init__(self, directory: Path | None) -> None:
        message = f"{directory or 'capabilities'}: another writer holds the lock"
        super().__init__(ErrorCode.STORE_UNAVAILABLE, message, hint="try again")


class SharedLock:
    """Turns of writing in one folder: a flock on `<folder>/.lock` between processes, a mutex between threads.

    May be taken again by the thread that holds it. Without a folder (amnesia) it is the mutex alone.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._mutex = threading.RLock()
        self._depth = 0
        self._handle = -1

    @contextlib.contextmanager
    def held(self, wait_s: float = LOCK_WAIT_S) -> Iterator[None]:
        """Write under this. Raises `LockBusy` after `wait_s`, `RonError` StoreUnavailable on somebody else's folder."""
        if not self._mutex.acquire(timeout=wait_s):
            raise LockBusy(self._directory)
        try:
            if self._depth == 0 and self._directory is not None:
                self._handle = _flocked(self._directory, wait_s)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self._handle >= 0:
                    os.close(self._handle)
                    self._handle = -1
        finally:
            self._mutex.release()

    @contextlib.contextmanager
    def idle(self) -> Iterator[bool]:
        """Reads need no flock, for files are replaced whole. False while another thread of ours is writing."""
        free = self._mutex.acquire(blocking=False)
        try:
            yield free
        finally:
            if free:
                self._mutex.release()


def _flocked(directory: Path, wait_s: float) -> int:
    handle = _lock_file(directory)
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if time.monotonic() >= deadline_s:
                os.close(handle)
                raise LockBusy(directory) from None
            time.sleep(_LOCK_POLL_S)
        else:
            return handle


def _lock_file(directory: Path) -> int:
    try:
        if private_dir(directory).stat().st_uid == os.geteuid():
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            return os.open(directory / ".lock", flags, 0o600)
    except OSError as error:
        raise unavailable(f"cannot write in {directory}: {error.strerror}", hint="mend its owner and mode") from None
    # what we write would be ours and 0600: the daemon that owns the folder could not read it any more
    raise unavailable(f"{directory} belongs to another user", hint="run this as the user the node runs as")


class SharedFile:
    """`path`, at most `limit_bytes` long, replaced as a whole. `adopt(path, content)` takes each new content (None: no
    such file) and raises `RonError` on what it cannot use; then `fault` says so, and what was adopted before stays."""

    def __init__(self, path: Path, adopt: Callable[[Path, bytes | None], None], *, limit_bytes: int) -> None:
        self.path = path
        self.fault: RonError | None = None
        self._adopt = adopt
        self._limit_bytes = limit_bytes
        self._seen: Signature | None = None

    @property
    def missing(self) -> bool:
        """True when there was no such file the last time we looked."""
        return self._seen is None

    def refresh(self) -> bool:
        """Adopt the content when (inode, mtime_ns, size) changed, or while there is a fault. True when adopted.

        Never raises and never blocks on anything but the disk.
        """
        if self.fault is None and signature(self.path) == self._seen:
            return False
        try:
            self.load()
        except RonError as error:
            self._complain(error)
            return False
        if self.fault is not None:
            _log.info("{path} is readable again", event="auth_file_mended", path=str(self.path))
        self.fault = None
        return True

    def load(self) -> None:
        """Read and adopt now. Raises `RonError`."""
        seen, content = _read(self.path, self._limit_bytes)
        # a damaged content is not looked at again for its signature's sake: `fault` has it read anew
        self._seen = seen
        self._adopt(self.path, content)

    def write(self, content: bytes) -> None:
        """Replace the content durably. The caller holds the lock. Raises `RonError` StoreUnavailable."""
        try:
            write_private(self.path, content)
        except OSError as error:
            raise unavailable(f"cannot write {self.path}: {error.strerror}", hint="free or mend the disk") from error
        self._seen = signature(self.path)
        self.fault = None

    def _complain(self, error: RonError) -> None:
        if self.fault is None or self.fault.message != error.message:
            _log.error(
                "{path} cannot be used, what was known stays: {reason}",
                event="auth_file_damaged",
                path=str(self.path),
                reason=error.one_line(),
            )
            self.fault = error


def signature(path: Path) -> Signature | None:
    """(inode, mtime_ns, size) of `path`; None when there is no such file or it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def read_regular(path: Path, limit_bytes: int) -> bytes | None:
    """The whole private file; None when there is none. Raises `RonError`; a fifo or a directory never blocks."""
    return _read(path, limit_bytes)[1]


def _read(path: Path, limit_bytes: int) -> tuple[Signature | None, bytes | None]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        raise unavailable(f"{path} cannot be read: {error.strerror}", hint="mend its owner and mode") from None
    try:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise unavailable(f"{path} is not a regular file", hint="put a file there")
        if found.st_mode & 0o077:
            raise unavailable(f"{path} holds a secret and others may read it", hint=f"chmod 600 {path}")
        with os.fdopen(handle, "rb", closefd=False) as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise unavailable(f"{path} cannot be read: {error.strerror}", hint="mend the disk") from None
    finally:
        os.close(handle)
    if len(content) > limit_bytes:
        raise unavailable(f"{path} is over {limit_bytes} bytes", hint="restore it from a backup")
    return (found.st_ino, found.st_mtime_ns, found.st_size), content
