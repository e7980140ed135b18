"""Files under a sealed manifest that counts every change: an older copy of one, or of all, is found out.

In: a folder, a `Sealer`, one file for each key version. Out: what `add` or `remove` did is on disk when they return. A
change is: the key's file, the manifest (from here on it holds), the head; as in `file`, whose records these are. What
is in the key files is the caller's, and so is the order of calls: one change at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ron.crypto.sealing import Sealer
from ron.proto.errors import RonError, conflict, not_found, unavailable
from ron.proto.kms import Kid, parse_kid
from ron.services.kms.backends import filerecords as records
from ron.services.kms.backends import heads
from ron.services.kms.backends.errors import DamagedError, ForeignFileError
from ron.services.kms.backends.fileopening import Listed, listed
from ron.services.kms.backends.filerecords import HEAD, MANIFEST, ROOT, Head, Manifest, digest_of, file_name
from ron.services.kms.backends.folder import KeyFolder

_RESTORE = "restore the whole directory from one backup"
_OWN = frozenset({ROOT, MANIFEST, HEAD})


class CountedFolder:
    """`folder`, which the caller has acquired. name: of the backend. made_of: in which change a key file was made; it
    raises `RonError` for what is no key file."""

    def __init__(self, folder: KeyFolder, name: str, made_of: Callable[[bytes], int]) -> None:
        self._folder = folder
        self._name = name
        self._made_of = made_of
        self._sealer: Sealer | None = None
        self._listed: Listed | None = None
        self._files: dict[str, bytes] = {}
        self._leftovers: set[str] = set()
        self._in_doubt = False

    def open(self, sealer: Sealer) -> None:
        """Read and compare everything. `sealer` is taken over. Raises `CustodyError` of every kind, `OSError`."""
        self._sealer = sealer
        try:
            self._read_all(sealer)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Wipe the master key; more than once is fine."""
        sealer, self._sealer = self._sealer, None
        self._listed, self._files = None, {}
        if sealer is not None:
            sealer.close()

    def probe(self) -> None:
        """Raises `RonError` unless it is open, and `OSError` for a folder that is gone. After a change that did not end
        it looks what came of it; raises as `open` while that cannot be known."""
        self._opened()
        if self._in_doubt:
            self._read_all(self._open_sealer())
        (self._folder.directory / MANIFEST).stat()

    def get(self, kid: Kid) -> bytes:
        """Its file. Raises NotFound."""
        self._opened()
        found = self._files.get(str(kid))
        if found is None:
            raise not_found("this backend holds no such key version")
        return found

    def files(self) -> Iterable[bytes]:
        """All key files."""
        self._opened()
        return list(self._files.values())

    def head(self) -> tuple[int, bytes]:
        """For the audit log; see `check_head`."""
        manifest, digest = self._opened()
        return heads.told(self._name, manifest.counter, digest)

    def check_head(self, counter: int, digest: bytes) -> None:
        """As `FileBackend.check_head`."""
        manifest, own_digest = self._opened()
        known = heads.own(self._name, counter, digest)
        if known is not None and not records.knows(manifest, own_digest, Head(counter=known[0], digest=known[1])):
            raise heads.older(self._name, manifest.counter, known.counter)

    def check_new(self, kid: Kid) -> None:
        """Raises Conflict for a key version that is there, or was: a kid is one key for ever. StoreUnavailable where
        there is no room for another one."""
        manifest = self._settled().manifest
        if str(kid) in manifest.keys or file_name(kid) in manifest.gone:
            raise conflict("there is such a key version already, or there was")
        if not records.has_room(manifest):
            raise unavailable("the key store is full", hint="destroy old versions, or begin another store")

    def add(self, kid: Kid, encode: Callable[[int], bytes]) -> None:
        """encode: the file, of the number of the change that makes it. Raises as `check_new`, `OSError`."""
        self.check_new(kid)
        manifest, digest = self._settled()
        name, raw = file_name(kid), encode(manifest.counter + 1)
        # until the manifest names it, it is rubbish: also after a failure in here
        self._leftovers.add(name)
        self._folder.write(name, raw)
        self._commit(records.successor(manifest, digest, keys={**manifest.keys, str(kid): digest_of(raw)}))
        self._leftovers.discard(name)
        self._files = {**self._files, str(kid): raw}

    def remove(self, kid: Kid) -> None:
        """For good; nothing happens when it is gone already. Raises NotFound for what it never had, `OSError`."""
        manifest, digest = self._settled()
        name = file_name(kid)
        if name not in manifest.gone:
            self.get(kid)
            keys = {text: one for text, one in manifest.keys.items() if text != str(kid)}
            self._commit(records.successor(manifest, digest, keys=keys, gone=[name]))
            self._files = {text: raw for text, raw in self._files.items() if text != str(kid)}
        self._folder.shred(name)

    def _opened(self) -> Listed:
        if self._listed is None:
            raise unavailable("the key store is not open")
        return self._listed

    def _open_sealer(self) -> Sealer:
        if self._sealer is None:
            raise unavailable("the key store is not open")
        return self._sealer

    def _settled(self) -> Listed:
        """As it is on the disk, without what changes left that never came to be. Those go only now, and not at `open`:
        see `FileBackend`."""
        if self._in_doubt:
            self._read_all(self._open_sealer())
        for name in sorted(self._leftovers):
            self._folder.shred(name)
            self._leftovers.discard(name)
        return self._opened()

    def _read_all(self, sealer: Sealer) -> None:
        names = self._folder.sweep()
        found = listed(self._folder, sealer, names)
        files = {kid: self._read(kid, digest) for kid, digest in found.manifest.keys.items()}
        known = _OWN | {file_name(parse_kid(kid)) for kid in files}
        self._sort_out(found.manifest, names - known)
        self._files, self._listed, self._in_doubt = files, found, False

    def _read(self, kid: str, digest: bytes) -> bytes:
        name = file_name(parse_kid(kid))
        try:
            raw = self._folder.read(name, records.MAX_KEY_FILE_BYTES)
        except FileNotFoundError:
            raise DamagedError(f"the file {name} is missing", hint=_RESTORE, kid=kid) from None
        if digest_of(raw) != digest:
            raise DamagedError(
                f"the file {name} is not the one that was written: changed, or an older copy", hint=_RESTORE, kid=kid
            )
        return raw

    def _sort_out(self, manifest: Manifest, names: set[str]) -> None:
        """Files that the manifest does not list."""
        for name in sorted(names):
            if name in manifest.gone:
                self._folder.shred(name)
            elif self._was_to_be(name, manifest.counter + 1):
                self._leftovers.add(name)
            else:
                raise ForeignFileError(
                    f"{self._folder.directory / name} does not belong to this key store as it is now",
                    hint="move it away; if it is a key that you miss, the manifest is an older copy: " + _RESTORE,
                )

    def _was_to_be(self, name: str, change: int) -> bool:
        """Is it what a kill leaves of the very next change?"""
        try:
            return self._made_of(self._folder.read(name, records.MAX_KEY_FILE_BYTES)) == change
        except RonError:
            return False

    def _commit(self, manifest: Manifest) -> None:
        sealer = self._open_sealer()
        raw = records.seal_manifest(sealer, manifest)
        try:
            self._folder.write(MANIFEST, raw)
        except OSError:
            # in its place, and nobody knows whether it is on the disk to stay
            self._in_doubt = self._folder.holds(MANIFEST, raw)
            raise
        try:
            self._folder.write(HEAD, records.seal_head(sealer, Head(counter=manifest.counter, digest=digest_of(raw))))
        except OSError:
            self._in_doubt = True
            raise
        self._listed = Listed(manifest, digest_of(raw))
