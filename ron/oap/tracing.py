"""One trace across OAP/1: the correlation id and the `traceparent` travel ahead of each request.

In: the request that causes a call, a CONTEXT event. Out: the event's payload, spans. GMI-1.6's `corr_id` has 64 bits
and a UUID 128, so both go in an EVENT of protocol 0, which whoever does not know it ignores (docs/oap.rst).
"""

from __future__ import annotations

import uuid
from collections import OrderedDict

import msgspec

from ron.kernel.tracing import CORR_ID, TRACEPARENT, Origin, Span, Tracing
from ron.oap import hello
from ron.oap.hello import Context
from ron.proto.errors import RonError
from ron.proto.ids import is_uuid

_HALF = 2**64 - 1


def number_of(corr_id: str) -> int:
    """The low half of the UUID `corr_id`: what frames carry of it (INTEROP §1.4), never 0."""
    return uuid.UUID(corr_id).int & _HALF or 1


def write_context(tracing: Tracing | None, corr_id: str, span: Span | None) -> bytes:
    """The payload that tells the other end of `corr_id`, and of `span` when there is one."""
    carrier: dict[str, str] = {CORR_ID: corr_id}
    if tracing is not None and span is not None:
        tracing.inject(corr_id, span, carrier)
    return msgspec.json.encode(carrier)


def read_context(tracing: Tracing | None, payload: bytes) -> Origin:
    """Where the request comes from that this payload announces; whatever is malformed is as if it were not there."""
    try:
        said = hello.decode(payload, Context)
    except RonError:
        return Origin(None, None)
    if tracing is None:
        return Origin(said.corr_id if is_uuid(said.corr_id) else None, None)
    return tracing.extract({CORR_ID: said.corr_id, TRACEPARENT: said.traceparent})


class Announced:
    """Contexts whose requests have not come yet: the newest `capacity` of them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._origins: OrderedDict[int, Origin] = OrderedDict()

    def put(self, number: int, origin: Origin) -> None:
        """The request `number` comes from `origin`."""
        self._origins[number] = origin
        self._origins.move_to_end(number)
        if len(self._origins) > self._capacity:
            self._origins.popitem(last=False)

    def take(self, number: int) -> Origin:
        """Where the request `number` comes from, once."""
        return self._origins.pop(number, None) or Origin(None, None)
