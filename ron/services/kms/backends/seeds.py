"""Halves that grow from a seed, for backends whose hardware keeps the seed sealed and cannot work with the key itself.

In: an algorithm, or a seed that was unsealed for one call. Out: public bytes, signatures, opened envelopes. Nothing is
kept between calls: a seed that was not asked for again is in nobody's memory, but for what CPython copied.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ron.crypto import signing, wrapping
from ron.crypto.wrapping import Suite
from ron.proto.errors import bad_request
from ron.proto.kms import Alg, Kid

SEED_BYTES = {**dict.fromkeys(signing.SIGNING_ALGS, signing.SEED_BYTES), **wrapping.SEED_BYTES}


def fresh(alg: Alg) -> tuple[bytearray, bytes]:
    """A new seed of the system's randomness and its public bytes. The caller overwrites the seed."""
    seed = bytearray(secrets.token_bytes(SEED_BYTES[alg]))
    return seed, public_of(alg, seed)


def public_of(alg: Alg, seed: bytearray) -> bytes:
    """Raw public bytes, as `ron.proto.kms.PublicHalf` has them."""
    if alg in signing.SIGNING_ALGS:
        return signing.private_half(alg, seed, allow_unlocked=True).public
    return bytes(wrapping.PrivateHalves({alg: seed}).publics[alg])


class ForeignSeedError(ValueError):
    """What was unsealed is not the seed of this key."""


def sign(alg: Alg, seed: bytearray, message: bytes, public: bytes) -> bytes:
    """As the port has it. public: what everybody knows of the key.

    Raises `ForeignSeedError` where `seed` grows to another key: hardware that errs, or lies, signs nothing. `RonError`
    (Unsupported) for an algorithm that does not sign.
    """
    signing.check_signs(alg)
    _check_length(alg, seed)
    half = signing.private_half(alg, seed, allow_unlocked=True)
    if half.public != public:
        raise ForeignSeedError
    return half.sign(message)


def suite_of(name: str) -> Suite:
    """The suite of that name. Raises `RonError` (BadRequest) for no suite."""
    try:
        return Suite(name)
    except ValueError:
        raise bad_request("no such way to wrap", hint=", ".join(Suite)) from None


def check_envelope(kid: Kid, envelope: bytes) -> None:
    """Before a seed is unsealed for it. Raises `RonError` (BadRequest) for no envelope, or another version's."""
    if wrapping.read_head(envelope).key_version != kid.version:
        raise bad_request("the envelope is of another version of the key")


def unwrap(
    suite: Suite, opened: Mapping[Alg, bytearray], publics: Mapping[Alg, bytes], envelope: bytes, info: bytes
) -> bytes:
    """What was wrapped to these halves, whose public bytes are `publics`. Raises `RonError` (BadRequest) for a changed
    envelope, `ForeignSeedError` as `sign`."""
    for alg, seed in opened.items():
        _check_length(alg, seed)
    halves = wrapping.PrivateHalves(opened)
    if any(bytes(halves.publics[alg]) != publics[alg] for alg in opened):
        raise ForeignSeedError
    return halves.open(suite, envelope, info)


@contextmanager
def wiped(*taken: bytearray) -> Iterator[None]:
    """Overwritten with zeros when the block ends."""
    try:
        yield
    finally:
        for seed in taken:
            seed[:] = bytes(len(seed))


def _check_length(alg: Alg, seed: bytearray) -> None:
    if len(seed) != SEED_BYTES[alg]:
        raise ForeignSeedError
