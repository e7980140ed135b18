"""This node's part in signatures that others coordinate: it judges, commits, signs once, and forgets.

In: the two calls of a coordinator. Out: a commitment, then a signature share; or `RonError`. Bounded: so many requests
a minute from each node, and a session that goes no further loses its nonces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ron.crypto.frost.errors import FrostError, InvalidGroupError, Refused
from ron.crypto.frost.session import Request, Signer
from ron.proto.balance import NodeName, ServiceName
from ron.proto.errors import backpressure, bad_request, conflict, not_found
from ron.services.balance.ports import Mesh
from ron.services.balance.vault.judge import judged
from ron.services.balance.vault.keyring import Keyring
from ron.services.balance.vault.rates import Rate
from ron.services.balance.vault.telemetry import Telemetry
from ron.services.balance.vault.words import COMMIT, SIGN, Commit, Framed, Package
from ron.tor.descriptor.periods import TimePeriod
from ron.tor.descriptor.refused import Refused as NotSigned

MAX_REQUESTS = 30
SESSION_S = 10.0


class Cosigner:
    """periods: those that are due, by this node's own consensus. now: Unix seconds."""

    def __init__(
        self,
        reactor: Any,
        mesh: Mesh,
        ring: Keyring,
        telemetry: Telemetry,
        *,
        periods: Callable[[], Sequence[TimePeriod]],
        now: Callable[[], float],
    ) -> None:
        self._reactor = reactor
        self._mesh = mesh
        self._ring = ring
        self._telemetry = telemetry
        self._periods = periods
        self._now = now
        self._rate = Rate(reactor, MAX_REQUESTS)
        self._open: dict[tuple[NodeName, bytes], tuple[Signer, Any]] = {}
        mesh.serve(COMMIT, Commit, self.commit)
        mesh.serve(SIGN, Package, self.sign)

    async def commit(self, sender: NodeName, asked: Commit) -> Framed:
        """Round one. Raises `RonError`: Backpressure above the rate, Conflict for an epoch that is not here, BadRequest
        for what this node does not let be signed."""
        epoch = self._ring.epoch(asked.service, asked.epoch)
        if epoch is None:
            raise conflict(f"no share of that epoch of {asked.service} is here")
        self._limit(sender, asked.service)
        if (sender, asked.nonce) in self._open:
            self._telemetry.refused("repeated")
            raise conflict("that session is open already")
        try:
            period = judged(asked.message, epoch.group.public, self._periods(), self._now())
        except NotSigned as refused:
            self._telemetry.refused(f"judged_{refused.reason}")
            raise
        share = epoch.blinded_share(period, allow_unlocked=self._ring.allow_unlocked)
        request = Request(message=asked.message, nonce=asked.nonce)
        signer = Signer(share, request, self._mesh.members()[sender].number)
        ends = self._reactor.callLater(SESSION_S, self.forget, sender, asked.nonce)
        self._open[sender, asked.nonce] = (signer, ends)
        return Framed(frame=signer.commitment())

    async def sign(self, sender: NodeName, package: Package) -> Framed:
        """Round two. Raises `RonError`: NotFound for no open session, BadRequest for a package that is not right."""
        session = self._open.get((sender, package.nonce))
        if session is None:
            self._telemetry.refused("out_of_place")
            raise not_found("no such session is open")
        try:
            made = session[0].sign(self._mesh.members()[sender].number, package.frame)
        except Refused as refused:
            self._telemetry.refused(refused.reason)
            if refused.blames and sender != self._mesh.name:
                self._telemetry.blame(sender, f"a package that is {refused.reason}")
            raise bad_request(f"the package is refused: {refused.reason}") from None
        except (FrostError, InvalidGroupError):
            raise conflict("the share of that session is gone") from None
        self.forget(sender, package.nonce)
        return Framed(frame=made)

    def forget(self, sender: NodeName, nonce: bytes) -> None:
        """End a session, signed or not."""
        signer, ends = self._open.pop((sender, nonce))
        signer.drop()
        if ends.active():
            ends.cancel()

    def stop(self) -> None:
        """End all sessions."""
        for sender, nonce in list(self._open):
            self.forget(sender, nonce)

    def _limit(self, sender: NodeName, service: ServiceName) -> None:
        """Our own requests count for nobody's rate: whoever runs this node has the share anyway."""
        if sender != self._mesh.name and not self._rate.allows((sender, service)):
            self._telemetry.refused("rate")
            raise backpressure(f"over {MAX_REQUESTS} signatures a minute for one node and service")
