"""One request: its body within the limit, its peer within its rates, its answer on the wire.

In: the head and the body's bytes from `RonChannel`. Out: a request for an endpoint, or 400, 413, 429, 501.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from twisted.web import server

from ron.kernel.limits import Peer, Refused
from ron.proto.errors import ErrorCode, RonError, bad_request, too_large
from ron.web.channel import RonChannel
from ron.web.content import Answer
from ron.web.express import ExpressRequest
from ron.web.turn import Exchange

if TYPE_CHECKING:
    from ron.web.site import RonSite

# A client that is still sending its oversized body is read from for this long, so that it sees the 413 (RFC 9112 §9.6).
LINGER_LIMIT_BYTES = 64 * 1024 * 1024


class _Nowhere(io.BytesIO):
    """Takes a refused body and keeps none of it."""

    def write(self, chunk: Any) -> int:
        return len(chunk)


class RonRequest(server.Request, Exchange):
    """A request that refuses an oversized body at its first byte too many."""

    site: RonSite
    channel: RonChannel
    refused = False
    # whoever works on it; cancelled when the client goes
    working: Deferred[Any] | None = None
    _received = 0

    def gotLength(self, length: int | None) -> None:
        """The headers are in: refuse by the declared length, otherwise make room for the body."""
        channel = self.channel
        if length == 0:
            self.content = io.BytesIO()
            return
        channel.body_begins()
        limit = channel.site.body_limit
        if length is not None and length > limit:
            self._refuse_body(too_large("body over the limit", f"send at most {limit} bytes"))
            return
        self.content = io.BytesIO()
        try:
            cast(Peer, channel.peer).check_bytes(channel.site.reactor.seconds())
        except Refused as error:
            self._refuse_body(error)

    def handleContentChunk(self, data: bytes) -> None:
        """Keep `data`, unless the limit is passed (a chunked body declares no length)."""
        self._received += len(data)
        limit = self.channel.site.body_limit
        if self.channel.receiving is not None:
            self.channel.receiving.moved(len(data), self.channel.site.reactor.seconds())
        if self.refused:
            if self._received > LINGER_LIMIT_BYTES:
                self.channel.loseConnection()
        elif self._received > limit:
            self._refuse_body(too_large("body over the limit", f"send at most {limit} bytes"))
        else:
            cast(io.BytesIO, self.content).write(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:
        """All of it has arrived: a refused one ends here."""
        self.channel.receiving = None
        if self.refused:
            self.channel.loseConnection()
        else:
            super().requestReceived(command, path, version)

    def process(self) -> None:
        """Answer hot endpoints at once; everything else goes through the site's resource tree."""
        site = self.site = self.channel.site
        hot = site.hot(self.method, self.path)
        if hot is not None:
            endpoint, params = hot
            if endpoint.spec.vital or self.admitted():
                endpoint.answer(self, params)
        elif not self.admitted():
            return
        elif not self._is_text():
            site.refuse(self, bad_request("path or Host header is not UTF-8", "percent-encode UTF-8 bytes"))
        elif self.method.upper() != self.method:
            # RFC 9110 §9.1: methods are case-sensitive, and Klein's routing is not
            error = RonError(ErrorCode.UNSUPPORTED, "no such method", hint="methods are in capitals", status=501)
            site.refuse(self, error)
        else:
            super().process()

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

    def content_encoding(self) -> str:
        """How the body is encoded; several headers are one list (RFC 9110 §5.3)."""
        return b", ".join(self.requestHeaders.getRawHeaders(b"Content-Encoding", ())).decode("latin-1")

    def respond(self, answer: Answer, corr_id: str) -> None:
        """See `Exchange.respond`."""
        self.code, self.startedWriting = answer.status, 1
        super().respond(answer, corr_id)

    def finish(self) -> None:
        """The answer is complete. Klein ends what was answered already once more: that means nothing."""
        if not self.finished:
            self.close_stream()
            super().finish()

    def connectionLost(self, reason: Failure) -> None:
        """The client has gone."""
        self.close_stream()
        super().connectionLost(reason)
        if self.working is not None:
            self.working.cancel()

    def _refuse_body(self, error: RonError) -> None:
        self.refused = True
        self.content = _Nowhere()
        self.channel.answer_raw(error)


AnyRequest = RonRequest | ExpressRequest
