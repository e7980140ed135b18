"""Conditional and partial answers for bytes that have a strong ETag (RFC 9110 §8.8, §13, §14).

In: an `Asset` and the request's headers. Out: status, headers and the bytes to send. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from ron.proto.assets import Asset
from ron.proto.errors import ErrorCode, RonError

# What an answer in JSON says of itself. One object, so that its bytes are known too (`ron.web.head`).
JSON_HEADERS: Mapping[str, str] = MappingProxyType({"Content-Type": "application/json", "Cache-Control": "no-store"})
_RANGE = re.compile(r"^bytes=(\d{0,18})-(\d{0,18})$")


class Raw(NamedTuple):
    """Bytes a handler answers with as they are."""

    body: bytes
    content_type: str
    status: int = 200
    headers: dict[str, str] | None = None


class Answer(NamedTuple):
    """What goes on the wire. takes_over: made with the channel, whose connection is its own after this answer (101)."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    takes_over: Callable[[Any], Any] | None = None


def answer_asset(
    asset: Asset, *, if_none_match: str | None = None, byte_range: str | None = None, if_range: str | None = None
) -> Answer:
    """200, 206, 304 or `RonError` 416 for `asset`. One range is served; several, or a form not understood, give 200."""
    headers = {
        "ETag": asset.etag,
        "Cache-Control": f"public, max-age={asset.max_age_s}",
        "Accept-Ranges": "bytes",
    }
    if asset.content_encoding:
        headers["Vary"] = "Accept-Encoding"
    if if_none_match is not None and _matches(if_none_match, asset.etag):
        return Answer(304, headers, b"")
    headers["Content-Type"] = asset.content_type
    if asset.content_encoding:
        headers["Content-Encoding"] = asset.content_encoding
    if byte_range is None or (if_range is not None and if_range != asset.etag):
        return Answer(200, headers, asset.body)
    span = _span(byte_range, len(asset.body))
    if span is None:
        return Answer(200, headers, asset.body)
    first, last = span
    headers["Content-Range"] = f"bytes {first}-{last}/{len(asset.body)}"
    return Answer(206, headers, asset.body[first : last + 1])


def _matches(if_none_match: str, etag: str) -> bool:
    """Weak comparison of a list of tags with `etag` (RFC 9110 §13.1.2)."""
    return any(tag.strip().removeprefix("W/") in {etag, "*"} for tag in if_none_match.split(","))


def _span(byte_range: str, size: int) -> tuple[int, int] | None:
    """First and last byte asked for; None when the header is to be ignored. Raises `RonError` 416."""
    match = _RANGE.match(byte_range.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if match[1]:
        first = int(match[1])
        last = min(int(match[2]), size - 1) if match[2] else size - 1
        if match[2] and int(match[2]) < first:
            return None
    else:
        first, last = max(0, size - int(match[2])), size - 1
    if first >= size or last < first:
        raise RonError(
            ErrorCode.BAD_REQUEST,
            f"range lies outside the {size} bytes there are",
            status=416,
            headers={"Content-Range": f"bytes */{size}"},
        )
    return first, last
