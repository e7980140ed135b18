"""What the tests of descriptors begin with: one that a real tor made, keys, introduction points."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from nacl import bindings
from nacl.signing import SigningKey
from twisted.internet.defer import Deferred

from ron.tor.descriptor.blinding import KeySigner
from ron.tor.descriptor.build import DescriptorKey, certify
from ron.tor.descriptor.intropoints import Extras, IntroPoint
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.onionkeys import OnionKey, new_key, parse_key

VECTORS = Path(__file__).parents[2] / "vectors"
# when tor made tests/vectors/onion-with-pow.txt
RECORDED_PERIOD = TimePeriod(number=3740149, length_min=8, start_s=3740149 * 480 + 240)
NOW_S = RECORDED_PERIOD.start_s + 100.0
EXTRAS = Extras(flow_control="1-2 31")


def recorded() -> tuple[str, str]:
    """(address, descriptor)."""
    _comment, onion, text = (VECTORS / "onion-with-pow.txt").read_text().split("\n", 2)
    return onion, text


def key_of(name: str) -> OnionKey:
    """The same for the same name: what depends on its places on the ring is as it was in the last run."""
    expanded = bytearray(hashlib.sha512(name.encode()).digest())
    expanded[0] &= 248
    expanded[31] = (expanded[31] & 63) | 64
    return parse_key(f"ED25519-V3:{base64.b64encode(expanded).decode()}")


def finish(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of one that waits for nothing."""
    outcome: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(outcome.append)
    if hasattr(outcome[0], "raiseException"):
        outcome[0].raiseException()
    return outcome[0]


def descriptor_key(key: OnionKey | None = None, period: TimePeriod = RECORDED_PERIOD) -> DescriptorKey:
    made: DescriptorKey = finish(certify(KeySigner(key or new_key()), period, NOW_S))
    return made


def intro_point(name: str, expires_h: int = int(NOW_S) // 3600 + 40) -> IntroPoint:
    """Another one for each name, as a tor would make it."""
    seeds = [hashlib.sha256(f"{name} {use}".encode()).digest() for use in range(3)]
    certified = bytes(SigningKey(seeds[0]).verify_key)
    address = bytes([0, 6, 10, 0, *seeds[1][:2], 1, 187])
    return IntroPoint(
        link_specifiers=b"\x03" + address + b"\x02\x14" + seeds[1][:20] + b"\x03\x20" + seeds[2],
        onion_key=bindings.crypto_scalarmult_base(seeds[1]),
        auth_key=bytes(SigningKey(seeds[2]).verify_key),
        enc_key=bindings.crypto_sign_ed25519_pk_to_curve25519(certified),
        enc_certified=certified,
        auth_expires_h=expires_h,
        enc_expires_h=expires_h,
    )
