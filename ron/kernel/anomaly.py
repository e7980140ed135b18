"""Light statistical triggers: a queue that spikes, a storm of restarts, a burst of errors (blueprint §6).

In: observations as they happen and a clock. Out: a counter, a log line `event="anomaly"` and a call to each observer,
at most once a minute for the same trouble. Pure but for the log: no timers, no threads.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

import msgspec
from twisted.logger import Logger

from ron.kernel.metrics import Metrics

# So many standard deviations above its own past a gauge must stand. Queue depths have heavy tails: three cry wolf.
Z_LIMIT = 4.0
# Below this many entries no queue is in trouble, however quiet it was before.
SPIKE_MINIMUM = 64.0
# The past that counts: an observation weighs 1/e after this time.
MEMORY_S = 60.0
# Observations before a gauge is judged at all, and the least deviation assumed: a queue that was always empty has none.
WARM_UP = 16
_LEAST_DEVIATION = 1.0
RESTART_STORM = (6, 60.0)
ERROR_BURST = (100, 10.0)
QUIET_S = 60.0
MAX_NAMES = 1024
_log = Logger(namespace="ron.anomaly")


class Anomaly(msgspec.Struct, frozen=True, kw_only=True):
    """What was noticed. value: what stood out; expected: what would have been usual; both in the observation's unit."""

    kind: str
    name: str
    value: float
    expected: float


class _Trigger(Protocol):
    def observe(self, value: float, now_s: float) -> float | None:
        """Take in `value`; when it is an anomaly, what would have been usual, else None."""


class Spike:
    """An exponentially weighted mean and variance of one gauge, and whether a value stands out above them.

    Values weigh by the time between them, so that a gauge read often is not forgotten faster. A value that stands out
    is learned as the highest usual one: a single spike leaves the past as it was, a new normal is one after a while.
    """

    def __init__(self, *, z_limit: float = Z_LIMIT, minimum: float = SPIKE_MINIMUM, memory_s: float = MEMORY_S) -> None:
        self._z_limit = z_limit
        self._minimum = minimum
        self._memory_s = memory_s
        self._mean = self._variance = 0.0
        self._seen = 0
        self._last_s = 0.0

    def observe(self, value: float, now_s: float) -> float | None:
        """The mean so far when `value` is a spike, else None. Values that are no numbers are passed over."""
        if not math.isfinite(value):
            return None
        usual = self._mean
        ceiling = usual + self._z_limit * max(math.sqrt(self._variance), _LEAST_DEVIATION)
        warm = self._seen >= WARM_UP
        self._learn(min(value, ceiling) if warm else value, now_s)
        return usual if warm and value > ceiling and value >= self._minimum else None

    def _learn(self, value: float, now_s: float) -> None:
        elapsed_s = max(0.0, now_s - self._last_s)
        self._last_s = now_s
        self._seen += 1
        # while there is little past, each value counts as much as any before it
        weight = (
            max(1.0 / self._seen, -math.expm1(-elapsed_s / self._memory_s))
            if self._seen <= WARM_UP
            else (-math.expm1(-elapsed_s / self._memory_s))
        )
        step = value - self._mean
        self._mean += weight * step
        self._variance = (1.0 - weight) * (self._variance + weight * step * step)


class Burst:
    """More than so many events within a window."""

    def __init__(self, count: int, window_s: float) -> None:
        self._count = count
        self._window_s = window_s
        self._times: deque[float] = deque(maxlen=count)

    def observe(self, value: float, now_s: float) -> float | None:
        """`value` events happened now; the usual number (less than `count`) when the window is full, else None."""
        self._times.extend([now_s] * min(int(value), self._count))
        full = len(self._times) == self._count and now_s - self._times[0] < self._window_s
        return float(self._count - 1) if full else None


def _restarts() -> Burst:
    return Burst(*RESTART_STORM)


def _errors() -> Burst:
    return Burst(*ERROR_BURST)


class AnomalyWatch:
    """Keeps a trigger per kind and name and tells of what it notices.

    Kinds: `queue` (value: depth), `restart` (value: restarts; all services are one, since a storm is theirs together),
    `error` (value: errors since the last call). now: seconds of a clock that does not go back.
    """

    def __init__(self, metrics: Metrics, now: Callable[[], float]) -> None:
        self._metrics = metrics
        self._now = now
        self._makers: dict[str, Callable[[], _Trigger]] = {"queue": Spike, "restart": _restarts, "error": _errors}
        self._triggers: OrderedDict[tuple[str, str], _Trigger] = OrderedDict()
        self._told: dict[tuple[str, str], float] = {}
        self._observers: list[Callable[[Anomaly], None]] = []

    def watch(self, kind: str, make: Callable[[], _Trigger]) -> None:
        """Let `observe` take a further kind, each name of it with a trigger of its own from `make`."""
        self._makers[kind] = make

    def on_anomaly(self, observer: Callable[[Anomaly], None]) -> None:
        """Call `observer` with each anomaly. What it raises is logged."""
        self._observers.append(observer)

    def observe(self, kind: str, name: str, value: float = 1.0) -> Anomaly | None:
        """Take in `value`; the anomaly when it is one and was not told within the last minute, else None.

        Raises KeyError for a kind that is neither built in nor given to `watch`.
        """
        now_s = self._now()
        key = (kind, "" if kind == "restart" else name)
        usual = self._trigger(key).observe(value, now_s)
        if usual is None or now_s - self._told.get(key, -math.inf) < QUIET_S:
            return None
        self._told[key] = now_s
        anomaly = Anomaly(kind=kind, name=name, value=value, expected=round(usual, 3))
        self._tell(anomaly)
        return anomaly

    def _trigger(self, key: tuple[str, str]) -> _Trigger:
        """The trigger of `key`; the one unused for longest gives way when there are too many."""
        trigger = self._triggers.get(key)
        if trigger is None:
            trigger = self._triggers[key] = self._makers[key[0]]()
            if len(self._triggers) > MAX_NAMES:
                forgotten, _trigger = self._triggers.popitem(last=False)
                self._told.pop(forgotten, None)
        self._triggers.move_to_end(key)
        return trigger

    def _tell(self, anomaly: Anomaly) -> None:
        self._metrics.anomalies.labels(anomaly.kind).inc()
        _log.warn(
            "{kind} of {name} stands out: {value}, usual is {expected}",
            event="anomaly",
            kind=anomaly.kind,
            name=anomaly.name,
            value=anomaly.value,
            expected=anomaly.expected,
        )
        for observer in self._observers:
            try:
                observer(anomaly)
            except Exception:  # noqa: BLE001 - who listens must not harm who reports
                _log.failure("an observer of anomalies failed", event="anomaly_observer_failed")
