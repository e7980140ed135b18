"""The port's contract on the software backends, and on several behind one: the same tests as on a token and on a TPM.

`test_pkcs11`, `test_tpm` and `tests.live.test_kms_cloud` run it on the others.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from ron.crypto import signing
from ron.crypto.sealing import ScryptCost
from ron.proto.kms import Alg
from ron.services.kms.backends.file import FileBackend
from ron.services.kms.backends.inmem import InMemoryBackend
from ron.services.kms.backends.multi import MultiBackend
from ron.services.kms.backends.pkcs11 import Pkcs11Backend
from ron.services.kms.backends.pkcs11_sessions import TokenAddress
from ron.services.kms.backends.unlocking import ByPassphrase
from ron.services.kms.ports import Backend
from tests.services.kms.backends.contract import MESSAGE, SIGNING, BackendCase, Contract, new_kid, public_of
from tests.services.kms.backends.softhsm import LABEL, MODULE, NO_SOFTHSM, SoftToken, pin


def in_memory() -> InMemoryBackend:
    """Not open."""
    return InMemoryBackend(allow_unlocked=True)


class FolderCase(BackendCase):
    """A directory, and file backends in it."""

    def setUp(self) -> None:
        super().setUp()
        self.keys = Path(self.stack.enter_context(tempfile.TemporaryDirectory(prefix="ron-kms-"))) / "keys"

    def files(self) -> FileBackend:
        """Not open."""
        unlock = ByPassphrase(lambda: bytearray(b"correct horse"), cost=ScryptCost(4, 8, 1), allow_unlocked=True)
        return FileBackend(self.keys, unlock, allow_unlocked=True)


class ContractInMemory(Contract, BackendCase):
    """What forgets everything."""

    keeps = False

    def build(self) -> Backend:
        """A new one each time."""
        return in_memory()


class ContractInFiles(Contract, FolderCase):
    """Sealed files."""

    def build(self) -> Backend:
        """In the same directory."""
        return self.files()


class ContractOfSeveral(Contract, FolderCase):
    """Two behind one: what is made is the first one's."""

    def build(self) -> Backend:
        """Files, and an empty memory beside them."""
        return MultiBackend([self.files(), in_memory()], allow_sign_fallback=True)


class Differential(FolderCase):
    """G-3: what one backend signs, the same verifier takes as another's; keys of one are not another's."""

    skip = NO_SOFTHSM

    def test_g3_the_same_bytes_from_everywhere(self) -> None:
        """Same lengths, all verified by one verifier, none by another backend's key."""
        SoftToken(self.stack)
        address = TokenAddress(MODULE, LABEL)
        backends: list[Backend] = [in_memory(), self.files(), Pkcs11Backend(address, pin())]
        made = []
        for backend in backends:
            backend.open()
            self.stack.callback(backend.close)
            made.append(backend.generate(new_kid(), SIGNING))
        for alg in SIGNING:
            signatures = [b.sign(held.kid, alg, MESSAGE) for b, held in zip(backends, made, strict=True)]
            for signature, signer in zip(signatures, made, strict=True):
                self.assertEqual(len(signature), signing.SIGNATURE_BYTES[alg])
                for held in made:
                    good = signing.verify(alg, public_of(held, alg), MESSAGE, signature)
                    self.assertEqual(good, held is signer)

    def test_classes_tell_them_apart(self) -> None:
        """I-20 leans on it: no two kinds of backend share an attestation class."""
        SoftToken(self.stack)
        backends: list[Backend] = [in_memory(), self.files(), Pkcs11Backend(TokenAddress(MODULE, LABEL), pin())]
        classes = set()
        for backend in backends:
            backend.open()
            self.stack.callback(backend.close)
            for algs in (SIGNING, (Alg.ED25519,)):
                classes.add((backend.name, backend.generate(new_kid(), algs).attestation_class))
        self.assertEqual(len({name for _backend, name in classes}), len(classes))
