"""Keys that live as long as the process: for development, and for nodes that are to forget (amnesia, I-11).

In: calls of `Backend`. Out: the same as of any other backend, and nothing on any disk. The seeds are sealed under a
master key in locked memory even so: a page that is swapped out, or a leaked buffer, shows ciphertext.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NoReturn

from ron.crypto import sealing
from ron.proto.errors import conflict, unavailable
from ron.proto.kms import Alg, Attestation, Kid
from ron.services.kms.backends.sealedkeys import UNSEALED_BYTES, Entropy, SealedKeys, os_entropy
from ron.services.kms.ports import Held

ATTESTATION_CLASS = "software-inmem"


class InMemoryBackend:
    """`Backend` in memory. allow_unlocked: go on where the system does not lock memory (the swap may see keys then)."""

    name = "inmem"
    quick = True

    def __init__(
        self, *, entropy: Entropy = os_entropy, unsealed_bytes: int = UNSEALED_BYTES, allow_unlocked: bool = False
    ) -> None:
        self._entropy = entropy
        self._unsealed_bytes = unsealed_bytes
        self._allow_unlocked = allow_unlocked
        self._keys: SealedKeys | None = None
        self._gone: set[Kid] = set()
        self._writing = threading.Lock()

    def open(self) -> None:
        """Empty. Raises `NotLockedError`."""
        if self._keys is None:
            self._keys = SealedKeys(
                sealing.fresh_sealer(allow_unlocked=self._allow_unlocked),
                entropy=self._entropy,
                unsealed_bytes=self._unsealed_bytes,
                allow_unlocked=self._allow_unlocked,
            )

    def close(self) -> None:
        """Forget everything."""
        keys, self._keys = self._keys, None
        if keys is not None:
            keys.close()
        self._gone.clear()

    def probe(self) -> None:
        """Raises StoreUnavailable when it is not open."""
        self._opened()

    def held(self) -> Sequence[Held]:
        """Everything it has, in no order."""
        return self._opened().held()

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """As the port has it. Conflict also for what was destroyed: a kid is one key for ever."""
        keys = self._opened()
        with self._writing:
            if kid in keys or kid in self._gone:
                raise conflict("there is such a key version already, or there was")
            made = keys.make(kid, algs, ATTESTATION_CLASS)
            keys.add(made)
        return made.held

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """As the port has it."""
        return self._opened().sign(kid, alg, message)

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        """As the port has it."""
        return self._opened().unwrap(kid, suite, envelope, info)

    def destroy(self, kid: Kid) -> None:
        """As the port has it. NotFound for what it never had."""
        keys = self._opened()
        with self._writing:
            if kid in self._gone:
                return
            keys.get(kid)
            keys.drop(kid)
            self._gone.add(kid)

    def attest(self, kid: Kid | None) -> Attestation | None:
        """None: software has no evidence to give. NotFound for a key it does not hold."""
        keys = self._opened()
        if kid is not None:
            keys.get(kid)
        return None

    def __reduce__(self) -> NoReturn:
        raise TypeError("a backend is neither copied nor stored")

    def __repr__(self) -> str:
        return f"<InMemoryBackend {'open' if self._keys is not None else 'closed'}>"

    def _opened(self) -> SealedKeys:
        if self._keys is None:
            raise unavailable("the keys in memory are not open")
        return self._keys
