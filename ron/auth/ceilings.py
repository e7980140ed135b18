"""How many capabilities for keys one tenant may have, and how fast new ones are made (K-G3).

In: the caveats of one that is asked for, what was given out. Out: nothing, or Backpressure (429); and figures for
`/metrics`. Only scopes of the key service count: others guard nothing that signs. That each ends is minting's own rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ron.auth.caveats import Caveat, parse_caveat, scope_parts
from ron.auth.register import Minted
from ron.proto.errors import backpressure

ACTIVE = 1000
PER_MINUTE = 60
WINDOW_S = 3600
_MINUTE_S = 60
_FAMILY = "kms"
_EVERYTHING = "*"
# Labels are never forgotten: tenants beyond so many are counted together.
_MOST_TENANTS = 256


class Ceiling:
    """active: capabilities of one tenant at a time. per_minute: new ones. minted: by tenant, in this process.

    keys_here: this process's capabilities open a key service, so that one for everything is one for keys, too.
    """

    def __init__(self, active: int = ACTIVE, per_minute: int = PER_MINUTE, *, keys_here: bool = False) -> None:
        self.active = active
        self.per_minute = per_minute
        self.keys_here = keys_here
        self.minted: Counter[str] = Counter()

    def apply(self, active: int, per_minute: int) -> None:
        """Of a key service, from the next one on; those that are there stay."""
        self.active, self.per_minute, self.keys_here = active, per_minute, True

    def applies(self, caveats: Iterable[Caveat]) -> bool:
        """Is it for keys? One without any scope is the administrator's own, and is not counted."""
        families = {
            part.partition(":")[0] for caveat in caveats if caveat.name == "scope" for part in scope_parts(caveat.value)
        }
        return _FAMILY in families or (self.keys_here and _EVERYTHING in families)

    def check(self, caveats: Sequence[Caveat], alive: Iterable[Minted], now_s: float) -> None:
        """One more of these beside `alive`? Counts it. Raises `RonError` (Backpressure)."""
        tenant = _tenant(caveats)
        mine = [minted_at for name, minted_at in self._of_keys(alive) if name == tenant]
        if len(mine) >= self.active:
            raise backpressure(
                f"this tenant has {len(mine)} capabilities for keys, and no more than {self.active} at a time: revoke "
                "some, or attenuate one, which makes no new one"
            )
        if sum(at > now_s - _MINUTE_S for at in mine) >= self.per_minute:
            raise backpressure(f"over {self.per_minute} new capabilities a minute for this tenant")
        self.minted[tenant] += 1

    def by_tenant(self, alive: Iterable[Minted]) -> Counter[str]:
        """How many there are for keys."""
        return Counter(name for name, _at in self._of_keys(alive))

    def skew(self, alive: Iterable[Minted], now_s: float) -> float:
        """What the tenant with the most got in the last hour, against the median; 1 is even, 0 for none."""
        fresh = Counter(name for name, at in self._of_keys(alive) if at > now_s - WINDOW_S)
        return max(fresh.values()) / median(fresh.values()) if fresh else 0.0

    def _of_keys(self, alive: Iterable[Minted]) -> Iterator[tuple[str, float]]:
        for entry in alive:
            caveats = [parse_caveat(text) for text in entry.caveats]
            if self.applies(caveats):
                yield _tenant(caveats), entry.minted_at


class CeilingFigures:
    """A collector. alive: the capabilities that could be used; now: Unix seconds."""

    def __init__(self, ceiling: Ceiling, alive: Callable[[], Iterable[Minted]], now: Callable[[], float]) -> None:
        self._ceiling = ceiling
        self._alive = alive
        self._now = now

    def register(self, registry: CollectorRegistry) -> None:
        """Let `/metrics` show it."""
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """As it stands."""
        alive = list(self._alive())
        active = GaugeMetricFamily("kms_capabilities_active", "Capabilities for keys", labels=["tenant"])
        for tenant, count in _shown(self._ceiling.by_tenant(alive)):
            active.add_metric([tenant], count)
        yield active
        minted = CounterMetricFamily("kms_capabilities_minted", "New ones, by this process", labels=["tenant"])
        for tenant, count in _shown(self._ceiling.minted):
            minted.add_metric([tenant], count)
        yield minted
        skew = GaugeMetricFamily(
            "kms_capabilities_minted_fairness_skew", "The most of a tenant's against the median", labels=["window"]
        )
        skew.add_metric(["1h"], self._ceiling.skew(alive, self._now()))
        yield skew


def _tenant(caveats: Iterable[Caveat]) -> str:
    """Whose it is; empty for one that is nobody's alone."""
    return next((one.value for one in caveats if one.name == "tenant"), "")


def _shown(counts: Counter[str]) -> Iterator[tuple[str, int]]:
    """By tenant, those beyond the first together."""
    ordered = sorted(counts.items())
    yield from ordered[:_MOST_TENANTS]
    if rest := sum(count for _tenant, count in ordered[_MOST_TENANTS:]):
        yield "other", rest
