"""The passphrase of a key store is changed while the service is stopped; whatever it is killed at, once more ends it.

In: the store's folder, the file with the passphrase, the new one. Out: `root` sealed anew, and the new passphrase where
the old one was. Order: the new one is on disk beside the old (`<file>.next`), `root` is replaced, the file is replaced.
At each point one of the two files opens the store; keys and manifest are not touched. Blocks.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from ron.crypto import ageroot
from ron.crypto.sealing import ScryptCost, check_passphrase
from ron.kernel.files import read_private, sync_dir, write_private
from ron.proto.errors import bad_request
from ron.services.kms.backends.errors import DamagedError, LockedError
from ron.services.kms.backends.filerecords import ROOT
from ron.services.kms.backends.folder import KeyFolder
from ron.services.kms.backends.unlocking import ByPassphrase, Passphrase

Kdf = Literal["scrypt", "age"]
Did = Literal["changed", "finished", "nothing"]
NEXT = ".next"
_BYTES = 32
_ROOT_BYTES = 64 * 1024


class Store(NamedTuple):
    """directory: of the sealed files. kdf: of the new root, None for the kind it is. cost: of scrypt."""

    directory: Path
    kdf: Kdf | None = None
    cost: ScryptCost | None = None
    allow_unlocked: bool = False


def change_both(store: Store, file: Path, new: bytes | None = None) -> Did:
    """`file` holds the passphrase, and the new one afterwards. new: its first line counts; None makes 256 bits.

    finished: what an earlier call had begun was brought to its end; with a `new` that is another, BadRequest.
    Raises `RonError`: Conflict while the service runs, `LockedError`, `DamagedError`, BadRequest; `OSError`.
    """
    following = file.with_name(file.name + NEXT)
    with _held(store) as folder:
        # of a call that was killed while it wrote
        for left in file.parent.glob(f".{following.name}.*"):
            left.unlink()
        begun = following.exists()
        if begun and new is not None and _line(following) != _checked(new):
            raise bad_request(
                f"another change was begun: its passphrase is in {following}", "finish it first: leave --new out"
            )
        if not begun:
            chosen = _checked(new) if new is not None else secrets.token_urlsafe(_BYTES).encode()
            # a wrong old one must leave nothing behind
            _unlock(store, folder, _of(file)).open(_root(folder)).close()
            write_private(following, chosen + b"\n")
        _seal_anew(store, folder, _of(file), _of(following))
        following.replace(file)
        sync_dir(file.parent)
    return "finished" if begun else "changed"


def change_store(store: Store, old: Path, new: bytes) -> Did:
    """The store alone, for a passphrase that somebody else hands to the service. Raises as `change_both`."""
    chosen = _checked(new)
    with _held(store) as folder:
        return "changed" if _seal_anew(store, folder, _of(old), lambda: bytearray(chosen)) else "nothing"


@contextmanager
def _held(store: Store) -> Iterator[KeyFolder]:
    """The folder, which nobody else uses meanwhile. Raises `RonError` (Conflict), `DamagedError` for none."""
    if not (store.directory / ROOT).is_file():
        raise DamagedError(f"{store.directory} has no `root`", hint="is it the directory of a key store?")
    folder = KeyFolder(store.directory)
    folder.acquire()
    try:
        # what an earlier call wrote and was killed before the rename
        folder.sweep()
        yield folder
    finally:
        folder.release()


def _seal_anew(store: Store, folder: KeyFolder, old: Passphrase, new: Passphrase) -> bool:
    """False where `root` is under `new` already."""
    root = _root(folder)
    try:
        made = _unlock(store, folder, old).change(root, new)
    except LockedError:
        try:
            _unlock(store, folder, new).open(root).close()
        except LockedError:
            pass
        else:
            return False
        # neither: it is the old one that somebody has to look for
        raise
    folder.write(ROOT, made)
    return True


def _unlock(store: Store, folder: KeyFolder, passphrase: Passphrase) -> ByPassphrase:
    kdf: Kdf = store.kdf or ("age" if _root(folder).startswith(ageroot.MAGIC) else "scrypt")
    return ByPassphrase(passphrase, kdf=kdf, cost=store.cost, allow_unlocked=store.allow_unlocked)


def _root(folder: KeyFolder) -> bytes:
    return folder.read(ROOT, _ROOT_BYTES)


def _of(file: Path) -> Passphrase:
    return lambda: bytearray(_line(file))


def _line(file: Path) -> bytes:
    """Its first line. Raises `LockedError` for a file that cannot be read, is empty or that others may read."""
    try:
        raw = read_private(file)
    except OSError as error:
        raise LockedError(
            f"the key store's passphrase cannot be read: {file}: {error.strerror}", hint="name its file: --old FILE"
        ) from None
    return _first_line(raw)


def _checked(new: bytes) -> bytes:
    """Raises BadRequest for a passphrase that will not do."""
    line = _first_line(new)
    try:
        check_passphrase(line)
    except ValueError as error:
        raise bad_request(f"the new passphrase will not do: {error}") from None
    return line


def _first_line(raw: bytes) -> bytes:
    return raw.split(b"\n", 1)[0].rstrip(b"\r")
