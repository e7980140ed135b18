"""What `GET /v1/events` of the onion runtime tells, message by message. Shapes only.

In: text messages of the WebSocket. Out: `EventView` or `Lagged`, for the service and the SDK alike.
"""

from __future__ import annotations

from typing import Literal

import msgspec

EVENTS_PATH = "/v1/events"
EVENTS_SCOPE = "onion:events"

EventKind = Literal["descriptor", "circuit", "introduction", "rendezvous", "tor_down", "ready"]


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """One message. seq: grows by one, for this reader, and never goes back, over restarts neither. at: Unix seconds.

    detail: words by kind; of `ready` the onion's `id` and `ready`, `true` or `false`. An address is never in it.
    """

    seq: int
    kind: EventKind
    app: str
    at: float
    detail: dict[str, str] = {}


class Lagged(msgspec.Struct, frozen=True):
    """The message that so many events are missing at this place: they came too fast, or too long ago."""

    lagged: int
