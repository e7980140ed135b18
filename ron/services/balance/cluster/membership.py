"""Who is alive, and whom this node may follow.

In: beats, broken links, the time. Out: for each member alive, suspect or dead, with the reason, and whether we hear
each other. Only who hears us is followed: a leader that does not hear us would leave our head out.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from ron.proto.balance import MAX_NODES, Beat, NodeName
from ron.services.balance.cluster.timing import Timing


class State(enum.StrEnum):
    """Suspect: silent for half of the suspicion time or its link broke; it still counts."""

    UNKNOWN = "unknown"
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


class Bond(enum.Enum):
    """Whether a peer is followed. WARMING: not yet, but soon, if all is well."""

    NONE = "none"
    WARMING = "warming"
    MUTUAL = "mutual"


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """A member as this node sees it. why: of the state. silent_s: since its last beat, None if never heard in this run.

    mutual: we hear each other. drift_s: how far its clock is ahead of ours. beat: its last.
    """

    name: NodeName
    state: State
    why: str = ""
    silent_s: float | None = None
    mutual: bool = False
    drift_s: float | None = None
    beat: Beat | None = None


class _Peer:
    """What is remembered of a peer. since_s: alive since. returned: it had been dead in this run of ours."""

    __slots__ = ("at_s", "beat", "drift_s", "gone_s", "returned", "since_s")

    def __init__(self, beat: Beat, at_s: float, drift_s: float | None) -> None:
        self.beat = beat
        self.at_s = at_s
        self.since_s = at_s
        self.drift_s = drift_s
        self.gone_s: float | None = None
        self.returned = False


class Membership:
    """The others, as heard. me: this node, which is none of them."""

    def __init__(self, me: NodeName, timing: Timing) -> None:
        self._me = me
        self._timing = timing
        self._peers: dict[NodeName, _Peer | None] = {}

    def set_members(self, names: Iterable[NodeName]) -> None:
        """Who belongs to the cluster. Who does no more is forgotten, and its beats are not heard."""
        others = sorted(set(names) - {self._me})[:MAX_NODES]
        self._peers = {name: self._peers.get(name) for name in others}

    def heard(self, sender: NodeName, beat: Beat, at_s: float, drift_s: float | None) -> bool:
        """A beat came. False: not of a member, or later than a newer one."""
        if sender not in self._peers:
            return False
        known = self._peers[sender]
        if known is None:
            self._peers[sender] = _Peer(beat, at_s, drift_s)
            return True
        if at_s < known.at_s:
            return False
        if self._is_dead(known, at_s):
            known.since_s, known.returned = at_s, True
        known.beat, known.at_s, known.gone_s = beat, at_s, None
        known.drift_s = drift_s if drift_s is not None else known.drift_s
        return True

    def gone(self, name: NodeName, at_s: float) -> None:
        """The link to it broke. It has `gone_s` to be heard again."""
        known = self._peers.get(name)
        if known is not None and known.gone_s is None:
            known.gone_s = at_s

    def names(self) -> tuple[NodeName, ...]:
        """The other members, sorted."""
        return tuple(self._peers)

    def beat(self, name: NodeName) -> Beat | None:
        """Its last one."""
        known = self._peers.get(name)
        return known.beat if known is not None else None

    def heard_s(self, name: NodeName) -> float:
        """When its last beat came. Raises `KeyError` when none has."""
        known = self._peers.get(name)
        if known is None:
            raise KeyError(name)
        return known.at_s

    def alive(self, now_s: float) -> tuple[NodeName, ...]:
        """Those who are not dead, sorted."""
        return tuple(name for name, known in self._peers.items() if known and not self._is_dead(known, now_s))

    def all_heard(self, now_s: float) -> bool:
        """Every other member is alive, and hears us."""
        return all(known is not None and self._hears_us(known, now_s) for known in self._peers.values())

    def bond(self, name: NodeName, now_s: float) -> Bond:
        """Whether it is followed now."""
        known, timing = self._peers.get(name), self._timing
        if known is None or self._is_dead(known, now_s):
            return Bond.NONE
        age_s = now_s - known.since_s
        if self._me not in known.beat.hears:
            return Bond.WARMING if age_s < timing.suspect_s + 2 * timing.beat_s else Bond.NONE
        return Bond.WARMING if known.returned and age_s < timing.steady_s else Bond.MUTUAL

    def clocks(self, now_s: float) -> dict[NodeName, float]:
        """How far each living peer's clock is ahead of ours, of those where it is known."""
        return {
            name: known.drift_s
            for name, known in self._peers.items()
            if known is not None and known.drift_s is not None and not self._is_dead(known, now_s)
        }

    def view(self, name: NodeName, now_s: float) -> NodeView:
        """For operators, and for the reason why its head is in or out."""
        known = self._peers.get(name)
        if known is None:
            return NodeView(name=name, state=State.UNKNOWN, why="not heard since this node started")
        state, why = self._state(known, now_s)
        return NodeView(
            name=name,
            state=state,
            why=why,
            silent_s=now_s - known.at_s,
            mutual=self._hears_us(known, now_s),
            drift_s=known.drift_s,
            beat=known.beat,
        )

    def _state(self, known: _Peer, now_s: float) -> tuple[State, str]:
        silent = f"silent for {now_s - known.at_s:.1f} s"
        if self._is_dead(known, now_s):
            return State.DEAD, f"{silent}, its link broke" if known.gone_s is not None else silent
        if known.gone_s is not None:
            return State.SUSPECT, "its link broke"
        if now_s - known.at_s > self._timing.suspect_s / 2:
            return State.SUSPECT, silent
        return State.ALIVE, "" if self._me in known.beat.hears else "it does not hear us"

    def _is_dead(self, known: _Peer, now_s: float) -> bool:
        if known.gone_s is not None and now_s - known.gone_s >= self._timing.gone_s:
            return True
        return now_s - known.at_s >= self._timing.suspect_s

    def _hears_us(self, known: _Peer, now_s: float) -> bool:
        return not self._is_dead(known, now_s) and self._me in known.beat.hears
