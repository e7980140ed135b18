"""The frame of every message between members: what it is, of which session, from whom. One spelling each.

In: a body. Out: `version u8 ‖ kind u8 ‖ session 32 ‖ sender u16 ‖ body`, big-endian. Bodies have fixed lengths, so that
there is nothing to parse. Who really sent a message is the channel's word (mTLS); the frame must say the same.
"""

from __future__ import annotations

import enum
import struct

import msgspec

from ron.crypto import group
from ron.crypto.frost.errors import Reason, Refused
from ron.crypto.group import InvalidElementError

VERSION = 1
SESSION_BYTES = 32
_HEAD = struct.Struct(">BB32sH")


class Kind(enum.IntEnum):
    """What a message is. The number is the one on the wire and never changes meaning."""

    COMMITMENT = 1
    PACKAGE = 2
    SIGNATURE_SHARE = 3
    DEALING = 16
    SHARE = 17
    CONFIRMATION = 18
    COMPLAINT = 19
    JUSTIFICATION = 20


class Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message taken apart: its kind, who sent it, and the body still to be checked."""

    kind: Kind
    sender: int
    body: bytes


def frame(kind: Kind, session: bytes, sender: int, body: bytes) -> bytes:
    """The message as bytes."""
    return _HEAD.pack(VERSION, kind, session, sender) + body


def unframe(raw: bytes, *, session: bytes, sender: int) -> Frame:
    """The message that the authenticated `sender` sent in `session`. Raises `Refused` naming the sender."""
    if len(raw) < _HEAD.size:
        raise Refused(Reason.MALFORMED, [sender], "a message that breaks off")
    version, number, of_session, says = _HEAD.unpack_from(raw)
    if version != VERSION or says != sender:
        raise Refused(Reason.MALFORMED, [sender], "a message of another version or under another's name")
    if of_session != session:
        raise Refused(Reason.OTHER_SESSION, [sender], "a message of another session")
    try:
        kind = Kind(number)
    except ValueError:
        raise Refused(Reason.MALFORMED, [sender], "a message of no known kind") from None
    return Frame(kind=kind, sender=sender, body=raw[_HEAD.size :])


def check_length(message: Frame, length: int) -> None:
    """Raises `Refused` unless the body has exactly this many bytes."""
    if len(message.body) != length:
        raise Refused(Reason.MALFORMED, [message.sender], f"a {message.kind.name.lower()} of the wrong length")


def scalar_in(message: Frame, raw: bytes) -> bytes:
    """`raw` when it is a scalar from 1 to L−1. Raises `Refused` naming the sender."""
    try:
        group.check_scalar(raw)
    except InvalidElementError:
        raise Refused(Reason.MALFORMED, [message.sender], "something that is no scalar") from None
    return raw


def element_in(message: Frame, raw: bytes) -> bytes:
    """`raw` when it is an element of the prime-order group, in its one spelling. Raises `Refused` naming the sender."""
    try:
        group.check_element(raw)
    except InvalidElementError:
        raise Refused(Reason.MALFORMED, [message.sender], "something that is no element of the group") from None
    return raw
