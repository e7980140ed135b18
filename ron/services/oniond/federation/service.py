"""Federation at work: answers peers, begins handshakes, calls back, exchanges transport facts.

In: messages from the routes, a policy, a port to peers' onions, a pool for the slow steps. Out: answers, sessions,
audit records. Everything that waits has a deadline, everything that piles up a bound. Whatever the reason of a refusal,
the peer gets the same words after the same time.
"""

from __future__ import annotations

import hmac
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, Protocol, TypeVar

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall, deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel.aio import within
from ron.proto.errors import ErrorCode, RonError, backpressure, conflict
from ron.services.oniond.federation.challenges import Challenges
from ron.services.oniond.federation.messages import (
    Challenge,
    FactsMessage,
    HandshakeAnswer,
    InitiatorProof,
    ResponderProof,
    RosterListing,
    RosterRef,
    TransportFacts,
    ZkHandshake,
)
from ron.services.oniond.federation.protocol import Attempt, Claim, Policy, Prover, Verifier
from ron.services.oniond.federation.refusals import Refused
from ron.services.oniond.federation.roster import Roster, RosterBook
from ron.services.oniond.federation.sessions import SESSION_LIFE_S, Audit, Session, Sessions

CALL_TIMEOUT_S = 30.0
OPEN_TIMEOUT_S = 60.0
# Refusals go out at multiples of this after the request came, so that their time does not tell how far it got.
REFUSAL_STEP_S = 2.0
MAX_WAITING = 256
MAX_CALL_BACKS = 64
MAX_CALL_BACKS_A_PEER = 2
TICK_S = 10.0
_log = Logger(namespace="ron.oniond.federation")
P = ParamSpec("P")
T = TypeVar("T")


class Peers(Protocol):
    """Calls to a peer's onion, each on a circuit of its own. Raises `RonError` for whatever goes wrong."""

    async def challenge(self, onion: str) -> Challenge: ...

    async def roster(self, onion: str) -> RosterListing: ...

    async def handshake(self, onion: str, message: ZkHandshake) -> HandshakeAnswer: ...

    async def facts(self, onion: str, message: FactsMessage) -> FactsMessage: ...


class Pool(Protocol):
    """`ron.kernel.threads.BoundedPool`."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T: ...


class Federation(Service):
    """One node's federation, under one policy at a time.

    facts: what we tell about ourselves. now_s must not go back when the wall clock is set, or a used nonce would come
    alive.
    """

    def __init__(
        self,
        clock: IReactorTime,
        *,
        policy: Policy,
        book: RosterBook,
        peers: Peers,
        pool: Pool,
        audit: Audit,
        facts: Callable[[], TransportFacts],
        now_s: Callable[[], float] = time.monotonic,
        wall_s: Callable[[], float] = time.time,
        session_life_s: float = SESSION_LIFE_S,
    ) -> None:
        self.policy = policy
        self.sessions = Sessions(audit, life_s=session_life_s)
        self._clock, self._now_s, self._wall_s = clock, now_s, wall_s
        self._book, self._peers, self._pool, self._audit, self._facts = book, peers, pool, audit, facts
        self._challenges = Challenges()
        self._verifier, self._prover = Verifier(self._challenges), Prover(book)
        self._opened: dict[bytes, Deferred[Session]] = {}
        self._waiting = 0
        self._calling: Counter[str] = Counter()
        self._call_backs: set[Deferred[None]] = set()
        self._ticks = LoopingCall(self._tick)
        self._ticks.clock = clock

    def startService(self) -> None:
        """Look after what ends by itself."""
        super().startService()
        self._ticks.start(TICK_S, now=False)

    def stopService(self) -> None:
        """Give up what is under way, and end every session."""
        super().stopService()
        self._ticks.stop()
        for call_back in tuple(self._call_backs):
            call_back.cancel()
        for session in self.sessions:
            self.sessions.close(session.id, "stopped")

    def update(self, policy: Policy) -> None:
        """Use `policy` from now on; what it does not cover any more ends at once."""
        self.policy = policy
        self.sessions.apply(policy)

    def challenge(self) -> Challenge:
        """Answer of `GET /federate/challenge`."""
        return self._verifier.challenge(self.policy, self._now_s(), self._wall_s())

    def roster(self) -> RosterListing:
        """Answer of `GET /federate/roster`."""
        return self.policy.roster.listing(self.policy.onion)

    async def handshake(self, message: ZkHandshake) -> HandshakeAnswer:
        """`POST /federate/zk_handshake`. Raises `Refused` for every reason alike, or `RonError` Backpressure."""
        proof, peer = message.proof, message.peer_onion
        if isinstance(proof, InitiatorProof):
            return await self._alike(self._first(peer, proof), claimed=peer, role="initiator")
        return await self._alike(self._second(peer, proof), claimed=peer, role="responder")

    async def facts(self, message: FactsMessage) -> FactsMessage:
        """`POST /federate/facts`: remember the peer's and answer with ours. Raises like `handshake`."""
        return await self._alike(self._hear(message), session_id=message.session_id)

    async def connect(self, peer: str) -> Session:
        """Federate with `peer`; the session is open at our end. Raises `RonError`: what `peer` said, Conflict when our
        policy or its messages do not fit; `TimeoutError`."""
        self._permitted(peer)
        challenge = await self._call(self._peers.challenge(peer))
        await self._roster_of(peer, challenge.roster)
        attempt = self._prover.begin(self.policy, peer, challenge, self._now_s())
        opened: Deferred[Session] = Deferred()
        self._opened[attempt.channel.meeting.own_nonce] = opened
        try:
            await self._ask(attempt)
            return await within(self._clock, OPEN_TIMEOUT_S, opened)
        finally:
            self._prover.drop(attempt)
            opened.addErrback(lambda _: None)  # it may have failed before anybody waited for it
            self._opened.pop(attempt.channel.meeting.own_nonce, None)

    async def exchange(self, session_id: str) -> TransportFacts:
        """Tell the peer our facts and learn its own. Raises `RonError`; a session the peer does not know ends here."""
        session = self.sessions.get(session_id, self._now_s())
        session.asked_sequence += 1
        asked = session.channel.facts_message(session.role, "ask", session.asked_sequence, self._facts())
        try:
            answer = await self._call(self._peers.facts(session.peer, asked))
        except RonError as error:
            if error.code is ErrorCode.NO_CAPABILITY:
                self.sessions.close(session_id, "peer_refused")
            raise
        if answer.sequence != asked.sequence or not session.channel.sent(session.peer_role, "answer", answer):
            self.sessions.close(session_id, "tag")
            raise conflict("the peer's facts are not its own", "the session is closed: federate again")
        session.heard = answer.facts
        return answer.facts

    def _permitted(self, peer: str) -> None:
        try:
            self.policy.holding(peer)
        except Refused as refusal:
            hint = "add it to federation.allow" if refusal.reason == "not_allowed" else "ask its operator for one"
            raise conflict("federation needs the peer on our allow list and a capability of the peer's", hint) from None

    async def _ask(self, attempt: Attempt) -> None:
        peer, own_id = attempt.channel.meeting.responder, attempt.channel.session_id
        message = await self._pool.run(attempt.prove, self._wall_s())
        answer = await self._call(self._peers.handshake(peer, message))
        if answer.state != "pending" or answer.session_id != own_id:
            raise conflict("the peer's answer belongs to another handshake")
        self._audit("federation_asked", peer=peer, session_id=own_id)

    async def _first(self, peer: str, proof: InitiatorProof) -> HandshakeAnswer:
        claim = self._verifier.first(self.policy, peer, proof, self._now_s(), self._wall_s())
        await self._slow(claim.verify)
        if self._calling.total() >= MAX_CALL_BACKS or self._calling[peer] >= MAX_CALL_BACKS_A_PEER:
            raise Refused("busy")
        self._audit("federation_proved", peer=peer, session_id=claim.channel.session_id)
        self._calling[peer] += 1
        call_back = Deferred.fromCoroutine(self._call_back(claim))
        self._call_backs.add(call_back)
        call_back.addBoth(self._called_back, peer, call_back)
        return self._answer("pending", claim)

    def _called_back(self, result: Failure | None, peer: str, call_back: Deferred[None]) -> None:
        self._call_backs.discard(call_back)
        self._calling[peer] -= 1
        if isinstance(result, Failure) and not result.check(CancelledError):
            _log.failure("calling back {peer} failed", failure=result, event="federation_bug", peer=peer)

    async def _call_back(self, claim: Claim) -> None:
        """Prove ourselves at the onion the peer claims to be; it is that one only if its answer confirms it."""
        session_id = claim.channel.session_id
        try:
            roster = await self._roster_of(claim.peer, claim.channel.meeting.own_roster)
            message = await self._pool.run(claim.answer, self.policy, roster, self._wall_s())
            answer = await self._call(self._peers.handshake(claim.peer, message))
            if not hmac.compare_digest(answer.confirm or b"", claim.channel.confirmation()):
                raise Refused("tag")
            self._open(claim)
        except Refused as refusal:
            self._audit("federation_failed", peer=claim.peer, session_id=session_id, reason=refusal.reason)
        except RonError as error:
            self._audit("federation_failed", peer=claim.peer, session_id=session_id, reason=error.code.value)
        except DeadlineError:
            self._audit("federation_failed", peer=claim.peer, session_id=session_id, reason="timeout")

    async def _second(self, peer: str, proof: ResponderProof) -> HandshakeAnswer:
        try:
            claim = self._verifier.second(self.policy, peer, proof, self._prover, self._now_s(), self._wall_s())
            await self._slow(claim.verify)
            session = self._open(claim)
        except Refused as refusal:
            # only the peer that was asked knows this nonce: whoever waits for it need not wait longer
            if opened := self._opened.pop(proof.nonce, None):
                opened.errback(refusal)
            raise
        if opened := self._opened.pop(proof.nonce, None):
            opened.callback(session)
        return self._answer("open", claim)

    async def _hear(self, message: FactsMessage) -> FactsMessage:
        session = self.sessions.hear(message, self._now_s())
        return session.channel.facts_message(session.role, "answer", message.sequence, self._facts())

    def _open(self, claim: Claim) -> Session:
        now_s = self._now_s()
        session = Session(
            peer=claim.peer,
            role=claim.role,
            roster=claim.roster,
            channel=claim.channel,
            expires_s=now_s + self.sessions.life_s,
        )
        self.sessions.open(self.policy, session, now_s)
        return session

    def _answer(self, state: Any, claim: Claim) -> HandshakeAnswer:
        return HandshakeAnswer(
            ok=True,
            state=state,
            session_id=claim.channel.session_id,
            expires_at=int(self._wall_s() + self.sessions.life_s),
            confirm=claim.channel.confirmation() if state == "open" else None,
        )

    async def _roster_of(self, peer: str, ref: RosterRef) -> Roster:
        """The list `ref` names, from the book or from `peer` itself. Raises `RonError` Conflict when it has another."""
        known = self._book.newest(peer)
        if known is not None and known.ref == ref:
            return known
        listing = await self._call(self._peers.roster(peer))
        roster = await self._pool.run(Roster.read, listing, peer)
        if roster.ref != ref:
            raise conflict("the peer names one list of holder keys and gives another", "it may have changed: try again")
        self._book.admit(peer, roster)
        return roster

    async def _slow(self, step: Callable[[], None]) -> None:
        """`step` in the pool. A full pool refuses like everything else: only allowed peers get this far."""
        try:
            await self._pool.run(step)
        except Refused:
            raise
        except RonError:
            raise Refused("busy") from None

    async def _alike(self, work: Coroutine[Any, Any, T], **claimed: str) -> T:
        """The outcome of `work`; its refusals are recorded, and wait for their time."""
        if self._waiting >= MAX_WAITING:
            work.close()
            raise backpressure("too many federation requests are under way")
        self._waiting += 1
        began_s = self._now_s()
        try:
            return await work
        except Refused as refusal:
            self._audit("federation_refused", reason=refusal.reason, **claimed)
            await deferLater(self._clock, -(self._now_s() - began_s) % REFUSAL_STEP_S or REFUSAL_STEP_S)
            raise
        finally:
            self._waiting -= 1

    async def _call(self, call: Coroutine[Any, Any, T]) -> T:
        return await within(self._clock, CALL_TIMEOUT_S, call)

    def _tick(self) -> None:
        now_s = self._now_s()
        self.sessions.expire(now_s)
        self._challenges.renew(now_s)
