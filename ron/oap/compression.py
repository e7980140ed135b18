"""COMP: a frame's payload as one zstd frame (RFC 8878), inflated within bounds that hold before the memory is taken.

In: a payload. Out: the payload compressed or inflated, or `RonError` 400, 413. Pure.
"""

from __future__ import annotations

import zstandard

from ron.kernel.limits import Refused
from ron.oap.frames import MAX_FRAME_BYTES
from ron.proto.errors import ErrorCode, RonError, bad_request

# A payload may inflate to so many frames' worth.
MAX_TIMES = 8
# Below this the head of a zstd frame and the work outweigh what is saved.
WORTH_BYTES = 1024
_LEVEL = 3
# What a decoder should at least be ready to look back (RFC 8878 §3.1.1.1.2), and we are not for more.
_WINDOW_BYTES = 8 * 1024 * 1024
# The densest there is: a block of 128 KiB in four bytes (RFC 8878 §3.1.1.2).
_BYTES_OF_ONE = 32 * 1024


def deflate(payload: bytes, *, always: bool = False) -> bytes | None:
    """`payload` compressed, or None when it is better sent as it is, unless `always`."""
    if len(payload) < WORTH_BYTES and not always:
        return None
    smaller = zstandard.ZstdCompressor(level=_LEVEL).compress(payload)
    return smaller if always or len(smaller) < len(payload) else None


def inflate(payload: bytes, *, max_frame: int = MAX_FRAME_BYTES) -> bytes:
    """`payload` without COMP: at most 8 × `max_frame` bytes.

    Raises `RonError`: 413 over that, whether the zstd frame says so itself or not; 400 for anything else than one
    whole zstd frame.
    """
    bound = MAX_TIMES * max_frame
    try:
        said = zstandard.get_frame_parameters(payload)
        if said.content_size == zstandard.CONTENTSIZE_UNKNOWN:
            return _inflate_unknown(payload, bound)
        if said.content_size > bound:
            raise _too_large(bound)
        # the library reserves what the frame declares, whatever bound it is given: hence the look before
        return zstandard.ZstdDecompressor().decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError:
        raise _malformed() from None


def _inflate_unknown(payload: bytes, bound: int) -> bytes:
    """In steps so small that none of them inflates to more than the room that is left and one block."""
    stream = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompressobj()
    pieces: list[bytes] = []
    size = at = 0
    while at < len(payload) and not stream.eof:
        step = max(4, (bound - size) // _BYTES_OF_ONE)
        pieces.append(stream.decompress(payload[at : at + step]))
        at += step
        size += len(pieces[-1])
        if size > bound:
            raise _too_large(bound)
    if not stream.eof or stream.unused_data or at < len(payload):
        raise _malformed()
    return b"".join(pieces)


def _malformed() -> RonError:
    return bad_request("the payload does not inflate", "COMP is one whole zstd frame with a window of at most 8 MiB")


def _too_large(bound: int) -> Refused:
    hint = f"a frame's payload may inflate to {bound} bytes"
    return Refused("decompress_cap", ErrorCode.TOO_LARGE, "the inflated payload is over the limit", hint=hint)
