"""Request bodies that come compressed, inflated within bounds that hold before the memory is taken (RFC 9110 §8.4.1).

In: the bytes and their Content-Encoding. Out: the bytes inflated, or `RonError` 400, 413, 415. Pure.
"""

from __future__ import annotations

import zlib

from ron.kernel.limits import Refused
from ron.proto.errors import ErrorCode, RonError, bad_request

# A small body may inflate to this whatever the ratio: a form with much repetition is no bomb.
RATIO_FLOOR_BYTES = 64 * 1024
# A gzip body may be several members in a row (RFC 1952 §2.2); nobody needs thousands of empty ones.
MAX_MEMBERS = 64
_GZIP, _ZLIB = 16 + zlib.MAX_WBITS, zlib.MAX_WBITS
_WINDOWS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _ZLIB}


def inflate(body: bytes, encoding: str, *, limit: int, ratio: int) -> bytes:
    """`body` without its Content-Encoding `encoding`: at most `limit` bytes, and `ratio` times what was sent.

    `gzip` (also several members) and `deflate` (with the zlib wrapper, as the RFC has it); `identity` is what it is.
    Raises `RonError`: 415 for any other encoding or more than one, 413 over a bound, 400 for what does not inflate.
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return body
    window = _WINDOWS.get(name)
    if window is None:
        raise _unsupported()
    by_ratio = max(RATIO_FLOOR_BYTES, ratio * len(body))
    return _inflate(body, window, min(limit, by_ratio), capped_by_ratio=by_ratio < limit)


def _inflate(body: bytes, window: int, bound: int, *, capped_by_ratio: bool) -> bytes:
    pieces: list[bytes] = []
    size, rest = 0, body
    for _member in range(MAX_MEMBERS):
        stream = zlib.decompressobj(window)
        while not stream.eof:
            # never 0, which would mean no bound at all; zlib grows what it returns as it goes
            piece = _step(stream, rest, bound + 1 - size)
            rest = stream.unused_data if stream.eof else stream.unconsumed_tail
            size += len(piece)
            if size > bound:
                raise _too_large(bound, capped_by_ratio=capped_by_ratio)
            pieces.append(piece)
            if not stream.eof and not rest and len(piece) == 0:
                raise bad_request("the compressed body is cut short", "send all of it")
        if not rest:
            return b"".join(pieces)
        if window != _GZIP:
            break
    raise bad_request("something follows the compressed body", "send one gzip or zlib stream and nothing after it")


def _step(stream: zlib._Decompress, rest: bytes, at_most: int) -> bytes:
    try:
        return stream.decompress(rest, at_most)
    except zlib.error:
        raise bad_request("the body does not inflate", "compress it as its Content-Encoding says") from None


def _too_large(bound: int, *, capped_by_ratio: bool) -> Refused:
    if capped_by_ratio:
        hint = f"this body may inflate to {bound} bytes; send it as it is"
        return Refused("ratio_cap", ErrorCode.TOO_LARGE, "the body inflates to too many times its size", hint=hint)
    hint = f"inflated it may have {bound} bytes"
    return Refused("decompress_cap", ErrorCode.TOO_LARGE, "the inflated body is over the limit", hint=hint)


def _unsupported() -> RonError:
    return RonError(
        ErrorCode.UNSUPPORTED,
        "this Content-Encoding is not understood",
        hint="send the body as it is, or as gzip",
        status=415,
        headers={"Accept-Encoding": "gzip, deflate, identity"},
    )
