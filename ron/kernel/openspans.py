"""Which span each request is in at present, whatever it came by: HTTP, OAP/1 or the bus.

In: spans as they begin and end. Out: the parent of what a request causes meanwhile, by its correlation id.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ron.kernel.tracing import Span, Tracing


class OpenSpans:
    """The spans of this process that have not ended, so that a command on the bus becomes a child and no second root.

    A `ron.kernel.commands.Tracer`: `bus.trace_with(OpenSpans(tracing))`. It works by correlation id, for a command may
    wait in a queue and begin in somebody else's context; a command carried to another process begins there without one.
    """

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._open: dict[str, list[Span]] = {}

    def start(self, name: str, corr_id: str) -> Span | None:
        """Begin a span of `corr_id`, below the one that is open for it."""
        return self._tracing.start(name, corr_id, self.current(corr_id))

    def current(self, corr_id: str) -> Span | None:
        """The span opened last for `corr_id`, or None."""
        opened = self._open.get(corr_id)
        return opened[-1] if opened else None

    def opened(self, span: Span) -> None:
        """What its request causes is its child, until `closed`."""
        self._open.setdefault(span.corr_id, []).append(span)

    def closed(self, span: Span) -> None:
        """It has ended; not the last one opened, perhaps: two requests of one correlation id end in any order."""
        opened = self._open.get(span.corr_id, [])
        if span in opened:
            opened.remove(span)
        if not opened:
            self._open.pop(span.corr_id, None)

    @contextlib.contextmanager
    def within(self, span: Span | None) -> Iterator[None]:
        """What the request of `span` causes meanwhile is its child. None: nothing changes."""
        if span is None:
            yield
            return
        self.opened(span)
        try:
            yield
        finally:
            self.closed(span)
