"""What the service decides by itself: who asks, which halves a key gets, what of a key is shown. Pure.

In: requests, capabilities, entries of the index. Out: values, or `RonError`.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ron.auth import Capability
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.proto.kms import (
    Alg,
    KemMode,
    KeyAlg,
    KeyMaterialPublic,
    KeyView,
    Kid,
    PublicHalf,
)
from ron.services.kms.index import KeyEntry, Version

# Purposes of keys that wrap; every other one signs.
WRAPPING = frozenset({"kem", "wrap"})
# The tenant of keys that are the service's own.
SYSTEM = "ron-kms"
# Versions that are tried when nobody says which.
MOST_TRIED = 64
# Of hints, one inside the other. What is decoded at the foot of a deep stack may be too deep to be encoded further up:
# such a key would be stored, and no list that has it could be shown.
_DEEPEST = 16
_COMPANION = {Alg.ED25519: Alg.ML_DSA, Alg.X25519: Alg.ML_KEM}
# How the outside calls a suite, and the halves it takes.
KEM_NAMES: dict[KemMode, str] = {"hybrid": "hybrid(x25519+ml-kem)", "classical": "x25519", "pq": "ml-kem"}
KEM_HALVES: dict[KemMode, tuple[Alg, ...]] = {
    "hybrid": (Alg.X25519, Alg.ML_KEM),
    "classical": (Alg.X25519,),
    "pq": (Alg.ML_KEM,),
}


class Caller(NamedTuple):
    """Who asks. actor: the capability's id. tenants: that it is narrowed to, none for an operator's."""

    actor: str = ""
    tenants: tuple[str, ...] = ()
    corr_id: str = ""
    capability: Capability | None = None

    @classmethod
    def of(cls, capability: Capability | None, corr_id: str) -> Caller:
        """Whoever showed `capability`."""
        if capability is None:
            return cls(corr_id=corr_id)
        tenants = tuple({caveat.value: None for caveat in capability.caveats if caveat.name == "tenant"})
        return cls(capability.cap_id, tenants, corr_id, capability)

    def require(self, tenant: str) -> None:
        """Refuse (403) what is another tenant's. It is asked before anything is looked up: nobody learns what is."""
        if self.capability is not None:
            self.capability.require("tenant", tenant)

    def require_own(self, tenant: str) -> None:
        """The same for whoever is to use or change a key. The service's own keys are nobody's to use."""
        self.require(tenant)
        if tenant == SYSTEM:
            raise RonError(
                ErrorCode.NO_CAPABILITY, f"the keys of {SYSTEM} are the service's own", hint="choose another tenant"
            )

    @property
    def tenant(self) -> str | None:
        """The one tenant it is narrowed to."""
        return self.tenants[0] if len(self.tenants) == 1 else None


def halves_of(alg: KeyAlg, purpose: str, allowed: Collection[Alg]) -> tuple[Alg, ...]:
    """What a new key is made of, the classical half first. Raises `RonError` (Unsupported).

    A classical key gets its post-quantum companion where that is allowed, so that moving on needs no new keys.
    """
    wraps = purpose in WRAPPING
    if alg == "hybrid":
        both = (Alg.X25519, Alg.ML_KEM) if wraps else (Alg.ED25519, Alg.ML_DSA)
        if not set(both) <= set(allowed):
            raise _unsupported("a hybrid key needs both algorithms", "allow them in service.allowed_algs")
        return both
    first = Alg(alg)
    if first not in allowed:
        raise _unsupported(f"{alg} is not allowed here", "ask for another, or allow it in service.allowed_algs")
    if (first in {Alg.X25519, Alg.ML_KEM}) is not wraps:
        meant = "purpose kem or wrap" if not wraps else "ed25519, ml-dsa or hybrid with another purpose"
        raise _unsupported(f"{alg} does not go with the purpose {purpose}", meant)
    companion = _COMPANION.get(first)
    return (first, companion) if companion in allowed and companion is not None else (first,)


def kem_publics(version: Version, mode: KemMode) -> dict[Alg, bytes]:
    """The public halves that `mode` takes. Raises `RonError` (Unsupported) where the key lacks one."""
    wanted = KEM_HALVES[mode]
    lacking = [alg for alg in wanted if alg not in version.by_alg]
    if lacking:
        has = "this key signs" if Alg.ED25519 in version.by_alg or Alg.ML_DSA in version.by_alg else "it lacks a half"
        raise _unsupported(f"{has}: no {lacking[0]}", "create one with purpose kem, alg hybrid")
    return {alg: version.by_alg[alg] for alg in wanted}


def public_of(version: Version) -> KeyMaterialPublic:
    """The public halves as they go out."""
    halves = tuple(PublicHalf(alg=half.alg, pubkey_b64=b64(half.public)) for half in version.halves)
    return KeyMaterialPublic(alg=halves[0].alg, pubkey_b64=halves[0].pubkey_b64, halves=halves)


def view_of(entry: KeyEntry, version: Version) -> KeyView:
    """A key as it is shown."""
    return KeyView(
        kid=str(version.kid),
        alg=entry.kid.alg,  # type: ignore[arg-type]
        versions=tuple(f"#v{one.kid.version}" for one in entry.verifiable()),
        public=public_of(version),
        attestation_class=version.attestation or None,
        created_at=version.created_at,
        policy_hints=entry.hints or None,
    )


def candidates(entries: Iterable[KeyEntry], algs: Collection[Alg]) -> list[Version]:
    """All versions of these with a half of `algs`, newest first. Raises BadRequest for more than may be tried."""
    found: list[Version] = []
    for entry in entries:
        found += [one for one in entry.verifiable() if any(alg in one.by_alg for alg in algs)]
        if len(found) > MOST_TRIED:
            raise bad_request(f"over {MOST_TRIED} versions would have to be tried", "name the key in kid_or_set")
    return sorted(found, key=lambda one: -one.kid.version)


def check_one_tenant(kids: Sequence[Kid]) -> None:
    """Raises BadRequest for keys of several tenants: one's freeze and phase would be asked, another's key used."""
    if any(kid.tenant != kids[0].tenant for kid in kids):
        raise bad_request("kid_set has keys of several tenants", "ask for each tenant by itself")


def check_shallow(hints: Mapping[str, Any] | None) -> None:
    """Raises BadRequest for hints that are nested too deep."""
    level: list[Any] = [hints]
    for _ in range(_DEEPEST):
        level = [inner for one in level for inner in _within(one)]
    if level:
        raise bad_request(f"policy_hints are nested over {_DEEPEST} deep", "make them flat")


def _within(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def b64(raw: bytes) -> str:
    """Standard base64 with padding."""
    return base64.b64encode(raw).decode("ascii")


def unb64(text: str, field: str, most: int) -> bytes:
    """The bytes, of which there is one spelling. Raises `RonError` (BadRequest) naming `field`."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(f"{field} is not base64", "standard alphabet, with padding") from None
    if b64(raw) != text:
        raise bad_request(f"{field} is base64 with bits that mean nothing", "encode the bytes anew")
    if len(raw) > most:
        raise bad_request(f"{field} has over {most} bytes")
    return raw


def _unsupported(message: str, hint: str) -> RonError:
    return RonError(ErrorCode.UNSUPPORTED, message, hint=hint)
