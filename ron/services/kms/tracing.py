"""Spans of the key service: where a request spent its time (specs/ron-kms.md, OBSERVABILITY §4).

In: the spans of the process. Out: `svc.kms.<op>` below the span that the request came in, `backend.<name>.<op>`,
`svc.kms.audit.append` and `svc.kms.attest.refresh` below that. Without a collector none is made, and asking is cheap.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ron.kernel import correlation
from ron.kernel.openspans import OpenSpans
from ron.kernel.tracing import Span
from ron.proto.errors import RonError
from ron.proto.ids import uuid7
from ron.proto.kms import Kid

_NONE: AbstractContextManager[None] = nullcontext()


class Spans:
    """spans: of the process; None for one that traces nothing."""

    def __init__(self, spans: OpenSpans | None = None) -> None:
        self._spans = spans

    def during(self, name: str, kid: Kid | None = None, **said: Any) -> AbstractContextManager[Span | None]:
        """What is done inside is `name`, for the request that is being worked on; what that causes is below it.

        name: fixed in code. said: as `ron.kernel.tracing.ALLOWED` has it. An error that leaves ends it as one.
        """
        return _NONE if self._spans is None else self._during(self._spans, name, kid, said)

    def on_its_own(self, name: str, **said: Any) -> AbstractContextManager[Span | None]:
        """The same for what nobody asked for: a trace of its own, as often as any other is sampled."""
        return _NONE if self._spans is None else self._alone(self._spans, name, said)

    @contextlib.contextmanager
    def _during(self, spans: OpenSpans, name: str, kid: Kid | None, said: dict[str, Any]) -> Iterator[Span | None]:
        corr_id = correlation.current()
        span = spans.start(name, corr_id) if corr_id is not None else None
        with _ended(spans, span):
            if span is not None:
                span.set({**_about(kid), **said})
            yield span

    @contextlib.contextmanager
    def _alone(self, spans: OpenSpans, name: str, said: dict[str, Any]) -> Iterator[Span | None]:
        corr_id = str(uuid7())
        mark = correlation.begin(corr_id)
        try:
            with self._during(spans, name, None, said) as span:
                yield span
        finally:
            correlation.end(mark)


@contextlib.contextmanager
def _ended(spans: OpenSpans, span: Span | None) -> Iterator[None]:
    if span is None:
        yield
        return
    try:
        with spans.within(span):
            yield
    except BaseException as error:
        span.set({"result": "err"})
        span.end(error=error.code.value if isinstance(error, RonError) else type(error).__name__)
        raise
    span.set({"result": "ok"})
    span.end()


def _about(kid: Kid | None) -> dict[str, Any]:
    if kid is None:
        return {}
    known = {"tenant": kid.tenant, "kid": str(kid)}
    return {**known, "kid_version": kid.version} if kid.version else known
