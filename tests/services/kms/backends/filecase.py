"""A directory for a key store, and what tests of the file backend do with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.sealing import Aead, ScryptCost
from ron.proto.kms import Alg, Kid
from ron.services.kms.backends import filerecords as records
from ron.services.kms.backends.errors import CustodyError
from ron.services.kms.backends.file import FileBackend
from ron.services.kms.backends.unlocking import ByPassphrase
from tests.services.kms.backends.software import MESSAGE

CHEAP = ScryptCost(log_n=4, r=1)
PASSPHRASE = b"correct horse battery staple"


def unlock(passphrase: bytes = PASSPHRASE, aead: Aead = Aead.CHACHA20_POLY1305) -> ByPassphrase:
    return ByPassphrase(lambda: bytearray(passphrase), cost=CHEAP, aead=aead)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class Case(SynchronousTestCase):
    """A directory, and stores in it."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())

    def opened(self, **options: Any) -> FileBackend:
        backend = FileBackend(self.directory, options.pop("unlock", unlock()), **options)
        backend.open()
        self.addCleanup(backend.close)
        return backend

    def store_of(self, *kids: Kid) -> dict[Kid, bytes]:
        """A closed store with these, and a signature of each."""
        backend = self.opened()
        made = {}
        for name in kids:
            backend.generate(name, [Alg.ED25519])
            made[name] = backend.sign(name, Alg.ED25519, MESSAGE)
        backend.close()
        return made

    def path_of(self, name: Kid) -> Path:
        return self.directory / records.file_name(name)

    def refused(self, kind: type[CustodyError], **options: Any) -> CustodyError:
        error: CustodyError = self.assertRaises(kind, self.opened, **options)
        self.assertTrue(error.hint)
        # and the directory is free again
        self.assertRaises(kind, self.opened, **options)
        return error
