"""Files given to another user, in folders that are theirs: where root must not follow a link that they may have put.

In: a folder and the user's numbers. Out: folders 0700 and files 0600 of that user; OSError when a link is in the way.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def owned_folder(path: Path | str, uid: int, gid: int, *, within: int | None = None) -> Iterator[int]:
    """A handle on the folder `path` (below the handle `within`), made when missing, 0700 and of `uid`, never a link."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700, dir_fd=within)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=within)
    try:
        os.fchmod(handle, 0o700)
        os.fchown(handle, uid, gid)
        yield handle
        os.fsync(handle)
    finally:
        os.close(handle)


def write_owned(folder: int, name: str, content: bytes, uid: int, gid: int) -> None:
    """Replace `name` in the folder by `content`, whole or not at all. A link of that name is replaced, not followed."""
    temporary = f".{name}.{secrets.token_hex(6)}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchown(file.fileno(), uid, gid)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
        raise
