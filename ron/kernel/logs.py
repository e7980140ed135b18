"""JSON lines out of Twisted's logger, without secrets (ron-kms OBSERVABILITY §3).

In: `Logger().info("event name", event="onion_up", onion=…)`. Out: one line per event to a file, to stderr, or to a
bounded ring in memory (amnesia mode). Values that look like credentials are cut before they are written, and a key id
(`kid`) is only ever written as its hash.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from string import Formatter
from typing import Any, TextIO

from blake3 import blake3
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent
from twisted.python.logfile import LogFile
from zope.interface import implementer

from ron.kernel import correlation
from ron.proto.errors import bad_request

RING_EVENTS = 4096
ROTATE_BYTES = 16 * 1024 * 1024
REDACTED = "[redacted]"
_MAX_VALUE_CHARS = 2000
# Cutting costs time, and texts come from outside: what is far over the limit is shortened before. For the same reason
# no part of the patterns below may look further than a bounded stretch before it knows that a secret begins.
_MAX_SEARCHED_CHARS = 4 * _MAX_VALUE_CHARS
_HIDDEN = (
    r"secret|token|passw|passphrase|private|capability|macaroon|authorization|cookie|api_?key|credential"
    r"|(?<![a-z])pin(?![a-z])|payload(?!_(?:bytes|len|size|b3)(?![a-z_]))"
)
_SECRET_NAME = re.compile(_HIDDEN, re.IGNORECASE)
_KID_NAME = re.compile(r"(?:^|_)kid$", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    # (in a repr white space stands as its escape)
    r"Bearer(?:\s|\\[trn])+\S+|ED25519-V3:\S+|Nonce=\S+|\bAUTHENTICATE(?:\s|\\[trn])+\S+|\bAUTHCHALLENGE\s[^\r\n]*"
    r"|-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)"
    # a capability on its own: libmacaroons v2, base64url, begins with the version byte and the first field's type
    r"|\b(?-i:Ag[EI][A-Za-z0-9_-]{29,}={0,2})",
    re.IGNORECASE | re.DOTALL,
)
# `token=abc`, `"token": "abc"`, `auth.token: 'abc' → 'def'`: a config diff, the repr of a struct or of a dict
# (quotes may themselves stand escaped in a repr, and what is glued to a closing quote may be a badly paired secret)
_QUOTED = r"""\\{0,64}b?(?:"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?)[^\s,;)\]}]*"""
_SECRET_ASSIGNED = re.compile(
    rf"""(?P<name>(?:{_HIDDEN}|(?<![a-z])kid(?![a-z]))[\w.-]{{0,64}}\\{{0,64}}["']?\s{{0,8}})"""
    rf"""(?:(?:=|→|->)\s{{0,8}}(?:{_QUOTED}|[^\s,;)\]}}]+)|:\s{{0,8}}(?:{_QUOTED}))"""
    rf"""(?:\s{{0,8}}(?:→|->)\s{{0,8}}(?:{_QUOTED}|\S+))?""",
    re.IGNORECASE | re.DOTALL,
)
_LEVELS = {"debug": LogLevel.debug, "info": LogLevel.info, "warn": LogLevel.warn, "error": LogLevel.error}


def kid_hash(kid: str | bytes) -> str:
    """What stands for a key id in logs, spans and labels: the first 8 hex digits of its BLAKE3."""
    plain = kid.encode("utf-8", "surrogatepass") if isinstance(kid, str) else kid
    return blake3(plain).hexdigest()[:8]


def redact(text: str) -> str:
    """`text` with credentials cut out, of bounded length, and fit for UTF-8 (file names may hold lone surrogates)."""
    # a value that the bound cuts in two is still cut out whole: both patterns take what has no end
    cut = _SECRET_VALUE.sub(REDACTED, text[:_MAX_SEARCHED_CHARS])
    cut = (
        _SECRET_ASSIGNED.sub(lambda found: f"{found['name']}={REDACTED}", cut)
        .encode("utf-8", "replace")
        .decode("utf-8")
    )
    return cut if len(cut) <= _MAX_VALUE_CHARS else cut[:_MAX_VALUE_CHARS] + "…"


def as_json_line(event: LogEvent, *, service: str) -> str:
    """One event as one line: `ts`, `level`, `service`, `event`, what `correlation` knows, the event's own fields."""
    event = _without_secrets({**correlation.about(), **event})
    when = datetime.fromtimestamp(event.get("log_time", 0.0), tz=UTC)
    line: dict[str, Any] = {
        "ts": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": event["log_level"].name.upper() if "log_level" in event else "INFO",
        "service": service,
        "event": redact(str(event.get("event") or event.get("log_namespace", "-"))),
        "message": redact(formatEvent(event)),
    }
    for name, value in event.items():
        if name.startswith("log_") or name in line or not isinstance(value, str | int | float | bool):
            continue
        if _KID_NAME.search(name):
            continue  # its hash has a name of its own; this one is there for the message only
        if isinstance(value, float) and not math.isfinite(value):
            value = str(value)  # JSON has no NaN
        line[name] = redact(value) if isinstance(value, str) else value
    if (failure := event.get("log_failure")) is not None:
        line["error"] = redact(f"{failure.type.__name__}: {failure.getErrorMessage()}")
        line["traceback"] = redact(failure.getTraceback(detail="brief"))
    return json.dumps(line, ensure_ascii=False, separators=(",", ":"))


def _without_secrets(event: LogEvent) -> LogEvent:
    """`event` with fields of secret names cut and key ids hashed, so that the message cannot spell them out either."""
    safe: LogEvent = {}
    for name, value in event.items():
        if name.startswith("log_"):
            safe[name] = value
        elif _KID_NAME.search(name):
            safe[f"{name}_hash"] = safe[name] = _hashed(value)
        else:
            safe[name] = REDACTED if _SECRET_NAME.search(name) else value
    if isinstance(text := event.get("log_format"), str):
        safe["log_format"] = _safe_format(text)
    return safe


def _hashed(kid: Any) -> str:
    return kid_hash(kid) if isinstance(kid, str | bytes) else REDACTED


def _safe_format(text: str) -> str:
    """`text` without the fields that reach for a secret inside of a value: `{config.token}`, `{headers[cookie]}`."""
    try:
        parts = list(Formatter().parse(text))
    except ValueError:
        return text
    if not any(field and _reaches_for_secret(field) for _literal, field, _spec, _conversion in parts):
        return text
    return "".join(_rebuilt(*part) for part in parts)


def _reaches_for_secret(field: str) -> bool:
    inside = re.split(r"[.\[]", field, maxsplit=1)[1:]
    return any(_SECRET_NAME.search(name) or _KID_NAME.search(name.rstrip("]()")) for name in inside)


def _rebuilt(literal: str, field: str | None, spec: str | None, conversion: str | None) -> str:
    plain = literal.replace("{", "{{").replace("}", "}}")
    if field is None:
        return plain
    if _reaches_for_secret(field):
        return plain + REDACTED
    return f"{plain}{{{field}{f'!{conversion}' if conversion else ''}{f':{spec}' if spec else ''}}}"


@implementer(ILogObserver)
class JsonLogObserver:
    """Writes each event at or above `level` as a JSON line to `sink`; keeps the last ones in `ring`.

    Events may come from any thread. Raises `RonError` (BadRequest) for a level that is not debug, info, warn or error.
    """

    def __init__(self, sink: TextIO | LogFile | None, *, service: str, level: str = "info") -> None:
        self._sink = sink
        self._service = service
        self._writing = threading.Lock()
        self.ring: deque[str] = deque(maxlen=RING_EVENTS)
        self.set_level(level)

    @property
    def level(self) -> str:
        """The least that is written."""
        return next(name for name, level in _LEVELS.items() if level is self._level)

    def set_level(self, level: str) -> None:
        """From now on write `debug`, `info`, `warn` or `error` and what is above it."""
        if level not in _LEVELS:
            raise bad_request(f"log level {level!r} is unknown", f"one of {', '.join(_LEVELS)}")
        self._level = _LEVELS[level]

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) < self._level:
            return
        line = as_json_line(event, service=self._service)
        with self._writing:
            self.ring.append(line)
            if self._sink is not None:
                self._sink.write(line + "\n")
                self._sink.flush()


def open_log_file(path: Path) -> LogFile:
    """A rotating log file, 0600 in a 0700 directory: 16 MiB a piece, five old ones kept."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    return LogFile(path.name, str(path.parent), rotateLength=ROTATE_BYTES, maxRotatedFiles=5, defaultMode=0o600)
