"""Small files that must be whole and private: written atomically with mode 0600, in directories of mode 0700.

In: a path and bytes. Out: after `write_private` returns, the bytes are on disk whole, or the old file is untouched.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from ron.proto.errors import RonError, unavailable


def private_dir(path: Path) -> Path:
    """`path` as a directory only its owner may enter. Made with parents; an existing one is narrowed to 0700."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if path.stat().st_mode & 0o077:
        path.chmod(0o700)
    return path


def write_private(path: Path, content: bytes) -> None:
    """Replace `path` by `content`: temporary file 0600, fsync, rename, fsync of the directory."""
    private_dir(path.parent)
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
    if path.stat().st_mode & 0o077:
        raise _exposed(path)
    return path.read_bytes()


def _exposed(path: Path) -> RonError:
    return unavailable(f"{path} holds a secret and others may read it", hint=f"chmod 600 {path}")
