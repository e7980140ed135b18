"""The newest good descriptor of every head, and which of their introduction points may go into the master's.

In: descriptors that were read, digests that heads confirm, a consensus. Out: usable heads with their usable points,
and why the others are not. Pure: the time (Unix seconds) is an argument.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from ron.proto.balance import NodeName
from ron.tor.descriptor.build import LIFETIME_MIN
from ron.tor.descriptor.certs import HOUR_S
from ron.tor.descriptor.hashring import Ring
from ron.tor.descriptor.intropoints import Backend, IntroPoint, relay_of
from ron.tor.descriptor.periods import NetworkTime, TimePeriod
from ron.tor.descriptor.refused import Reason, Refused

MAX_AGE_S = LIFETIME_MIN * 60
"""A head that has not confirmed its descriptor for so long: its own tor's would have left the directories."""
GRACE_INTERVALS = 3
"""tors fetch a consensus at times of their own, up to so many voting intervals apart: a head whose tor is behind ours
still waits where its last period's descriptor says."""


class Why(enum.StrEnum):
    """Why a head, or a point, is not used: a metric's label."""

    TOO_OLD = "too_old"
    """Neither told nor confirmed for too long."""
    OLD_PERIOD = "old_period"
    """Of a time period that is over also for those whose consensus is late."""
    NO_POINTS = "no_points"
    """None left: as good as dead."""
    COPIED = "copied"
    """It names a key that another head has named before."""
    UNKNOWN_RELAY = "unknown_relay"
    """The relay is not in the consensus, or is another than that."""
    EXPIRED = "expired"
    """Its certificates have ended."""
    REPEATED = "repeated"
    """One head's points have the same key."""


class Usable(NamedTuple):
    """heads: with usable points only. out: the others. left_out: points of any head, by reason."""

    heads: Mapping[NodeName, Backend]
    out: Mapping[NodeName, Why]
    left_out: Mapping[Why, int]


class _Kept(NamedTuple):
    backend: Backend
    digest: str
    told_s: float


class Shelf:
    """What each head said last. An introduction point's key belongs to the head that named it first."""

    def __init__(self, *, max_age_s: float = MAX_AGE_S) -> None:
        self._max_age_s = max_age_s
        self._kept: dict[NodeName, _Kept] = {}
        self._owners: dict[bytes, NodeName] = {}

    def put(self, node: NodeName, backend: Backend, digest: str, now_s: float) -> bool:
        """Keep `backend` as what `node` says; digest: of its text, BLAKE3 in hex. False when it is that already.

        Raises `Refused` (OLD_REVISION) for one that is older than what there is. An equal counter is no reason: between
        two uploads tor tells of new introduction points under the counter of the last.
        """
        kept = self._kept.get(node)
        if kept is not None and _older(backend, kept.backend):
            raise Refused(Reason.OLD_REVISION, "the head has told a newer descriptor before")
        self._kept[node] = _Kept(backend, digest, now_s)
        self._claim(node, backend)
        return kept is None or kept.digest != digest

    def confirm(self, node: NodeName, digest: str, now_s: float) -> bool:
        """`node` says that its newest descriptor is the one with `digest`. False when we have another: ask for it."""
        kept = self._kept.get(node)
        if kept is None or kept.digest != digest:
            return False
        self._kept[node] = kept._replace(told_s=now_s)
        return True

    def keep_only(self, nodes: Collection[NodeName]) -> None:
        """Forget all others, and what they claimed."""
        self._kept = {node: kept for node, kept in self._kept.items() if node in nodes}
        self._owners = {key: node for key, node in self._owners.items() if node in nodes}

    def newest(self, node: NodeName) -> Backend | None:
        """What `node` said last, usable or not."""
        kept = self._kept.get(node)
        return kept.backend if kept else None

    def ages_s(self, now_s: float) -> dict[NodeName, float]:
        """How long ago each head told or confirmed its descriptor."""
        return {node: max(0.0, now_s - kept.told_s) for node, kept in self._kept.items()}

    def usable(self, ring: Ring, now_s: float) -> Usable:
        """What may be merged now."""
        heads: dict[NodeName, Backend] = {}
        out: dict[NodeName, Why] = {}
        left_out: Counter[Why] = Counter()
        for node, kept in sorted(self._kept.items()):
            why = self._unusable(node, kept, ring.time, now_s)
            points = _good(kept.backend.points, ring, now_s, left_out) if why is None else ()
            if why is None and points:
                heads[node] = msgspec.structs.replace(kept.backend, points=points)
            else:
                out[node] = why or Why.NO_POINTS
        return Usable(heads, out, left_out)

    def _unusable(self, node: NodeName, kept: _Kept, time: NetworkTime, now_s: float) -> Why | None:
        if now_s - kept.told_s > self._max_age_s:
            return Why.TOO_OLD
        if kept.backend.period not in readable_periods(time, now_s):
            return Why.OLD_PERIOD
        # all of it: whoever copies one key of another's is not to be believed in the rest
        if any(self._owners.get(point.auth_key) != node for point in kept.backend.points):
            return Why.COPIED
        return None

    def _claim(self, node: NodeName, backend: Backend) -> None:
        named = {point.auth_key for point in backend.points}
        self._owners = {key: owner for key, owner in self._owners.items() if owner != node or key in named}
        for key in named:
            self._owners.setdefault(key, node)


def readable_periods(time: NetworkTime, now_s: float) -> tuple[TimePeriod, ...]:
    """Periods that a head's own descriptor may be of: those due, and for a while the one before."""
    due = tuple(due.period for due in time.due())
    late = now_s - time.run_start_s <= GRACE_INTERVALS * time.interval_s
    return (due[0].shifted(-1), *due) if late else due


def _older(backend: Backend, than: Backend) -> bool:
    """tor's counters are of one onion in one period; of two periods the later one is newer."""
    if backend.onion != than.onion or backend.period.length_min != than.period.length_min:
        return False
    return (backend.period.number, backend.revision) < (than.period.number, than.revision)


def _good(points: tuple[IntroPoint, ...], ring: Ring, now_s: float, left_out: Counter[Why]) -> tuple[IntroPoint, ...]:
    good: dict[bytes, IntroPoint] = {}
    for point in points:
        why = Why.REPEATED if point.auth_key in good else _bad(point, ring, now_s)
        if why is None:
            good[point.auth_key] = point
        else:
            left_out[why] += 1
    return tuple(good.values())


def _bad(point: IntroPoint, ring: Ring, now_s: float) -> Why | None:
    if min(point.auth_expires_h, point.enc_expires_h) * HOUR_S <= now_s:
        return Why.EXPIRED
    try:
        fingerprint, identity = relay_of(point)
    except Refused:
        return Why.UNKNOWN_RELAY
    known = ring.relays.get(fingerprint)
    if known is None or (known and identity and known != identity):
        return Why.UNKNOWN_RELAY
    return None
