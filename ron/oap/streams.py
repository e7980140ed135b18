"""The conversations of one connection: which frame may follow which, and how many may be under way. Pure.

In: the flags of each frame that comes or goes. Out: what it means, `Violation` (400) when it may not come now,
`Refused` (429) when there is no room for one more. The states are drawn in docs/oap.rst, and a test compares the two.
"""

from __future__ import annotations

import enum
from typing import Any, Protocol

from automat import TypeMachineBuilder

from ron.kernel.limits import Refused, too_many
from ron.oap.frames import Flags, Violation
from ron.oap.hello import MAX_INFLIGHT


class Side(enum.Enum):
    """Who sends requests and who answers them; on one connection it is always the same end."""

    ASKS = "asks"
    ANSWERS = "answers"


class Means(enum.Enum):
    """What a frame of the peer is, for whoever gets its payload."""

    EVENT = "event"
    BEGINS = "begins"
    GOES_ON = "goes_on"
    DROPPED = "dropped"


class Talk(Protocol):
    """What happens in a conversation, whoever it comes from."""

    def ask(self) -> None: ...
    def ask_whole(self) -> None: ...
    def more(self) -> None: ...
    def last(self) -> None: ...
    def answer(self) -> None: ...
    def answer_last(self) -> None: ...
    def turn_away(self) -> None: ...
    def cancel(self) -> None: ...


class Stream:
    """One conversation: the core of its state machine. state: as drawn in docs/oap.rst."""

    __slots__ = ("state",)

    def __init__(self) -> None:
        self.state = "idle"


# (state, event) → next. Whatever is not here is a violation.
TRANSITIONS: dict[tuple[str, str], str] = {
    ("idle", "ask"): "requesting",
    ("idle", "ask_whole"): "asked",
    ("idle", "turn_away"): "refused",
    ("requesting", "more"): "requesting",
    ("requesting", "last"): "asked",
    ("requesting", "answer"): "overlapping",
    ("requesting", "answer_last"): "refused",
    ("requesting", "cancel"): "closed",
    ("asked", "answer"): "answering",
    ("asked", "answer_last"): "closed",
    ("asked", "cancel"): "closed",
    ("overlapping", "more"): "overlapping",
    ("overlapping", "last"): "answering",
    ("overlapping", "answer"): "overlapping",
    ("overlapping", "answer_last"): "refused",
    ("overlapping", "cancel"): "closed",
    ("answering", "answer"): "answering",
    ("answering", "answer_last"): "closed",
    ("answering", "cancel"): "closed",
    ("refused", "more"): "refused",
    ("refused", "last"): "closed",
    ("refused", "cancel"): "closed",
}
EVENTS = ("ask", "ask_whole", "more", "last", "answer", "answer_last", "turn_away", "cancel")
STATES = ("idle", "requesting", "asked", "overlapping", "answering", "refused", "closed")


def _enter(name: str) -> Any:
    def act(_talk: Talk, stream: Stream) -> None:
        stream.state = name

    return act


def _build() -> Any:
    builder = TypeMachineBuilder(Talk, Stream)
    states = {name: builder.state(name) for name in STATES}
    for (before, event), after in TRANSITIONS.items():
        states[before].upon(getattr(Talk, event)).to(states[after])(_enter(after))
    return builder.build()


# What is drawn in the docs; conversations go by its table, and a test holds the three against each other
machine = _build()

_ROLE = Flags.REQ | Flags.RESP | Flags.EVENT
_REQUESTS = {
    0: "more",
    int(Flags.START): "ask",
    int(Flags.END): "last",
    int(Flags.START | Flags.END): "ask_whole",
}
_ANSWERS = {0: "answer", int(Flags.END): "answer_last"}


def event_of(flags: int) -> str:
    """What a frame with `flags` does to its conversation; "" for an EVENT, which belongs to none.

    Raises `Violation` when they contradict one another: not exactly one of REQ, RESP and EVENT, an answer or event
    with START, an event with END or ACK_REQ.
    """
    role, ends = flags & _ROLE, flags & (Flags.START | Flags.END)
    if role == Flags.EVENT and not ends and not flags & Flags.ACK_REQ:
        return ""
    found = _REQUESTS.get(ends) if role == Flags.REQ else _ANSWERS.get(ends) if role == Flags.RESP else None
    if found is None:
        raise Violation(f"a frame that is {Flags(flags).name or 'nothing'}")
    return found


# there are only so many, and taking an IntFlag apart costs more than all the rest
_EVENT_OF: dict[int, str | None] = {}


def _event(flags: int, corr_id: int) -> str:
    event = _EVENT_OF.get(flags, "?")
    if event == "?":
        try:
            event = event_of(flags)
        except Violation:
            event = None
        _EVENT_OF[flags] = event
    if event is None:
        raise Violation(f"a frame that is {Flags(flags).name or 'nothing'}", corr_id=corr_id)
    return event


class Streams:
    """The conversations of a connection, seen from one side.

    max_inflight: how many may be under way, and besides them how many refused ones may still be coming in.
    """

    def __init__(self, side: Side, max_inflight: int = MAX_INFLIGHT) -> None:
        self.max_inflight = max_inflight
        self._side = side
        self._streams: dict[int, str] = {}
        self._refused: set[int] = set()

    def __len__(self) -> int:
        """Conversations under way; those that were refused and are still coming in do not count."""
        return len(self._streams) - len(self._refused)

    def __contains__(self, corr_id: int) -> bool:
        return corr_id in self._streams

    def state(self, corr_id: int) -> str:
        """The state of a conversation; `idle` when there is none."""
        return self._streams.get(corr_id, "idle")

    def receive(self, flags: int, corr_id: int) -> Means:
        """A frame of the peer. Raises `Violation` when it may not come now, and the conversation is over.

        Raises `Refused` (inflight) for a request too many: it is to be answered with 429 past this machine, and what
        else comes of it is dropped here.
        """
        event = _event(flags, corr_id)
        if not event:
            return Means.EVENT
        if event.startswith("answer") is (self._side is Side.ANSWERS):
            raise Violation("an answer from whoever asks, or a request from whoever answers", corr_id=corr_id)
        begins = event.startswith("ask")
        if begins and corr_id not in self._streams:
            self._make_room(event, corr_id)
        dropped = corr_id in self._refused
        self._step(event, corr_id)
        if dropped:
            return Means.DROPPED
        return Means.BEGINS if begins else Means.GOES_ON

    def send(self, flags: int, corr_id: int) -> None:
        """A frame of ours goes out. Raises `Violation` when it must not, `Refused` (inflight) for one too many."""
        event = _event(flags, corr_id)
        unended = event == "ask" and len(self._refused) >= self.max_inflight
        if event.startswith("ask") and (unended or len(self) >= self.max_inflight):
            raise _too_many()
        if event:
            self._step(event, corr_id)

    def cancel(self, corr_id: int) -> bool:
        """Whoever asked wants no answer any more; True when one was under way."""
        if corr_id not in self._streams:
            return False
        self._step("cancel", corr_id)
        return True

    def _make_room(self, event: str, corr_id: int) -> None:
        if event == "ask" and len(self._refused) >= self.max_inflight:
            raise Violation("ever more requests, and the refused ones never end", corr_id=corr_id)
        if len(self) < self.max_inflight:
            return
        if event == "ask":
            self._step("turn_away", corr_id)
        raise _too_many()

    def _step(self, event: str, corr_id: int) -> None:
        # the machine's own table: making and driving an object for each conversation was a fifth of a small request
        before = self._streams.get(corr_id, "idle")
        after = TRANSITIONS.get((before, event))
        if after is None or after == "closed":
            self._streams.pop(corr_id, None)
            self._refused.discard(corr_id)
        else:
            self._streams[corr_id] = after
        if after is None:
            raise Violation(f"{event} in a conversation that is {before}", corr_id=corr_id)
        if after == "refused":
            self._refused.add(corr_id)


def _too_many() -> Refused:
    return too_many("inflight", "as many requests are under way on this connection as may be")
