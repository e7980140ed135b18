"""The head of an answer as bytes, and the answer that an error is.

In: an `Answer`, or a `RonError`. Out: status line and headers, made past Twisted's header objects, which took a fifth
of a small request's time.
"""

from __future__ import annotations

import random
import time
from functools import lru_cache

import msgspec
from twisted.web.http import RESPONSES, datetimeToString

from ron.proto.clock import now_rfc3339
from ron.proto.errors import RonError, envelope
from ron.proto.ids import uuid7_text
from ron.web.content import JSON_HEADERS, Answer

_SECURITY_HEADERS = (
    b"X-Content-Type-Options: nosniff\r\nReferrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\n"
)
_LINE_ENDS = str.maketrans("\r\n", "  ")
_rng = random.SystemRandom()


def is_bodiless(status: int) -> bool:
    """True for the statuses that have neither body nor Content-Length here (RFC 9110 §8.6, §15.2, §15.4.5)."""
    return status in {101, 204, 304}


def answer_head(answer: Answer, version: bytes, corr_id: str | None, *, close: bool) -> bytes:
    """Status line and headers of `answer`, the empty line included.

    version: the request's, `HTTP/1.1` or `HTTP/1.0`. close: say that the connection ends with this answer. A line end
    in a header's value becomes a space, so that no value can add a header.
    """
    if answer.headers is JSON_HEADERS and corr_id is not None and not close:
        return _json_head(version, answer.status, int(time.time())) + b"%d\r\nX-Corr-ID: %s\r\n\r\n" % (
            len(answer.body),
            corr_id.encode("ascii"),
        )
    lines = [f"{name}: {value}\r\n" for name, value in answer.headers.items()]
    fields = "".join(lines)
    if fields.count("\n") != len(lines) or fields.count("\r") != len(lines):
        fields = "".join(line[:-2].translate(_LINE_ENDS) + "\r\n" for line in lines)
    if not is_bodiless(answer.status):
        fields = f"{fields}Content-Length: {len(answer.body)}\r\n"
    if corr_id is not None:
        fields = f"{fields}X-Corr-ID: {corr_id}\r\n"
    if close:
        fields += "Connection: close\r\n"
    return b"".join(
        (
            _status_line(version, answer.status),
            _date_line(int(time.time())),
            _SECURITY_HEADERS,
            fields.encode("utf-8", "replace"),
            b"\r\n",
        )
    )


def error_answer(error: RonError, request_id: str | None = None) -> Answer:
    """The envelope of `error` with its headers; 429 and 503 carry a random `Retry-After` of 1–5 s.

    request_id: a new one when not given.
    """
    request_id = request_id or uuid7_text()
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store", "X-Request-ID": request_id}
    headers.update(error.headers)
    if error.status in {429, 503}:
        headers["Retry-After"] = str(error.retry_after_s or _rng.randint(1, 5))
    body = msgspec.json.encode(envelope(error, ts=_timestamp(int(time.time())), request_id=request_id))
    return Answer(error.status, headers, body)


@lru_cache(maxsize=256)
def _status_line(version: bytes, status: int) -> bytes:
    return b"%s %d %s\r\n" % (version, status, RESPONSES.get(status, b"Unknown Status"))


@lru_cache(maxsize=16)
def _json_head(version: bytes, status: int, unix_s: int) -> bytes:
    """Of an answer with `JSON_HEADERS`, up to the number of its bytes."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in JSON_HEADERS.items()).encode("ascii")
    line, date = _status_line(version, status), _date_line(unix_s)
    return b"".join((line, date, _SECURITY_HEADERS, fields, b"Content-Length: "))


# refusals come in floods, and formatting a time costs as much as the rest of the envelope
@lru_cache(maxsize=2)
def _timestamp(_unix_s: int) -> str:
    return now_rfc3339()


@lru_cache(maxsize=2)
def _date_line(unix_s: int) -> bytes:
    return b"Date: %s\r\n" % datetimeToString(unix_s)
