"""Structs to MessagePack and back. Unknown fields, wrong types and second spellings are refused."""

from __future__ import annotations

from typing import TypeVar

import msgspec

Body = TypeVar("Body", bound=msgspec.Struct)


class Unfit(Exception):
    """Bytes that are not of the shape they should be, or a body of a kind that nobody hears."""


def encode(body: msgspec.Struct) -> bytes:
    """`body` as it travels."""
    return msgspec.msgpack.encode(body)


def decode(body: bytes, shape: type[Body]) -> Body:
    """`body` as a `shape`. Raises `Unfit`."""
    try:
        return msgspec.msgpack.decode(body, type=shape)
    except (msgspec.MsgspecError, RecursionError, ValueError, OverflowError) as error:
        raise Unfit(str(error)) from None


def decode_canonical(body: bytes, shape: type[Body]) -> Body:
    """The same, for what is signed: only the bytes that `encode` would write are taken. Raises `Unfit`."""
    decoded = decode(body, shape)
    if encode(decoded) != body:
        raise Unfit("written in another way than everybody writes it")
    return decoded
