"""Two backends beside each other: one for keys that wrap, one for keys that sign; for a cloud that does not sign.

In: both. Out: a `Backend`, which goes by a key's purpose. Blocks; from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from ron.proto.kms import Alg, Attestation, Kid
from ron.services.kms.backends import heads
from ron.services.kms.backends.heads import Counting
from ron.services.kms.model import WRAPPING
from ron.services.kms.ports import Backend, Held


class SplitBackend:
    """wrapping: of purpose `kem` and `wrap`. signing: all others, the key of the audit log among them."""

    def __init__(self, wrapping: Backend, signing: Backend) -> None:
        self._wrapping = wrapping
        self._signing = signing
        self.name = wrapping.name
        self.quick = signing.quick

    def open(self) -> None:
        """Both. Raises what the first that fails raises."""
        self._signing.open()
        self._wrapping.open()

    def close(self) -> None:
        """Both, whatever one of them says."""
        try:
            self._wrapping.close()
        finally:
            self._signing.close()

    def probe(self) -> None:
        """Raises what either raises."""
        self._signing.probe()
        self._wrapping.probe()

    def held(self) -> Sequence[Held]:
        """What both have."""
        return [*self._signing.held(), *self._wrapping.held()]

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """Where it belongs."""
        return self._of(kid).generate(kid, algs)

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """Where it is."""
        return self._of(kid).sign(kid, alg, message)

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        """Where it is."""
        return self._of(kid).unwrap(kid, suite, envelope, info)

    def destroy(self, kid: Kid) -> None:
        """Where it is."""
        self._of(kid).destroy(kid)

    def attest(self, kid: Kid | None) -> Attestation | None:
        """Of a key where it is; as a whole, of the one that wraps."""
        return (self._of(kid) if kid is not None else self._wrapping).attest(kid)

    def head(self) -> tuple[int, bytes]:
        """Of both, as `heads.joined`."""
        return heads.joined(one.head() for one in self._counting())

    def check_head(self, counter: int, digest: bytes) -> None:
        """Raises `RonError` (Conflict) where either is an older copy."""
        for one in self._counting():
            one.check_head(counter, digest)

    def _counting(self) -> list[Counting]:
        return [one for one in (self._signing, self._wrapping) if isinstance(one, Counting)]

    def _of(self, kid: Kid) -> Backend:
        return self._wrapping if kid.purpose in WRAPPING else self._signing
