"""What a capability may use up: requests a second and bytes a day, counted per `rps` and `bytes_per_day` caveat.

In: a cap_id, its allowances, what is used; the clock by the constructor. Out: `Refused` (429) with the time to wait.
An allowance is known by the chain of caveats up to it, so everything attenuated from one token draws on that token's
own allowance, and narrowing can never add to it. Counts are per process.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ron.auth.refusals import spent

FAMILIES = 65_536
# Allowances in use at a time among all that descends from one token.
FAMILY_ALLOWANCES = 64
_DAY_S = 86_400
# of a token: what adding up floats may lose
_ROUNDING = 1e-6


class Allowance(NamedTuple):
    """`limit` requests a second (also the burst, which is at least 1), or bytes a day. `key`: the chain up to it."""

    key: bytes
    limit: float


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


@dataclass(slots=True)
class _Spent:
    day: int
    total: int = 0


@dataclass(slots=True)
class _Family:
    """All that is in use under one cap_id. Bounded by itself, so that one family cannot push out another's counts."""

    buckets: dict[bytes, _Bucket] = field(default_factory=dict)
    days: dict[bytes, _Spent] = field(default_factory=dict)


class Budgets:
    """Counts of at most `families` capabilities; the least recently used is forgotten first."""

    def __init__(self, now: Callable[[], float], *, families: int = FAMILIES) -> None:
        self._now = now
        self._limit = families
        self._families: OrderedDict[str, _Family] = OrderedDict()

    def charge(self, cap_id: str, rates: tuple[Allowance, ...], quotas: tuple[Allowance, ...]) -> None:
        """Take one request from each of `rates`, from all or from none. Raises `Refused` (429)."""
        now_s, family = self._now(), self._family(cap_id)
        for quota in quotas:
            _check_quota(family, quota, now_s)
        buckets = [_refilled(family, rate, now_s) for rate in rates]
        for bucket, rate in zip(buckets, rates, strict=True):
            if bucket.tokens < 1 - _ROUNDING:
                raise spent("rate", "over the capability's requests per second", _wait_s(bucket, rate))
        for bucket in buckets:
            bucket.tokens -= 1

    def charge_bytes(self, cap_id: str, quotas: tuple[Allowance, ...], count: int) -> None:
        """Add `count` bytes to each of `quotas`. What is overdrawn is refused at the next `charge`."""
        now_s, family = self._now(), self._family(cap_id)
        for quota in quotas:
            _spent_today(family, quota, now_s).total += count

    def __len__(self) -> int:
        return len(self._families)

    def _family(self, cap_id: str) -> _Family:
        family = self._families.get(cap_id)
        if family is None:
            family = self._families[cap_id] = _Family()
            if len(self._families) > self._limit:
                self._families.popitem(last=False)
        else:
            self._families.move_to_end(cap_id)
        return family


def _refilled(family: _Family, rate: Allowance, now_s: float) -> _Bucket:
    burst = max(1.0, rate.limit)
    bucket = family.buckets.get(rate.key)
    if bucket is None:
        _make_room(family, now_s)
        bucket = family.buckets[rate.key] = _Bucket(burst, now_s)
    # a clock that was set back gives nothing and takes nothing
    bucket.tokens = min(burst, bucket.tokens + max(0.0, now_s - bucket.at_s) * rate.limit)
    bucket.at_s = now_s
    return bucket


def _wait_s(bucket: _Bucket, rate: Allowance) -> int:
    return max(1, math.ceil((1 - bucket.tokens) / rate.limit))


def _check_quota(family: _Family, quota: Allowance, now_s: float) -> None:
    if _spent_today(family, quota, now_s).total >= quota.limit:
        raise spent("bytes", "the capability's bytes for today are used up", _until_midnight_s(now_s))


def _spent_today(family: _Family, quota: Allowance, now_s: float) -> _Spent:
    today = int(now_s // _DAY_S)
    counted = family.days.get(quota.key)
    if counted is None:
        _make_room(family, now_s)
        counted = family.days[quota.key] = _Spent(today)
    elif counted.day < today:
        counted.day, counted.total = today, 0
    return counted


def _until_midnight_s(now_s: float) -> int:
    return max(1, math.ceil(_DAY_S - now_s % _DAY_S))


def _make_room(family: _Family, now_s: float) -> None:
    """Forget what says nothing any more: idle buckets, counts of other days. Never a count that still binds."""
    if len(family.buckets) + len(family.days) < FAMILY_ALLOWANCES:
        return
    today = int(now_s // _DAY_S)
    family.days = {key: counted for key, counted in family.days.items() if counted.day >= today and counted.total}
    family.buckets = {key: bucket for key, bucket in family.buckets.items() if now_s - bucket.at_s < _IDLE_S}
    if len(family.buckets) + len(family.days) >= FAMILY_ALLOWANCES:
        raise spent(
            "rate", f"over {FAMILY_ALLOWANCES} allowances in use under one capability", _until_midnight_s(now_s)
        )


# An rps of 0.001 takes so long to fill again; a bucket that was idle longer is full, which is what a new one is.
_IDLE_S = 1000.0
