"""The wall clock as it goes on the wire."""

from __future__ import annotations

from datetime import UTC, datetime


def now_rfc3339() -> str:
    """The present instant, UTC, RFC 3339 with seconds."""
    return datetime.now(tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
