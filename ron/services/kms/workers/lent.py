"""A worker's backend: sealed key versions that the owner lends, under the owner's master key; it makes and keeps none.

In: `KeyWord`s, the master key in locked memory. Out: what `Backend` says of signing and unwrapping. No disk is read
here: what the owner has on its disk is what it sends, so that one process alone opens files and counts changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from ron.crypto.sealing import Sealer
from ron.crypto.secrets import SecretBuffer
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg, Attestation, Kid
from ron.services.kms.backends.sealedkeys import SealedKey, SealedKeys
from ron.services.kms.ports import Held


class LentKeys:
    """`Backend`. name: of the owner's. master: taken over."""

    quick = True

    def __init__(self, master: SecretBuffer, *, name: str = "file", allow_unlocked: bool = False) -> None:
        self.name = name
        self._keys = SealedKeys(Sealer(master), allow_unlocked=allow_unlocked)

    def take(self, key: SealedKey) -> None:
        """One more to work with."""
        self._keys.add(key)

    def drop(self, kid: Kid) -> None:
        """Forget it, sealed and unsealed."""
        self._keys.drop(kid)

    def open(self) -> None:
        """It is."""

    def close(self) -> None:
        """Wipe what is in memory; more than once is fine."""
        self._keys.close()

    def probe(self) -> None:
        """It is memory, and there."""

    def held(self) -> Sequence[Held]:
        """What was lent."""
        return self._keys.held()

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """Raises `RonError` (Unsupported): the owner makes keys."""
        raise _owners()

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """As the port has it."""
        return self._keys.sign(kid, alg, message)

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        """As the port has it."""
        return self._keys.unwrap(kid, suite, envelope, info)

    def destroy(self, kid: Kid) -> None:
        """Raises `RonError` (Unsupported): the owner destroys keys."""
        raise _owners()

    def attest(self, kid: Kid | None) -> Attestation | None:
        """None: software has no evidence to give."""
        return None

    def __reduce__(self) -> NoReturn:
        raise TypeError("a backend is neither copied nor stored")


def _owners() -> RonError:
    return RonError(ErrorCode.UNSUPPORTED, "a worker neither makes nor destroys keys")
