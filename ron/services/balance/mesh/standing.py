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
# What no patience mends: the cluster does not take this node as it is.
FINAL: frozenset[Reason] = frozenset({"removed", "wrong_token", "name_taken", "number_taken", "other_cluster", "twin"})


class Standing(NamedTuple):
    """A verdict, and why it is not `ok`. refused: the same reason, when it is that the cluster does not take this
    node: it runs on, alone."""

    verdict: Literal["ok", "degraded", "missing"]
    reason: str = ""
    refused: str = ""


def standing(
    *, ended: RonError | None, is_member: bool, turned: Refused | None, others: int, connected: bool
) -> Standing:
    """ended: it may not go on. turned: the last refusal at another's door. others: members beside this node."""
    if ended is not None:
        return Standing("missing", ended.one_line(), ended.one_line())
    if not is_member and turned is None:
        return Standing("missing", "this node has not joined yet: no seed has let it in")
    if turned is not None and (not is_member or (turned.reason in FINAL and others and not connected)):
        said = not_wanted(turned.reason, turned.detail).one_line()
        return Standing("missing", said, said)
    if others and not connected:
        words = f"; {turned.reason} ({turned.detail})" if turned is not None else ""
        return Standing("degraded", f"none of the {others} other nodes is connected{words}")
    return Standing("ok")


def not_wanted(reason: Reason, detail: str) -> RonError:
    """Why the cluster does not take this node, with the way out."""
    return conflict(f"the cluster does not take this node: {reason} ({detail})", hint=hint_of(reason))


class Reporter:
    """Tells health of changes only: it wakes its observers at every report."""

    def __init__(self, health: HealthState) -> None:
        self._health = health
        self._told: Standing | None = None

    @property
    def refused(self) -> str:
        """As `Standing.refused`, of the last report."""
        return self._told.refused if self._told is not None else ""

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
