"""Which heads are in the masters' descriptors, and why each other one is out.

In: how each head is, the addresses, operators' orders, the time. Out: a `Plan`. Out at once, back after quiet; never
empty while any head serves. A head serves all addresses of its cluster: flood and loss count for all of them, a target
that does not answer only for the addresses that lead to it (`answering`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from ron.proto.balance import HeadReport, NodeName, ServiceName
from ron.services.balance.cluster.answering import NO_ANSWER, UNSTEADY, Answering, Steadiness
from ron.services.balance.cluster.orders import Orders
from ron.services.balance.cluster.timing import Timing


class HeadSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A member's head. report: its last, None if its node was never heard. dead: why its node is not alive."""

    report: HeadReport | None = None
    dead: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """listed: heads to be in any descriptor now. wanted: heads that are to serve, not ghosts; one is listed when it has
    introduction points. left_out: why each other head is in none; out_since_s: since when, by the clock of the ticks.

    lists: for each address those to be in its descriptor. failing: for each, heads whose targets do not answer for it,
    and why. refusing: addresses for which no listed head's target answers: visitors are refused there.
    """

    listed: tuple[NodeName, ...] = ()
    wanted: tuple[NodeName, ...] = ()
    left_out: Mapping[NodeName, str] = {}
    out_since_s: Mapping[NodeName, float] = {}
    lists: Mapping[ServiceName, tuple[NodeName, ...]] = {}
    failing: Mapping[ServiceName, Mapping[NodeName, str]] = {}
    refusing: tuple[ServiceName, ...] = ()

    def heads(self, service: ServiceName) -> tuple[NodeName, ...]:
        """Those to be in the descriptor of `service`; of one that was not asked about, all."""
        return self.lists.get(service, self.listed)


class _Watch:
    """What is remembered of a head. sieged_s: under siege since. loud_s: last flooded. out_s: out since."""

    __slots__ = ("loud_s", "out_s", "sieged_s", "steady")

    def __init__(self) -> None:
        self.sieged_s: float | None = None
        self.loud_s = float("-inf")
        self.out_s: float | None = None
        self.steady = Steadiness()


class Planner:
    """Every node has one and keeps it up to date, so that whoever leads next knows how long a head has been quiet."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._watches: dict[NodeName, _Watch] = {}
        self._answering = Answering(timing)
        self._least_bad: tuple[NodeName, ...] = ()
        self._among: frozenset[NodeName] = frozenset()

    def plan(
        self,
        heads: Mapping[NodeName, HeadSeen],
        orders: Orders,
        *,
        now_s: float,
        unix_ms: int,
        services: Collection[ServiceName] = (),
    ) -> Plan:
        """The decision now. heads: of all members. unix_ms: by the cluster's clock, for the orders. services: the
        cluster's addresses; with none a head with a dead target is as good as broken."""
        orders = orders.bounded(heads.keys(), unix_ms)
        self._watches = {name: self._watches.get(name) or _Watch() for name in heads}
        out = {name: self._broken(name, seen, now_s, alone=not services) for name, seen in heads.items()}
        there = {name: seen.report for name, seen in heads.items() if not out[name] and seen.report is not None}
        failing = self._answering.failing(there, services, now_s)
        for name in there:
            out[name] = _fails_all(name, failing)
        # nobody is sent there, and there is nobody to keep out: the same onion goes on when it is whole again
        broken = frozenset(name for name, why in out.items() if why and not self._kept_out(name, orders, unix_ms))
        whole = {name: report for name, report in there.items() if not out[name]}
        for name, report in whole.items():
            out[name] = self._sieged(name, report, orders.under_siege(name, unix_ms), now_s)
        ready = frozenset(name for name, report in whole.items() if _ready(report))
        serving = _any_serving(heads)
        clean = [name for name in sorted(whole) if not out[name]]
        turn = orders.turn(unix_ms, self._timing.roulette_s)
        drawn = draw(clean, turn)
        wanted = frozenset(drawn)
        listed = _enough(wanted, frozenset(clean) & ready, ready)
        if listed:
            self._least_bad, self._among = (), frozenset()
        else:
            chosen = frozenset(self._bad_ones(whole, orders, unix_ms))
            listed = (chosen & ready) or ready or serving
            wanted |= chosen | listed
        ordered = frozenset(name for name in whole if orders.under_siege(name, unix_ms))
        lists = {name: _of(dead, listed, ready, ordered, serving) for name, dead in failing.items()}
        wanted |= _called_back(failing, lists, whole.keys(), ordered)
        listed = frozenset().union(*lists.values()) if lists else listed
        for name in clean:
            out[name] = "" if name in listed else "not drawn by the roulette" if name not in drawn else "not ready yet"
        left_out = {name: why or "starting" for name, why in sorted(out.items()) if name not in listed}
        return Plan(
            listed=tuple(sorted(listed)),
            wanted=tuple(sorted(wanted | listed | broken)),
            left_out=left_out,
            out_since_s=self._since(left_out, now_s),
            lists={name: tuple(sorted(found)) for name, found in lists.items()},
            failing=failing,
            refusing=tuple(name for name, found in lists.items() if found and found <= _dead_now(failing[name])),
        )

    def _since(self, left_out: Collection[NodeName], now_s: float) -> dict[NodeName, float]:
        found = {}
        for name, watch in self._watches.items():
            if name not in left_out:
                watch.out_s = None
            else:
                watch.out_s = found[name] = now_s if watch.out_s is None else watch.out_s
        return found

    def _kept_out(self, name: NodeName, orders: Orders, unix_ms: int) -> bool:
        return self._watches[name].sieged_s is not None or bool(orders.under_siege(name, unix_ms))

    def _broken(self, name: NodeName, seen: HeadSeen, now_s: float, *, alone: bool) -> str:
        """Why it cannot take visitors. One that breaks again and again waits longer each time it is whole again."""
        return self._watches[name].steady.judge(_cannot(seen, alone=alone), now_s, self._timing)

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


def _cannot(seen: HeadSeen, *, alone: bool) -> str:
    if seen.dead or seen.report is None:
        return seen.dead or "not heard"
    if seen.report.mode in ("starting", "down"):
        return seen.report.mode
    return NO_ANSWER if alone and not seen.report.healthy else ""


def _fails_all(name: NodeName, failing: Mapping[ServiceName, Mapping[NodeName, str]]) -> str:
    """A head that answers for no address is as good as broken."""
    found = [dead[name] for dead in failing.values() if name in dead]
    return "; ".join(dict.fromkeys(found)) if found and len(found) == len(failing) else ""


def _of(
    dead: Mapping[NodeName, str],
    listed: frozenset[NodeName],
    ready: frozenset[NodeName],
    ordered: frozenset[NodeName],
    serving: frozenset[NodeName],
) -> frozenset[NodeName]:
    """The heads of one address: of those listed the ones that answer; or any that does, under siege or unsteady; or all
    the same, for a refusal at once is clearer to a visitor than an address that is not found."""
    answer = ready - dead.keys()
    return listed & answer or answer - ordered or answer or serving - _dead_now(dead) or listed


def _dead_now(dead: Mapping[NodeName, str]) -> frozenset[NodeName]:
    return frozenset(name for name, why in dead.items() if why != UNSTEADY)


def _called_back(
    failing: Mapping[ServiceName, Mapping[NodeName, str]],
    lists: Mapping[ServiceName, frozenset[NodeName]],
    whole: Collection[NodeName],
    ordered: frozenset[NodeName],
) -> frozenset[NodeName]:
    """Ghosts whose targets answer where those of all that serve do not."""
    found: frozenset[NodeName] = frozenset()
    for service, dead in failing.items():
        if lists[service] <= _dead_now(dead):
            able = frozenset(whole) - dead.keys()
            found |= able - ordered or able
    return found


def _ready(report: HeadReport) -> bool:
    return report.mode == "serving" and bool(report.descriptor)


def _any_serving(heads: Mapping[NodeName, HeadSeen]) -> frozenset[NodeName]:
    """Better one whose target does not answer just now than no descriptor."""
    return frozenset(name for name, seen in heads.items() if not seen.dead and seen.report and _ready(seen.report))
