"""A backend of dictionaries, whose keys, attestation class and whereabouts a test decides: what `MultiBackend` meets.

It signs with PyNaCl and unwraps nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import nacl.signing

from ron.proto.errors import RonError, conflict, not_found, unavailable
from ron.proto.kms import Alg, Attestation, Kid
from ron.services.kms.ports import Half, Held


class Shelf:
    """up: can it be reached? trouble: what every call raises instead. opened: how often it was."""

    quick = True

    def __init__(self, name: str = "shelf", *, attestation_class: str = "paper") -> None:
        self.name = name
        self.up = True
        self.opened = 0
        self.trouble: RonError | None = None
        self.attestation_class = attestation_class
        self.keys: dict[Kid, nacl.signing.SigningKey] = {}
        self.claims: dict[Kid, Held] = {}

    def put(self, kid: Kid, seed: bytes, *, claimed: Held | None = None) -> Held:
        """A key that comes from `seed`. claimed: what `held` says of it, if not the truth."""
        self.keys[kid] = nacl.signing.SigningKey(seed)
        public = bytes(self.keys[kid].verify_key)
        self.claims[kid] = claimed or Held(kid, (Half(Alg.ED25519, public),), self.attestation_class)
        return self.claims[kid]

    def open(self) -> None:
        """Only while it is up."""
        self._reach()
        self.opened += 1

    def close(self) -> None:
        """Nothing to let go of."""

    def probe(self) -> None:
        """As the port."""
        self._reach()

    def held(self) -> Sequence[Held]:
        """As the port."""
        self._reach()
        return list(self.claims.values())

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """As the port."""
        self._reach()
        if kid in self.keys:
            raise conflict("there is one")
        return self.put(kid, bytes(nacl.signing.SigningKey.generate()))

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """As the port."""
        return bytes(self._key(kid).sign(message).signature)

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        """Its own name and the envelope."""
        self._key(kid)
        return self.name.encode() + envelope

    def destroy(self, kid: Kid) -> None:
        """NotFound for what it never had, as the software backends have it."""
        self._key(kid)
        del self.keys[kid], self.claims[kid]

    def attest(self, kid: Kid | None) -> Attestation | None:
        """Its name."""
        self._reach()
        return Attestation(class_=self.name)

    def _key(self, kid: Kid) -> nacl.signing.SigningKey:
        self._reach()
        if kid not in self.keys:
            raise not_found("none")
        return self.keys[kid]

    def _reach(self) -> None:
        if self.trouble is not None:
            raise self.trouble
        if not self.up:
            raise unavailable("away")
