"""The key service on the wire: key names, what is asked of it and what it answers (specs/ron-kms.md, API §2).

In: JSON bodies of `/v1/kms`. Out: strict structs for the service, the SDK, gRPC and `ronctl` alike. Shapes, no
rules.
"""

from __future__ import annotations

import enum
import re
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from ron.proto.errors import bad_request

MAX_KID = 256
MAX_KID_SET = 16
MAX_SIGS = 8
MAX_WRAPPED_KEY_BYTES = 4096
PAYLOAD_BYTES = 32


class Alg(enum.StrEnum):
    """An algorithm of one half of a key: FIPS 204 ML-DSA-65, FIPS 203 ML-KEM-768, RFC 8032, RFC 7748."""

    ED25519 = "ed25519"
    ML_DSA = "ml-dsa"
    X25519 = "x25519"
    ML_KEM = "ml-kem"


# What a key is made for: one algorithm, or two halves that both have to do
KeyAlg = Literal["ed25519", "ml-dsa", "x25519", "ml-kem", "hybrid"]
VerifyMode = Literal["or", "and", "pq_only"]
_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_ALG = "ed25519|ml-dsa|x25519|ml-kem|hybrid"
# A version has no leading zero and at most nine digits
KID_PATTERN = rf"^({_NAME})/({_NAME})/({_ALG})/({_UUID})(?:#v([1-9][0-9]{{0,8}}))?\Z"
_KID = re.compile(KID_PATTERN)
# Names that were taken apart already; what is none is not remembered
_KNOWN_KIDS = 4096

KidText = Annotated[str, Meta(pattern=KID_PATTERN, max_length=MAX_KID)]
TenantName = Annotated[str, Meta(pattern=rf"^{_NAME}\Z")]
PurposeName = Annotated[str, Meta(pattern=rf"^{_NAME}\Z")]
PayloadB3 = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z", description="BLAKE3-256 of the canonical payload.")]
OpId = Annotated[
    str,
    Meta(pattern=rf"^{_UUID}\Z", description="A UUID of the caller's: the same one is one act."),
]
# standard base64 with padding; sizes are checked after decoding
Base64 = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]*={0,2}\Z", max_length=64 * 1024)]


class Kid(NamedTuple):
    """`<tenant>/<purpose>/<alg>/<uuid>#vN` taken apart. version: 0 for a key without one, which means its newest."""

    tenant: str
    purpose: str
    alg: str
    uuid: str
    version: int = 0

    @property
    def key(self) -> str:
        """The name all versions share, without `#vN`."""
        return f"{self.tenant}/{self.purpose}/{self.alg}/{self.uuid}"

    def at(self, version: int) -> Kid:
        """The same key at `version` (0: none)."""
        return self._replace(version=version)

    def __str__(self) -> str:
        return f"{self.key}#v{self.version}" if self.version else self.key


@lru_cache(maxsize=_KNOWN_KIDS)
def parse_kid(text: str) -> Kid:
    """A key's name as `Kid`. Raises `RonError` (BadRequest) for anything else, the text itself not quoted."""
    found = _KID.match(text) if len(text) <= MAX_KID else None
    if found is None:
        raise bad_request("this is no key id", "<tenant>/<purpose>/<alg>/<uuid>#vN, as `ronctl kms key list` shows it")
    tenant, purpose, alg, uuid, version = found.groups()
    return Kid(tenant, purpose, alg, uuid, int(version or 0))


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class KidSelector(_Strict, frozen=True, kw_only=True):
    """Exactly one of the two, which `chosen` checks. kid_set: any of these; the first that may be used signs."""

    kid: KidText | None = None
    kid_set: Annotated[tuple[KidText, ...], Meta(min_length=1, max_length=MAX_KID_SET)] | None = None


# The specification has both forms: an object, and in its OpenAPI excerpt the bare key id
KidOrSet = KidSelector | KidText


def chosen(selector: KidSelector | str) -> tuple[Kid, ...]:
    """The keys that `kid_or_set` names, at least one. Raises `RonError` (BadRequest) for both forms or none."""
    if isinstance(selector, str):
        return (parse_kid(selector),)
    if (selector.kid is None) == (selector.kid_set is None):
        raise bad_request("kid_or_set: give either kid or kid_set")
    texts = (selector.kid,) if selector.kid is not None else selector.kid_set or ()
    return tuple(map(parse_kid, texts))


class SignPolicy(_Strict, frozen=True, kw_only=True):
    """produce_hybrid: with the post-quantum half too; None leaves it to the tenant's phase."""

    produce_hybrid: bool | None = None


class VerifyPolicy(_Strict, frozen=True, kw_only=True):
    """mode: None leaves it to the tenant's phase."""

    mode: VerifyMode | None = None


class SignRequest(_Strict, frozen=True, kw_only=True):
    """What is signed is the 32 bytes of `payload_b3`, as they are."""

    kid_or_set: KidOrSet
    payload_b3: PayloadB3
    policy: SignPolicy | None = None
    op_id: OpId | None = None


class Signature(_Strict, frozen=True, kw_only=True):
    """By one half of a key. 64 bytes of Ed25519, 3309 of ML-DSA-65 (pure, empty context)."""

    alg: Alg
    signature_b64: Base64


class Attestation(_Strict, frozen=True, kw_only=True):
    """Where the private half lives. class: `software-file`, `pkcs11-softhsm-v2`, …; evidence: base64, if any."""

    class_: str = msgspec.field(name="class")
    evidence: str | None = None


class SignResponse(_Strict, frozen=True, kw_only=True):
    """`kid` names the version that signed."""

    sigs: tuple[Signature, ...]
    kid: KidText
    attestation: Attestation | None = None


class VerifyRequest(_Strict, frozen=True, kw_only=True):
    """kid_or_set: whose signatures they are said to be. Without it the keys of the capability's tenant are tried."""

    payload_b3: PayloadB3
    sigs: Annotated[tuple[Signature, ...], Meta(min_length=1, max_length=MAX_SIGS)]
    policy: VerifyPolicy | None = None
    kid_or_set: KidOrSet | None = None


class VerifyDetails(_Strict, frozen=True, kw_only=True):
    """checked: the algorithms whose signature holds. satisfied_mode: the mode it was held against, None if it fails."""

    checked: tuple[Alg, ...]
    satisfied_mode: VerifyMode | None = None


class VerifyResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """kid: the version that verified. cache_age_ms: the age of what is known of the key, if the store was not asked."""

    ok: bool
    details: VerifyDetails
    kid: KidText | None = None
    cache_age_ms: int | None = None


KemMode = Literal["hybrid", "classical", "pq"]


class WrapRequest(_Strict, frozen=True, kw_only=True):
    """Either the key to wrap, or how many random bytes to make and wrap."""

    kid: KidText
    plaintext_key_b64: Base64 | None = None
    size: Annotated[int, Meta(ge=16, le=MAX_WRAPPED_KEY_BYTES)] | None = None
    kem_mode: KemMode = "hybrid"


class WrapResponse(_Strict, frozen=True, kw_only=True):
    """alg: `hybrid(x25519+ml-kem)`, `x25519` or `ml-kem`."""

    wrapped_b64: Base64
    alg: str
    kid: KidText


class UnwrapRequest(_Strict, frozen=True, kw_only=True):
    """kid without a version: the envelope says which."""

    kid: KidText
    wrapped_b64: Base64


class UnwrapResponse(_Strict, frozen=True, kw_only=True):
    """The key that was wrapped."""

    plaintext_key_b64: Base64
    alg: str
    kid: KidText


class CreateKeyRequest(_Strict, frozen=True, kw_only=True):
    """purpose `kem` or `wrap` makes a key to wrap with, any other one that signs. policy_hints: kept and shown."""

    tenant: TenantName
    purpose: PurposeName
    alg: KeyAlg
    policy_hints: dict[str, Any] | None = None
    op_id: OpId | None = None


class PublicHalf(_Strict, frozen=True, kw_only=True):
    """Raw bytes in base64: 32 of Ed25519 and X25519, 1952 of ML-DSA-65, 1184 of ML-KEM-768."""

    alg: Alg
    pubkey_b64: Base64


class KeyMaterialPublic(_Strict, frozen=True, kw_only=True):
    """The first half by itself, as the specification has it, and all of them under `halves`."""

    alg: Alg
    pubkey_b64: Base64
    halves: tuple[PublicHalf, ...] = ()


class CreateKeyResponse(_Strict, frozen=True, kw_only=True):
    """The new key, at `#v1`."""

    kid: KidText
    public: KeyMaterialPublic


class RotateRequest(_Strict, frozen=True, kw_only=True):
    """The body may be left out."""

    op_id: OpId | None = None


class RotateResponse(_Strict, frozen=True, kw_only=True):
    """The new version and the one before it."""

    kid: KidText
    previous: KidText


class KeyView(_Strict, frozen=True, kw_only=True):
    """A key at the version asked for (the newest, if none was). versions: those that still verify, oldest first."""

    kid: KidText
    alg: KeyAlg
    versions: tuple[str, ...]
    public: KeyMaterialPublic
    attestation_class: str | None = None
    created_at: str | None = None
    policy_hints: dict[str, Any] | None = None


class KeyList(_Strict, frozen=True, kw_only=True):
    """Newest versions. next: where to go on, None at the end."""

    keys: tuple[KeyView, ...]
    next: str | None = None


class DestroyRequest(_Strict, frozen=True, kw_only=True):
    """proposal: the executed governance proposal that allows it."""

    proposal: str
    op_id: OpId | None = None


class DestroyResponse(_Strict, frozen=True, kw_only=True):
    """What was destroyed; its public halves stay to verify with."""

    kid: KidText
    destroyed: bool = True


class AttestResponse(_Strict, frozen=True, kw_only=True):
    """`GET /attest?kid=…`, or of the backend as a whole."""

    backend: str
    attestation: Attestation | None = None
    kid: KidText | None = None
    issued_at: str | None = None
