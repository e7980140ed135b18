"""Which heads cannot answer for which address, because a target there is dead; and when a broken thing counts as whole.

In: heads' reports, the addresses, the time. Out: for each address the heads that fail it, and why. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ron.proto.balance import MAX_SERVICES, HeadReport, NodeName, ServiceName
from ron.services.balance.cluster.timing import Timing

NO_ANSWER = "its target does not answer"
UNSTEADY = "breaks again and again"
_MOST_FLAPS = 16


class Steadiness:
    """Of one thing that breaks and is whole again. flaps: how often it broke, lately."""

    __slots__ = ("_back_s", "_flaps", "_well", "_well_s")

    def __init__(self) -> None:
        self._well = False
        self._well_s = float("-inf")
        self._flaps = 0
        self._back_s = float("-inf")

    def judge(self, why: str, now_s: float, timing: Timing) -> str:
        """Why it does not count as whole; empty: it does. why: what is wrong with it now, or nothing.

        At once the first time; what breaks again and again waits longer each time, up to `quiet_s`.
        """
        if why:
            self._flaps = min(self._flaps + self._well, _MOST_FLAPS)
            self._well = False
            return why
        if not self._well:
            self._well, self._well_s = True, now_s
            pause_s = timing.steady_s * (2.0 ** max(self._flaps - 1, 0) - 1)
            self._back_s = now_s + min(pause_s, timing.quiet_s)
        if now_s - self._well_s >= 2 * timing.quiet_s:
            self._flaps = 0
        return UNSTEADY if now_s < self._back_s else ""


class Answering:
    """Of all heads and addresses there are; what is gone is forgotten."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._known: dict[tuple[ServiceName, NodeName], Steadiness] = {}

    def failing(
        self, heads: Mapping[NodeName, HeadReport], services: Collection[ServiceName], now_s: float
    ) -> dict[ServiceName, dict[NodeName, str]]:
        """For each of `services` the heads that cannot answer for it, with the reason. heads: those whose tor is there;
        of the others nothing is remembered."""
        found: dict[ServiceName, dict[NodeName, str]] = {}
        kept: dict[tuple[ServiceName, NodeName], Steadiness] = {}
        for service in sorted(services)[:MAX_SERVICES]:
            found[service] = {}
            for name, report in heads.items():
                steady = kept[service, name] = self._known.get((service, name)) or Steadiness()
                why = steady.judge(_told(report, service), now_s, self._timing)
                if why:
                    found[service][name] = why
        self._known = kept
        return found


def _told(report: HeadReport, service: ServiceName) -> str:
    """What a head says of its targets. One that is not healthy and names no service speaks of all."""
    if not report.failing:
        return "" if report.healthy else NO_ANSWER
    return next((each.target or NO_ANSWER for each in report.failing if each.service == service), "")
