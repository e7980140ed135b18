"""The whole that a service drives: what it hears goes in, `tick` says how things stand and what this node is to do.

In: beats, broken links, the book's orders, this node's own head and publications, the time twice: seconds of a clock
that only goes on, and Unix milliseconds, which may be wrong. Out: `Standing`, and the beat to send.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping
from typing import Literal

import msgspec

from ron.proto.balance import MAX_NODES, Beat, HeadReport, NodeName, Published, ServiceName
from ron.services.balance.cluster.descriptor_plan import HeadSeen, Plan, Planner
from ron.services.balance.cluster.election import (
    LISTENING,
    NOT_PUBLISHING,
    WRONG_CLOCK,
    Candidate,
    Choice,
    Fitness,
    fitness_told,
    leader,
    rank,
    wrong_clocks,
)
from ron.services.balance.cluster.leases import Leases, last_published_s
from ron.services.balance.cluster.membership import Bond, Membership, NodeView
from ron.services.balance.cluster.orders import Orders
from ron.services.balance.cluster.publications import Agenda, Reason, Told, standing
from ron.services.balance.cluster.timing import Timing

# Others find a clock wrong at this many times the bound at which its owner does: so an honest owner says so first, and
# measurements that differ a little do not make two leaders.
_OTHERS_BOUND = 2.0
# A clock that was wrong is right again at this part of the bound.
_RIGHT_AGAIN = 0.5


class Duties(msgspec.Struct, frozen=True, kw_only=True):
    """What this node is to do. publish: why to publish now, or nothing; `begin` is called when it does.

    urgent: a head has to go, do not wait for a publication that is under way.
    """

    lead: bool = False
    head: Literal["serve", "ghost"] = "serve"
    publish: Reason = Reason.NONE
    urgent: bool = False


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """How things stand. leader: empty while there is none. lease_left_s: for how long it may go without publishing.

    rivals: others that say they lead too, in a torn mesh or for a moment. unfit: why this node could not lead.
    """

    leader: NodeName = ""
    why: str = ""
    lease_left_s: float = 0.0
    rivals: tuple[NodeName, ...] = ()
    changes: int = 0
    fit: bool = False
    unfit: str = ""
    nodes: Mapping[NodeName, NodeView] = {}
    passed_over: Mapping[NodeName, str] = {}
    plan: Plan = Plan()
    duties: Duties = Duties()


class Cluster:
    """One node's view. now_s, unix_ms: when it starts."""

    def __init__(self, me: NodeName, timing: Timing, *, now_s: float, unix_ms: int) -> None:
        self.me = me
        self.standing = Standing()
        self._timing = timing
        self._started_s = now_s
        self._born_ms = unix_ms
        self._members = Membership(me, timing)
        self._leases = Leases(timing)
        self._planner = Planner(timing)
        self._agenda = Agenda(timing)
        self._orders = Orders()
        self._services: frozenset[ServiceName] = frozenset()
        self._holds: frozenset[ServiceName] = frozenset()
        self._head = HeadReport()
        self._unable = ""
        self._clock_wrong = False
        self._settled = False
        self._leads = False

    # What is heard

    def heard(self, sender: NodeName, beat: Beat, at_s: float, drift_s: float | None = None) -> None:
        """A member's beat came. drift_s: how far its clock is ahead of ours, None while unknown."""
        self._members.heard(sender, beat, at_s, drift_s)

    def gone(self, name: NodeName, at_s: float) -> None:
        """The link to it broke."""
        self._members.gone(name, at_s)

    # What this node knows

    def members(self, names: Iterable[NodeName]) -> None:
        """Who belongs to the cluster now, this node too."""
        kept = frozenset(names)
        left = [name for name in self._members.names() if name not in kept]
        self._members.set_members(kept)
        self._leases.forget(left)
        self._agenda.forget(left)

    def orders(self, orders: Orders) -> None:
        """What the book says, after each change of it."""
        self._orders = orders

    def services(self, names: Iterable[ServiceName], holds: Collection[ServiceName]) -> None:
        """The cluster's addresses, and those of which this node has key or share."""
        self._services = frozenset(names)
        self._holds = self._services & frozenset(holds)

    def head(self, report: HeadReport) -> None:
        """How this node's own head is."""
        self._head = report

    def unable(self, why: str) -> None:
        """Why this node could not lead now (no tor, no consensus); empty: it could."""
        self._unable = why

    # Its publications

    def periods(self, due: Collection[int]) -> None:
        """The periods' numbers for which descriptors are due, by the consensus."""
        self._agenda.due(due)

    def ask(self) -> None:
        """Publish when you can: an operator, the canary or the repair wants it."""
        self._agenda.ask()

    def begin(self, now_s: float) -> int:
        """A publication of `standing.plan.listed` begins. Returns its number, for `ended`."""
        return self._agenda.begin(now_s)

    def published(self, entries: Iterable[Published], now_s: float) -> None:
        """At least one directory took each of these. May be called more than once for one publication."""
        self._agenda.published(entries, now_s)

    def ended(self, number: int, *, ok: bool) -> None:
        """The publication is over. ok: at least one directory took each service that this node holds."""
        self._agenda.ended(number, ok=ok)

    # What follows

    def beat(self, now_s: float) -> Beat:
        """To send, every beat, after a tick."""
        return Beat(
            born_ms=self._born_ms,
            fit=self.standing.fit,
            unfit=self.standing.unfit,
            leads=self.standing.duties.lead,
            head=self._head,
            hears=self._members.alive(now_s)[:MAX_NODES],
            published=self._agenda.told(now_s),
            services=tuple(sorted(self._holds)),
        )

    def tick(self, now_s: float, unix_ms: int) -> Standing:
        """How things stand now. To be called at least once a beat, and whenever something was heard that matters."""
        clocks = {**self._members.clocks(now_s), self.me: 0.0}
        common_ms = unix_ms + int(1000 * statistics.median(clocks.values()))
        self._born(now_s, unix_ms)
        self._clock(clocks)
        self._settle(now_s)
        promoted = self._orders.promoted(common_ms)
        passed, choice = self._choose(clocks, promoted, now_s)
        plan = self._planner.plan(
            self._heads(now_s), self._orders, now_s=now_s, unix_ms=common_ms, services=self._services
        )
        choice = self._hand_over(choice, plan, passed, now_s)
        self._leads = choice.name == self.me
        listed = {name: self._report(name).descriptor for name in plan.listed}
        publish, urgent = self._agenda.tick(
            now_s, leads=self._leads, listed=listed, services=self._holds, lists=plan.lists
        )
        was = self.standing
        fitness, unfit = self._own_fitness()
        self.standing = Standing(
            leader=choice.name,
            why=choice.why,
            lease_left_s=self._lease_left_s(choice.name, now_s),
            rivals=self._rivals(choice.name, now_s),
            changes=was.changes + (choice.name != was.leader),
            fit=fitness is Fitness.FIT,
            unfit=unfit,
            nodes={name: self._members.view(name, now_s) for name in self._members.names()},
            passed_over=passed,
            plan=plan,
            duties=Duties(
                lead=self._leads,
                head="serve" if self.me in plan.wanted or self._is_listed(choice.name, now_s) else "ghost",
                publish=publish,
                urgent=urgent,
            ),
        )
        return self.standing

    # This node itself

    def _born(self, now_s: float, unix_ms: int) -> None:
        """A clock that is set right must not leave a birth before its time: it would make this node the eldest."""
        born_ms = max(0, unix_ms - int(1000 * (now_s - self._started_s)))
        if abs(born_ms - self._born_ms) > 1000 * self._timing.drift_s:
            self._born_ms = born_ms

    def _clock(self, clocks: Mapping[NodeName, float]) -> None:
        bound_s = self._timing.drift_s * (_RIGHT_AGAIN if self._clock_wrong else 1.0)
        self._clock_wrong = self.me in wrong_clocks(clocks, bound_s)

    def _settle(self, now_s: float) -> None:
        """It leads nobody before it has listened; longer while there are members that it has not heard."""
        up_s, listen_s = now_s - self._started_s, self._timing.listen_s
        if up_s >= listen_s and (self._members.all_heard(now_s) or up_s >= 2 * listen_s):
            self._settled = True

    def _own_fitness(self) -> tuple[Fitness, str]:
        if not self._settled:
            return Fitness.OUT, LISTENING
        if self._unable:
            return Fitness.OUT, self._unable
        if self._agenda.benched:
            return Fitness.NOT_PUBLISHING, NOT_PUBLISHING
        if self._clock_wrong:
            return Fitness.WRONG_CLOCK, WRONG_CLOCK
        return Fitness.FIT, ""

    def _report(self, name: NodeName) -> HeadReport:
        beat = self._members.beat(name)
        return self._head if name == self.me else beat.head if beat is not None else HeadReport()

    # The election

    def _choose(
        self, clocks: Mapping[NodeName, float], promoted: NodeName | None, now_s: float
    ) -> tuple[dict[NodeName, str], Choice]:
        """Whom to follow, and who is passed over and why."""
        wrong = wrong_clocks(clocks, self._timing.drift_s * _OTHERS_BOUND)
        own, _ = self._own_fitness()
        mine = Candidate(name=self.me, born_ms=self._born_ms, fitness=own, holds=len(self._holds))
        told = {name: self._candidate(name, name in wrong) for name in self._members.alive(now_s)}
        mutual = [told[name] for name in told if self._members.bond(name, now_s) is Bond.MUTUAL]
        first = leader([mine, *mutual], promoted).name
        passed = self._passed(mutual, first, now_s)
        while True:
            choice = leader([mine, *(_passed_over(each, passed) for each in mutual)], promoted)
            self._leases.chosen(choice.name, now_s)
            if not self._overdue(choice.name, passed, now_s):
                break
            self._leases.pass_over(choice.name, now_s)
            passed[choice.name] = "has not told that it published"
        if choice.name != self.me or self._leads:
            return passed, choice
        elder = self._elder_to_come(mine, told.values(), promoted, now_s)
        return passed, Choice(why=f"waiting for {elder}") if elder else choice

    def _elder_to_come(
        self, mine: Candidate, told: Iterable[Candidate], promoted: NodeName | None, now_s: float
    ) -> NodeName:
        """Who would lead before this node, if given a moment: it may hear us soon, or just starts, as we do."""
        starting = now_s - self._started_s < 3 * self._timing.listen_s
        for each in told:
            beat, bond = self._members.beat(each.name), self._members.bond(each.name, now_s)
            listens = starting and bond is not Bond.NONE and beat is not None and beat.unfit == LISTENING
            later = msgspec.structs.replace(each, fitness=Fitness.FIT) if listens else each
            able = later.fitness is not Fitness.OUT and (listens or bond is Bond.WARMING)
            if able and rank(later, promoted) < rank(mine, promoted):
                return each.name
        return ""

    def _candidate(self, name: NodeName, clock_wrong: bool) -> Candidate:
        beat = self._members.beat(name)
        if beat is None:
            return Candidate(name=name, born_ms=0, fitness=Fitness.OUT)
        fitness = max(fitness_told(beat.fit, beat.unfit), Fitness.WRONG_CLOCK if clock_wrong else Fitness.FIT)
        return Candidate(
            name=name, born_ms=beat.born_ms, fitness=fitness, holds=len(self._services & frozenset(beat.services))
        )

    def _passed(self, mutual: Iterable[Candidate], first: NodeName, now_s: float) -> dict[NodeName, str]:
        against = {
            each.name: self._leases.against(
                each.name, self._published_s(each.name), first=each.name == first, now_s=now_s
            )
            for each in mutual
        }
        return {name: why for name, why in against.items() if why}

    def _overdue(self, name: NodeName, passed: Mapping[NodeName, str], now_s: float) -> bool:
        """It is followed, and has not done what it is for. With no head to list there is nothing it could publish."""
        if name in ("", self.me) or name in passed or not self.standing.plan.listed:
            return False
        return self._leases.left_s(name, self._published_s(name), now_s) < 0

    def _hand_over(self, choice: Choice, plan: Plan, passed: Mapping[NodeName, str], now_s: float) -> Choice:
        """Who leads goes on until its successor has published: a boaster gains nothing, and there is no gap."""
        beat = self._members.beat(choice.name)
        if not self._leads or beat is None or not (self._holds and plan.listed):
            return choice
        equals = len(self._services & frozenset(beat.services)) == len(self._holds)
        fit = self._own_fitness()[0] is Fitness.FIT
        if not (equals and fit) or self._leases.live(self._published_s(choice.name), now_s):
            return choice
        return Choice(name=self.me, why=f"until {choice.name} has published")

    def _published_s(self, name: NodeName) -> float | None:
        beat = self._members.beat(name)
        return last_published_s(beat, self._members.heard_s(name), self._services) if beat is not None else None

    def _lease_left_s(self, name: NodeName, now_s: float) -> float:
        if name == self.me:
            return self._agenda.lease_left_s(now_s)
        return self._leases.left_s(name, self._published_s(name), now_s) if name else 0.0

    def _rivals(self, leading: NodeName, now_s: float) -> tuple[NodeName, ...]:
        beats = {name: self._members.beat(name) for name in self._members.alive(now_s)}
        return tuple(name for name, beat in beats.items() if beat is not None and beat.leads and name != leading)

    # The heads

    def _heads(self, now_s: float) -> dict[NodeName, HeadSeen]:
        """Of all members. A node need not hear us for its head to take visitors."""
        heads = {self.me: HeadSeen(report=self._head)}
        alive = frozenset(self._members.alive(now_s))
        for name in self._members.names():
            beat = self._members.beat(name)
            dead = "" if name in alive else self._members.view(name, now_s).why
            heads[name] = HeadSeen(report=beat.head if beat is not None else None, dead=dead)
        return heads

    def _is_listed(self, leading: NodeName, now_s: float) -> bool:
        """A descriptor that visitors may still get lists this node's head."""
        told = [(self.me, Told(each, now_s - each.ago_ms / 1000)) for each in self._agenda.told(now_s)]
        for name in self._members.names():
            beat = self._members.beat(name)
            if beat is not None:
                heard_s = self._members.heard_s(name)
                told += [(name, Told(each, heard_s - each.ago_ms / 1000)) for each in beat.published]
        descriptors = standing(told, leading, now_s, self._timing.lifetime_s)
        return any(self.me in each.published.heads for each in descriptors)


def _passed_over(candidate: Candidate, passed: Mapping[NodeName, str]) -> Candidate:
    if candidate.name not in passed:
        return candidate
    return msgspec.structs.replace(candidate, fitness=max(candidate.fitness, Fitness.NOT_PUBLISHING))
