"""Ed25519 certificates inside descriptors (cert-spec §2.1; rend-spec-v3 appendix E for the types).

In: a key, its purpose, an hour, a signature. Out: the text that goes into a descriptor; or, read back, a judgement.
stem writes and reads the bytes; what must hold of them is said here.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime

from stem.client.datatype import CertType
from stem.descriptor.certificate import Ed25519CertificateV1, Ed25519Extension, ExtensionType

from ron.tor.descriptor.blinding import KEY_BYTES, verify
from ron.tor.descriptor.refused import Reason, Refused

HOUR_S = 3600
LIFETIME_H = 54
"""As tor makes them: a period of a day, a value's half day before it, one after, and six hours for clocks."""
_ED25519_KEY = 1
_SIGNATURE_BYTES = 64


class Purpose(enum.Enum):
    """What the certified key is for."""

    SIGN_DESCRIPTOR = CertType.HS_V3_DESC_SIGNING
    INTRO_AUTH = CertType.HS_V3_INTRO_AUTH
    INTRO_ENCRYPT = CertType.HS_V3_NTOR_ENC


class Certificate:
    """One to be signed: `message` is what the signature is of, `pem` the text with it."""

    def __init__(self, purpose: Purpose, key: bytes, *, by: bytes, expires_h: int) -> None:
        """key: what is certified, by: who signs (32 bytes each). expires_h: the Unix time of its end in hours."""
        self._made = Ed25519CertificateV1(
            cert_type=purpose.value,
            expiration=datetime.fromtimestamp(expires_h * HOUR_S, tz=UTC).replace(tzinfo=None),
            key_type=_ED25519_KEY,
            key=key,
            extensions=[Ed25519Extension(ExtensionType.HAS_SIGNING_KEY, None, by)],
        )
        self.message: bytes = self._made.pack()

    def pem(self, signature: bytes) -> str:
        """With its armour, no line end after it."""
        self._made.signature = signature
        return str(self._made.to_base64(pem=True))


def expiry_h(now_s: float) -> int:
    """The hour at which a certificate that tor would make now ends."""
    return -int(-now_s // HOUR_S) + LIFETIME_H


def signer_of(made: Ed25519CertificateV1) -> bytes:
    """The one key it says it is signed by. Raises `Refused` when it does not say so in the one way tor does."""
    named = [e for e in made.extensions if e.type == ExtensionType.HAS_SIGNING_KEY]
    # bit 0 of an extension that we do not know: not valid for who does not know it
    if len(named) != 1 or any(e.flag_int & 1 for e in made.extensions if e not in named):
        raise Refused(Reason.MALFORMED, "a certificate does not name its signer, or asks for what we do not know")
    return bytes(named[0].data)


def checked(made: Ed25519CertificateV1, purpose: Purpose, *, by: bytes, now_s: float) -> tuple[bytes, int]:
    """The certified key and the hour it ends, of a certificate that stem has read. Raises `Refused`."""
    if made.type is not purpose.value or made.key_type != _ED25519_KEY or len(made.key) != KEY_BYTES:
        raise Refused(Reason.MALFORMED, "a certificate is for another purpose than its place")
    if signer_of(made) != by:
        raise Refused(Reason.STRANGER, "a certificate is signed by another key than the descriptor's")
    if not verify(by, made.pack()[:-_SIGNATURE_BYTES], made.signature):
        raise Refused(Reason.BAD_SIGNATURE, "a certificate's signature does not verify")
    expires_h = round(made.expiration.replace(tzinfo=UTC).timestamp()) // HOUR_S
    if expires_h * HOUR_S <= now_s:
        raise Refused(Reason.EXPIRED, "a certificate has expired")
    return bytes(made.key), expires_h
