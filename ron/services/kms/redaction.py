"""What stands for an input in the log of single operations: its hash and its length, its length, or nothing (I-16).

In: `observability.redact_level`, a request. Out: fields for a log event. Never the input. Pure.
"""

from __future__ import annotations

import binascii
from typing import Any, Literal

import msgspec

from ron.proto.kms import SignRequest, UnwrapRequest, VerifyRequest, WrapRequest
from ron.services.kms.recorder import hashed

Level = Literal["none", "lengths", "hashes"]
_HASH_BYTES = 32


def stands_for(level: Level, body: msgspec.Struct) -> dict[str, Any]:
    """none: nothing does. lengths: `input_bytes`, of what the caller sent. hashes: that, and `payload_b3` of what is
    signed or `input_b3` of an envelope. A key that is to be wrapped is a secret: not even its hash is told."""
    if level == "none":
        return {}
    said: dict[str, Any] = {"input_bytes": _size(body)}
    if level == "hashes" and isinstance(body, SignRequest | VerifyRequest):
        said["payload_b3"] = body.payload_b3
    if level == "hashes" and isinstance(body, UnwrapRequest):
        said["input_b3"] = hashed(_raw(body.wrapped_b64))
    return said


def _size(body: msgspec.Struct) -> int:
    if isinstance(body, SignRequest):
        return _HASH_BYTES
    if isinstance(body, VerifyRequest):
        return _HASH_BYTES + sum(len(_raw(one.signature_b64)) for one in body.sigs)
    if isinstance(body, WrapRequest):
        return len(_raw(body.plaintext_key_b64)) if body.plaintext_key_b64 is not None else 0
    return len(_raw(body.wrapped_b64)) if isinstance(body, UnwrapRequest) else 0


def _raw(text: str) -> bytes:
    """What it spells; nothing where it is no base64, which is refused elsewhere."""
    try:
        return binascii.a2b_base64(text)
    except ValueError:
        return b""
