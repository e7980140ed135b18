"""How a ceremony ended for the others, when its end did not reach this node.

In: a ceremony whose new share waits here. Out: the share in use, or forgotten, as soon as that is certain. Until then
both are kept and either signs. One node's word decides nothing: as many as the threshold have to say it, so that at
least one of them is honest; or all others hold their new share, which is all that an end is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, gatherResults
from twisted.logger import Logger

from ron.crypto.frost.errors import InvalidGroupError
from ron.crypto.frost.keys import GroupKey
from ron.proto.balance import NodeName, ServiceName
from ron.proto.errors import RonError
from ron.services.balance.ports import Mesh, ServiceRecord
from ron.services.balance.vault.keyring import Keyring
from ron.services.balance.vault.words import SERVICE, STANDING, Proposal, Standing, Stands

ASK_EVERY_S = 5.0
CALL_S = 2.0
_log = Logger(namespace="ron.balance.vault")


class Settling:
    """adopted: called with a service when its pending epoch is in use. state_of: of a ceremony at this node."""

    def __init__(
        self,
        reactor: Any,
        mesh: Mesh,
        ring: Keyring,
        *,
        state_of: Callable[[bytes], str | None],
        adopted: Callable[[ServiceName], None],
    ) -> None:
        self._reactor = reactor
        self._mesh = mesh
        self._ring = ring
        self._state_of = state_of
        self._adopted = adopted
        self._open: dict[ServiceName, Proposal] = {}
        self._timer: Any = None
        mesh.serve(STANDING, Standing, self._stands)

    def watch(self, proposal: Proposal) -> None:
        """Ask the others about it until it is settled."""
        self._open[proposal.service] = proposal
        if self._timer is None or not self._timer.active():
            self._timer = self._reactor.callLater(0, self._look)

    def stop(self) -> None:
        """Ask no more."""
        self._open.clear()
        if self._timer is not None and self._timer.active():
            self._timer.cancel()

    async def _stands(self, _sender: NodeName, asked: Standing) -> Stands:
        holding = self._ring.shared.get(asked.service)
        if holding is not None and holding.was_adopted(asked.epoch):
            return Stands(state="adopted")
        if holding is not None and holding.pending is not None and holding.pending.ceremony == asked.ceremony:
            return Stands(state="confirmed")
        state = self._state_of(asked.ceremony)
        if state == "done":
            # a dealer that has left the group
            return Stands(state="adopted")
        return Stands(state="failed" if state == "failed" else "open" if state else "unknown")

    def _look(self) -> None:
        self._timer = self._reactor.callLater(ASK_EVERY_S, self._look) if self._open else None
        for proposal in list(self._open.values()):
            Deferred.fromCoroutine(self._settle(proposal)).addErrback(
                lambda failure: _log.failure("settling failed", failure, event="vault_settling_failed")
            )

    async def _settle(self, proposal: Proposal) -> None:
        epoch = self._pending(proposal)
        if epoch is None:
            return
        names = {seat.name for seat in proposal.seats} - {self._mesh.name}
        asked = Standing(service=proposal.service, ceremony=proposal.ceremony, epoch=epoch)
        states = await gatherResults([Deferred.fromCoroutine(self._ask(name, asked)) for name in sorted(names)])
        receivers = {seat.name for seat in proposal.seats if seat.number in proposal.receivers} - {self._mesh.name}
        have = {name for name, state in states if state in ("adopted", "confirmed")}
        if self._pending(proposal) is None:
            return
        if _count(states, "adopted") >= proposal.threshold or receivers <= have:
            del self._open[proposal.service]
            self._ring.adopt(proposal.service, proposal.ceremony, proposal.removed)
            self._adopted(proposal.service)
        elif _count(states, "failed") >= proposal.threshold:
            del self._open[proposal.service]
            self._ring.drop_pending(proposal.service, proposal.ceremony)

    def _pending(self, proposal: Proposal) -> bytes | None:
        """The epoch that waits for an answer about this ceremony."""
        holding = self._ring.shared.get(proposal.service)
        if holding is not None and holding.pending is not None and holding.pending.ceremony == proposal.ceremony:
            return holding.pending.group.digest
        if self._open.get(proposal.service) is proposal:
            del self._open[proposal.service]
        return None

    async def _ask(self, name: NodeName, asked: Standing) -> tuple[NodeName, str]:
        try:
            return name, (await self._mesh.call(name, STANDING, asked, Stands, deadline_s=CALL_S)).state
        except RonError:
            return name, "unknown"

    async def superseded(self, service: ServiceName) -> bool:
        """Do as many members of our epoch as its threshold use the book's, in which this node has no part?"""
        record, epoch = self._mesh.book.get(SERVICE + service, ServiceRecord), self._ring.current(service)
        if record is None or epoch is None or record.group == epoch.group.encode():
            return False
        digest = _digest(record.group)
        if digest is None or self._ring.epoch(service, digest) is not None:
            return False
        numbers = {member.number: name for name, member in self._mesh.members().items()}
        names = [numbers[number] for number in epoch.group.members if number in numbers]
        asked = Standing(service=service, ceremony=bytes(32), epoch=digest)
        calls = [Deferred.fromCoroutine(self._ask(name, asked)) for name in names if name != self._mesh.name]
        return _count(await gatherResults(calls), "adopted") >= epoch.group.threshold


def _count(states: list[tuple[NodeName, str]], state: str) -> int:
    return sum(1 for _, one in states if one == state)


def _digest(encoded: bytes) -> bytes | None:
    try:
        return GroupKey.decode(encoded).digest
    except InvalidGroupError:
        return None
