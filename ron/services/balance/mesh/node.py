"""One run of a node in the mesh, as its links see it (`link.Hall`): what comes in goes to whom it is for.

In: links that begin and end, frames, what the rooms send. Out: messages to handlers, answers to calls, pings.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from twisted.logger import Logger

from ron.proto.errors import RonError
from ron.services.balance.mesh import keepalive, sync
from ron.services.balance.mesh.book import LocalBook
from ron.services.balance.mesh.calls import ANSWER, Calls
from ron.services.balance.mesh.codec import Unfit, decode, encode
from ron.services.balance.mesh.dialling import Ourselves
from ron.services.balance.mesh.door import Door
from ron.services.balance.mesh.entries import MEMBER, Entry
from ron.services.balance.mesh.handlers import OWN_KINDS, Handlers
from ron.services.balance.mesh.handshake import Met, Own, Turned, TwinProof
from ron.services.balance.mesh.link import Link
from ron.services.balance.mesh.meters import Meters
from ron.services.balance.mesh.outbox import Item
from ron.services.balance.mesh.peers import PeerStates
from ron.services.balance.mesh.replay import Lives
from ron.services.balance.mesh.roster import Roster, member_of
from ron.services.balance.mesh.tokens import Token
from ron.services.balance.mesh.voice import Voice
from ron.services.balance.mesh.wire import Envelope, Refused

TWIN = "mesh/twin"
TWIN_S = 2.0
# Links that others dial: an old and a new one of each member, and some who only try.
MAX_ACCEPTED = 192
MAX_ACCEPTED_BY_NAME = 4
_log = Logger(namespace="ron.balance.mesh")


class AskTwin(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A call: sign this, if you live. Another run of yours stands at the door."""

    nonce: bytes


class Node:
    """`link.Hall`. present_token: ours, None while it is not the cluster's present one. compare: given each peer's
    digest of the book. give_up: this node may not be in the mesh any more."""

    def __init__(
        self,
        reactor: Any,
        *,
        voice: Voice,
        book: LocalBook,
        roster: Roster,
        peers: PeerStates,
        handlers: Handlers,
        meters: Meters,
        present_token: Callable[[], Token | None],
        compare: Callable[[str, bytes], None],
        give_up: Callable[[RonError], None],
    ) -> None:
        self.voice = voice
        self.peers = peers
        self.calls = Calls(reactor, handlers, self.send)
        # the last time that somebody turned us away, or could not be believed to be of the cluster; and who that was
        self.turned: Refused | None = None
        self.turned_by = ""
        self._reactor = reactor
        self._book = book
        self._roster = roster
        self._handlers = handlers
        self._meters = meters
        self._present_token = present_token
        self._compare = compare
        self._give_up = give_up
        self._lives = Lives()
        self._links: set[Link] = set()
        self._closed = False
        self._accepted: set[Link] = set()
        self._pings: dict[Link, keepalive.Pings] = {}
        self._door = Door(voice, roster, self.peers, self._lives, ask_twin=self._ask_twin, give_up=give_up)

    # -- sending ----------------------------------------------------------------------------------------------------

    def send(self, to: str, item: Item) -> Link | None:
        """Queue it for `to`; the link it takes, None when there is none."""
        link = self.peers.link(to)
        if link is None:
            return None
        dropped = link.send(item)
        self._meters.dropped(to, len(dropped))
        self.calls.unsent(dropped)
        return link

    def spread(self, entry: Entry) -> None:
        """What this node has written into the book, to all."""
        item = Item(sync.WRITTEN, 0, encode(sync.Written((entry,))))
        for state in self.peers:
            self.send(state.name, item)

    async def _ask_twin(self, name: str, nonce: bytes) -> TwinProof:
        return await self.calls.call(name, TWIN, AskTwin(nonce), TwinProof, TWIN_S)

    async def twin_asked(self, sender: str, body: AskTwin) -> TwinProof:
        """Somebody has our name, or so `sender` says."""
        _log.warn(
            "{peer} says that another node calls itself {name}", event="mesh_twin", peer=sender, name=self.voice.name
        )
        return self.voice.prove_run(body.nonce)

    # -- as a link's hall -------------------------------------------------------------------------------------------

    def own(self, link: Link, binding: bytes) -> Own:
        """`Hall.own`."""
        if not link.dialled:
            self._refuse_if_full(link)
        voice = self.voice
        return Own(voice.cluster, voice.claim(), voice.signing, self._present_token(), binding)

    def _refuse_if_full(self, link: Link) -> None:
        if len(self._accepted) >= MAX_ACCEPTED:
            raise Refused("full", "too many links")
        if sum(1 for other in self._accepted if other.name == link.name) >= MAX_ACCEPTED_BY_NAME:
            raise Refused("full", f"too many links of {link.name}")
        self._accepted.add(link)
        link.ended.addBoth(lambda _problem: self._accepted.discard(link))

    async def admit(self, link: Link, met: Met) -> None:
        """`Hall.admit`."""
        await self._door.admit(link, met)

    def up(self, link: Link) -> None:
        """`Hall.up`."""
        if self._closed:
            # it began before the end, and would keep the next run of this node out
            link.close()
            return
        # before it can be told anything that it would not believe yet
        self._welcome_member(link)
        if link.over:
            return
        if link.name == self.turned_by:
            self.turned, self.turned_by = None, ""
        old = self.peers.up(link)
        if old is not None:
            old.close()
        self._links.add(link)
        self._count()
        _log.info("linked with {peer}", event="mesh_up", peer=link.name, dialled=link.dialled)
        if link.dialled:
            self._pings[link] = keepalive.Pings()
            self._ping(link)

    def down(self, link: Link, unsent: list[Item]) -> None:
        """`Hall.down`."""
        self.peers.down(link)
        self._links.discard(link)
        self._pings.pop(link, None)
        self._meters.dropped(link.name, len(unsent))
        self.calls.link_down(link)
        self._count()
        _log.info(
            "the link with {peer} has ended: {reason}",
            event="mesh_down",
            peer=link.name,
            dialled=link.dialled,
            reason=str(link.problem or "closed"),
        )

    def seal(self, link: Link, item: Item) -> bytes:
        """`Hall.seal`."""
        self._meters.sent(item.kind)
        return self.voice.seal(link.name, item.kind, item.corr, item.body)

    def unseal(self, link: Link, payload: bytes) -> Envelope:
        """`Hall.unseal`."""
        if link.met is None:
            raise Refused("stranger", fatal=True)
        key = link.met.claim.key
        if self._roster.is_removed(link.name, key):
            raise Refused("removed", link.name, fatal=True)
        envelope = self.voice.unseal(link.name, key, payload)
        self._lives.take(envelope.sender, envelope.run, envelope.boot, envelope.seq)
        if not envelope.kind.startswith(OWN_KINDS) and not self._roster.is_member(link.name, key):
            raise Refused("stranger", f"{link.name} is no member yet")
        state = self.peers.state(link.name)
        if state is not None and state.drift.is_stale(envelope.sent_ms, self.voice.now()):
            raise Refused("stale", f"{envelope.kind} of {envelope.sent_ms}")
        return envelope

    def received(self, link: Link, envelope: Envelope) -> None:
        """`Hall.received`."""
        self._meters.received(envelope.kind)
        state = self.peers.state(link.name)
        if state is not None:
            state.heard_s = self._reactor.seconds()
        try:
            self._dispatch(link, envelope)
        except Unfit as problem:
            self._meters.refused(link.name, "malformed", f"{envelope.kind}: {problem}")

    def refused(self, name: str, problem: Refused) -> None:
        """`Hall.refused`."""
        if isinstance(problem, Ourselves):
            return
        if isinstance(problem, Turned):
            self._turned(name, problem)
            return
        if problem.reason == "wrong_token" and not self._roster.is_member(self.voice.name, self.voice.key):
            self.turned, self.turned_by = problem, name
        self._meters.refused(name, problem.reason, problem.detail)

    # -- now and then -----------------------------------------------------------------------------------------------

    def tick(self, silence_s: float) -> None:
        """Ping on the links that we dialled, end those that are silent."""
        for link in tuple(self._links):
            link.check(silence_s)
            if link.stands and link.dialled:
                self._ping(link)

    def close_removed(self) -> None:
        """End the links with whoever is no member any more."""
        for link in tuple(self._links):
            if link.met is not None and self._roster.is_removed(link.name, link.met.claim.key):
                link.part(Refused("removed", link.name))
                self.peers.forget(link.name)
                self._lives.forget(link.name)
                self._meters.forget(link.name)

    def close_all(self) -> None:
        """End all links, for good: those too that have not come about yet."""
        self._closed = True
        for link in (*self._links, *self._accepted):
            link.close()

    # -- messages of the mesh itself --------------------------------------------------------------------------------

    def _dispatch(self, link: Link, envelope: Envelope) -> None:
        kind = envelope.kind
        if kind == keepalive.PING:
            self._pinged(link, decode(envelope.body, keepalive.Ping))
        elif kind == keepalive.PONG:
            self._ponged(link, decode(envelope.body, keepalive.Pong))
        elif kind == ANSWER:
            self.calls.answered(link.name, envelope.corr, envelope.body)
        elif envelope.corr:
            self.calls.asked(link.name, kind, envelope.corr, envelope.body)
        else:
            self._handlers.deliver(link.name, kind, envelope.body)

    def _ping(self, link: Link) -> None:
        ping = self._pings[link].ping(self._now_us(), self._book.digest())
        link.send(Item(keepalive.PING, 0, encode(ping)), urgent=True)

    def _pinged(self, link: Link, ping: keepalive.Ping) -> None:
        now_us = self._now_us()
        pong = keepalive.Pong(ping.sent_us, now_us, now_us, self._book.digest())
        link.send(Item(keepalive.PONG, 0, encode(pong)), urgent=True)
        self._compare(link.name, ping.digest)

    def _ponged(self, link: Link, pong: keepalive.Pong) -> None:
        pings = self._pings.get(link)
        if pings is None or not pings.answered(pong):
            return
        link.answered_s = self._reactor.seconds()
        found = keepalive.measured(pong, self._now_us())
        state = self.peers.state(link.name)
        if found is not None and state is not None:
            state.drift.add(found)
            best = state.drift.best or found
            self._meters.clock(link.name, best.drift_s, found.rtt_s)
        self._compare(link.name, pong.digest)

    def _now_us(self) -> int:
        return max(0, int(self.voice.now() * 1_000_000))

    def _welcome_member(self, link: Link) -> None:
        """Who has proved the token to us, and was no member, is one now; if we are one."""
        if link.met is None or link.dialled or not self._roster.is_member(self.voice.name, self.voice.key):
            return
        claim = link.met.claim
        if self._roster.is_member(claim.name, claim.key):
            return
        try:
            self._book.put(MEMBER + claim.name, member_of(claim.name, claim.key, claim.addresses))
        except RonError as error:
            _log.warn(
                "{peer} could not be written down: {problem}",
                event="mesh_not_joined",
                peer=claim.name,
                problem=error.one_line(),
            )
            link.close()
            return
        _log.info("{peer} has joined", event="mesh_joined", peer=claim.name)

    def _turned(self, name: str, problem: Turned) -> None:
        self.turned, self.turned_by = problem, name
        _log.warn(
            "{peer} has turned us away: {reason} {detail}",
            event="mesh_turned_away",
            peer=name,
            reason=problem.reason,
            detail=problem.detail,
        )
        fatal = self._door.turned(problem.refusal, problem.nonce)
        if fatal is not None:
            self._give_up(fatal)

    def _count(self) -> None:
        self._meters.links(*self.peers.count())
