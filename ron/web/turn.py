"""What a request does whichever way it was read: it is admitted by its peer's rates, and it takes one answer.

In: a request on its channel, an `Answer`. Out: bytes for the transport; a peer's stream, open as long as that takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ron.kernel.limits import Peer, Refused
from ron.web.content import Answer
from ron.web.head import answer_head, is_bodiless

if TYPE_CHECKING:
    from ron.web.channel import RonChannel
    from ron.web.request import AnyRequest

# Head and body go out in one piece up to here; copying a larger body costs more than a second write.
_ONE_PIECE_BYTES = 64 * 1024


class Exchange:
    """For `RonRequest` and `ExpressRequest`."""

    channel: RonChannel
    method: bytes
    clientproto: bytes
    _stream_of: Peer | None = None

    def finish(self) -> None:
        """The answer is complete."""
        raise NotImplementedError

    def admitted(self) -> bool:
        """True when the peer may have one more request answered; otherwise it has been told."""
        channel = self.channel
        peer = cast(Peer, channel.peer)
        try:
            peer.open_stream(channel.site.reactor.seconds())
        except Refused as error:
            channel.penalise()
            channel.site.refuse(cast("AnyRequest", self), error)
            return False
        self._stream_of = peer
        return True

    def close_stream(self) -> None:
        """It counts no more for its peer."""
        if self._stream_of is not None:
            self._stream_of.close_stream()
            self._stream_of = None

    def respond(self, answer: Answer, corr_id: str) -> None:
        """Send `answer` whole and end the request, past Twisted's header objects: they were a fifth of a small one."""
        channel = self.channel
        head = answer_head(answer, self.clientproto, corr_id, close=not channel.persistent)
        body = b"" if self.method == b"HEAD" or is_bodiless(answer.status) else answer.body
        if len(body) <= _ONE_PIECE_BYTES:
            channel.write(head + body)
        else:
            channel.write(head)
            channel.write(body)
        if answer.takes_over is None:
            self.finish()
        else:
            self.close_stream()
            channel.hand_over(answer.takes_over(channel))
