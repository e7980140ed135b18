"""One spelling for what is signed: JSON as RFC 8785 writes it, of the subset that has no surprises.

In: structs. Out: their bytes and digest, and structs back from exactly these bytes. Names of fields are ASCII, numbers
are whole and below 2^53: sorted names, no spaces and minimal escapes are then all there is to the standard.
"""

from __future__ import annotations

import hashlib
from typing import TypeVar

import msgspec

from ron.proto.errors import RonError, bad_request

T = TypeVar("T", bound=msgspec.Struct)
_encoder = msgspec.json.Encoder(order="sorted")


def canonical(value: msgspec.Struct) -> bytes:
    """`value` as everybody writes it."""
    return _encoder.encode(value)


def digest(content: bytes) -> bytes:
    """SHA-256, 32 bytes (GOVERNANCE 4.x)."""
    return hashlib.sha256(content).digest()


def decode_canonical(content: bytes, shape: type[T]) -> T:
    """The struct that `content` spells. Raises `RonError` (BadRequest) for any other spelling of the same thing.

    Written anew and compared: a name given twice, a fraction, a space, an unknown field all come out otherwise.
    """
    try:
        decoded = msgspec.json.decode(content, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(shape, str(error)) from None
    if canonical(decoded) != content:
        raise bad_request(f"this {shape.__name__.lower()} is not canonical JSON", "RFC 8785; `ronctl` writes it so")
    return decoded


def _malformed(shape: type[msgspec.Struct], why: str) -> RonError:
    return bad_request(f"this is no {shape.__name__.lower()}: {why.replace('`', '')}"[:300])
