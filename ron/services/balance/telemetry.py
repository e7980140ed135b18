"""The cluster as figures: who leads, who is in the descriptor, how old that is, who could sign, whose clock is off.

In: the view that operators see, whenever it changed or a second went by. Out: metrics. What only one room knows
(uploads, signatures, refused messages, ghosts' attacks) that room counts. No address and no name of a node is a label.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter as Tally
from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ron.kernel import Metrics
from ron.proto.balanceviews import BalanceView, MemberState, ServiceView

_STATES: tuple[MemberState, ...] = get_args(MemberState)
# Enough to tell clusters of one Prometheus apart.
_CLUSTER_CHARS = 8


class Telemetry:
    """Make one per process; `stands` it what is now."""

    def __init__(self, metrics: Metrics) -> None:
        self._view: BalanceView | None = None
        self._leader: str | None = None
        self._changes = 0
        metrics.registry.register(self)

    def stands(self, view: BalanceView) -> None:
        """This is how things are. A leader that went missing and came back has not changed."""
        leader = view.leader.name
        if leader is not None:
            self._changes += self._leader is not None and leader != self._leader
            self._leader = leader
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """For the registry: nothing before the first view."""
        yield CounterMetricFamily("balance_leader_changes", "Changes of the leader, as seen here", self._changes)
        if self._view is not None:
            yield from _leadership(self._view)
            yield from _membership(self._view)
            yield from _services(self._view)
            yield from _own(self._view)


def _leadership(view: BalanceView) -> Iterator[Metric]:
    cluster, leader = [view.cluster[:_CLUSTER_CHARS]], view.leader
    leads = GaugeMetricFamily("balance_leader", "1 on the node that leads", labels=["cluster"])
    leads.add_metric(cluster, float(leader.name == view.node))
    known = GaugeMetricFamily("balance_leader_known", "1 while this node knows of a leader", labels=["cluster"])
    known.add_metric(cluster, float(leader.name is not None))
    claims = GaugeMetricFamily("balance_leader_claims", "Nodes that say they lead, as heard here", labels=["cluster"])
    claims.add_metric(cluster, len(leader.claims))
    yield from (leads, known, claims)
    if leader.lease_left_s is not None:
        yield GaugeMetricFamily("balance_lease_seconds", "Until the leader is passed over", leader.lease_left_s)


def _membership(view: BalanceView) -> Iterator[Metric]:
    states = Tally(member.state for member in view.members)
    members = GaugeMetricFamily("balance_members", "Nodes, as seen here", labels=["state"])
    for state in _STATES:
        members.add_metric([state], states[state])
    yield members
    waiting = sum(member.waiting for member in view.members)
    yield GaugeMetricFamily("balance_members_waiting", "Nodes that wait for an operator's approval", waiting)
    heads = [member.head for member in view.members if member.head is not None]
    yield GaugeMetricFamily("balance_sieges", "Heads under siege", sum(head.under_siege for head in heads))
    yield GaugeMetricFamily("balance_ghosts", "Heads that are ghosts", sum(head.mode == "ghost" for head in heads))
    roulette = float(view.roulette_until is not None)
    yield GaugeMetricFamily("balance_roulette", "1 while the roulette is on", roulette)
    # theirs minus ours: when it is our clock that is wrong, all of them are off
    drifts = [member.drift_s for member in view.members if member.drift_s is not None and member.name != view.node]
    if drifts:
        yield GaugeMetricFamily("balance_clock_offset_seconds", "Others' clocks minus ours", statistics.median(drifts))


def _services(view: BalanceView) -> Iterator[Metric]:
    labels = ["service"]
    ages = GaugeMetricFamily("balance_descriptor_age_seconds", "Of the older period; infinite: none", labels=labels)
    heads = GaugeMetricFamily("balance_descriptor_heads", "Heads in the published descriptor", labels=labels)
    answering = GaugeMetricFamily("balance_heads_answering", "Heads whose targets for it answer", labels=labels)
    failing = GaugeMetricFamily("balance_heads_failing", "Heads with a target for it that does not", labels=labels)
    missing = GaugeMetricFamily("balance_directories_missing", "Directories that do not hold it", labels=labels)
    there = GaugeMetricFamily("balance_signers", "Connected nodes with key or share", labels=labels)
    needed = GaugeMetricFamily("balance_signers_needed", "Of them, so many sign", labels=labels)
    epochs = GaugeMetricFamily("balance_share_epoch", "Grows with each refresh and resharing", labels=labels)
    for service in view.services:
        name = [service.name]
        ages.add_metric(name, max((one.age_s for one in service.publications), default=math.inf))
        heads.add_metric(name, len(service.heads))
        answering.add_metric(name, service.answering)
        failing.add_metric(name, len(service.failing))
        missing.add_metric(name, _missing(service))
        there.add_metric(name, len(service.holders))
        needed.add_metric(name, max(service.threshold, 1))
        epochs.add_metric(name, service.epoch)
    yield from (ages, heads, answering, failing, missing, there, needed, epochs)


def _missing(service: ServiceView) -> int:
    """By the last look where there was one, else those that did not take it."""
    return sum(
        one.directories - one.taken if one.checked_s is None else len(one.missing) for one in service.publications
    )


def _own(view: BalanceView) -> Iterator[Metric]:
    """Of this node's own head."""
    me = next((member for member in view.members if member.name == view.node), None)
    if me is None or me.head is None:
        return
    head = me.head
    yield GaugeMetricFamily("balance_in_descriptor", "1 while visitors are sent here", float(me.in_descriptor))
    yield GaugeMetricFamily("balance_siege", "1 while this node's head is under siege", float(head.under_siege))
    yield GaugeMetricFamily("balance_visitors", "Visitors' circuits at this head", head.sessions)
    yield GaugeMetricFamily("balance_introduction_rate", "Introductions here a second", head.introductions_per_s)
