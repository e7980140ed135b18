"""Circuit breakers: who does not answer is left alone for a while, and whoever calls it is told at once.

In: the outcome of each call. Out: leave to call, or `CircuitOpen` with the seconds until the next try. Pure but for the
injected clock and randomness. The states are drawn in docs/limits.rst.
"""

from __future__ import annotations

import enum
import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from prometheus_client import Gauge

from ron.kernel.backoff import Backoff
from ron.kernel.metrics import Metrics
from ron.proto.exitcodes import Unreachable

FAILURES_IN_A_ROW = 5
FAILURE_RATIO = 0.5
RATIO_WINDOW_S = 30.0
RATIO_CALLS = 20
OPEN_BASE_S, OPEN_CEILING_S = 1.0, 10.0
# A probe that never tells how it went does not keep the circuit half open for ever.
PROBE_S = 60.0
MAX_CIRCUITS = 1024
_REMEMBERED_CALLS = 200


class CircuitState(enum.IntEnum):
    """The numbers are the values of the gauge `circuit_state`."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class CircuitOpen(Unreachable):
    """Not even tried: the last calls failed. `retry_in_s`: when somebody will be let through again."""

    def __init__(self, name: str, retry_in_s: float) -> None:
        super().__init__(
            f"{name} did not answer of late; it is tried again in {retry_in_s:.1f} s",
            hint="is the node running and ready?",
        )
        self.retry_in_s = retry_in_s
        self.retry_after_s = max(1, math.ceil(retry_in_s))


class CircuitBreaker:
    """Closed: all calls pass. Open: none. Half open: one call at a time probes, and decides.

    It opens after `failures_in_row` failures without a success between, or when `ratio` of the calls that ended
    in the last `RATIO_WINDOW_S` failed and there were `RATIO_CALLS` of them. It stays open for a random time that grows
    from one failed probe to the next, so that many callers do not come back together.
    """

    def __init__(
        self,
        name: str,
        now: Callable[[], float],
        *,
        failures_in_row: int = FAILURES_IN_A_ROW,
        ratio: float = FAILURE_RATIO,
        rng: random.Random | None = None,
        on_change: Callable[[CircuitState], None] = lambda _state: None,
    ) -> None:
        self.name = name
        self._now = now
        self._failures_in_row = failures_in_row
        self._ratio = ratio
        self._on_change = on_change
        self._backoff = Backoff(base_s=OPEN_BASE_S, ceiling_s=OPEN_CEILING_S, rng=rng)
        self._state = CircuitState.CLOSED
        # outcomes of calls that were let through in an earlier state say nothing about this one
        self._epoch = 0
        self._row = 0
        self._calls: deque[tuple[float, bool]] = deque(maxlen=_REMEMBERED_CALLS)
        self._until_s = 0.0
        self._probe_until_s = 0.0

    @property
    def state(self) -> CircuitState:
        """As of the last call; an open circuit turns half open when the next caller comes after its time."""
        return self._state

    def admit(self) -> int:
        """Leave to make one call: a ticket to report its outcome with. Raises `CircuitOpen`."""
        now_s = self._now()
        if self._state is CircuitState.OPEN:
            if now_s < self._until_s:
                raise CircuitOpen(self.name, self._until_s - now_s)
            self._become(CircuitState.HALF_OPEN)
        elif self._state is CircuitState.HALF_OPEN and now_s < self._probe_until_s:
            raise CircuitOpen(self.name, OPEN_BASE_S)
        if self._state is CircuitState.HALF_OPEN:
            self._probe_until_s = now_s + PROBE_S
        return self._epoch

    def succeeded(self, ticket: int) -> None:
        """The call of `ticket` was answered, whatever the answer."""
        if ticket != self._epoch:
            return
        if self._state is CircuitState.HALF_OPEN:
            self._backoff.reset()
            self._become(CircuitState.CLOSED)
        else:
            self._row = 0
            self._calls.append((self._now(), True))

    def failed(self, ticket: int) -> None:
        """The call of `ticket` got no answer."""
        if ticket != self._epoch:
            return
        now_s = self._now()
        self._row += 1
        self._calls.append((now_s, False))
        if self._state is CircuitState.HALF_OPEN or self._row >= self._failures_in_row or self._too_many(now_s):
            self._until_s = now_s + self._backoff.next_delay_s()
            self._become(CircuitState.OPEN)

    def abandoned(self, ticket: int) -> None:
        """The call of `ticket` was given up by its caller: it says nothing, and the next one may probe."""
        if ticket == self._epoch:
            self._probe_until_s = 0.0

    def _too_many(self, now_s: float) -> bool:
        recent = [answered for at_s, answered in self._calls if at_s > now_s - RATIO_WINDOW_S]
        return len(recent) >= RATIO_CALLS and recent.count(False) >= self._ratio * len(recent)

    def _become(self, state: CircuitState) -> None:
        self._state = state
        self._epoch += 1
        self._probe_until_s = 0.0
        if state is CircuitState.CLOSED:
            self._row = 0
            self._calls.clear()
        self._on_change(state)


class Circuits:
    """One breaker for each name (a base URL), at most `MAX_CIRCUITS`; shown as the gauge `circuit_state{circuit}`.

    Make one for each process and hand it to every client, so that they learn from one another.
    """

    def __init__(
        self,
        now: Callable[[], float],
        *,
        failures_in_row: int = FAILURES_IN_A_ROW,
        metrics: Metrics | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._now = now
        self._rng = rng
        self._failures_in_row = failures_in_row
        self._breakers: OrderedDict[str, CircuitBreaker] = OrderedDict()
        self._gauge = _gauge(metrics) if metrics is not None else None

    def of(self, name: str) -> CircuitBreaker:
        """The breaker of `name`. The least used one is forgotten when there are too many."""
        breaker = self._breakers.get(name)
        if breaker is None:
            breaker = CircuitBreaker(
                name,
                self._now,
                failures_in_row=self._failures_in_row,
                rng=self._rng,
                on_change=self._shown(name),
            )
            self._breakers[name] = breaker
            if len(self._breakers) > MAX_CIRCUITS:
                self._forget(next(iter(self._breakers)))
        self._breakers.move_to_end(name)
        return breaker

    def _shown(self, name: str) -> Callable[[CircuitState], None]:
        child: Any = self._gauge.labels(name) if self._gauge is not None else None

        def show(state: CircuitState) -> None:
            if child is not None:
                child.set(int(state))

        return show

    def _forget(self, name: str) -> None:
        del self._breakers[name]
        if self._gauge is not None:
            self._gauge.remove(name)


def _gauge(metrics: Metrics) -> Gauge:
    return Gauge("circuit_state", "0 closed, 1 half open, 2 open", ["circuit"], registry=metrics.registry)
