"""Key versions in software: all of them sealed, in memory; the few that were used last unsealed and ready to work.

In: a `Sealer`, key ids, messages. Out: signatures and opened envelopes; never a private byte. Signing asks no disk.
From any thread: whoever signs holds a reference, so that a half is wiped once nobody uses it and not before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import blake3

from ron.crypto import signing, wrapping
from ron.crypto.kdf import Label
from ron.crypto.sealing import BrokenSealError, Sealer
from ron.crypto.secrets import NotLockedError
from ron.crypto.signing import PrivateHalf
from ron.crypto.wrapping import PrivateHalves, Suite
from ron.kernel.lru import ByteLru
from ron.proto.errors import ErrorCode, RonError, bad_request, not_found, unavailable
from ron.proto.kms import Alg, Kid
from ron.services.kms.backends.errors import DamagedError
from ron.services.kms.ports import Half, Held

SEED_BYTES = {Alg.ED25519: signing.SEED_BYTES, Alg.ML_DSA: signing.SEED_BYTES, **wrapping.SEED_BYTES}
UNSEALED_BYTES = 4 * 1024 * 1024
"""Of unsealed halves at a time, and as much again of those that unwrap. It stays below systemd's usual 8 MiB of locked
memory: one half of Ed25519 takes a page of it."""
_HALF_BYTES = {Alg.ED25519: 4096, Alg.ML_DSA: 16 * 1024}
_WRAPPING_BYTES = 8 * 1024
# The number in the sealed text never changes meaning
_NUMBERS = {Alg.ED25519: 1, Alg.ML_DSA: 2, Alg.X25519: 3, Alg.ML_KEM: 4}
_ALGS = {number: alg for alg, number in _NUMBERS.items()}

_SOURCE = "/dev/urandom"

Entropy = Callable[[memoryview], None]
T = TypeVar("T")


class SealedKey(NamedTuple):
    """A key version at rest. made: the number of the change that made it. blob: its seeds, bound to all the rest."""

    held: Held
    made: int
    blob: bytes


def os_entropy(into: memoryview) -> None:
    """Fill `into` from the kernel's generator, which reseeds itself (I-10), with no copy among Python's objects."""
    with open(_SOURCE, "rb", buffering=0) as source:  # noqa: PTH123 - a device, and read into place
        if source.readinto(into) != len(into):
            raise unavailable("the system's randomness came short", hint=f"look at {_SOURCE}")


class SealedKeys:
    """The key versions of one store. The sealer is taken over. entropy: fills what it is given."""

    def __init__(
        self,
        sealer: Sealer,
        *,
        entropy: Entropy = os_entropy,
        unsealed_bytes: int = UNSEALED_BYTES,
        allow_unlocked: bool = False,
    ) -> None:
        self._sealer: Sealer | None = sealer
        self._entropy = entropy
        self._unsealed_bytes = unsealed_bytes
        self._allow_unlocked = allow_unlocked
        self._lock = threading.Lock()
        self._forget()

    def make(self, kid: Kid, algs: Sequence[Alg], attestation_class: str, made: int = 0) -> SealedKey:
        """A new key version, not among the others yet. Raises `RonError` (BadRequest) for a kid without a version or a
        bad set of algorithms."""
        if not kid.version:
            raise bad_request("a key is made at a version")
        if not algs or len(set(algs)) != len(algs):
            raise bad_request("a key has one or more halves, of an algorithm each")
        plain = bytearray(sum(1 + SEED_BYTES[alg] for alg in algs))
        try:
            with memoryview(plain) as view:
                publics = self._fill(view, algs)
            held = Held(kid, tuple(Half(alg, publics[alg]) for alg in algs), attestation_class)
            return SealedKey(held, made, self._open_sealer().seal(_label(held, made), plain))
        finally:
            plain[:] = bytes(len(plain))

    def add(self, key: SealedKey) -> None:
        """One more to work with."""
        with self._lock:
            self._keys[key.held.kid] = key

    def drop(self, kid: Kid) -> None:
        """Forget it, sealed and unsealed."""
        with self._lock:
            self._keys.pop(kid, None)
            self._wrapping.drop(kid)
            for alg in Alg:
                self._signing.drop((kid, alg))

    def check(self, key: SealedKey) -> None:
        """Raises `BrokenSealError` unless this store sealed it just so."""
        opened = self._open_sealer().open(_label(key.held, key.made), key.blob)
        opened[:] = bytes(len(opened))

    def __contains__(self, kid: Kid) -> bool:
        return kid in self._keys

    def held(self) -> tuple[Held, ...]:
        """All of them, in no order."""
        with self._lock:
            return tuple(key.held for key in self._keys.values())

    def get(self, kid: Kid) -> SealedKey:
        """Raises `RonError`: NotFound, and StoreUnavailable once it is closed."""
        self._open_sealer()
        key = self._keys.get(kid)
        if key is None:
            raise not_found("this backend holds no such key version")
        return key

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """As the port has it; Unsupported for a half it has not."""
        with self._lock:
            half = self._signing.get((kid, alg))
        if half is None:
            signing.check_signs(alg)
            key = self.get(kid)
            half = self._unsealed(key, partial(self._signing_half, key, alg))
            with self._lock:
                # destroyed in the meantime: this call may end, the next one may not begin
                if self._keys.get(kid) is key:
                    self._signing.put((kid, alg), half, _HALF_BYTES[alg])
        return half.sign(message)

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        """As the port has it. Raises `RonError` (BadRequest) for no suite, or another version's envelope."""
        chosen = next((known for known in Suite if known.value == suite), None)
        if chosen is None:
            raise bad_request("no such way to wrap", hint=", ".join(Suite))
        if wrapping.read_head(envelope).key_version != kid.version:
            raise bad_request("the envelope is of another version of the key")
        with self._lock:
            halves = self._wrapping.get(kid)
        if halves is None:
            key = self.get(kid)
            halves = self._unsealed(key, partial(_wrapping_halves, key))
            with self._lock:
                if self._keys.get(kid) is key:
                    self._wrapping.put(kid, halves, _WRAPPING_BYTES)
        return halves.open(chosen, envelope, info)

    def close(self) -> None:
        """Forget everything; what is at work in another thread ends first, and is wiped then."""
        with self._lock:
            sealer, self._sealer = self._sealer, None
            self._forget()
        if sealer is not None:
            sealer.close()

    def _open_sealer(self) -> Sealer:
        if self._sealer is None:
            raise unavailable("the key store is closed")
        return self._sealer

    def _fill(self, plain: memoryview, algs: Sequence[Alg]) -> dict[Alg, bytes]:
        publics, at = {}, 0
        for alg in algs:
            plain[at] = _NUMBERS[alg]
            seed = plain[at + 1 : at + 1 + SEED_BYTES[alg]]
            self._entropy(seed)
            if alg in wrapping.WRAPPING_ALGS:
                publics[alg] = PrivateHalves({alg: seed}).publics[alg]
            else:
                publics[alg] = self._half(alg, seed).public
            at += 1 + len(seed)
        return publics

    def _forget(self) -> None:
        self._keys: dict[Kid, SealedKey] = {}
        self._signing: ByteLru[tuple[Kid, Alg], PrivateHalf] = ByteLru(self._unsealed_bytes)
        self._wrapping: ByteLru[Kid, PrivateHalves] = ByteLru(self._unsealed_bytes)

    def _unsealed(self, key: SealedKey, grow: Callable[[Mapping[Alg, memoryview]], T]) -> T:
        """What `grow` makes of the seeds, which are overwritten then."""
        try:
            plain = self._open_sealer().open(_label(key.held, key.made), key.blob)
        except BrokenSealError:
            raise _damaged(key) from None
        try:
            with memoryview(plain) as view:
                seeds = _seeds(view)
                try:
                    return grow(seeds)
                finally:
                    for seed in seeds.values():
                        seed.release()
        finally:
            plain[:] = bytes(len(plain))

    def _half(self, alg: Alg, seed: memoryview) -> PrivateHalf:
        try:
            return signing.private_half(alg, seed, allow_unlocked=self._allow_unlocked)
        except NotLockedError:
            # the system locks less than we keep: make room, and try once more
            with self._lock:
                self._signing = ByteLru(self._unsealed_bytes)
            return signing.private_half(alg, seed, allow_unlocked=self._allow_unlocked)

    def _signing_half(self, key: SealedKey, alg: Alg, seeds: Mapping[Alg, memoryview]) -> PrivateHalf:
        if alg not in seeds:
            raise RonError(ErrorCode.UNSUPPORTED, f"this key has no {alg} half")
        half = self._half(alg, seeds[alg])
        _agree(key, {alg: half.public})
        return half


def _wrapping_halves(key: SealedKey, seeds: Mapping[Alg, memoryview]) -> PrivateHalves:
    halves = PrivateHalves({alg: seed for alg, seed in seeds.items() if alg in wrapping.WRAPPING_ALGS})
    _agree(key, halves.publics)
    return halves


def _seeds(plain: memoryview) -> dict[Alg, memoryview]:
    """The sealed text taken apart, in place."""
    seeds, at = {}, 0
    while at < len(plain):
        alg = _ALGS[plain[at]]
        seeds[alg] = plain[at + 1 : at + 1 + SEED_BYTES[alg]]
        at += 1 + SEED_BYTES[alg]
    return seeds


def _agree(key: SealedKey, publics: Mapping[Alg, bytes]) -> None:
    """What grew is the key that everybody knows: a fault in memory or in an engine signs nothing."""
    known = {half.alg: half.public for half in key.held.halves}
    if any(known.get(alg) != public for alg, public in publics.items()):
        raise _damaged(key)


def _damaged(key: SealedKey) -> DamagedError:
    return DamagedError(
        "a private half is not the one it was", hint="restart the service; test the memory", kid=str(key.held.kid)
    )


def _label(held: Held, made: int) -> Label:
    """Binds the key id, its public halves and the change that made it: none of them can be swapped in a file."""
    kid = held.kid
    digest = blake3.blake3(b"".join(half.alg.encode() + b"\0" + half.public for half in held.halves)).hexdigest()
    return Label(kid.tenant, kid.purpose, f"key/{kid.alg}/{kid.uuid}#v{kid.version}/{made}/{digest}")
