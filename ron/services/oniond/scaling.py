"""How many tors share the onions: follows the load, one step at a time, and moves onions without losing a request.

In: the load of the pool every ten seconds, the config as it is now, an operator's word. Out: tors more or fewer, their
onions moved make-before-break. docs/scaling.rst says what happens to a visitor in each phase of a move.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger

from ron.proto.errors import RonError, bad_request, conflict, unavailable
from ron.services.oniond.autoscale import Drain, DrainAct, Policy, PolicyConfig, Reason, Sample
from ron.services.oniond.hosting import Hosting, quietly
from ron.services.oniond.model import Onion
from ron.services.oniond.roles import Move, empty_out, even_out, pool_number, pool_role
from ron.services.oniond.telemetry import Telemetry

EVERY_S = 10.0
SAMPLES = 64
POLL_S = 0.5
# Revision counters follow the clock by whole seconds: so long after the old tor's last upload the new one's is later.
MUTE_S = 2.0
# A moved onion is published where it goes within this time, or stays.
READY_S = 60.0
# A service that was added again has wanted to upload by then, was not let, and wants to again in an hour.
UNLISTED_S = 8.0
# A visitor who has moved nothing for so long holds up no step: clients keep idle circuits for many minutes.
QUIET_S = 10.0
DRAIN_DEADLINE_S = 300.0
EVEN_DEADLINE_S = 60.0
MOST_MOVES = 256
_log = Logger(namespace="ron.oniond")


class ScaleView(msgspec.Struct, frozen=True, kw_only=True):
    """The pool as it stands. tors: that take onions. moving: on their way up or down. reason: of the last decision."""

    tors: int
    moving: int
    target: int
    reason: str


class ScaleFigures:
    """The same for metrics; outlives the `Scaling` that fills it."""

    def __init__(self) -> None:
        self.serving = self.starting = self.draining = 0
        self.target = 1
        self.reason: str = Reason.STEADY
        self.moves: Counter[str] = Counter()
        self.cut = 0

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        tors = GaugeMetricFamily("onion_tors", "Tors that share the onions", labels=["state"])
        for state in ("serving", "starting", "draining"):
            tors.add_metric([state], getattr(self, state))
        yield tors
        yield GaugeMetricFamily("onion_tors_target", "How many there should be", self.target)
        reason = GaugeMetricFamily("onion_tors_reason", "Why: 1 for the last decision's reason", labels=["reason"])
        reason.add_metric([str(self.reason)], 1)
        yield reason
        moves = CounterMetricFamily("onion_moves", "Onions moved from tor to tor", labels=["result"])
        for result in ("done", "failed"):
            moves.add_metric([result], self.moves[result])
        yield moves
        yield CounterMetricFamily("onion_visitors_cut", "Circuits in use that a deadline ended", self.cut)


class Scaling:
    """The pool of one `Hosting`. find: an onion by its id. wishes: the limits at present."""

    def __init__(
        self,
        reactor: Any,
        hosting: Hosting,
        telemetry: Telemetry,
        figures: ScaleFigures,
        *,
        find: Callable[[str], Onion | None],
        wishes: Callable[[], PolicyConfig],
    ) -> None:
        self._reactor = reactor
        self._hosting = hosting
        self._telemetry = telemetry
        self._figures = figures
        self._find = find
        self._wishes = wishes
        self._config: PolicyConfig | None = None
        self._samples: deque[Sample] = deque(maxlen=SAMPLES)
        self._changed_at_s: float | None = None
        self._step: Deferred[None] | None = None
        self._loop = LoopingCall(self.look)
        self._loop.clock = reactor

    def start(self) -> None:
        """From now on."""
        looking = self._loop.start(EVERY_S)
        looking.addErrback(
            lambda failure: _log.failure("the pool is not looked after", failure, event="onion_scale_end")
        )

    def stop(self) -> None:
        """No more steps; one that is under way stays where it is, and is undone by whoever comes next."""
        if self._loop.running:
            self._loop.stop()
        if self._step is not None:
            self._step.cancel()

    def view(self) -> ScaleView:
        """As it stands."""
        figures = self._figures
        moving = figures.starting + figures.draining
        return ScaleView(tors=len(self._pool), moving=moving, target=figures.target, reason=str(figures.reason))

    def go_to(self, number: int) -> ScaleView:
        """An operator wants `number` tors now; afterwards the load decides again.

        Raises `RonError`: BadRequest outside the config's limits, Conflict while a step is under way.
        """
        config = self._wishes()
        if not config.scale_min <= number <= config.scale_max:
            raise bad_request(
                f"{number} is outside {config.scale_min} to {config.scale_max}",
                hint="the limits are onion.scale_min and onion.scale_max",
            )
        if self._step is not None:
            raise conflict("a step is under way", hint="try again when it is done")
        self._decided(number, "operator")
        return self.view()

    def notice(self) -> None:
        """Other limits take effect at once. For every second."""
        if self._loop.running and self._wishes() != self._config:
            self.look()

    def look(self) -> None:
        """Take one more sample; begin a step if there is one to take."""
        config = self._wishes()
        if config != self._config:
            # an operator's word: neither what was before it nor the pause after a step counts any more
            self._config, self._changed_at_s = config, None
            self._samples.clear()
        self._samples.append(self._telemetry.load(self._pool))
        self._figures.serving = len(self._pool)
        if self._step is None:
            now_s = self._reactor.seconds()
            decision = Policy(config).decide(
                len(self._pool), self._samples, now_s=now_s, changed_at_s=self._changed_at_s
            )
            self._decided(decision.target, decision.reason)

    # One step

    @property
    def _pool(self) -> list[str]:
        return self._hosting.placement.pool

    def _decided(self, target: int, reason: str) -> None:
        self._figures.target, self._figures.reason = target, reason
        if target == len(self._pool):
            return
        _log.info(
            "onions on {tors} tors, wanted are {target}: {reason}",
            event="onion_scale",
            tors=len(self._pool),
            target=target,
            reason=str(reason),
        )
        self._step = Deferred.fromCoroutine(self._to(target))
        self._step.addErrback(self._failed)
        self._step.addBoth(self._done)

    async def _to(self, target: int) -> None:
        while len(self._pool) < target:
            await self._grow()
        while len(self._pool) > target:
            await self._shrink()

    def _failed(self, failure: Any) -> None:
        if failure.check(CancelledError):
            return
        if failure.check(RonError):
            _log.warn("a step was not done: {why}", event="onion_scale_failed", why=failure.value.message)
        else:
            _log.failure("a step was not done", failure, event="onion_scale_failed")

    def _done(self, _none: None) -> None:
        self._step = None
        self._figures.starting = self._figures.draining = 0
        self._figures.serving = len(self._pool)
        self._changed_at_s = self._reactor.seconds()
        _log.info("onions on {tors} tors", event="onion_scaled", tors=len(self._pool))

    async def _grow(self) -> None:
        taken = {pool_number(role) for role in self._pool}
        role = pool_role(next(n for n in range(1, len(taken) + 2) if n not in taken))
        self._figures.starting = 1
        await self._hosting.have(role)
        self._pool.append(role)
        self._pool.sort(key=lambda role: pool_number(role) or 0)
        moves = even_out(self._hosting.weights(), [role], MOST_MOVES)
        for source in sorted({move.source for move in moves}):
            await self._relieve(source, [move for move in moves if move.source == source])
        self._figures.starting = 0

    async def _relieve(self, source: str, moves: Sequence[Move]) -> None:
        """Some onions of `source` go; the tor and its others stay."""
        try:
            await self._make(source, moves)
            await self._sleep(UNLISTED_S)
        finally:
            await quietly(self._hosting.publisher(source).mute(muted=False))
        deadline_s = self._reactor.seconds() + EVEN_DEADLINE_S
        while (there := self._visitors(source, moves)) and self._reactor.seconds() < deadline_s:
            await self._sleep(POLL_S)
        self._figures.cut += there
        for move in moves:
            self._left(move)
        self._hosting.want(source)
        for move in moves:
            onion = self._find(move.onion)
            if onion is not None:
                await self._hosting.hang_up(onion, [source])

    async def _shrink(self) -> None:
        """The last tor of the pool goes, when its visitors have gone."""
        loads, role = self._hosting.weights(), self._pool[-1]
        self._pool.remove(role)  # nothing new comes to it
        self._figures.draining = 1
        drain = Drain(linger_s=0.0, deadline_s=DRAIN_DEADLINE_S)
        drain.begin(self._reactor.seconds())
        moves = empty_out(loads, role)
        try:
            await self._make(role, moves)
        except BaseException:
            self._pool.append(role)
            await quietly(self._hosting.publisher(role).mute(muted=False))
            raise
        drain.unlisted(self._reactor.seconds())
        while drain.look(self._visitors(role), self._reactor.seconds()) is not DrainAct.END:
            await self._sleep(POLL_S)
        self._figures.cut += drain.cut
        for move in moves:
            self._left(move)
        await self._hosting.end(role)
        self._figures.draining = 0

    # One move

    async def _make(self, source: str, moves: Sequence[Move]) -> None:
        """Have `moves` published at their targets, and unlisted at `source`, which is muted from now on.

        Raises `RonError` when one was not to be had there: then all are where they were.
        """
        publisher = self._hosting.publisher(source)
        if not moves:
            return
        await publisher.mute(muted=True)
        await self._sleep(MUTE_S)
        try:
            await gatherResults([Deferred.fromCoroutine(self._move(move)) for move in moves])
            published = await self._until(lambda: all(self._is_published(move) for move in moves), READY_S)
            if not published:
                raise unavailable("onions that were to move were not published where they go")
        except CancelledError:
            raise  # whoever comes after us undoes it
        except Exception:
            await self._undo(source, moves)
            raise
        for move in moves:
            self._hosting.placement.unlist(move.onion)
        self._hosting.want(source)
        await self._until(lambda: publisher.is_unlisted(), READY_S)
        self._figures.moves["done"] += len(moves)

    async def _move(self, move: Move) -> None:
        onion = self._find(move.onion)
        if onion is not None:
            await self._hosting.move(onion, move.target)

    def _is_published(self, move: Move) -> bool:
        onion, publisher = self._find(move.onion), self._hosting.publisher(move.target)
        # one that was deleted or drained meanwhile holds up nobody
        return onion is None or all(publisher.standing(spec.address).ready for spec in onion.specs())

    async def _undo(self, source: str, moves: Sequence[Move]) -> None:
        self._figures.moves["failed"] += len(moves)
        for move in moves:
            onion = self._find(move.onion)
            if onion is None:
                continue
            self._hosting.left(move.onion, source)
            for spec in onion.specs():
                await self._hosting.publisher(move.target).expect_no_more(spec.address)
                # some directory may have the other tor's descriptor by now
                self._hosting.publisher(source).again(spec.address)
        for role in {source, *(move.target for move in moves)}:
            self._hosting.want(role)

    def _left(self, move: Move) -> None:
        if self._find(move.onion) is not None:
            self._hosting.left(move.onion, move.target)

    def _visitors(self, role: str, moves: Sequence[Move] | None = None) -> int:
        """Circuits on `role` that are in use; of the onions that move, where it has others."""
        if self._hosting.publisher(role).tor.control is None:
            return 1  # nobody knows, until it is found again or the deadline is over
        there = self._telemetry.visitors(role, quiet_s=QUIET_S)
        if moves is None:
            return there.total()
        onions = filter(None, (self._find(move.onion) for move in moves))
        return sum(there[spec.address] for onion in onions for spec in onion.specs())

    async def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline_s = self._reactor.seconds() + seconds
        while not condition():
            if self._reactor.seconds() >= deadline_s:
                return False
            await self._sleep(POLL_S)
        return True

    async def _sleep(self, seconds: float) -> None:
        await deferLater(self._reactor, seconds)
