"""Whether the others' leader does what a leader is for: what is remembered of the one this node follows.

In: who is chosen, when it last published, the time. Out: who is passed over. An honest leader that cannot publish says
so first (`publications.py`); this is for those that lie, hang or are followed by mistake.
"""

from __future__ import annotations

from collections.abc import Iterable

from ron.proto.balance import Beat, NodeName, ServiceName
from ron.services.balance.cluster.timing import Timing

_MOST_DOUBLINGS = 6


def last_published_s(beat: Beat, heard_s: float, services: Iterable[ServiceName]) -> float | None:
    """When it last told of a publication: of the oldest of those `services` that it holds. None: of one it has none.

    heard_s: when the beat came. A node that holds none of them owes nothing: it is as if it had published just now.
    """
    owed = frozenset(services) & frozenset(beat.services)
    newest: dict[ServiceName, float] = {}
    for each in beat.published:
        newest[each.service] = max(newest.get(each.service, float("-inf")), heard_s - each.ago_ms / 1000)
    if not owed <= newest.keys():
        return None
    return min((newest[service] for service in owed), default=heard_s)


class Leases:
    """Of those this node follows. A passed-over node is back once it has published."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._chosen: NodeName = ""
        self._since_s = 0.0
        self._passed_s: dict[NodeName, float] = {}
        self._times: dict[NodeName, int] = {}

    def chosen(self, name: NodeName, now_s: float) -> None:
        """It is the one to follow. Its first chance begins when it is chosen."""
        if name != self._chosen:
            self._chosen, self._since_s = name, now_s

    def left_s(self, name: NodeName, published_s: float | None, now_s: float) -> float:
        """For how much longer it is trusted; negative: it is overdue."""
        first = (self._since_s if name == self._chosen else now_s) + self._timing.first_chance_s
        again = published_s + self._timing.lease_s if published_s is not None else float("-inf")
        return max(first, again) - now_s

    def live(self, published_s: float | None, now_s: float) -> bool:
        """It has published, not too long ago."""
        return published_s is not None and now_s - published_s < self._timing.lease_s

    def pass_over(self, name: NodeName, now_s: float) -> None:
        """It was overdue."""
        self._passed_s[name] = now_s
        self._times[name] = self._times.get(name, 0) + 1

    def against(self, name: NodeName, published_s: float | None, *, first: bool, now_s: float) -> str:
        """Why it is passed over, or nothing. first: it would be followed otherwise.

        One that is not wanted any more gets another chance when it is, but each time later: a member that is fit and
        unfit by turns must not have first chances without end.
        """
        passed_s = self._passed_s.get(name)
        if passed_s is None:
            return ""
        wait_s = self._timing.lease_s * 2.0 ** min(self._times[name] - 1, _MOST_DOUBLINGS)
        if (published_s is not None and published_s > passed_s) or (not first and now_s >= passed_s + wait_s):
            del self._passed_s[name]
            return ""
        return "has not told that it published"

    def forget(self, names: Iterable[NodeName]) -> None:
        """They are no members any more."""
        for name in names:
            self._passed_s.pop(name, None)
            self._times.pop(name, None)
