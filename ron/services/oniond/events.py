"""`GET /v1/events`: what happens to onions, as it happens. An app's capability hears of that app and of nothing else.

In: events of the telemetry; onions that become ready or cease to be. Out: JSON text messages over a WebSocket, after a
number if so asked. Each app's events are kept and numbered by themselves: how much happens to others shows nowhere.
"""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import msgspec

from ron.proto.errors import bad_request
from ron.proto.onionevents import EVENTS_PATH, EVENTS_SCOPE, EventView
from ron.services.oniond.api import may
from ron.services.oniond.figures import OnionEvent
from ron.services.oniond.model import Onion
from ron.services.oniond.service import OniondService
from ron.web import Call, Endpoint
from ron.web.websocket import Close, Query, Sockets, WebSocket, lagged_notice, websocket_endpoint

# Events kept of each app, of how many apps, and of all together for operators.
KEPT = 128
APPS = 512
KEPT_OF_ALL = 1024
# Whom an operator's sockets count for; no app is called so.
_OPERATOR = "*"
_SEQ = re.compile(r"(0|[1-9][0-9]{0,15})\Z")


class _Line:
    """The kept events of one app. began: the number before its first, the Unix time in ms, so that the numbers of an
    earlier life are smaller."""

    def __init__(self, began: int, keep: int) -> None:
        self.began = self.last = began
        self.kept: deque[EventView] = deque(maxlen=keep)

    def add(self, event: OnionEvent | EventView) -> EventView:
        self.last += 1
        self.kept.append(
            view := EventView(seq=self.last, kind=event.kind, app=event.app, at=event.at, detail=event.detail)
        )
        return view

    def after(self, seq: int) -> tuple[int, list[EventView]]:
        """How many after `seq` are lost, and those that are not."""
        found = [event for event in self.kept if event.seq > seq]
        first = found[0].seq if found else self.last + 1
        return first - max(seq, self.began) - 1, found


class EventFeed:
    """The lines of all apps, and who listens. now: Unix seconds."""

    def __init__(self, oniond: OniondService, now: Callable[[], float]) -> None:
        self._now = now
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        self._all = self._line(KEPT_OF_ALL)
        self._ready: set[str] = set()
        # None: of all. It is not "", who is nobody: a capability for two apps at once
        self._listening: dict[str | None, list[Callable[[EventView], None]]] = {}
        for event in oniond.telemetry.recent():
            self._note(event)
        oniond.telemetry.observe(self._note)
        oniond.observers.append(self._stands)

    def after(self, app: str | None, seq: int) -> tuple[int, list[EventView]]:
        """How many events after number `seq` are not kept any more, and those that are; of one app, or of all."""
        line = self._all if app is None else self._lines.get(app)
        return line.after(seq) if line is not None else (0, [])

    def listen(self, app: str | None, callback: Callable[[EventView], None]) -> Callable[[], None]:
        """Call `callback` with each event of `app`, or of all. Returns what undoes it."""
        self._listening.setdefault(app, []).append(callback)

        def undo() -> None:
            self._listening[app].remove(callback)
            if not self._listening[app]:
                del self._listening[app]

        return undo

    def _note(self, event: OnionEvent | EventView) -> None:
        self._tell(None, self._all.add(event))
        self._tell(event.app, self._line_of(event.app).add(event))

    def _tell(self, app: str | None, event: EventView) -> None:
        for callback in list(self._listening.get(app, ())):
            callback(event)

    def _stands(self, onion: Onion, ready: bool) -> None:
        if ready == (onion.id in self._ready):
            return
        (self._ready.add if ready else self._ready.discard)(onion.id)
        detail = {"id": onion.id, "ready": "true" if ready else "false"}
        self._note(EventView(seq=0, kind="ready", app=onion.app, at=self._now(), detail=detail))

    def _line_of(self, app: str) -> _Line:
        line = self._lines.get(app)
        if line is None:
            line = self._lines[app] = self._line(KEPT)
            if len(self._lines) > APPS:
                self._lines.popitem(last=False)
        self._lines.move_to_end(app)
        return line

    def _line(self, keep: int) -> _Line:
        return _Line(int(self._now() * 1000), keep)


class _Following:
    """One reader."""

    def __init__(self, feed: EventFeed, app: str | None, after: int | None) -> None:
        self.owner = _OPERATOR if app is None else app
        self._feed = feed
        self._app = app
        self._after = after
        self._socket: WebSocket | None = None
        self._undo: Callable[[], None] | None = None

    def opened(self, socket: WebSocket) -> None:
        """First what it asks for of what was, then what is."""
        self._socket = socket
        if self._after is not None:
            lost, kept = self._feed.after(self._app, self._after)
            if lost > 0:
                socket.send(lagged_notice(lost))
            for event in kept:
                socket.send(_text(event))
        self._undo = self._feed.listen(self._app, lambda event: socket.send(_text(event)))

    def received(self, _message: str) -> None:
        """There is nothing to say here."""
        if self._socket is not None:
            self._socket.close(Close.UNSUPPORTED, "this stream takes no messages")

    def closed(self) -> None:
        """Gone."""
        if self._undo is not None:
            self._undo()
            self._undo = None


def events_endpoint(oniond: OniondService, now: Callable[[], float]) -> Endpoint:
    """`GET /v1/events[?after=SEQ]` over `oniond`. Make one for each service: it listens from then on."""
    feed, sockets = EventFeed(oniond, now), Sockets("onion_events")

    def accept(call: Call, query: Query) -> Any:
        return _Following(feed, may(call), _after(query))

    return websocket_endpoint(
        EVENTS_PATH, scope=EVENTS_SCOPE, accept=accept, enforces=frozenset({"app"}), sockets=sockets
    )


def _after(query: Query) -> int | None:
    if not query:
        return None
    if set(query) != {"after"} or not _SEQ.match(query["after"]):
        raise bad_request("the only parameter is after=SEQ", "the number of the last event that you have")
    return int(query["after"])


def _text(event: EventView) -> str:
    return msgspec.json.encode(event).decode()
