"""Small files that must be whole and private: written atomically with mode 0600, in directories of mode 0700.

In: a path and bytes. Out: after `write_private` returns, the bytes are on disk whole, or the old file is untouched.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from pathlib import Path

from ron.proto.errors import ErrorCode, RonError, conflict, unavailable

# sun_path of unix(7), less the final NUL.
SOCKET_PATH_BYTES = 107


def private_dir(path: Path) -> Path:
    """`path` as a directory only its owner may enter. Made with parents; an existing one is narrowed to 0700.

    Raises `RonError` (Conflict) for one right below the root that others may enter: `/var` is not ours to close, and
    root, started in `/`, would.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.stat().st_mode & 0o077:
        if path.resolve().parent == Path("/"):
            raise RonError(
                ErrorCode.CONFLICT,
                f"{path} is open to others and stands right below the root: it is left as it is",
                hint="set RON_HOME to a directory of its own",
            )
        path.chmod(0o700)
    return path


def socket_path(path: Path) -> Path:
    """`path`, for a Unix socket. Raises `RonError` (Unsupported) when it is longer than the system takes."""
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_BYTES:
        raise RonError(
            ErrorCode.UNSUPPORTED,
            f"the path of a socket, {path}, is {length} bytes long; the system takes {SOCKET_PATH_BYTES}",
            hint="choose a shorter RON_HOME",
        )
    return path


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: temporary file 0600, fsync, rename, fsync of the directory.

    A missing directory is made 0700; an existing one keeps its mode: it may be the user's own.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    sync_dir(path.parent)


def sync_dir(path: Path) -> None:
    """Make a rename or unlink in `path` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_private(path: Path) -> bytes:
    """The bytes of a secret file. Raises `RonError` when others may read it, with the command that mends it."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_mode & 0o077:
            raise unavailable(f"{path} holds a secret and others may read it", hint=f"chmod 600 {path}")
        return file.read()


class DirectoryLock:
    """A folder that one process owns at a time: `<folder>/.lock`, held until `release` or the process ends."""

    def __init__(self, directory: Path) -> None:
        private_dir(directory)
        self._handle: int | None = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            # empty for the moment in which its owner has locked it and not written yet
            pid = os.read(self._handle, 20).decode("ascii", "replace").strip()
            self.release()
            owner, end_it = (f"process {pid}", f"stop it (kill {pid})") if pid else ("another process", "stop it")
            raise conflict(f"{directory} is in use by {owner}", hint=f"{end_it}, or choose another folder") from None
        os.ftruncate(self._handle, 0)
        os.write(self._handle, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let others have it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
