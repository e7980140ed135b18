"""Which heads are in the master's descriptor, and why each other one is out.

In: how each head is, operators' orders, the time. Out: a `Plan`. Out at once, back after quiet; never empty while any
head serves. A head serves all addresses of its cluster, so there is one plan for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ron.proto.balance import HeadReport, NodeName
from ron.services.balance.cluster.orders import Orders
from ron.services.balance.cluster.timing import Timing

_MOST_FLAPS = 16


class HeadSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A member's head. report: its last, None if its node was never heard. dead: why its node is not alive."""

    report: HeadReport | None = None
    dead: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """listed: heads to be in the descriptor now. wanted: heads that are to serve, not ghosts; one is listed when it has
    introduction points. left_out: why each other head is not listed."""

    listed: tuple[NodeName, ...] = ()
    wanted: tuple[NodeName, ...] = ()
    left_out: Mapping[NodeName, str] = {}


class _Watch:
    """What is remembered of a head. sieged_s: under siege since. loud_s: last flooded. flaps: how often it broke."""

    __slots__ = ("back_s", "flaps", "loud_s", "sieged_s", "well", "well_s")

    def __init__(self) -> None:
        self.sieged_s: float | None = None
        self.loud_s = float("-inf")
        self.well = False
        self.well_s = float("-inf")
        self.flaps = 0
        self.back_s = float("-inf")


class Planner:
    """Every node has one and keeps it up to date, so that whoever leads next knows how long a head has been quiet."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._watches: dict[NodeName, _Watch] = {}
        self._least_bad: tuple[NodeName, ...] = ()
        self._among: frozenset[NodeName] = frozenset()

    def plan(self, heads: Mapping[NodeName, HeadSeen], orders: Orders, *, now_s: float, unix_ms: int) -> Plan:
        """The decision now. heads: of all members. unix_ms: by the cluster's clock, for the orders."""
        self._watches = {name: self._watches.get(name) or _Watch() for name in heads}
        out = {name: self._broken(name, seen, now_s) for name, seen in heads.items()}
        # nobody is sent there, and there is nobody to keep out: the same onion goes on when it is whole again
        broken = frozenset(name for name, why in out.items() if why and not self._kept_out(name, orders, unix_ms))
        whole = {name: seen.report for name, seen in heads.items() if not out[name] and seen.report is not None}
        for name, report in whole.items():
            out[name] = self._sieged(name, report, orders.under_siege(name, unix_ms), now_s)
        ready = frozenset(name for name, report in whole.items() if _ready(report))
        clean = [name for name in sorted(whole) if not out[name]]
        turn = orders.turn(unix_ms, self._timing.roulette_s)
        drawn = draw(clean, turn)
        wanted = frozenset(drawn)
        listed = _enough(wanted, frozenset(clean) & ready, ready)
        if listed:
            self._least_bad, self._among = (), frozenset()
        else:
            chosen = frozenset(self._bad_ones(whole, orders, unix_ms))
            listed = (chosen & ready) or ready or _any_serving(heads)
            wanted |= chosen | listed
        for name in clean:
            out[name] = "" if name in listed else "not drawn by the roulette" if name not in drawn else "not ready yet"
        return Plan(
            listed=tuple(sorted(listed)),
            wanted=tuple(sorted(wanted | listed | broken)),
            left_out={name: why or "starting" for name, why in sorted(out.items()) if name not in listed},
        )

    def _kept_out(self, name: NodeName, orders: Orders, unix_ms: int) -> bool:
        return self._watches[name].sieged_s is not None or bool(orders.under_siege(name, unix_ms))

    def _broken(self, name: NodeName, seen: HeadSeen, now_s: float) -> str:
        """Why it cannot take visitors. One that breaks again and again waits longer each time it is whole again."""
        watch, why = self._watches[name], _cannot(seen)
        if why:
            watch.flaps = min(watch.flaps + watch.well, _MOST_FLAPS)
            watch.well = False
            return why
        if not watch.well:
            watch.well, watch.well_s = True, now_s
            pause_s = self._timing.steady_s * (2.0 ** max(watch.flaps - 1, 0) - 1)
            watch.back_s = now_s + min(pause_s, self._timing.quiet_s)
        if now_s - watch.well_s >= 2 * self._timing.quiet_s:
            watch.flaps = 0
        return "breaks again and again" if now_s < watch.back_s else ""

    def _sieged(self, name: NodeName, report: HeadReport, said: bool | None, now_s: float) -> str:
        """Out at once, by its own word, its rate or an order; back after `quiet_s` below half of the rate."""
        watch, bound = self._watches[name], self._timing.siege_per_s
        if said is False:
            watch.sieged_s = None
            return ""
        loud = bound > 0 and report.introductions_per_s >= (bound if watch.sieged_s is None else bound / 2)
        if said or loud:
            watch.loud_s = now_s
        if said or loud or report.under_siege:
            watch.sieged_s = now_s if watch.sieged_s is None else watch.sieged_s
            return "an operator says that it is under siege" if said else "under siege"
        if watch.sieged_s is None:
            return ""
        quiet_s = now_s - max(watch.sieged_s, watch.loud_s)
        if quiet_s >= self._timing.quiet_s:
            watch.sieged_s = None
            return ""
        return f"quiet again for {quiet_s:.0f} of {self._timing.quiet_s:.0f} s"

    def _bad_ones(self, whole: Mapping[NodeName, HeadReport], orders: Orders, unix_ms: int) -> tuple[NodeName, ...]:
        """With all under siege: the half that is flooded least, those with an operator's order last.

        Half, because one alone would get the whole flood; and the same half for as long as it can be, because whoever
        is in gets the flood, and those who are out would look better at once.
        """
        ordered = {name for name in whole if orders.under_siege(name, unix_ms)}
        best = frozenset(whole) - ordered or frozenset(whole)
        if best != self._among:
            kept = self._least_bad
            by_rate = sorted(best, key=lambda name: (name not in kept, whole[name].introductions_per_s, name))
            self._least_bad, self._among = tuple(by_rate[: _half(len(best))]), best
        return self._least_bad


def draw(clean: list[NodeName], turn: int | None) -> list[NodeName]:
    """The roulette: about half of them, others each turn, everybody in two turns in a row. turn None: all."""
    count = len(clean)
    if turn is None or count < 2:
        return clean
    half = _half(count)
    return [clean[(turn * half + place) % count] for place in range(half)]


def _half(count: int) -> int:
    return -(-count // 2)


def _enough(drawn: frozenset[NodeName], clean: frozenset[NodeName], ready: frozenset[NodeName]) -> frozenset[NodeName]:
    """Those drawn that are ready; while that is less than half of them, those of the last turn stay too."""
    got = drawn & ready
    return got if 2 * len(got) >= len(drawn) and got else clean


def _cannot(seen: HeadSeen) -> str:
    if seen.dead or seen.report is None:
        return seen.dead or "not heard"
    if seen.report.mode in ("starting", "down"):
        return seen.report.mode
    return "" if seen.report.healthy else "its target does not answer"


def _ready(report: HeadReport) -> bool:
    return report.mode == "serving" and bool(report.descriptor)


def _any_serving(heads: Mapping[NodeName, HeadSeen]) -> frozenset[NodeName]:
    """Better one whose target does not answer just now than no descriptor."""
    return frozenset(name for name, seen in heads.items() if not seen.dead and seen.report and _ready(seen.report))
