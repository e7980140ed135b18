"""One connection of the bus: frames in and out, events that may be lost, calls that wait for their replies.

In: bytes of a peer, messages and commands for it. Out: messages into our bus, commands to our services, replies. What
the peer does not read does not pile up: events wait in an outbox of bounded length and size, the oldest go; a peer that
lets replies pile up is hung up on.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from ron.kernel.bus import Bus, Message
from ron.kernel.commands import Busy, Command
from ron.kernel.ipc_frames import (
    MAX_FRAME_BYTES,
    Event,
    Frame,
    Order,
    Reply,
    Serve,
    decode_frame,
    encode_frame,
    error_of,
    event_of,
    message_of,
    reply_of,
)
from ron.proto.errors import ErrorCode, RonError, bad_request, too_large, unavailable

# Events that wait for a peer which does not read, and their bytes; then its oldest go.
OUTBOX_EVENTS = 4096
OUTBOX_BYTES = 8 * MAX_FRAME_BYTES
# The bus keeps thousands of events for `ronctl tail`.
MAX_EVENT_BYTES = 64 * 1024
# Commands under way with one peer, in each direction.
MAX_CALLS = 1024
# No command waits longer, whatever its deadline says.
MAX_DEADLINE_S = 3600.0
# Replies and orders that may be on their way to a peer that does not read; then it is hung up on.
STALLED_BYTES = 16 * MAX_FRAME_BYTES
_log = Logger(namespace="ron.bus")


def event_bytes(message: Message) -> bytes | None:
    """The frame of `message`; None, with a line in the log, when it cannot be sent."""
    try:
        raw = encode_frame(event_of(message))
        if len(raw) > MAX_EVENT_BYTES:
            raise too_large(f"an event of {len(raw)} bytes")
        return raw
    except RonError as error:
        _log.error(
            "a message on {topic} stays here: {reason}",
            event="bus_unsendable",
            topic=message.topic,
            reason=error.message,
        )
        return None


@implementer(IPushProducer)
class Wire(Int32StringReceiver):
    """What hub and link have in common."""

    MAX_LENGTH = MAX_FRAME_BYTES

    def __init__(self, bus: Bus, reactor: Any) -> None:
        self.bus = bus
        self.reactor = reactor
        self.peer = "?"
        self.ready = False
        self.refused = False
        self.dropped = 0
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._paused = False
        self._next_id = 0
        self._calls: dict[int, tuple[str, Deferred[Any]]] = {}
        self._serving = 0
        self._stalled_bytes = 0

    # The transport

    def connectionMade(self) -> None:
        """Flow control from the first byte on."""
        cast(Any, self.transport).registerProducer(self, True)

    def pauseProducing(self) -> None:
        """The peer reads slowly: events queue up here, and the oldest go."""
        self._paused = True

    def resumeProducing(self) -> None:
        """The peer reads again."""
        self._paused, self._stalled_bytes = False, 0
        while self._outbox and not self._paused:
            self.sendString(self._oldest())

    def stopProducing(self) -> None:
        """The connection is over."""
        self._forget_events()

    def stringReceived(self, string: bytes) -> None:
        """One frame has arrived; anything malformed ends the connection, and what came behind it counts for nothing."""
        if self.refused:
            return
        try:
            frame = decode_frame(string)
            if isinstance(frame, Event) and len(string) > MAX_EVENT_BYTES:
                raise too_large(f"an event of {len(string)} bytes")
            self.frame_received(frame)
        except RonError as error:
            self.refuse(error.message)

    def lengthLimitExceeded(self, length: int) -> None:
        """A frame over 1 MiB ends the connection before it is read."""
        self.refuse(f"a frame of {length} bytes")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Whoever waits for this peer is told."""
        self.ready = False
        self._forget_events()
        calls, self._calls = self._calls, {}
        for service, reply in calls.values():
            reply.errback(Failure(unavailable(f"the process of {service} is gone")))

    def refuse(self, reason: str) -> None:
        """Hang up at once."""
        if not self.refused:
            self.refused, self.ready = True, False
            _log.warn("bus connection of {peer} ended: {reason}", event="bus_refused", peer=self.peer, reason=reason)
            self.abort()

    def abort(self) -> None:
        """End the connection, whatever is still to be sent."""
        cast(Any, self.transport).abortConnection()

    # Frames

    def send(self, frame: Frame) -> None:
        """Send a frame that must not be lost; there are only as many as there are calls. Raises as `encode_frame`."""
        raw = encode_frame(frame)
        self.sendString(raw)
        if self._paused:
            self._stalled_bytes += len(raw)
            if self._stalled_bytes > STALLED_BYTES:
                self.refuse("it does not read")

    def send_event(self, raw: bytes) -> None:
        """Send an event's frame, or queue it, or drop the oldest."""
        if not self.ready:
            return
        if not self._paused:
            self.sendString(raw)
            return
        self._outbox.append(raw)
        self._outbox_bytes += len(raw)
        while len(self._outbox) > OUTBOX_EVENTS or self._outbox_bytes > OUTBOX_BYTES:
            self._oldest()
            self.dropped += 1

    def _oldest(self) -> bytes:
        raw = self._outbox.popleft()
        self._outbox_bytes -= len(raw)
        return raw

    def _forget_events(self) -> None:
        self._outbox.clear()
        self._outbox_bytes = 0

    def frame_received(self, frame: Frame) -> None:
        """What both sides understand."""
        if isinstance(frame, Event):
            self.pass_on(message_of(frame))
        elif isinstance(frame, Order):
            self._order_received(frame)
        elif isinstance(frame, Reply):
            self._reply_received(frame)
        elif isinstance(frame, Serve):
            self.services_received(frame.services)
        else:
            raise bad_request("a greeting out of place")

    def pass_on(self, message: Message) -> None:
        """Into our own bus."""
        self.bus.inject(message)

    def services_received(self, services: tuple[str, ...]) -> None:
        """The peer answers these now."""
        self.bus.detach(self)
        self.bus.attach(services, self)

    # Commands

    def carry(self, command: Command) -> Deferred[Any]:
        """Send `command` to the peer; see `ron.kernel.bus.Remote`."""
        self._next_id += 1
        number = self._next_id
        reply: Deferred[Any] = Deferred(lambda _reply: self._forget(number))
        if not self.ready:
            reply.errback(Failure(unavailable(f"the bus to {command.service} is down")))
        elif len(self._calls) >= MAX_CALLS:
            reply.errback(Failure(Busy(command.service)))
        else:
            self._send_order(number, command, reply)
        return reply

    def _forget(self, number: int) -> None:
        self._calls.pop(number, None)

    def _send_order(self, number: int, command: Command, reply: Deferred[Any]) -> None:
        deadline_ms = max(1, math.ceil(min(command.deadline_s, MAX_DEADLINE_S) * 1000))
        self._calls[number] = (command.service, reply)
        try:
            self.send(Order(number, command.service, command.name, command.body, command.corr_id, deadline_ms))
        except RonError as error:
            del self._calls[number]
            reply.errback(Failure(error))

    def _order_received(self, frame: Order) -> None:
        if self._serving >= MAX_CALLS:
            self._answer(Failure(Busy(frame.service)), frame.id)
            return
        self._serving += 1
        deadline_s = min(max(frame.deadline_ms, 1) / 1000, MAX_DEADLINE_S)
        command = Command(frame.service, frame.name, frame.body, frame.corr_id, deadline_s)
        self.bus.submit(command).addBoth(self._served, frame.id)

    def _served(self, result: Any, number: int) -> None:
        self._serving -= 1
        self._answer(result, number)

    def _answer(self, result: Any, number: int) -> None:
        if not self.ready:
            return
        try:
            self.send(reply_of(result, number))
        except RonError as error:
            self.send(Reply(number, code=ErrorCode.INTERNAL, message=f"its reply cannot be sent: {error.message}"))

    def _reply_received(self, frame: Reply) -> None:
        _service, reply = self._calls.pop(frame.id, ("", None))
        if reply is None:
            return  # it came after its deadline
        if frame.code is None:
            reply.callback(frame.body)
        else:
            reply.errback(Failure(error_of(frame)))
