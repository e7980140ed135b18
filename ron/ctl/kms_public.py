"""Public halves as other programs take them: PEM (SubjectPublicKeyInfo) and JWK.

In: a key as the service shows it. Out: text for a file, one block or entry for each half, the first half first. Pure.
Formats: RFC 8410 (Ed25519, X25519), RFC 9881 (ML-DSA), RFC 9935 (ML-KEM); RFC 8037 and RFC 9964 for JWK.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

from ron.proto.errors import RonError, unavailable
from ron.proto.kms import Alg, KeyView, PublicHalf


def pem_text(found: KeyView) -> str:
    """One `PUBLIC KEY` block for each half. Raises `RonError` (StoreUnavailable) for a half that is no key."""
    return "".join(_pem(half) for half in found.public.halves)


def jwk_set(found: KeyView) -> dict[str, Any]:
    """A JWK Set (RFC 7517 §5). An ML-KEM half is left out: JOSE has no name for it yet. Raises as `pem_text`."""
    keys = [{**_jwk(half), "kid": found.kid} for half in found.public.halves if half.alg is not Alg.ML_KEM]
    return {"keys": keys}


def _pem(half: PublicHalf) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    text: bytes = _loaded(half).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode("ascii")


def _jwk(half: PublicHalf) -> dict[str, str]:
    # a half that is no key must not become a file that looks like one
    _loaded(half)
    raw = base64.urlsafe_b64encode(_raw(half)).rstrip(b"=").decode("ascii")
    if half.alg is Alg.ML_DSA:
        return {"kty": "AKP", "alg": "ML-DSA-65", "use": "sig", "pub": raw}
    if half.alg is Alg.ED25519:
        return {"kty": "OKP", "crv": "Ed25519", "alg": "Ed25519", "use": "sig", "x": raw}
    return {"kty": "OKP", "crv": "X25519", "use": "enc", "x": raw}


def _loaded(half: PublicHalf) -> Any:
    try:
        return _loaders()[half.alg](_raw(half))
    except ValueError:
        raise _broken(half) from None


def _raw(half: PublicHalf) -> bytes:
    try:
        return base64.b64decode(half.pubkey_b64, validate=True)
    except binascii.Error:
        raise _broken(half) from None


def _loaders() -> Mapping[Alg, Callable[[bytes], Any]]:
    # a twentieth of a second to import, which no other command has to wait for
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    return {
        Alg.ED25519: Ed25519PublicKey.from_public_bytes,
        Alg.ML_DSA: MLDSA65PublicKey.from_public_bytes,
        Alg.X25519: X25519PublicKey.from_public_bytes,
        Alg.ML_KEM: MLKEM768PublicKey.from_public_bytes,
    }


def _broken(half: PublicHalf) -> RonError:
    return unavailable(f"the {half.alg} half that the service shows is no public key", "is it a key service?")
