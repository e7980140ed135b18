"""What a node lets be signed: the certificate of a descriptor-signing key, for a time period that is due, and no more.

In: the bytes somebody wants signed, the address, the periods by this node's own consensus and clock. Out: the period,
or `Refused`. A coordinator is not trusted; this is where its wishes end. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC
from functools import lru_cache

from stem.descriptor.certificate import Ed25519CertificateV1

from ron.tor.descriptor.blinding import SIGNATURE_BYTES, blind
from ron.tor.descriptor.certs import HOUR_S, Certificate, Purpose, signer_of
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.descriptor.refused import Reason, Refused

# tor's own certificates have 54 hours; one more for clocks that differ.
MAX_AHEAD_S = 55 * HOUR_S


def judged(message: bytes, identity: bytes, periods: Sequence[TimePeriod], now_s: float) -> TimePeriod:
    """The period under whose key `message` may be signed. Raises `Refused`.

    identity: the address's key. now_s: Unix time.
    """
    made = _parsed(message)
    by = signer_of(made)
    expires_s = round(made.expiration.replace(tzinfo=UTC).timestamp())
    # rebuilt from its three values it must be the same text: then nothing else is in it
    if Certificate(Purpose.SIGN_DESCRIPTOR, made.key, by=by, expires_h=expires_s // HOUR_S).message != message:
        raise Refused(Reason.MALFORMED, "what is to be signed is no certificate of a descriptor-signing key")
    if not now_s < expires_s <= now_s + MAX_AHEAD_S:
        raise Refused(Reason.EXPIRED, "the certificate to sign ends too late, or is over")
    for period in periods:
        if blinded_public(identity, period) == by:
            return period
    raise Refused(Reason.STRANGER, "the certificate to sign is for no time period that is due, or another address")


@lru_cache(maxsize=128)
def blinded_public(identity: bytes, period: TimePeriod) -> bytes:
    """The address's key in this period, 32 bytes."""
    return blind(identity, period).public


def _parsed(message: bytes) -> Ed25519CertificateV1:
    try:
        return Ed25519CertificateV1.unpack(message + bytes(SIGNATURE_BYTES))
    except (ValueError, OverflowError, OSError):
        raise Refused(Reason.MALFORMED, "what is to be signed is no certificate") from None
