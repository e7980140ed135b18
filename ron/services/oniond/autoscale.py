"""How many backends an onion wants, and how one of them leaves without losing a request. Pure: no clock, no tor.

In: what was measured lately, the time, when the number last changed. Out: a `Decision`; what to do next in a `Drain`;
relays in the order that an app's region hints ask for. docs/observability.rst has the drawing of the drain.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, NamedTuple, Protocol

import msgspec
from automat import TypeMachineBuilder

from ron.services.oniond.config import OnionConfig
from ron.services.sections import OniondSection

# Beyond this a step up is more than a doubling, and rests on too little: the next step sees what this one did.
MAX_GROWTH = 2.0
# One backend less makes the others busier by n / (n - 1), twice as busy at most. What is below half of every threshold
# therefore is not over one after the step, and the way down never leads straight back up.
CALM_SHARE = 0.5
# So many samples in a row over a threshold are no accident.
UP_SAMPLES = 2

Region = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]{1,16}(-[a-z0-9]{1,16}){0,3}\Z")]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Backends = Annotated[int, msgspec.Meta(ge=1, le=64)]


class PolicyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When the number of backends changes. A threshold that is None is not looked at.

    circuits_p95, queue_depth, connect_ms_p95: of one backend; more than that is too much. settle_s: after a change
    nothing changes for so long. cool_down_s: after a change nothing goes down for so long. calm_s: how long everything
    must have been below half of its threshold before a step down. gap_s: no sample for so long means that nobody knows.
    """

    scale_min: Backends = 1
    scale_max: Backends = 1
    circuits_p95: float | None = None
    queue_depth: float | None = None
    connect_ms_p95: float | None = None
    settle_s: Seconds = 30.0
    cool_down_s: Seconds = 300.0
    calm_s: Seconds = 180.0
    gap_s: Seconds = 30.0

    def __post_init__(self) -> None:
        if self.scale_min > self.scale_max:
            raise ValueError("scale_min is over scale_max")
        if any(t is not None and not 0 < t < math.inf for t in self.thresholds):
            raise ValueError("a threshold is a positive number")
        if self.settle_s > self.cool_down_s:
            raise ValueError("settle_s is over cool_down_s")

    @property
    def thresholds(self) -> tuple[float | None, float | None, float | None]:
        """In the order of `Sample.figures`."""
        return (self.circuits_p95, self.queue_depth, self.connect_ms_p95)


def from_section(section: OniondSection | OnionConfig) -> PolicyConfig:
    """The policy that `[oniond]` or `[onion]` describes."""
    load = section.autoscale
    return PolicyConfig(
        scale_min=section.scale_min,
        scale_max=section.scale_max,
        circuits_p95=load.circuits_p95 if load else None,
        connect_ms_p95=load.connect_ms_p95 if load else None,
        queue_depth=load.queue_depth if load else None,
    )


class Sample(NamedTuple):
    """One look at the backends: what the busiest twentieth of them has. at_s: of a clock that does not go back.

    circuits_p95: rendezvous circuits. queue_depth: those that visitors still wait for. connect_ms_p95: from a visitor's
    introduction to the rendezvous; 0 when nobody came. None: could not be measured, which is not the same as 0.
    """

    circuits_p95: float | None
    queue_depth: float | None
    connect_ms_p95: float | None
    at_s: float

    @property
    def figures(self) -> tuple[float | None, float | None, float | None]:
        """The three figures, in the order of `PolicyConfig.thresholds`."""
        return self[:3]


class Reason(enum.StrEnum):
    """Why a decision is what it is: a step (the first five), or none."""

    TOO_FEW = "too_few"
    TOO_MANY = "too_many"
    CIRCUITS = "circuits"
    QUEUE = "queue"
    CONNECT = "connect"
    CALM = "calm"
    SETTLING = "settling"
    COOLING = "cooling"
    UNKNOWN = "unknown"
    STEADY = "steady"
    AT_MAXIMUM = "at_maximum"
    AT_MINIMUM = "at_minimum"


_CAUSES = (Reason.CIRCUITS, Reason.QUEUE, Reason.CONNECT)


class Decision(NamedTuple):
    """How many backends there should be, and why."""

    target: int
    reason: Reason


class _Load(NamedTuple):
    """One sample against the thresholds. wanted: backends it alone would ask for. calm: all below half, and known."""

    wanted: int
    cause: Reason
    calm: bool


class Policy:
    """Up fast, by as much as is missing; down slowly, one at a time. What is not known changes nothing."""

    def __init__(self, config: PolicyConfig) -> None:
        self._config = config

    def decide(
        self, current: int, samples: Iterable[Sample], *, now_s: float, changed_at_s: float | None = None
    ) -> Decision:
        """How many there should be now, with `current` of them since `changed_at_s` (None: since ever).

        samples: oldest first. Those from before the change tell of another number of backends and do not count.
        Raises ValueError when there is no backend at all: that is a fault to mend, and no load to follow.
        """
        if current < 1:
            raise ValueError("current is at least 1")
        config = self._config
        if current < config.scale_min:
            return Decision(config.scale_min, Reason.TOO_FEW)
        since_s = math.inf if changed_at_s is None else now_s - changed_at_s
        if since_s < config.settle_s:
            return Decision(current, Reason.SETTLING)
        if current > config.scale_max:
            return Decision(current - 1, Reason.TOO_MANY)
        known = [s for s in samples if s.at_s <= now_s and (changed_at_s is None or s.at_s > changed_at_s)]
        return self._up(current, known, now_s) or self._down(current, known, now_s, since_s)

    def _up(self, current: int, known: Sequence[Sample], now_s: float) -> Decision | None:
        """A step up, or None when the last samples do not all ask for one."""
        latest = known[-UP_SAMPLES:]
        if len(latest) < UP_SAMPLES or self._gap(latest, now_s):
            return None
        load = min((self._load(current, sample) for sample in latest), key=lambda load: load.wanted)
        if load.wanted <= current:
            return None
        if current == self._config.scale_max:
            return Decision(current, Reason.AT_MAXIMUM)
        return Decision(min(load.wanted, self._config.scale_max), load.cause)

    def _down(self, current: int, known: Sequence[Sample], now_s: float, since_s: float) -> Decision:
        """A step down, or none and why."""
        config = self._config
        window = [s for s in known if s.at_s >= now_s - config.calm_s]
        if not window or self._gap(window, now_s) or window[0].at_s - (now_s - config.calm_s) > config.gap_s:
            return Decision(current, Reason.UNKNOWN)
        if not all(self._load(current, sample).calm for sample in window):
            return Decision(current, Reason.STEADY)
        if current == config.scale_min:
            return Decision(current, Reason.AT_MINIMUM)
        if since_s < config.cool_down_s:
            return Decision(current, Reason.COOLING)
        return Decision(current - 1, Reason.CALM)

    def _gap(self, samples: Sequence[Sample], now_s: float) -> bool:
        """True when nobody looked for longer than `gap_s`, somewhere between the first sample and now."""
        times = [*(sample.at_s for sample in samples), now_s]
        return any(b - a > self._config.gap_s for a, b in pairwise(times))

    def _load(self, current: int, sample: Sample) -> _Load:
        shares = [
            (None if figure is None or math.isnan(figure) else figure / threshold, cause)
            for figure, threshold, cause in zip(sample.figures, self._config.thresholds, _CAUSES, strict=True)
            if threshold is not None
        ]
        calm = bool(shares) and all(share is not None and share < CALM_SHARE for share, _cause in shares)
        worst, cause = max(((share or 0.0, cause) for share, cause in shares), default=(0.0, Reason.STEADY))
        if worst <= 1:
            return _Load(current, Reason.STEADY, calm)
        # circuits and queues are shared out among the backends; the time to connect follows no such rule
        divided = max((share or 0.0 for share, cause in shares if cause is not Reason.CONNECT), default=0.0)
        return _Load(max(current + 1, math.ceil(current * min(divided, MAX_GROWTH))), cause, calm)


class DrainAct(enum.StrEnum):
    """What whoever holds a `Drain` does next.

    UNLIST: publish the descriptor without this backend's introduction points; where the onion is its alone, DEL_ONION,
    which closes those and leaves rendezvous circuits (seen on tor 0.4.9.11). END: stop its tor.
    """

    NOTHING = "nothing"
    UNLIST = "unlist"
    END = "end"


class DrainState(enum.StrEnum):
    """Where a backend stands."""

    ACTIVE = "active"
    DRAINING = "draining"
    WAITING = "waiting"
    GONE = "gone"


class Course(Protocol):
    """What happens to a backend that is to leave."""

    def begin(self) -> DrainAct: ...
    def unlisted(self) -> DrainAct: ...
    def emptied(self) -> DrainAct: ...
    def ran_out(self) -> DrainAct: ...


class Drain:
    """One backend on its way out. Every method returns what is to be done; times are of a clock that does not go back.

    linger_s: clients that read the descriptor before it changed may come for so long after that. deadline_s: from the
    beginning; then it ends whatever is open. cut: circuits that were open at the end, 0 when nothing was lost.
    """

    def __init__(self, *, linger_s: float, deadline_s: float) -> None:
        if not 0 <= linger_s <= deadline_s:
            raise ValueError("want 0 <= linger_s <= deadline_s")
        self.state = DrainState.ACTIVE
        self.cut = 0
        self._linger_s = linger_s
        self._deadline_s = deadline_s
        self._began_s = 0.0
        self._unlisted_s = 0.0
        self._course: Course = drain_machine(self)

    def begin(self, now_s: float) -> DrainAct:
        """It is to leave."""
        if self.state is DrainState.ACTIVE:
            self._began_s = now_s
        return self._course.begin()

    def unlisted(self, now_s: float) -> DrainAct:
        """The descriptor without it has been taken by the directories."""
        if self.state is DrainState.DRAINING:
            self._unlisted_s = now_s
        return self._course.unlisted()

    def look(self, circuits: int, now_s: float) -> DrainAct:
        """It has `circuits` rendezvous circuits open now. To be called every second or so while it drains."""
        if self.state in {DrainState.ACTIVE, DrainState.GONE}:
            return DrainAct.NOTHING
        if now_s - self._began_s >= self._deadline_s:
            self.cut = circuits
            return self._course.ran_out()
        if self.state is DrainState.WAITING and circuits == 0 and now_s - self._unlisted_s >= self._linger_s:
            return self._course.emptied()
        return DrainAct.NOTHING


def _build_drain() -> Callable[[Drain], Course]:
    """The states of a drain; docs/observability.rst has the drawing, and a test compares the two."""
    builder = TypeMachineBuilder(Course, Drain)
    states = {state: builder.state(state.value) for state in DrainState}

    def on(state: DrainState, event: Any, target: DrainState, act: DrainAct) -> None:
        def step(_course: Course, drain: Drain) -> DrainAct:
            drain.state = target
            return act

        states[state].upon(event).to(states[target])(step)

    here = DrainState
    on(here.ACTIVE, Course.begin, here.DRAINING, DrainAct.UNLIST)
    on(here.DRAINING, Course.unlisted, here.WAITING, DrainAct.NOTHING)
    on(here.DRAINING, Course.ran_out, here.GONE, DrainAct.END)
    on(here.WAITING, Course.emptied, here.GONE, DrainAct.END)
    on(here.WAITING, Course.ran_out, here.GONE, DrainAct.END)
    # said twice, or too late: nothing
    for state in (here.DRAINING, here.WAITING, here.GONE):
        on(state, Course.begin, state, DrainAct.NOTHING)
    for state in (here.ACTIVE, here.WAITING, here.GONE):
        on(state, Course.unlisted, state, DrainAct.NOTHING)
    return builder.build()


drain_machine = _build_drain()


class LabelledRelay(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of our own relays and where its operator says it stands: `eu`, `eu-west`, `rack-7`."""

    fingerprint: Annotated[str, msgspec.Meta(pattern=r"^[0-9A-F]{40}\Z")]
    regions: Annotated[tuple[Region, ...], msgspec.Meta(max_length=8)] = ()


def choose_relays(relays: Iterable[LabelledRelay], hints: Sequence[str]) -> tuple[str, ...]:
    """Fingerprints in the order in which an app that gave `hints` prefers them, its dearest region first.

    A hint fits the region itself and all within it (`eu` fits `eu-west`). What fits no hint comes last, and is never
    left out: a hint is no reason to be unreachable. Among equals the fingerprint decides, so that two tors agree.
    """

    def rank(relay: LabelledRelay) -> tuple[int, str]:
        fits = (n for n, hint in enumerate(hints) if any(_within(region, hint) for region in relay.regions))
        return next(fits, len(hints)), relay.fingerprint

    return tuple(relay.fingerprint for relay in sorted(set(relays), key=rank))


def nearest(relays: Iterable[LabelledRelay], hints: Sequence[str]) -> tuple[str, ...]:
    """Fingerprints of those that fit the dearest of `hints` that any relay fits; none when no hint fits."""
    there = sorted(set(relays), key=lambda relay: relay.fingerprint)
    for hint in hints:
        fitting = tuple(relay.fingerprint for relay in there if any(_within(region, hint) for region in relay.regions))
        if fitting:
            return fitting
    return ()


def guards(labels: Mapping[str, str], hints: Sequence[str]) -> tuple[str, ...]:
    """`nearest` of relays that have one label each, by fingerprint."""
    return nearest((LabelledRelay(fingerprint=one, regions=(label,)) for one, label in labels.items()), hints)


def _within(region: str, hint: str) -> bool:
    return region == hint or region.startswith(f"{hint}-")
