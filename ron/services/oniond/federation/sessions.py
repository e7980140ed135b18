"""Who is federated with us now: bounded, ending by themselves, and at once when what they stood on is taken away.

In: finished handshakes, changes of policy, facts from peers. Out: sessions, and an audit record of every change. A
proof does not say whose key it was made with, so when a key is revoked every session proved against a list that had it
ends, and the holders that remain prove themselves again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from ron.services.oniond.federation.channel import Channel, Role
from ron.services.oniond.federation.messages import FactsMessage, TransportFacts
from ron.services.oniond.federation.protocol import Policy
from ron.services.oniond.federation.refusals import Refused
from ron.services.oniond.federation.roster import Roster

SESSION_LIFE_S = 3600.0
CAPACITY = 1024
PER_PEER = 4


class Audit(Protocol):
    """Takes one record; fields are never secret."""

    def __call__(self, event: str, /, **fields: Any) -> None: ...


@dataclass(slots=True, kw_only=True)
class Session:
    """One federation with `peer`. role: ours in the handshake. roster: our list that the peer proved against.

    heard: the peer's newest facts. `channel` holds the keys and is not shown.
    """

    peer: str
    role: Role
    roster: Roster = field(repr=False)
    channel: Channel = field(repr=False)
    expires_s: float
    heard: TransportFacts | None = None
    heard_sequence: int = 0
    asked_sequence: int = 0

    @property
    def id(self) -> str:
        """32 hex digits, the same at both ends. It names the session and opens nothing."""
        return self.channel.session_id

    @property
    def peer_role(self) -> Role:
        """The other one."""
        return "initiator" if self.role == "responder" else "responder"


class Sessions:
    """At most `capacity`, `per_peer` of one peer: its oldest makes room. Times are of a clock that does not go back."""

    def __init__(
        self,
        audit: Audit,
        *,
        life_s: float = SESSION_LIFE_S,
        capacity: int = CAPACITY,
        per_peer: int = PER_PEER,
    ) -> None:
        self._audit = audit
        self.life_s = life_s
        self._capacity = capacity
        self._per_peer = per_peer
        self._sessions: dict[str, Session] = {}

    def open(self, policy: Policy, session: Session, now_s: float) -> None:
        """Raises `Refused` when `policy` has moved on since the proof, the id is taken, or the table is full."""
        self.expire(now_s)
        if reason := _no_longer(policy, session):
            raise Refused(reason)
        if session.id in self._sessions:
            raise Refused("session")
        own = [other for other in self._sessions.values() if other.peer == session.peer]
        if len(own) >= self._per_peer:
            self._end(own[0], "replaced")
        if len(self._sessions) >= self._capacity:
            raise Refused("busy")
        self._sessions[session.id] = session
        self._audit(
            "federation_opened",
            peer=session.peer,
            session_id=session.id,
            role=session.role,
            roster_version=session.roster.ref.version,
        )

    def get(self, session_id: str, now_s: float) -> Session:
        """Raises `Refused` when there is none, or it has ended."""
        session = self._sessions.get(session_id)
        if session is None or now_s >= session.expires_s:
            raise Refused("session")
        return session

    def hear(self, message: FactsMessage, now_s: float) -> Session:
        """A peer's facts, when they are its own and newer than the last. Raises `Refused`."""
        session = self.get(message.session_id, now_s)
        if not session.channel.sent(session.peer_role, "ask", message):
            raise Refused("tag")
        if message.sequence <= session.heard_sequence:
            raise Refused("sequence")
        session.heard_sequence, session.heard = message.sequence, message.facts
        self._audit("federation_facts", peer=session.peer, session_id=session.id, sequence=message.sequence)
        return session

    def close(self, session_id: str, reason: str) -> None:
        """End it now, for a reason the audit log should tell. Unknown ids are no error."""
        if session := self._sessions.get(session_id):
            self._end(session, reason)

    def expire(self, now_s: float) -> None:
        """Forget what has ended by itself."""
        self._end_where(lambda session: "expired" if now_s >= session.expires_s else None)

    def apply(self, policy: Policy) -> None:
        """End what `policy` no longer covers."""
        self._end_where(lambda session: _no_longer(policy, session))

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def _end_where(self, reason: Callable[[Session], str | None]) -> None:
        for session in self:
            if why := reason(session):
                self._end(session, why)

    def _end(self, session: Session, reason: str) -> None:
        del self._sessions[session.id]
        self._audit("federation_ended", peer=session.peer, session_id=session.id, reason=reason)


def _no_longer(policy: Policy, session: Session) -> str | None:
    """Why `policy` does not cover `session`, if so."""
    if session.peer not in policy.allow:
        return "not_allowed"
    return "roster" if policy.roster.lost_since(session.roster) else None
