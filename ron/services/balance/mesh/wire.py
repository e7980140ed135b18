"""The mesh on the wire: frames with a length before them, envelopes with a signature. Sans-IO, no clock.

In: bytes of a link. Out: whole frames, opened envelopes; or `Refused` with a reason that is a metric's label.
Bounds are checked before anything is kept, the signature before anything is believed (docs/mesh.rst, "On the wire").
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
from msgspec import Meta
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from ron.proto.balance import NodeName
from ron.services.balance.mesh.codec import Unfit, decode_canonical, encode

MAX_FRAME_BYTES = 256 * 1024
# What an envelope adds to its body: the signature, names, numbers, and room to spare.
MAX_BODY_BYTES = MAX_FRAME_BYTES - 1024
LENGTH_BYTES = 4
SIGNATURE_BYTES = 64
CLUSTER_BYTES = 16
BOOT_BYTES = 8
_PREFIX = b"ron-mesh/1 message\0"
INT_MAX = 2**63 - 1

Reason = Literal[
    "malformed",
    "stranger",
    "bad_signature",
    "replayed",
    "stale",
    "other_cluster",
    "too_long",
    "removed",
    "unseconded",
    "wrong_token",
    "name_taken",
    "number_taken",
    "twin",
    "full",
    "flood",
    "unread",
    "silent",
]
Kind = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_./-]{0,63}\Z")]
Cluster = Annotated[bytes, Meta(min_length=CLUSTER_BYTES, max_length=CLUSTER_BYTES)]
Boot = Annotated[bytes, Meta(min_length=BOOT_BYTES, max_length=BOOT_BYTES)]
Number = Annotated[int, Meta(ge=0, le=INT_MAX)]
Key = Annotated[bytes, Meta(min_length=32, max_length=32)]


class Refused(Exception):
    """Something of a peer's was not taken. reason: a metric's label. fatal: the link it came on is of no more use."""

    def __init__(self, reason: Reason, detail: str = "", *, fatal: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason: Reason = reason
        self.detail = detail
        self.fatal = fatal


class Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One message. run, boot: which life of the sender it is from: the number grows, the bytes are random.

    seq: grows with every message of that life, whoever it is for. sent_ms: Unix, by the sender's clock. corr: 0, or the
    call it is or answers.
    """

    cluster: Cluster
    sender: NodeName
    to: NodeName
    run: Number
    boot: Boot
    seq: Number
    sent_ms: Number
    kind: Kind
    corr: Number
    body: Annotated[bytes, Meta(max_length=MAX_BODY_BYTES)]


def seal(envelope: Envelope, key: SigningKey) -> bytes:
    """The frame's payload: signature, envelope."""
    packed = encode(envelope)
    return key.sign(_PREFIX + packed).signature + packed


def unseal(payload: bytes, *, cluster: bytes, sender: NodeName, to: NodeName, key: bytes) -> Envelope:
    """The envelope, which `sender`, whose Ed25519 key is `key`, sent `to` us. Raises `Refused`, always fatal.

    Whether it was here before is not this function's question: `replay`.
    """
    if len(payload) > MAX_FRAME_BYTES:
        raise Refused("too_long", f"{len(payload)} bytes", fatal=True)
    signature, packed = payload[:SIGNATURE_BYTES], payload[SIGNATURE_BYTES:]
    try:
        envelope = decode_canonical(packed, Envelope)
    except Unfit as problem:
        raise Refused("malformed", str(problem), fatal=True) from None
    if envelope.cluster != cluster:
        raise Refused("other_cluster", fatal=True)
    if envelope.sender != sender or envelope.to != to:
        raise Refused("stranger", f"from {envelope.sender} to {envelope.to}", fatal=True)
    if not verified(key, _PREFIX + packed, signature):
        raise Refused("bad_signature", fatal=True)
    return envelope


def verified(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether it is `key`'s Ed25519 signature of `message`."""
    try:
        VerifyKey(key).verify(message, signature)
    except (CryptoError, ValueError, TypeError):
        # a key or signature of another length is a ValueError there
        return False
    return True


def framed(payload: bytes) -> bytes:
    """`payload` with its length before it, big-endian. Raises `Refused` (too_long)."""
    if len(payload) > MAX_FRAME_BYTES:
        raise Refused("too_long", f"{len(payload)} bytes")
    return len(payload).to_bytes(LENGTH_BYTES, "big") + payload


class Frames:
    """Frames out of a stream. limit: of the next frame; it may be raised once the peer is known.

    Nothing is kept of a frame that announces more than `limit`, so a stream holds at most one frame of memory.
    """

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self.limit = limit
        self._received = bytearray()

    @property
    def waiting_bytes(self) -> int:
        """Bytes of a frame that is not whole."""
        return len(self._received)

    def feed(self, received: bytes) -> Iterator[bytes]:
        """The frames that are whole now, one at a time. Raises `Refused` (too_long, malformed): the stream is over."""
        self._received += received
        while len(self._received) >= LENGTH_BYTES:
            length = int.from_bytes(self._received[:LENGTH_BYTES], "big")
            if length > self.limit or length == 0:
                self._received.clear()
                raise Refused("too_long" if length else "malformed", f"a frame of {length} bytes", fatal=True)
            if len(self._received) < LENGTH_BYTES + length:
                return
            frame = bytes(self._received[LENGTH_BYTES : LENGTH_BYTES + length])
            del self._received[: LENGTH_BYTES + length]
            yield frame
