"""Keys in sealed files: one for each key version, under a manifest that is sealed too and counts every change.

In: calls of `Backend`. Out: the same as of any other backend; whatever `generate` or `destroy` returned is on disk. A
change is: the key's file, the manifest (from here on it holds), the head. What a kill leaves in between is finished or
taken back at the next start. An older copy, a flipped bit, a missing or a strange file is an error at `open`; that a
whole directory is an older one, only `check_head` can tell, with what the audit log remembers (I-6).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NoReturn

from ron.crypto.sealing import Sealer
from ron.proto.errors import conflict, unavailable
from ron.proto.kms import Alg, Attestation, Kid
from ron.services.kms.backends import filerecords as records
from ron.services.kms.backends import heads
from ron.services.kms.backends.fileopening import Listed, Opened, open_folder
from ron.services.kms.backends.filerecords import HEAD, MANIFEST, Head, Manifest, digest_of, file_name
from ron.services.kms.backends.folder import KeyFolder
from ron.services.kms.backends.sealedkeys import UNSEALED_BYTES, Entropy, SealedKey, SealedKeys, os_entropy
from ron.services.kms.backends.unlocking import Unlock
from ron.services.kms.ports import Held

ATTESTATION_CLASS = "software-file"


class FileBackend:
    """`Backend` in a directory. attestation_class: of new keys, for an `unlock` that is more than software."""

    quick = True

    def __init__(
        self,
        directory: Path,
        unlock: Unlock,
        *,
        name: str = "file",
        attestation_class: str = ATTESTATION_CLASS,
        entropy: Entropy = os_entropy,
        unsealed_bytes: int = UNSEALED_BYTES,
        allow_unlocked: bool = False,
    ) -> None:
        self.name = name
        self._folder = KeyFolder(directory)
        self._unlock = unlock
        self._class = attestation_class
        self._entropy = entropy
        self._unsealed_bytes = unsealed_bytes
        self._allow_unlocked = allow_unlocked
        self._writing = threading.Lock()
        self._at: Opened | None = None
        self._in_doubt = False

    def open(self) -> None:
        """Half a second of scrypt at the usual cost, and every file read and compared once.

        Raises `RonError`: `CustodyError` of every kind, Conflict while another process has the directory.
        """
        with self._writing:
            if self._at is not None:
                return
            with _disk("opened"):
                self._folder.acquire()
                try:
                    self._at = open_folder(self._folder, self._unlock, self._new_keys)
                except BaseException:
                    self._folder.release()
                    raise
            self._in_doubt = False

    def close(self) -> None:
        """Wipe what is in memory; more than once is fine."""
        with self._writing:
            at, self._at = self._at, None
            if at is not None:
                at.keys.close()
                self._folder.release()

    def probe(self) -> None:
        """Raises StoreUnavailable when it is closed or its directory is gone. Where the last change did not end, as on
        a disk that failed, it looks what came of it; raises as `open` while that cannot be known."""
        self._opened()
        with _disk("looked at"):
            if self._in_doubt:
                with self._writing:
                    self._look_again()
            (self._folder.directory / MANIFEST).stat()

    def held(self) -> Sequence[Held]:
        """Everything it has, in no order."""
        return self._opened().keys.held()

    def change(self) -> tuple[int, bytes]:
        """The number of the last change, from 0, and its digest of 32 bytes."""
        manifest, digest = self._opened().listed
        return manifest.counter, digest

    def head(self) -> tuple[int, bytes]:
        """The same for the audit log; see `check_head`."""
        return heads.told(self.name, *self.change())

    def check_head(self, counter: int, digest: bytes) -> None:
        """Raises `RolledBackError` unless this is the store whose `head` was (counter, digest), then or later.

        What was said of another backend is nothing to compare with."""
        manifest, own_digest = self._opened().listed
        known = heads.own(self.name, counter, digest)
        if known is not None and not records.knows(manifest, own_digest, Head(counter=known[0], digest=known[1])):
            raise heads.older(self.name, manifest.counter, known.counter)

    def lend(self) -> AbstractContextManager[memoryview]:
        """The master key, for a process of ours that works with the same sealed keys. Raises StoreUnavailable."""
        return self._opened().sealer.lend()

    def sealed(self, kid: Kid) -> SealedKey:
        """A key version at rest. Raises `RonError`: NotFound, StoreUnavailable."""
        return self._opened().keys.get(kid)

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """As the port has it. Conflict also for what was destroyed: a kid is one key for ever."""
        with self._writing, _disk("changed"):
            at = self._writable()
            manifest, digest = at.listed
            name = file_name(kid)
            if kid in at.keys or name in manifest.gone:
                raise conflict("there is such a key version already, or there was")
            if not records.has_room(manifest):
                raise unavailable("the key store is full", hint="destroy old versions, or begin another store")
            made = at.keys.make(kid, algs, self._class, manifest.counter + 1)
            raw = records.encode_key(made)
            # until the manifest names it, it is rubbish: also after a failure in here
            at.leftovers.add(name)
            self._folder.write(name, raw)
            keys = {**manifest.keys, str(kid): digest_of(raw)}
            self._commit(at, records.successor(manifest, digest, keys=keys))
            at.leftovers.discard(name)
            at.keys.add(made)
        return made.held

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """As the port has it."""
        return self._opened().keys.sign(kid, alg, message)

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        """As the port has it."""
        return self._opened().keys.unwrap(kid, suite, envelope, info)

    def destroy(self, kid: Kid) -> None:
        """As the port has it. NotFound for what it never had."""
        with self._writing, _disk("changed"):
            at = self._writable()
            manifest, digest = at.listed
            name = file_name(kid)
            if name not in manifest.gone:
                at.keys.get(kid)
                keys = {text: digest for text, digest in manifest.keys.items() if text != str(kid)}
                self._commit(at, records.successor(manifest, digest, keys=keys, gone=[name]))
                at.keys.drop(kid)
            self._folder.shred(name)

    def attest(self, kid: Kid | None) -> Attestation | None:
        """None: software has no evidence to give. NotFound for a key it does not hold."""
        at = self._opened()
        if kid is not None:
            at.keys.get(kid)
        return None

    def __reduce__(self) -> NoReturn:
        raise TypeError("a backend is neither copied nor stored")

    def __repr__(self) -> str:
        return f"<FileBackend {self._folder.directory} {'open' if self._at is not None else 'closed'}>"

    def _new_keys(self, sealer: Sealer) -> SealedKeys:
        return SealedKeys(
            sealer,
            entropy=self._entropy,
            unsealed_bytes=self._unsealed_bytes,
            allow_unlocked=self._allow_unlocked,
        )

    def _opened(self) -> Opened:
        if self._at is None:
            raise unavailable("the key store is not open")
        return self._at

    def _look_again(self) -> None:
        """Go by what is on the disk. Until that is known, what is in memory signs, and nothing is changed."""
        at = self._opened()
        if self._in_doubt:
            self._at = open_folder(self._folder, self._unlock, self._new_keys)
            self._in_doubt = False
            at.keys.close()

    def _writable(self) -> Opened:
        """Leftovers go only now, and not at `open`: had the whole directory been rolled back, the service would have
        seen it in between, and a key that is no rubbish is still there."""
        self._look_again()
        at = self._opened()
        for name in sorted(at.leftovers):
            self._folder.shred(name)
            at.leftovers.discard(name)
        return at

    def _commit(self, at: Opened, manifest: Manifest) -> None:
        raw = records.seal_manifest(at.sealer, manifest)
        head = Head(counter=manifest.counter, digest=digest_of(raw))
        try:
            self._folder.write(MANIFEST, raw)
        except OSError:
            # in its place, and nobody knows whether it is on the disk to stay
            self._in_doubt = self._folder.holds(MANIFEST, raw)
            raise
        try:
            self._folder.write(HEAD, records.seal_head(at.sealer, head))
        except OSError:
            self._in_doubt = True
            raise
        at.listed = Listed(manifest, head.digest)


@contextlib.contextmanager
def _disk(done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unavailable(
            f"the key store cannot be {done}: {error.strerror or error}", hint="look at the disk of backends.file.dir"
        ) from None
