"""How this node stands in the cluster, for `/readyz` and for people: a member or not, connected or alone, and why.

In: what is known at the moment. Out: the readiness key `balance.mesh`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from ron.kernel.health import HealthState
from ron.proto.errors import RonError, conflict
from ron.services.balance.mesh.roster import hint_of
from ron.services.balance.mesh.wire import Reason, Refused

HEALTH_KEY = "balance.mesh"


class Standing(NamedTuple):
    """A verdict, and why it is not `ok`."""

    verdict: Literal["ok", "degraded", "missing"]
    reason: str = ""


def standing(
    *, ended: RonError | None, is_member: bool, turned: Refused | None, others: int, connected: bool
) -> Standing:
    """ended: it may not go on. turned: the last refusal at another's door. others: members beside this node."""
    if ended is not None:
        return Standing("missing", ended.one_line())
    if not is_member:
        if turned is None:
            return Standing("missing", "this node has not joined yet: no seed has let it in")
        return Standing("missing", not_wanted(turned.reason, turned.detail).one_line())
    if others and not connected:
        said = f"; {turned.reason} ({turned.detail})" if turned is not None else ""
        return Standing("degraded", f"none of the {others} other nodes is connected{said}")
    return Standing("ok")


def not_wanted(reason: Reason, detail: str) -> RonError:
    """Why the cluster does not take this node, with the way out."""
    return conflict(f"the cluster does not take this node: {reason} ({detail})", hint=hint_of(reason))


class Reporter:
    """Tells health of changes only: it wakes its observers at every report."""

    def __init__(self, health: HealthState) -> None:
        self._health = health
        self._told: Standing | None = None

    def report(self, found: Standing) -> None:
        """How it stands now."""
        if found == self._told:
            return
        self._told = found
        if found.verdict == "ok":
            self._health.ok(HEALTH_KEY)
        elif found.verdict == "degraded":
            self._health.degraded(HEALTH_KEY, found.reason)
        else:
            self._health.missing(HEALTH_KEY, found.reason)
