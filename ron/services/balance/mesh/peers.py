"""The other nodes as they are now: the links to each, its clock, when it was heard. No sockets of its own.

A node dials each other and is dialled by it, so two links are usual. What is sent goes on our own link while it stands,
else on theirs: one of two that can reach the other is enough.
"""

from __future__ import annotations

from collections.abc import Iterator

from ron.services.balance.mesh.clocks import Drift
from ron.services.balance.mesh.link import Link
from ron.services.balance.ports import Member, Peer


class PeerState:
    """One other node. own: the link that we dialled. theirs: the one it did."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.own: Link | None = None
        self.theirs: Link | None = None
        self.drift = Drift()
        self.heard_s: float | None = None
        self.seal_key = b""

    @property
    def links(self) -> tuple[Link, ...]:
        """Those that stand, the one to send on first."""
        return tuple(link for link in (self.own, self.theirs) if link is not None and link.stands)

    @property
    def link(self) -> Link | None:
        """To send on."""
        return next(iter(self.links), None)


class PeerStates:
    """All of them, by name. `up` and `down` follow links."""

    def __init__(self) -> None:
        self._states: dict[str, PeerState] = {}

    def __iter__(self) -> Iterator[PeerState]:
        return iter(tuple(self._states.values()))

    def state(self, name: str) -> PeerState | None:
        """What is known of it, None if there never was a link."""
        return self._states.get(name)

    def link(self, name: str) -> Link | None:
        """To send to it on."""
        state = self._states.get(name)
        return state.link if state is not None else None

    def up(self, link: Link) -> Link | None:
        """It stands. The one that it takes the place of, which is to be closed."""
        state = self._states.setdefault(link.name, PeerState(link.name))
        if link.dialled:
            old, state.own = state.own, link
            # measured anew: when a clock was set, what it was before would have every message stale, pongs too
            state.drift = Drift()
        else:
            old, state.theirs = state.theirs, link
        if link.met is not None and link.met.claim.seal_key != state.seal_key:
            state.seal_key = link.met.claim.seal_key
        return old

    def down(self, link: Link) -> None:
        """It stands no more."""
        state = self._states.get(link.name)
        if state is None:
            return
        if state.own is link:
            state.own = None
        if state.theirs is link:
            state.theirs = None

    def forget(self, name: str) -> None:
        """It is no member any more."""
        self._states.pop(name, None)

    def is_linked(self, name: str | None) -> bool:
        """Whether we have dialled it and the link stands; for None, whether there is any link."""
        if name is None:
            return any(state.links for state in self)
        state = self._states.get(name)
        return state is not None and state.own is not None

    def peer(self, member: Member) -> Peer:
        """`member` as it is now."""
        state = self._states.get(member.name)
        if state is None:
            return Peer(member=member)
        return Peer(
            member=member,
            connected=state.link is not None,
            heard_s=state.heard_s,
            drift_s=state.drift.drift_s,
            seal_key=state.seal_key,
        )

    def count(self) -> tuple[int, int]:
        """Links that stand: dialled by us, by others."""
        links = [link for state in self for link in state.links]
        dialled = sum(1 for link in links if link.dialled)
        return dialled, len(links) - dialled
