"""What the token remembers of a key version beside the keys themselves: one data object (CKO_DATA) each.

In: a kid and its halves. Out: MessagePack, and back. The record is written last, so what it names is all there. Its
bytes come from the token and are judged as strictly as a request. Pure.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec
from blake3 import blake3
from msgspec import Meta

from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import KID_PATTERN, Alg, Kid, KidText, parse_kid
from ron.services.kms.backends.errors import DamagedError
from ron.services.kms.ports import Half, Held

_KID = re.compile(KID_PATTERN)
APPLICATION = "ron-kms"
MARKER = "ron-kms room"
WRAPPED_CLASS = "pkcs11-wrapped"
MAX_RECORD_BYTES = 16 * 1024
Where = Literal["token", "aes-gcm", "hmac-sha256"]


class DamagedRecordError(DamagedError):
    """What the token gave back is not what was put there."""

    def __init__(self, label: str) -> None:
        known = _KID.match(label) is not None
        super().__init__(
            "a record in the token is not what was put there",
            hint="restore the token's backup, or rotate the key; see docs/kms/runbook.rst",
            kid=label if known else "",
        )


class HalfRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """where: in the token itself, or how a key of the token seals it. sealed: the seed, by that key."""

    alg: Alg
    public: Annotated[bytes, Meta(min_length=32, max_length=4096)]
    where: Where
    sealed: Annotated[bytes, Meta(max_length=256)] = b""


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key version. v: of this format."""

    v: Literal[1] = 1
    kid: KidText
    halves: Annotated[tuple[HalfRecord, ...], Meta(min_length=1, max_length=2)]

    def half(self, alg: Alg) -> HalfRecord:
        """Raises `RonError` (Unsupported) for a half it has not."""
        for half in self.halves:
            if half.alg == alg:
                return half
        raise RonError(ErrorCode.UNSUPPORTED, f"this key has no {alg} half", hint="ask for one of `halves`")

    def held(self, token_class: str) -> Held:
        """As the port has it. token_class: what stands for halves that live in the token."""
        classes = [token_class if half.where == "token" else WRAPPED_CLASS for half in self.halves]
        halves = tuple(Half(half.alg, half.public) for half in self.halves)
        return Held(parse_kid(self.kid), halves, "+".join(dict.fromkeys(classes)))


def encode(record: KeyRecord) -> bytes:
    """The value of the data object."""
    return msgspec.msgpack.encode(record)


def decode(raw: bytes, label: str) -> KeyRecord:
    """label: of the object, which has to be the kid inside. Raises `DamagedRecordError` for anything else."""
    try:
        if len(raw) > MAX_RECORD_BYTES:
            raise ValueError
        record = msgspec.msgpack.decode(raw, type=KeyRecord)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise DamagedRecordError(label) from None
    algs = {half.alg for half in record.halves}
    if record.kid != label or not parse_kid(label).version or len(algs) != len(record.halves):
        raise DamagedRecordError(label)
    return record


def bound_to(kid: Kid, alg: Alg, public: bytes) -> bytes:
    """What a sealed half is authenticated with: its key version, its algorithm and its public bytes."""
    return b"\0".join((b"ron-kms/1 half", str(kid).encode(), alg.encode(), public))


def object_id(kid: Kid) -> bytes:
    """CKA_ID of the objects of a key version."""
    return blake3(str(kid).encode()).digest()[:16]


def kid_hash(kid: str) -> str:
    """What stands for a kid in logs and messages: 8 hex digits."""
    return blake3(kid.encode()).hexdigest()[:8]


def slug(model: str) -> str:
    """A token's model as a part of an attestation class: `SoftHSM v2` is `softhsm-v2`."""
    return "-".join("".join(c if c.isascii() and c.isalnum() else " " for c in model.lower()).split()) or "token"
