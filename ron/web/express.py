"""The short way of a request that has come whole: read by llhttp, past Twisted's request and header objects.

In: what a connection received while nothing else was going on there. Out: a request for a hot endpoint; or nothing,
and the bytes go Twisted's way as if nobody had looked at them. Taken is: POST, HTTP/1.1, the exact path of a hot
endpoint, a head of at most `MAX_HEAD_BYTES`, a body of declared length within the limit; all of it in one piece, or
head and body in one each, as most clients write them; nothing behind it. The endpoint is the same, and with it whatever
is checked, counted and answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from httptools import HttpParserError, HttpRequestParser
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ron.kernel.limits import Peer
from ron.web.turn import Exchange

if TYPE_CHECKING:
    from ron.web.channel import RonChannel
    from ron.web.endpoint import BoundEndpoint
    from ron.web.site import RonSite

MAX_HEAD_BYTES = 8 * 1024
MAX_HEADERS = 64
# Headers that change where a message ends or what becomes of its connection, or that Twisted takes apart itself.
_ODD = frozenset(b"content-encoding cookie expect proxy-connection te trailer transfer-encoding upgrade".split())
_CONNECTION = b"connection"
_STAYS = b"keep-alive"
_LENGTH = b"content-length"
_LENGTH_DIGITS = 9


class Head(NamedTuple):
    """The head of a request as it was read. headers: by name in lower case, each of them once. length: of the body,
    in bytes, from 1. raw: what was received."""

    endpoint: BoundEndpoint
    path: bytes
    headers: dict[bytes, bytes]
    length: int
    raw: bytes


class Lane:
    """The hot routes of one site, and the reader that all its connections share: it reads whole messages only."""

    def __init__(self, routes: Mapping[tuple[bytes, bytes], BoundEndpoint]) -> None:
        self._routes = {
            b"POST %s HTTP/1.1" % path: (endpoint, path)
            for (method, path), endpoint in routes.items()
            if method == b"POST"
        }
        self._reader = _Reader()

    def read(self, received: bytes, *, head_limit: int, body_limit: int) -> tuple[Head, bytes] | None:
        """The one request that `received` is, and its body; an empty one where that is still to come as a whole. None
        for whatever else it may be. Limits in bytes."""
        line_end = received.find(b"\r\n", 0, MAX_HEAD_BYTES)
        # the whole line, to the byte: nobody's idea of blanks, escapes or versions decides here
        found = self._routes.get(received[:line_end])
        if found is None:
            return None
        head_end = received.find(b"\r\n\r\n", line_end, min(head_limit, MAX_HEAD_BYTES))
        if head_end < 0:
            return None
        headers = self._reader.read(received, head_end)
        if headers is None:
            return None
        body, length = received[head_end + 4 :], int(headers[_LENGTH])
        # a message that two readers cut in different places is what request smuggling is made of (RFC 9112 §11.2)
        if len(body) not in {0, length} or not 0 < length <= body_limit:
            return None
        return Head(*found, headers, length, received), body


class _Reader:
    """llhttp, which is fed one message at a time."""

    def __init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._parser = HttpRequestParser(self)

    def read(self, received: bytes, head_end: int) -> dict[bytes, bytes] | None:
        """The headers; None unless this is a message, or the head of one, of the plain kind."""
        lines = received.count(b"\n", 0, head_end)
        self._headers: dict[bytes, bytes] = {}
        self._lines, self._plain, self._whole = 0, lines <= MAX_HEADERS, False
        try:
            if self._plain:
                self._parser.feed_data(received)
        except HttpParserError:
            self._plain = False
        if not self._whole:
            # it stands in the middle of something
            self._begin_anew()
        length = self._headers.get(_LENGTH, b"")
        # each line is one header: none is folded, none ends in another way than the others
        fits = self._lines == lines == received.count(b"\r", 0, head_end)
        counts = length.isdigit() and len(length) <= _LENGTH_DIGITS
        return self._headers if self._plain and fits and counts else None

    # Called by the parser

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        name = name.lower()
        self._lines += 1
        if name in self._headers or name in _ODD or (name == _CONNECTION and value.lower() != _STAYS):
            self._plain = False
        self._headers[name] = value

    def on_message_begin(self) -> None:
        """A message begins; of two in one piece neither is taken."""
        self._plain = self._plain and not self._whole
        self._whole = False

    def on_message_complete(self) -> None:
        """The message has ended."""
        self._whole = True


class ExpressRequest(Exchange):
    """What `RonRequest` is to an endpoint, for a request of `Lane`."""

    method = b"POST"
    clientproto = b"HTTP/1.1"
    refused = False
    finished = False
    args: Mapping[bytes, Sequence[bytes]] = {}
    working: Deferred[Any] | None = None
    _disconnected = False

    def __init__(self, channel: RonChannel, head: Head, body: bytes) -> None:
        self.channel = channel
        self.path = head.path
        self._headers = head.headers
        self._body = body

    @property
    def site(self) -> RonSite:
        """Where it is answered."""
        return self.channel.site

    @property
    def client(self) -> Any:
        """The address at the other end."""
        return self.channel.getPeer()

    def body(self) -> bytes:
        """The whole body."""
        return self._body

    def header(self, name: str) -> str | None:
        """The value of a header, or None. Whatever bytes it holds, this is text (RFC 9110 §5.5: obs-text)."""
        value = self._headers.get(name.encode("ascii"))
        return value.strip(b" \t").decode("latin-1") if value is not None else None

    def content_encoding(self) -> str:
        """None: an encoded body goes the other way."""
        return ""

    def process(self, endpoint: BoundEndpoint) -> None:
        """Answer it, or refuse it where its peer asks for too much."""
        if endpoint.spec.vital or self.admitted():
            endpoint.answer(self, {})

    def finish(self) -> None:
        """The answer is complete."""
        if not self.finished:
            self.finished = True
            self.close_stream()
            self.channel.requestDone(self)

    def connectionLost(self, reason: Failure) -> None:
        """The client has gone."""
        self._disconnected = True
        self.close_stream()
        if self.working is not None:
            self.working.cancel()


def taken(channel: RonChannel, received: bytes) -> bool:
    """True for what goes the short way; otherwise it is still to be given to Twisted."""
    head, channel.early = channel.early, None
    if head is not None:
        if len(received) == head.length and not cast(Any, channel.transport).disconnecting:
            channel.begin(ExpressRequest(channel, head, received), head.endpoint)
            return True
        channel.long_way(head.raw)
        return False
    if not channel.at_rest:
        return False
    site = channel.site
    read = site.lane.read(received, head_limit=channel.totalHeadersSize, body_limit=site.body_limit)
    if read is None or cast(Peer, channel.peer).owes(site.reactor.seconds()):
        return False
    head, body = read
    if body:
        channel.begin(ExpressRequest(channel, head, body), head.endpoint)
    else:
        channel.early = head
        channel.body_begins()
    return True
