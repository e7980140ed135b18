"""Degradation: when the promise burns too fast, writes are shed first and reads go on, until it is calm again.

In: good and bad answers as they happen; `fail_closed(reason)` from whoever knows that a store is down. Out: flags that
everything else goes by, observers told of each change, readiness keys `slo` and `writes`, gauges. The states are drawn
in docs/limits.rst.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from prometheus_client import Gauge
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ron.kernel.clock import Clock
from ron.kernel.health import HealthState
from ron.kernel.limits import overloaded
from ron.kernel.metrics import Metrics
from ron.kernel.slo_config import SloConfig

# Fewer requests than this in the short window prove nothing: one slow answer of three is no fire.
MIN_REQUESTS = 20
# Below it the promise is being kept again.
CALM_BURN = 1.0
TICK_S = 1.0
_log = Logger(namespace="ron.slo")


class SloState(enum.StrEnum):
    """Whether the promise is being kept."""

    NORMAL = "normal"
    BURNING = "burning"


class Burns(NamedTuple):
    """How many times faster than promised the error budget is spent, by window; requests seen in the short one."""

    short: float
    long: float
    seen: int


class BurnMeter:
    """Good and bad answers of the last `long_window_s` seconds, in one-second buckets. Pure."""

    def __init__(self, config: SloConfig) -> None:
        self._budget = 1.0 - config.availability
        self._long = max(config.long_window_s, config.short_window_s)
        self._short = config.short_window_s
        self._second: int | None = None
        self._clear()

    def _clear(self) -> None:
        self._all = [0] * self._long
        self._bad = [0] * self._long
        self._sums = [0, 0, 0, 0]  # all and bad in the short window, all and bad in the long one

    def count(self, *, bad: bool, now_s: float) -> None:
        """One more answer."""
        self._forward(now_s)
        slot = self._second % self._long  # type: ignore[operator] # set by _forward
        sums = self._sums
        self._all[slot] += 1
        sums[0] += 1
        sums[2] += 1
        if bad:
            self._bad[slot] += 1
            sums[1] += 1
            sums[3] += 1

    def burns(self, now_s: float) -> Burns:
        """As of now."""
        self._forward(now_s)
        short_all, short_bad, long_all, long_bad = self._sums
        return Burns(self._burn(short_bad, short_all), self._burn(long_bad, long_all), short_all)

    def _burn(self, bad: int, seen: int) -> float:
        return bad / seen / self._budget if seen else 0.0

    def _forward(self, now_s: float) -> None:
        second = int(now_s)
        if self._second is None or second - self._second >= self._long:
            self._clear()
            self._second = second
        while self._second < second:  # a clock that was set back stays in its second until it is there again
            self._second += 1
            self._leave(self._second - self._short, 0)
            slot = self._leave(self._second - self._long, 2)
            self._all[slot] = self._bad[slot] = 0

    def _leave(self, second: int, window: int) -> int:
        slot = second % self._long
        self._sums[window] -= self._all[slot]
        self._sums[window + 1] -= self._bad[slot]
        return slot


class Degradation:
    """What this process leaves out at present, and why.

    Burning begins when both windows burn over `burn_rate`, and ends when the short one has burnt below 1 for `hold_s`.
    `start` looks once a second, so that it ends without traffic too; without it only answers move it.
    """

    def __init__(self, config: SloConfig, clock: Clock, *, health: HealthState, metrics: Metrics) -> None:
        self.config = config
        self.state = SloState.NORMAL
        self._clock = clock
        self._health = health
        self._meter = BurnMeter(config)
        self._calm_since_s: float | None = None
        self._closed: list[str] = []
        self._observers: list[Callable[[Degradation], None]] = []
        self._ticking: IDelayedCall | None = None
        self._looked_s = 0
        registry = metrics.registry
        self._burning = Gauge("slo_burning", "1 while writes are shed for the SLO's sake", registry=registry)
        rates = Gauge("slo_burn_rate", "Error budget spent, times as promised", ["window"], registry=registry)
        self._rates = rates.labels("short"), rates.labels("long")
        self._writes_closed = Gauge("writes_closed", "Reasons for which writes are refused", registry=registry)

    @property
    def burning(self) -> bool:
        """True while the promise burns."""
        return self.state is SloState.BURNING

    @property
    def shed_writes(self) -> bool:
        """True while writes are refused: the promise burns, or somebody closed them."""
        return self.burning or bool(self._closed)

    @property
    def reduced_fan_out(self) -> bool:
        """True while services should do less for each request than they would like to."""
        return self.burning

    @property
    def sampling_raised(self) -> bool:
        """True while traces should be sampled as during an incident."""
        return self.burning

    def observe(self, observer: Callable[[Degradation], None]) -> None:
        """Call `observer` after each change of a flag."""
        self._observers.append(observer)

    def admit_write(self) -> None:
        """Raise `Refused` 503 (slo_burn, writes_closed) while writes are refused."""
        if self._closed:
            raise overloaded("writes_closed", f"writes are closed: {self._closed[-1]}")
        if self.state is SloState.BURNING:
            raise overloaded("slo_burn", "writes are shed until answers are as good as promised again")

    @contextmanager
    def fail_closed(self, reason: str) -> Iterator[None]:
        """Writes are refused within; reads go on. reason: one sentence without secrets, shown to callers."""
        release = self.close_writes(reason)
        try:
            yield
        finally:
            release()

    def close_writes(self, reason: str) -> Callable[[], None]:
        """The same without a `with`: what it returns opens them again (once). Several reasons hold side by side."""
        closed = [reason]
        self._closed.append(reason)
        self._show_closed()

        def release() -> None:
            if closed:
                self._closed.remove(closed.pop())
                self._show_closed()

        return release

    def _show_closed(self) -> None:
        self._writes_closed.set(len(self._closed))
        if self._closed:
            self._health.degraded("writes", f"refused: {self._closed[-1]}")
        else:
            self._health.ok("writes")
        self._tell()

    def count(self, *, failed: bool, elapsed_s: float) -> None:
        """One answer. failed: a 5xx that was not shed by a limit. What took over `latency_ms` is bad too."""
        if not self.config.enabled:
            return
        now_s = self._clock.seconds()
        self._meter.count(bad=failed or elapsed_s * 1000.0 > self.config.latency_ms, now_s=now_s)
        if int(now_s) != self._looked_s:
            self.look()

    def look(self) -> None:
        """Judge as of now."""
        now_s = self._clock.seconds()
        self._looked_s = int(now_s)
        burns = self._meter.burns(now_s)
        self._rates[0].set(burns.short)
        self._rates[1].set(burns.long)
        if not self.burning:
            limit = self.config.burn_rate
            if burns.seen >= MIN_REQUESTS and burns.short > limit and burns.long > limit:
                self._burn(burns)
        elif burns.short >= CALM_BURN:
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        elif now_s - self._calm_since_s >= self.config.hold_s:
            self._recover()

    def _burn(self, burns: Burns) -> None:
        self.state, self._calm_since_s = SloState.BURNING, None
        self._burning.set(1)
        text = f"answers fail or are slow {burns.short:.0f} times as often as promised; writes are shed"
        self._health.degraded("slo", text)
        _log.warn("{text}", event="slo_burning", text=text, short=burns.short, long=burns.long)
        self._tell()

    def _recover(self) -> None:
        self.state, self._calm_since_s = SloState.NORMAL, None
        self._burning.set(0)
        self._health.ok("slo")
        _log.info("answers are as good as promised again", event="slo_normal")
        self._tell()

    def _tell(self) -> None:
        for observer in self._observers:
            observer(self)

    def apply(self, config: SloConfig) -> None:
        """Go by `config` from now on, counting anew; what burns goes on burning until it is calm."""
        self.config = config
        self._meter = BurnMeter(config)
        if self.burning and not config.enabled:
            self._recover()

    def start(self) -> None:
        """Look once a second from now on."""
        if self._ticking is None:
            self._ticking = self._clock.callLater(TICK_S, self._tick)

    def stop(self) -> None:
        """Look no more."""
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    def _tick(self) -> None:
        self._ticking = self._clock.callLater(TICK_S, self._tick)
        self.look()
