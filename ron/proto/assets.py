"""Bytes that are served as they are: a tile, a stylesheet, a script."""

from __future__ import annotations

from dataclasses import dataclass

from blake3 import blake3


@dataclass(frozen=True, slots=True)
class Asset:
    """An encoded body with what HTTP needs to know of it.

    etag: a strong validator (RFC 9110 §8.8.3), quoted, from the BLAKE3 of `body`. content_encoding: `gzip`, `br`,
    `zstd` or None. max_age_s: how long a cache may keep it without asking.
    """

    body: bytes
    content_type: str
    etag: str
    content_encoding: str | None = None
    max_age_s: int = 3600


def strong_etag(body: bytes) -> str:
    """The quoted strong ETag of `body`: the first 16 bytes of its BLAKE3, in hex."""
    return f'"{blake3(body).hexdigest(16)}"'
