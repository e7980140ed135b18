"""OAP/1's frames: fields to bytes, and bytes, however they are cut, to fields (GMI-1.6; DESIGN §4). Pure.

In: frames, or what a peer sent. Out: bytes, or frames in their order; `Violation` at the first byte that is no OAP/1,
before anything is reserved for what it announces. Little-endian throughout.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator

import msgspec

from ron.proto.errors import HTTP_STATUS, ErrorCode, RonError

VERSION = 1
# What `len` may say: it counts everything behind itself.
MAX_FRAME_BYTES = 1024 * 1024
# Long payloads travel in pieces of this size.
CHUNK_BYTES = 64 * 1024
MAX_CAP_BYTES = 2**16 - 1
_LENGTH_BYTES = 4
# ver, flags, code, app_proto_id, tenant_id, cap_len, corr_id
_FIXED = struct.Struct("<BHHH16sHQ")
_HEAD = struct.Struct("<IBHHH16sHQ")
FIXED_BYTES = _FIXED.size
_KNOWN_BITS = 0xFF


class Flags(enum.IntFlag):
    """What a frame is. Bits 8 to 15 are reserved: sent as 0, ignored when set."""

    REQ = 1
    RESP = 2
    EVENT = 4
    START = 8
    END = 16
    ACK_REQ = 32
    COMP = 64
    APP_E2E = 128


# looking one up costs a tenth of making it
_FLAGS = tuple(Flags(bits) for bits in range(_KNOWN_BITS + 1))
_START = int(Flags.START)


class Frame(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, gc=False):
    """One frame. code: what is asked for, or the status of an answer (0: all is well). tenant_id: 0 for none.

    corr_id: which conversation of this connection it belongs to. cap: a capability, only together with START.
    """

    flags: Flags
    code: int = 0
    app_proto_id: int
    tenant_id: int = 0
    corr_id: int
    cap: bytes = b""
    payload: bytes = b""


class Violation(RonError):
    """The peer does not keep to the protocol: it is told, and then hung up on.

    corr_id: of the conversation in which it happened, 0 where that is not known.
    """

    def __init__(self, message: str, *, code: ErrorCode = ErrorCode.BAD_REQUEST, corr_id: int = 0) -> None:
        super().__init__(code, message, hint="speak OAP/1 as docs/oap.rst has it", status=HTTP_STATUS[code])
        self.corr_id = corr_id


def encode(frame: Frame, max_frame: int = MAX_FRAME_BYTES) -> bytes:
    """`frame` for the wire. max_frame: bytes behind the length field.

    Raises `RonError`: TooLarge when it is larger, BadRequest on a capability without START or a number out of range.
    """
    cap, payload = frame.cap, frame.payload
    length = FIXED_BYTES + len(cap) + len(payload)
    if length > max_frame or len(cap) > MAX_CAP_BYTES:
        raise Violation(f"a frame of {length} bytes", code=ErrorCode.TOO_LARGE, corr_id=frame.corr_id)
    if cap and not frame.flags & _START:
        raise Violation("a capability without START", corr_id=frame.corr_id)
    try:
        head = _HEAD.pack(
            length,
            VERSION,
            frame.flags & _KNOWN_BITS,
            frame.code,
            frame.app_proto_id,
            frame.tenant_id.to_bytes(16, "little"),
            len(cap),
            frame.corr_id,
        )
    except (struct.error, OverflowError):
        raise Violation("a number that does not fit its field") from None
    return b"".join((head, cap, payload))


class Decoder:
    """Frames out of a stream of bytes. It holds at most one unfinished frame besides what it was just fed.

    max_frame: bytes behind the length field. After a `Violation` it takes nothing more.
    """

    def __init__(self, max_frame: int = MAX_FRAME_BYTES) -> None:
        self._max_frame = max_frame
        self._buffer = bytearray()
        self._violation: Violation | None = None

    @property
    def waiting_bytes(self) -> int:
        """Bytes of a frame that is not whole yet."""
        return len(self._buffer)

    def feed(self, received: bytes) -> Iterator[Frame]:
        """The frames that `received` completes, one by one, so that those before a violation count.

        What is not iterated over comes with the next `feed`. Raises `Violation`: TooLarge for a longer frame than may
        be, BadRequest for another version, lengths that contradict one another, a capability without START.
        """
        if self._violation is None:
            self._buffer += received
        return self._frames()

    def _frames(self) -> Iterator[Frame]:
        while (frame := self._next()) is not None:
            yield frame

    def _next(self) -> Frame | None:
        if self._violation is not None:
            raise self._violation
        try:
            return self._take()
        except Violation as violation:
            self._violation = violation
            self._buffer.clear()
            raise

    def _take(self) -> Frame | None:
        buffer = self._buffer
        if len(buffer) < _LENGTH_BYTES:
            return None
        length = int.from_bytes(buffer[:_LENGTH_BYTES], "little")
        self._check(length)
        end = _LENGTH_BYTES + length
        if len(buffer) < end:
            return None
        _version, flags, code, proto, tenant, cap_bytes, corr_id = _FIXED.unpack_from(buffer, _LENGTH_BYTES)
        begin = _LENGTH_BYTES + FIXED_BYTES
        if cap_bytes > length - FIXED_BYTES:
            raise Violation("the capability is longer than its frame", corr_id=corr_id)
        if cap_bytes and not flags & _START:
            raise Violation("a capability without START", corr_id=corr_id)
        frame = Frame(
            flags=_FLAGS[flags & _KNOWN_BITS],
            code=code,
            app_proto_id=proto,
            tenant_id=int.from_bytes(tenant, "little"),
            corr_id=corr_id,
            cap=bytes(buffer[begin : begin + cap_bytes]),
            payload=bytes(buffer[begin + cap_bytes : end]),
        )
        del buffer[:end]
        return frame

    def _check(self, length: int) -> None:
        """Refuse by the first five bytes what could never become a frame."""
        if length > self._max_frame:
            raise Violation(f"a frame of {length} bytes; {self._max_frame} may be", code=ErrorCode.TOO_LARGE)
        if length < FIXED_BYTES:
            raise Violation(f"a frame of {length} bytes, which is less than its fixed fields")
        if len(self._buffer) > _LENGTH_BYTES and self._buffer[_LENGTH_BYTES] != VERSION:
            raise Violation(f"version {self._buffer[_LENGTH_BYTES]}; version {VERSION} is spoken")
