"""Who may have a key or a share: a node as it runs now, because holders vouch for it.

In: an operator's word at this node, the book, what this node holds. Out: yes or no. A vote is a proof of knowledge of
the key or of a share of the present epoch: only who holds one *now* can make it. So neither a member that holds nothing
nor a seized disk can approve anybody; and of a threshold group t members have to vouch, as they have to sign.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from twisted.logger import Logger

from ron.crypto import schnorr
from ron.crypto.schnorr import HolderKey, InvalidKeysError, InvalidProofError, KeyList
from ron.proto.balance import NodeName, ServiceName
from ron.proto.errors import RonError, not_found, unavailable
from ron.services.balance.ports import Mesh, ServiceRecord
from ron.services.balance.vault.keyring import Epoch, Keyring
from ron.services.balance.vault.words import APPROVED, MAX_VOTES, SERVICE, Approval, Vote, joined, run_digest

MAX_MENDED = 8
WHOLE = 0
"""Whose proof is of the whole key."""
_LABEL = b"ron-balance/1 approval"
_log = Logger(namespace="ron.balance.vault")


class Approvals:
    """cluster: bytes that name this cluster and no other. run: this node's own. now_ms: Unix milliseconds."""

    def __init__(
        self,
        mesh: Mesh,
        ring: Keyring,
        *,
        cluster: bytes,
        run: bytes,
        mode: Literal["operator", "token"],
        now_ms: Callable[[], int],
    ) -> None:
        self.mode = mode
        self._mesh = mesh
        self._ring = ring
        self._cluster = cluster
        self._run = run
        self._now_ms = now_ms
        self._ours: dict[NodeName, bytes] = {}
        self._mended: dict[NodeName, int] = {}

    def run_of(self, name: NodeName) -> bytes:
        """The run in which this node sees `name`; empty while it has not heard of it, and for who is no member."""
        if name == self._mesh.name:
            return self._run
        peer = self._mesh.peers().get(name)
        return run_digest(peer.seal_key) if peer else b""

    def approve(self, name: NodeName) -> Approval:
        """An operator says yes to `name` as it runs now; with a vote for everything that this node holds.

        Raises `RonError`: NotFound for no member, Unavailable for one whose run is not known here, and as `Book.put`.
        """
        if name not in self._mesh.members():
            raise not_found(f"{name} is no member of this cluster")
        run = self.run_of(name)
        if not run:
            raise unavailable(f"{name} has not been heard since this node started", "try again when it is connected")
        self._ours[name] = run
        self._mended[name] = 0
        return self._write(name, run)

    def mend(self, name: NodeName) -> None:
        """Vote again where our vote is missing: the last writer wins, and two operators may say yes at once. A few
        times only, for somebody may go on striking it out."""
        run, said = self._ours.get(name), self._of(name)
        if run is None or run != self.run_of(name) or said is None or said.run != run:
            return
        lacking = [of for of in self._secrets() if of[1] not in self.voters(of[0], name)]
        if self._mended[name] < MAX_MENDED and lacking:
            self._mended[name] += 1
            try:
                self._write(name, run)
            except RonError as error:
                _log.warn("no vote for {name}: {why}", event="vault_vote", name=name, why=error.message)

    def renew(self) -> None:
        """This node holds something new: the word of its operator counts for that too, and with the present share."""
        for name in self._ours:
            self._mended[name] = 0
            self.mend(name)

    def _write(self, name: NodeName, run: bytes) -> Approval:
        before = self._of(name)
        votes = {(v.service, v.number): v for v in before.votes} if before and before.run == run else {}
        votes.update({(v.service, v.number): v for v in self._votes(name, run)})
        kept = tuple(votes.values())[-MAX_VOTES:]
        made = Approval(run=run, by=self._mesh.name, at_ms=self._now_ms(), votes=kept)
        self._mesh.book.put(APPROVED + name, made)
        return made

    def granted(self, service: ServiceName, name: NodeName) -> bool:
        """May `name`, as it runs now, have what this node holds of `service`?"""
        run = self.run_of(name)
        if not run or name not in self._mesh.members():
            return False
        if name == self._mesh.name or self.mode == "token":
            return True
        epoch = self._epoch(service)
        number = self._mesh.members()[name].number
        if epoch is not None and self._ring.shared[service].once.get(number) == run:
            return True
        return len(self.voters(service, name)) >= (epoch.group.threshold if epoch is not None else 1)

    def named(self, name: NodeName, *, here: bool) -> bool:
        """Did any operator name `name` as it runs now? here: at this very node. For a key that nobody holds yet."""
        run = self.run_of(name)
        if not run or self.mode == "token" or name == self._mesh.name:
            return bool(run)
        approval = self._of(name)
        return self._ours.get(name) == run if here else approval is not None and approval.run == run

    def voters(self, service: ServiceName, name: NodeName) -> frozenset[int]:
        """Whose shares (or whole key: 0) vouch for `name` as it runs now."""
        approval, run = self._of(name), self.run_of(name)
        if approval is None or not run or approval.run != run:
            return frozenset()
        keys = self._keys(service)
        return frozenset(
            vote.number
            for vote in approval.votes
            if vote.service == service and vote.number in keys and self._holds(vote, keys[vote.number], name, run)
        )

    def _epoch(self, service: ServiceName) -> Epoch | None:
        record = self._mesh.book.get(SERVICE + service, ServiceRecord)
        return self._ring.current(service, record.group if record is not None else b"")

    def _of(self, name: NodeName) -> Approval | None:
        return self._mesh.book.get(APPROVED + name, Approval)

    def _keys(self, service: ServiceName) -> Mapping[int, bytes]:
        if service in self._ring.whole:
            return {WHOLE: self._ring.whole[service].identity}
        epoch = self._epoch(service)
        return epoch.group.shares if epoch is not None else {}

    def _votes(self, name: NodeName, run: bytes) -> list[Vote]:
        return [self._vote(*of, secret(), name, run) for of, secret in self._secrets().items()]

    def _secrets(self) -> dict[tuple[ServiceName, int], Callable[[], bytes]]:
        """What this node can vote with, by service and number."""
        found: dict[tuple[ServiceName, int], Callable[[], bytes]] = {}
        for service, key in self._ring.whole.items():
            found[service, WHOLE] = key.scalar
        for service in self._ring.shared:
            if (epoch := self._epoch(service)) is not None:
                found[service, epoch.share.identifier] = partial(getattr, epoch.share, "secret")
        return found

    def _vote(self, service: ServiceName, number: int, secret: bytes, name: NodeName, run: bytes) -> Vote:
        at_ms = self._now_ms()
        holder = HolderKey(secret)
        transcript = self._transcript(service, number, at_ms, name, run)
        return Vote(service, number, at_ms, schnorr.prove(transcript, KeyList([holder.public]), holder))

    def _holds(self, vote: Vote, key: bytes, name: NodeName, run: bytes) -> bool:
        transcript = self._transcript(vote.service, vote.number, vote.at_ms, name, run)
        try:
            schnorr.verify(transcript, KeyList([key]), vote.proof)
        except (InvalidProofError, InvalidKeysError):
            return False
        return True

    def _transcript(self, service: ServiceName, number: int, at_ms: int, name: NodeName, run: bytes) -> bytes:
        numbers = number.to_bytes(2, "big") + at_ms.to_bytes(8, "big")
        return joined(_LABEL, self._cluster, service.encode(), numbers, name.encode(), run)
