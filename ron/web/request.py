"""The listener's hard limits: headers, body, idle time; refused before work and with the error envelope.

In: raw HTTP from Twisted's channel. Out: a request whose body is at most the site's `body_limit` bytes, or 400/413.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote_to_bytes

import msgspec
from twisted.internet.interfaces import ITransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web import http, server

from ron.proto.clock import now_rfc3339
from ron.proto.errors import RonError, bad_request, envelope, too_large
from ron.proto.ids import uuid7

if TYPE_CHECKING:
    from ron.web.site import RonSite

HEADERS_LIMIT_BYTES = 64 * 1024
READ_IDLE_S = 15
# A client that is still sending its oversized body is read from for this long, so that it sees the 413 (RFC 9112 §9.6).
LINGER_LIMIT_BYTES = 64 * 1024 * 1024


class RonChannel(http.HTTPChannel):
    """Twisted's channel with our header limit; a malformed request is told so in the envelope."""

    totalHeadersSize = HEADERS_LIMIT_BYTES
    site: RonSite
    requests: list[RonRequest]

    def _respondToBadRequestAndDisconnect(self) -> None:
        if not self._refused:
            self.answer_raw(
                bad_request("malformed request", "speak HTTP/1.1 with headers of at most 64 KiB, 16 KiB a line")
            )
        self.loseConnection()

    def _send100Continue(self) -> None:
        if self._refused:
            self.loseConnection()
        else:
            super()._send100Continue()

    @property
    def _refused(self) -> bool:
        """True once the request being received has been answered with 413."""
        return bool(self.requests) and self.requests[-1].refused

    def lineLengthExceeded(self, line: bytes) -> None:
        """A request line or header over 16 KiB is malformed."""
        self._respondToBadRequestAndDisconnect()

    def headerReceived(self, line: bytes) -> bool:
        """Take one header. A Content-Length of more digits than `int` reads is malformed like any other."""
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            self._respondToBadRequestAndDisconnect()
            return False

    def connectionMade(self) -> None:
        """Known to the site from now on, so that it can be drained."""
        super().connectionMade()
        self.site.channels.add(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Gone."""
        self.site.channels.discard(self)
        super().connectionLost(reason)

    @property
    def busy(self) -> bool:
        """True while a request is being received or answered."""
        return bool(self.requests)

    def answer_raw(self, error: RonError) -> None:
        """Write `error` as a whole response, outside the request machinery, and end the connection's use."""
        request_id = str(uuid7())
        body = msgspec.json.encode(envelope(error, ts=now_rfc3339(), request_id=request_id))
        reason = http.RESPONSES.get(error.status, b"Error")
        cast(ITransport, self.transport).write(
            b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n"
            b"X-Request-ID: %s\r\nX-Content-Type-Options: nosniff\r\n\r\n%s"
            % (error.status, reason, len(body), request_id.encode(), body)
        )
        self.site.count_refusal(error)


class _Nowhere(io.BytesIO):
    """Takes a refused body and keeps none of it."""

    def write(self, chunk: Any) -> int:
        return len(chunk)


class RonRequest(server.Request):
    """A request that refuses an oversized body at its first byte too many."""

    site: RonSite
    channel: RonChannel
    refused = False
    _received = 0

    def gotLength(self, length: int | None) -> None:
        """The headers are in: refuse by the declared length, otherwise make room for the body."""
        if length is not None and length > self.channel.site.body_limit:
            self._refuse()
        else:
            self.content = io.BytesIO()

    def handleContentChunk(self, data: bytes) -> None:
        """Keep `data`, unless the limit is passed (a chunked body declares no length)."""
        self._received += len(data)
        if self.refused:
            if self._received > LINGER_LIMIT_BYTES:
                self.channel.loseConnection()
        elif self._received > self.channel.site.body_limit:
            self._refuse()
        else:
            cast(io.BytesIO, self.content).write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """All of it has arrived: a refused one ends here."""
        if self.refused:
            self.channel.loseConnection()
        else:
            super().requestReceived(command, path, version)

    def process(self) -> None:
        """Answer hot endpoints at once; everything else goes through the site's resource tree."""
        self.site = self.channel.site
        hot = self.site.hot(self.method, self.path)
        if hot is not None:
            endpoint, params = hot
            endpoint.answer(self, params)
        elif self._is_text():
            super().process()
        else:
            self.site.refuse(self, bad_request("path or Host header is not UTF-8", "percent-encode UTF-8 bytes"))

    def _is_text(self) -> bool:
        """Klein answers what it cannot decode itself, without the envelope and with a traceback in the log."""
        try:
            unquote_to_bytes(self.path).decode("utf-8")
            self.getRequestHostname().decode("utf-8")
        except UnicodeDecodeError:
            return False
        return True

    def body(self) -> bytes:
        """The whole body."""
        return cast(io.BytesIO, self.content).getvalue()

    def header(self, name: str) -> str | None:
        """The last value of a header, or None. Whatever bytes it holds, this is text (RFC 9110 §5.5: obs-text)."""
        values = self.requestHeaders.getRawHeaders(name.encode("ascii"))
        return values[-1].decode("latin-1") if values else None

    def _refuse(self) -> None:
        self.refused = True
        self.content = _Nowhere()
        limit = self.channel.site.body_limit
        self.channel.answer_raw(too_large("body over the limit", f"send at most {limit} bytes"))
