"""Federation as a node hosts it: its policy follows the config, the capabilities given out and the keys held.

In: the config, the register of capabilities, a folder. Out: a `Federation` whose policy is at most some seconds behind
them, sessions with the peers that are to be there at all times, and a view for the operator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.auth.register import Minted
from ron.crypto.schnorr import MAX_KEYS, HolderKey
from ron.kernel.backoff import Backoff
from ron.kernel.health import HealthState
from ron.proto.errors import ErrorCode, RonError, conflict, unavailable
from ron.services.oniond.federation.grants import Listed, first_list, holders, next_list
from ron.services.oniond.federation.messages import TransportFacts
from ron.services.oniond.federation.protocol import Policy
from ron.services.oniond.federation.roster import Pin, Roster, RosterBook
from ron.services.oniond.federation.routes import FederationView, OwnList, SessionView
from ron.services.oniond.federation.service import Federation, Peers, Pool
from ron.services.oniond.federation.sessions import Audit, Session
from ron.services.oniond.federation.shelf import Shelf

# A capability that is revoked ends its sessions after this, and the second after which revocations are read.
LOOK_S = 1.0
# After so many rounds in which nobody could tell who is revoked, nobody is let in.
BLIND_ROUNDS = 3
# Facts are told anew this often; that is also when we learn that the peer knows our session no more.
FACTS_EVERY_S = 60.0
HEALTH_KEY = "federation"
PROTOCOLS = ("ron-federation/1",)
_log = Logger(namespace="ron.oniond.federation")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the config says. keep: peers to federate with at all times."""

    allow: frozenset[str]
    keep: tuple[str, ...]
    min_holders: int
    regions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the disk says."""

    listed: Listed
    holders: int
    holdings: Mapping[str, HolderKey]
    pins: Mapping[str, Pin]
    trouble: tuple[str, ...]


class FederationDesk(Service):
    """`routes.Desk`. All that blocks is done in `files`, a pool of one thread; what is slow to compute in `proofs`.

    wishes: the config's at present. onion: the federation onion's address, once it has one. minted: the register, with
    whether each is revoked; blocks, and raises `RonError` while that cannot be told. busy: are we under load?
    """

    def __init__(
        self,
        reactor: Any,
        *,
        wishes: Callable[[], Wishes],
        onion: Callable[[], str | None],
        minted: Callable[[], Iterable[tuple[Minted, bool]]],
        shelf: Shelf,
        peers: Peers,
        files: Pool,
        proofs: Pool,
        audit: Audit,
        health: HealthState,
        busy: Callable[[], bool] = lambda: False,
        wall_s: Callable[[], float] = time.time,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.federation: Federation | None = None
        self._reactor = reactor
        self._wishes, self._onion, self._minted, self._shelf = wishes, onion, minted, shelf
        self._peers, self._files, self._proofs, self._audit = peers, files, proofs, audit
        self._health, self._busy, self._wall_s, self._now_s = health, busy, wall_s, now_s
        self._seen: _Seen | None = None
        self._trouble: tuple[str, ...] = ()
        self._blind_rounds = 0
        self._basis: object = None
        self._book: RosterBook | None = None
        self._roster: Roster | None = None
        self._round = LoopingCall(self._look)
        self._round.clock = reactor
        self._tries: dict[str, tuple[Backoff, float]] = {}
        self._told_s: dict[str, float] = {}
        self._under_way: dict[str, Deferred[None]] = {}

    # Life

    def startService(self) -> None:
        """Look at once, and every second."""
        super().startService()
        self._health.degraded(HEALTH_KEY, "its onion has no address yet")
        self._round.start(LOOK_S)

    def stopService(self) -> None:
        """End every session; nothing is told to peers."""
        super().stopService()
        if self._round.running:
            self._round.stop()
        for one in tuple(self._under_way.values()):
            one.cancel()
        federation, self.federation = self.federation, None
        if federation is not None:
            federation.stopService()

    # For the operator

    def view(self) -> FederationView:
        """As it stands. Raises `RonError` StoreUnavailable while there is nothing to show."""
        federation, seen = self.federation, self._seen
        if federation is None or seen is None:
            raise unavailable("; ".join(self._trouble) or "federation is not ready yet")
        policy, ref = federation.policy, federation.policy.roster.ref
        return FederationView(
            onion=policy.onion,
            allow=tuple(sorted(policy.allow)),
            issuers=tuple(sorted(policy.holdings)),
            list=OwnList(version=ref.version, digest=ref.digest, size=ref.size, holders=seen.holders),
            sessions=tuple(self._session(session) for session in federation.sessions),
            trouble=self._trouble,
        )

    async def connect(self, peer: str) -> SessionView:
        """Federate with `peer` and exchange facts. Raises `RonError`."""
        if self.federation is None:
            raise unavailable("; ".join(self._trouble) or "federation is not ready yet")
        federation = self.federation
        try:
            session = await federation.connect(peer)
            self._told_s[session.id] = self._now_s()
            await federation.exchange(session.id)
        except DeadlineError:
            hint = "it may be down; or it cannot reach our onion: its audit log has federation_failed then"
            raise RonError(ErrorCode.TIMEOUT, "the peer did not answer, or did not call back", hint=hint) from None
        except RonError as error:
            if error.code is not ErrorCode.NO_CAPABILITY:
                raise
            hint = "its allow list, our key on its list, both clocks: its audit log says which"
            raise conflict("the peer refused", hint) from None
        return self._session(session)

    def _session(self, session: Session) -> SessionView:
        return SessionView(
            id=session.id,
            peer=session.peer,
            role=session.role,
            roster_version=session.roster.ref.version,
            expires_in_s=max(0, int(session.expires_s - self._now_s())),
            facts=session.heard,
        )

    # Every second

    def _look(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._looked()).addErrback(self._blind)

    def _blind(self, failure: Failure) -> None:
        """Nothing may end these rounds: a node that made no more of them would never hear of a revocation."""
        if failure.check(CancelledError):
            return
        text = failure.value.one_line() if isinstance(failure.value, RonError) else "an internal error; see the log"
        if (text,) != self._trouble and not failure.check(RonError):
            _log.failure("federation could not be looked after", failure, event="federation_bug")
        self._complain((text,))
        self._blind_rounds += 1
        if self._blind_rounds >= BLIND_ROUNDS and self.federation is not None:
            self.federation.update(replace(self.federation.policy, allow=frozenset()))
            self._basis = None

    async def _looked(self) -> None:
        onion = self._onion()
        if onion is None or not self.running:
            return
        seen = await self._files.run(self._read)
        if not self.running:
            return
        self._seen, self._blind_rounds = seen, 0
        wishes = self._wishes()
        trouble = seen.trouble + ((f"{onion} is our own onion",) if onion in wishes.allow else ())
        self._adopt(onion, wishes, seen)
        self._complain(trouble)
        self._keep_up(wishes.keep)
        await self._keep_pins()

    def _read(self) -> _Seen:
        """In a thread. Our list is on disk before anybody sees it."""
        listed = self._seen.listed if self._seen is not None else self._shelf.listed()
        granted = holders(self._minted())
        wanted = next_list(listed or first_list(self._wall_s()), granted)
        if wanted != listed:
            self._shelf.keep_list(wanted)
        pins = self._seen.pins if self._seen is not None else self._shelf.pins()
        holdings, wrong = self._shelf.holdings()
        late = len(granted) - MAX_KEYS
        crowd = [f"{late} holders are not on the list, which has room for {MAX_KEYS}: revoke some"] if late > 0 else []
        return _Seen(listed=wanted, holders=len(granted), holdings=holdings, pins=pins, trouble=(*wrong, *crowd))

    def _adopt(self, onion: str, wishes: Wishes, seen: _Seen) -> None:
        held = tuple((issuer, key.public) for issuer, key in seen.holdings.items())
        basis = (onion, wishes.allow, seen.listed, held)
        if basis == self._basis:
            return
        if self._roster is None or self._roster.ref.version != seen.listed.version:
            self._roster = Roster(seen.listed.version, seen.listed.keys)
        policy = Policy(onion=onion, allow=wishes.allow - {onion}, roster=self._roster, holdings=dict(seen.holdings))
        if self.federation is None:
            self.federation = self._begin(policy, wishes, seen.pins)
        else:
            self.federation.update(policy)
        self._basis = basis

    def _begin(self, policy: Policy, wishes: Wishes, pins: Mapping[str, Pin]) -> Federation:
        self._book = RosterBook(min_size=wishes.min_holders, pins=pins)
        federation = Federation(
            self._reactor,
            policy=policy,
            book=self._book,
            peers=self._peers,
            pool=self._proofs,
            audit=self._audit,
            facts=self._facts,
            now_s=self._now_s,
            wall_s=self._wall_s,
        )
        federation.startService()
        _log.info("federation is open at {onion}", event="federation_up", onion=policy.onion)
        return federation

    def _facts(self) -> TransportFacts:
        onion = self.federation.policy.onion if self.federation is not None else ""
        load: Any = "high" if self._busy() else "normal"
        return TransportFacts(onion=onion, protocols=PROTOCOLS, regions=self._wishes().regions, load=load)

    async def _keep_pins(self) -> None:
        if self._book is None or self._seen is None:
            return
        pins = self._book.pins()
        if pins != self._seen.pins:
            await self._files.run(self._shelf.keep_pins, pins)
            self._seen = replace(self._seen, pins=pins)

    def _complain(self, trouble: tuple[str, ...]) -> None:
        self._trouble = trouble
        if trouble:
            self._health.degraded(HEALTH_KEY, "; ".join(trouble)[:1000])
        else:
            self._health.ok(HEALTH_KEY)

    # At all times

    def _keep_up(self, keep: Sequence[str]) -> None:
        """Sessions with `keep`; facts over all that we have begun."""
        if self.federation is None:
            return
        now_s, sessions = self._now_s(), list(self.federation.sessions)
        for session in sessions:
            if session.role == "initiator" and now_s >= self._told_s.get(session.id, 0) + FACTS_EVERY_S:
                self._told_s[session.id] = now_s
                self._begin_task(session.id, self.federation.exchange(session.id))
        self._told_s = {one.id: self._told_s[one.id] for one in sessions if one.id in self._told_s}
        there = {session.peer for session in sessions}
        for peer in keep:
            backoff, at_s = self._tries.setdefault(peer, (Backoff(base_s=5.0, ceiling_s=300.0), 0.0))
            if peer in there:
                self._tries.pop(peer)
            elif now_s >= at_s and peer not in self._under_way:
                self._tries[peer] = (backoff, now_s + backoff.next_delay_s())
                self._begin_task(peer, self.connect(peer))

    def _begin_task(self, name: str, work: Any) -> None:
        def ended(result: Any) -> None:
            self._under_way.pop(name, None)
            if isinstance(result, Failure) and not result.check(RonError, DeadlineError, CancelledError):
                _log.failure("federating failed", result, event="federation_bug")
            elif isinstance(result, Failure) and not result.check(CancelledError):
                _log.info("{about}: {error}", event="federation_later", about=name, error=result.getErrorMessage())

        task = Deferred.fromCoroutine(work)
        self._under_way[name] = task
        task.addBoth(ended)
