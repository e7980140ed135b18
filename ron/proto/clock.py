"""The wall clock as it goes on the wire."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def rfc3339(at_s: float) -> str:
    """The Unix time `at_s`, UTC, RFC 3339 with whole seconds."""
    return datetime.fromtimestamp(at_s, tz=UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def now_rfc3339() -> str:
    """The present instant, UTC, RFC 3339 with seconds."""
    return rfc3339(time.time())
