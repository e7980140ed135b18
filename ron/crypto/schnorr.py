"""Proof in zero knowledge that one knows the secret of one of the keys on a list, without showing of which.

In: a transcript both sides agree on, the list, one secret. Out: a proof of 64 bytes a key. It is the one-of-many
composition of Cramer, Damgård and Schoenmakers (CRYPTO '94) over Schnorr's identification, made non-interactive as in
RFC 8235; a list of one key is RFC 8235's own proof in its (challenge, response) form. What the transcript holds is the
caller's affair: see docs/federation.rst. One proof or check takes about 0.2 ms a key: use a thread for long lists.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Sequence
from typing import NewType

from ron.crypto import group
from ron.crypto.group import InvalidElementError

MAX_KEYS = 1024
KEY_BYTES = group.ELEMENT_BYTES
PROOF_BYTES_A_KEY = 2 * group.SCALAR_BYTES
_RANDOM_BYTES = 32
_CHALLENGE_LABEL = b"ron-schnorr/1 challenge"
_NONCE_LABEL = b"ron-schnorr/1 nonces"
_LIST_LABEL = b"ron-schnorr/1 list"

Proof = NewType("Proof", bytes)


class InvalidKeysError(ValueError):
    """Not a list one can prove against: empty, too long, a key twice, or something that is no key."""


class NotAHolderError(Exception):
    """The secret belongs to none of the keys on the list."""


class InvalidProofError(Exception):
    """Not a proof for this list and this transcript. It does not say what is wrong."""


class HolderKey:
    """A secret scalar and its public element. The secret never appears in `repr`."""

    __slots__ = ("public", "secret")

    def __init__(self, secret: bytes) -> None:
        """Raises `InvalidKeysError` unless `secret` is a scalar from 1 to L−1, 32 bytes, little-endian."""
        try:
            group.check_scalar(secret)
        except InvalidElementError:
            raise InvalidKeysError("not a holder secret") from None
        self.secret = bytes(secret)
        self.public = group.public_of(self.secret)

    @classmethod
    def generate(cls) -> HolderKey:
        """A fresh key from the operating system's randomness."""
        return cls(group.scalar_from_wide(secrets.token_bytes(group.WIDE_BYTES)))

    def __repr__(self) -> str:
        return f"<HolderKey {self.public.hex()}>"


class KeyList:
    """Public holder keys in their order, each checked once. `digest` names exactly this list in exactly this order."""

    __slots__ = ("_members", "digest", "keys")

    def __init__(self, keys: Sequence[bytes]) -> None:
        """Raises `InvalidKeysError` unless there are 1 to 1024 different valid keys."""
        if not 1 <= len(keys) <= MAX_KEYS:
            raise InvalidKeysError(f"a list has 1 to {MAX_KEYS} holder keys")
        self.keys = tuple(bytes(key) for key in keys)
        self._members = frozenset(self.keys)
        if len(self._members) != len(self.keys):
            raise InvalidKeysError("a holder key is on the list twice")
        try:
            for key in self.keys:
                group.check_element(key)
        except InvalidElementError:
            raise InvalidKeysError("the list has an entry that is no holder key") from None
        self.digest = hashlib.sha256(_joined(_LIST_LABEL, *self.keys)).digest()

    @property
    def proof_bytes(self) -> int:
        """How long a proof against this list is; it depends on nothing but the list's length."""
        return PROOF_BYTES_A_KEY * len(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, key: object) -> bool:
        return key in self._members

    def covers(self, other: KeyList) -> bool:
        """True when every key of `other` is on this list too, in whatever order."""
        return other._members <= self._members


def prove(
    transcript: bytes, keys: KeyList, secret: HolderKey, *, token_bytes: Callable[[int], bytes] = secrets.token_bytes
) -> Proof:
    """All challenges, then all responses. Raises `NotAHolderError` when `secret` has no key on the list.

    `token_bytes` is only half of what the nonces are made from: should it repeat itself, the secret is still safe.
    """
    if secret.public not in keys:
        raise NotAHolderError("the secret belongs to no key on the list")
    challenges, responses = _nonces(transcript, keys, secret, token_bytes(_RANDOM_BYTES))
    return _complete(transcript, keys, secret, challenges, responses)


def verify(transcript: bytes, keys: KeyList, proof: bytes) -> None:
    """Return when somebody who knows one of the secrets made `proof` for this `transcript` and this list.

    Raises `InvalidProofError`, whatever the bytes are. A proof has one spelling.
    """
    if len(proof) != keys.proof_bytes:
        raise InvalidProofError("not a proof for a list of this length")
    scalars = [proof[at : at + group.SCALAR_BYTES] for at in range(0, len(proof), group.SCALAR_BYTES)]
    challenges, responses = scalars[: len(keys)], scalars[len(keys) :]
    try:
        for scalar in scalars:
            group.check_scalar(scalar)
        commitments = [group.combine(r, c, key) for r, c, key in zip(responses, challenges, keys.keys, strict=True)]
    except InvalidElementError:
        raise InvalidProofError("not a proof") from None
    if not hmac.compare_digest(_total(challenges), _challenge(transcript, keys, commitments)):
        raise InvalidProofError("the proof does not hold")


def _complete(
    transcript: bytes, keys: KeyList, secret: HolderKey, challenges: list[bytes], responses: list[bytes]
) -> Proof:
    """The proof that grows from these nonces: all are kept but those of the own key."""
    own = keys.keys.index(secret.public)
    # The own key's commitment is made like the others', so that the work done does not depend on which one it is.
    commitments = [group.combine(r, c, key) for r, c, key in zip(responses, challenges, keys.keys, strict=True)]
    missing = group.scalar_sub(_challenge(transcript, keys, commitments), _total(challenges))
    # r + c·x is the commitment's logarithm: moving the challenge by `missing` moves the response by −missing·x.
    challenges[own] = group.scalar_add(challenges[own], missing)
    responses[own] = group.scalar_sub(responses[own], group.scalar_mul(missing, secret.secret))
    return Proof(b"".join(challenges) + b"".join(responses))


def _challenge(transcript: bytes, keys: KeyList, commitments: Sequence[bytes]) -> bytes:
    """RFC 8235 §3.3's hash, over all commitments and the whole list instead of one of each."""
    text = _joined(_CHALLENGE_LABEL, group.GENERATOR, b"".join(keys.keys), b"".join(commitments), transcript)
    return group.scalar_from_wide(hashlib.sha512(text).digest())


def _nonces(transcript: bytes, keys: KeyList, secret: HolderKey, fresh: bytes) -> tuple[list[bytes], list[bytes]]:
    """A challenge and a response for every key, uniform to all who do not know both the secret and `fresh`.

    The secret and everything else that goes into the hash make them: equal nonces then mean equal proofs, from which
    nothing can be learnt, even when the randomness is stuck.
    """
    seed = _joined(_NONCE_LABEL, secret.secret, fresh, keys.digest, transcript)
    count = 2 * len(keys)
    stream = hashlib.shake_256(seed).digest(count * group.WIDE_BYTES)
    wide = (stream[at : at + group.WIDE_BYTES] for at in range(0, len(stream), group.WIDE_BYTES))
    scalars = [group.scalar_from_wide(part) for part in wide]
    return scalars[: len(keys)], scalars[len(keys) :]


def _total(scalars: Sequence[bytes]) -> bytes:
    total = bytes(group.SCALAR_BYTES)
    for scalar in scalars:
        total = group.scalar_add(total, scalar)
    return total


def _joined(*parts: bytes) -> bytes:
    """Each part behind its length, so that no two sequences of parts read the same."""
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)
