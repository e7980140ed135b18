"""Is this directory the key store it was? Asked once, at the start, of every file in it.

In: a folder, and how it is unlocked. Out: the key versions, the manifest and what a kill left over; or an error that
names the key and the way out. Nothing is deleted on suspicion: only what the manifest itself has declared gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ron.crypto.sealing import MAX_PLAINTEXT_BYTES, BrokenSealError, Sealer
from ron.proto.kms import parse_kid
from ron.services.kms.backends import filerecords as records
from ron.services.kms.backends.errors import DamagedError, ForeignFileError, RolledBackError
from ron.services.kms.backends.filerecords import HEAD, KEY_SUFFIX, MANIFEST, ROOT, Head, Manifest, digest_of
from ron.services.kms.backends.folder import KeyFolder
from ron.services.kms.backends.sealedkeys import SealedKeys
from ron.services.kms.backends.unlocking import ByPassphrase, Passphrase, Unlock

_SMALL_BYTES = 64 * 1024
_MANIFEST_BYTES = MAX_PLAINTEXT_BYTES + 4096
_BACKUP = "restore the whole directory from one backup"


class Listed(NamedTuple):
    """What is there. digest: of the manifest's file."""

    manifest: Manifest
    digest: bytes


@dataclass(slots=True)
class Opened:
    """A store at work. listed: replaced as a whole, so that any thread may read it. leftovers: files of changes that
    never came to be."""

    sealer: Sealer
    keys: SealedKeys
    listed: Listed
    leftovers: set[str] = field(default_factory=set)


def open_folder(folder: KeyFolder, unlock: Unlock, new_keys: Callable[[Sealer], SealedKeys]) -> Opened:
    """Raises `CustodyError` of every kind, `OSError`. An empty folder becomes an empty store."""
    names = folder.sweep()
    sealer = _unlocked(folder, unlock, names)
    keys = new_keys(sealer)
    try:
        opened = Opened(sealer, keys, listed(folder, sealer, names))
        _read_keys(folder, opened)
        _sort_out(folder, opened, names - {ROOT, MANIFEST, HEAD})
    except BaseException:
        keys.close()
        raise
    return opened


def change_passphrase(folder: KeyFolder, unlock: ByPassphrase, to: Passphrase) -> None:
    """The same keys under another passphrase: only `root` is written anew. The service is stopped meanwhile.

    Raises `RonError`: Conflict while it runs, `LockedError`, `DamagedError`, BadRequest for a new one too short.
    """
    folder.acquire()
    try:
        if ROOT not in folder.sweep():
            raise DamagedError(f"{folder.directory} has no `root`", hint="is it the directory of a key store?")
        folder.write(ROOT, unlock.change(folder.read(ROOT, _SMALL_BYTES), to))
    finally:
        folder.release()


def _unlocked(folder: KeyFolder, unlock: Unlock, names: set[str]) -> Sealer:
    if ROOT in names:
        return unlock.open(folder.read(ROOT, _SMALL_BYTES))
    if names:
        raise DamagedError(
            f"{folder.directory} has files and no `root`, without which nothing in it opens", hint=_BACKUP
        )
    root, sealer = unlock.create()
    folder.write(ROOT, root)
    return sealer


def listed(folder: KeyFolder, sealer: Sealer, names: set[str]) -> Listed:
    """The manifest, at one with the head. names: what lies there. Raises `DamagedError`, `RolledBackError`."""
    if MANIFEST not in names:
        if names - {ROOT}:
            raise DamagedError(f"{folder.directory} has keys and no manifest", hint=_BACKUP)
        folder.write(MANIFEST, records.seal_manifest(sealer, Manifest(counter=0, keys={})))
    raw = folder.read(MANIFEST, _MANIFEST_BYTES)
    try:
        manifest = records.open_manifest(sealer, raw)
        head = records.open_head(sealer, folder.read(HEAD, _SMALL_BYTES)) if HEAD in names else None
    except BrokenSealError as error:
        raise DamagedError(f"the key store's manifest or head is not what was written: {error}", hint=_BACKUP) from None
    digest = digest_of(raw)
    if head != (now := Head(counter=manifest.counter, digest=digest)):
        _check_lag(manifest, head)
        folder.write(HEAD, records.seal_head(sealer, now))
    return Listed(manifest, digest)


def _check_lag(manifest: Manifest, head: Head | None) -> None:
    """Raises unless a kill between the manifest and the head explains it."""
    if head is None:
        if manifest.counter:
            raise DamagedError("the key store's file `head` is missing", hint=_BACKUP)
        return
    if manifest.counter < head.counter:
        raise RolledBackError(
            f"the key store's manifest is an older copy: of change {manifest.counter}, and there were {head.counter}",
            hint=_BACKUP,
        )
    if manifest.history[-1:] != (head.digest,):
        raise RolledBackError("the key store's manifest and head are of different copies", hint=_BACKUP)


def _read_keys(folder: KeyFolder, opened: Opened) -> None:
    for text, digest in opened.listed.manifest.keys.items():
        name = records.file_name(parse_kid(text))
        try:
            raw = folder.read(name, records.MAX_KEY_FILE_BYTES)
        except FileNotFoundError:
            raise DamagedError(f"the file {name} is missing", hint=_BACKUP, kid=text) from None
        if digest_of(raw) != digest:
            raise DamagedError(
                f"the file {name} is not the one that was written: changed, or an older copy",
                hint="restore it from the newest backup; it never changes, so any good copy will do",
                kid=text,
            )
        opened.keys.add(records.decode_key(raw))


def _sort_out(folder: KeyFolder, opened: Opened, names: set[str]) -> None:
    """Files that the manifest does not list."""
    listed = {records.file_name(held.kid) for held in opened.keys.held()}
    for name in sorted(names - listed):
        if name in opened.listed.manifest.gone:
            folder.shred(name)
        elif _was_to_be(folder, opened, name):
            opened.leftovers.add(name)
        else:
            raise ForeignFileError(
                f"{folder.directory / name} does not belong to this key store as it is now",
                hint="move it away; if it is a key that you miss, the manifest is an older copy: " + _BACKUP,
            )


def _was_to_be(folder: KeyFolder, opened: Opened, name: str) -> bool:
    """Is it what a kill leaves of the very next change?"""
    if not name.endswith(KEY_SUFFIX):
        return False
    try:
        key = records.decode_key(folder.read(name, records.MAX_KEY_FILE_BYTES))
        opened.keys.check(key)
    except (BrokenSealError, DamagedError):
        return False
    return key.made == opened.listed.manifest.counter + 1 and records.file_name(key.held.kid) == name
