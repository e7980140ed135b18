"""JSON lines out of Twisted's logger, without secrets (ron-kms OBSERVABILITY §3).

In: `Logger().info("event name", event="onion_up", onion=…)`. Out: one line per event to a file, to stderr, or to a
bounded ring in memory (amnesia mode). Values that look like credentials are cut before they are written.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.logfile import LogFile
from zope.interface import implementer

RING_EVENTS = 4096
ROTATE_BYTES = 16 * 1024 * 1024
_MAX_VALUE_CHARS = 2000
_SECRET_NAME = re.compile(
    r"secret|token|passw|passphrase|private|capability|macaroon|authorization|cookie|payload(?!_(?:bytes|len|size)$)",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"Bearer\s+\S+|ED25519-V3:\S+|Nonce=\S+|\bAUTHENTICATE\s+\S+|\bAUTHCHALLENGE\s+.*", re.IGNORECASE
)
_LEVELS = {"debug": LogLevel.debug, "info": LogLevel.info, "warn": LogLevel.warn, "error": LogLevel.error}


def redact(text: str) -> str:
    """`text` with credentials cut out, of bounded length, and fit for UTF-8 (file names may hold lone surrogates)."""
    cut = _SECRET_VALUE.sub("[redacted]", text).encode("utf-8", "replace").decode("utf-8")
    return cut if len(cut) <= _MAX_VALUE_CHARS else cut[:_MAX_VALUE_CHARS] + "…"


def as_json_line(event: LogEvent, *, service: str) -> str:
    """One event as one line: `ts`, `level`, `service`, `event` and the event's own plain fields."""
    event = _without_secrets(event)
    when = datetime.fromtimestamp(event.get("log_time", 0.0), tz=UTC)
    line: dict[str, Any] = {
        "ts": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": event["log_level"].name.upper() if "log_level" in event else "INFO",
        "service": service,
        "event": event.get("event") or event.get("log_namespace", "-"),
        "message": redact(formatEvent(event)),
    }
    for name, value in event.items():
        if name.startswith("log_") or name in line or not isinstance(value, str | int | float | bool):
            continue
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # JSON has no NaN
        line[name] = redact(value) if isinstance(value, str) else value
    if (failure := event.get("log_failure")) is not None:
        line["error"] = redact(f"{failure.type.__name__}: {failure.getErrorMessage()}")
        line["traceback"] = redact(failure.getTraceback(detail="brief"))
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def _without_secrets(event: LogEvent) -> LogEvent:
    """`event` with every field of a secret's name cut, so that the message cannot spell it out either."""
    secret = [name for name in event if not name.startswith("log_") and _SECRET_NAME.search(name)]
    return {**event, **dict.fromkeys(secret, "[redacted]")} if secret else event


@implementer(ILogObserver)
class JsonLogObserver:
    """Writes each event at or above `level` as a JSON line to `sink`; keeps the last ones in `ring`."""

    def __init__(self, sink: TextIO | LogFile | None, *, service: str, level: str = "info") -> None:
        self._sink = sink
        self._service = service
        self._level = _LEVELS[level]
        self.ring: deque[str] = deque(maxlen=RING_EVENTS)

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) < self._level:
            return
        line = as_json_line(event, service=self._service)
        self.ring.append(line)
        if self._sink is not None:
            self._sink.write(line + "\n")
            self._sink.flush()


def open_log_file(path: Path) -> LogFile:
    """A rotating log file, 0600 in a 0700 directory: 16 MiB a piece, five old ones kept."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return LogFile(path.name, str(path.parent), rotateLength=ROTATE_BYTES, maxRotatedFiles=5, defaultMode=0o600)


def stderr_sink() -> TextIO:
    """Where a supervised process logs: its standard error."""
    return sys.stderr
