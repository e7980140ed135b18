"""The whole key of a shared service, from a node that holds it to one that may: sealed to that run, and checked there.

In: services in the book of which this node has nothing; questions of other nodes. Out: keys in the keyring, a list of
who waits for an operator. The same question brings a node that lost its share with its memory a new one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.crypto.hpke import InvalidKeyError, OpenError, PrivateKey, PublicKey, Suite
from ron.proto.balance import MAX_NODES, MAX_SERVICES, NodeName, ServiceName
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict, not_found, unavailable
from ron.services.balance.ports import Mesh, ServiceRecord
from ron.services.balance.vault.approvals import Approvals
from ron.services.balance.vault.keyring import Keyring, WholeKey
from ron.services.balance.vault.telemetry import Telemetry
from ron.services.balance.vault.words import ASK, SERVICE, Ask, Given, joined

SEEK_S = 2.0
CALL_S = 3.0
_LABEL = b"ron-balance/1 key"
_log = Logger(namespace="ron.balance.vault")


class Handover:
    """restore: told that an approved node lacks its share of a service. own: this node's run."""

    def __init__(
        self,
        reactor: Any,
        mesh: Mesh,
        ring: Keyring,
        approvals: Approvals,
        telemetry: Telemetry,
        *,
        seal: PrivateKey,
        cluster: bytes,
        restore: Callable[[ServiceName, NodeName], None],
    ) -> None:
        self._mesh = mesh
        self._ring = ring
        self._approvals = approvals
        self._telemetry = telemetry
        self._seal = seal
        self._cluster = cluster
        self._restore = restore
        self._waiting: dict[tuple[ServiceName, NodeName], bytes] = {}
        self._seeking = False
        self._rounds = 0
        self._loop = LoopingCall(self.seek)
        self._loop.clock = reactor
        mesh.serve(ASK, Ask, self._asked)

    def start(self) -> None:
        """Look for what is missing, now and again and again."""
        self._loop.start(SEEK_S, now=True)

    def stop(self) -> None:
        """Look no more."""
        if self._loop.running:
            self._loop.stop()

    def waiting(self) -> tuple[NodeName, ...]:
        """Members that asked for a key or share in the run they are in, and may not have it yet; sorted."""
        open_ = {
            name
            for (service, name), run in self._waiting.items()
            if self._approvals.run_of(name) == run and not self._approvals.granted(service, name)
        }
        return tuple(sorted(open_))

    # The one that has it

    async def _asked(self, sender: NodeName, asked: Ask) -> Given:
        """Raises `RonError`: NotFound for nothing of that service here, NoCapability before there is an approval."""
        service = asked.service
        if service not in self._ring.holds():
            raise not_found(f"{self._mesh.name} has nothing of {service}")
        if asked.run != self._approvals.run_of(sender):
            raise conflict(f"{sender} runs in another way than {self._mesh.name} sees it", "ask again")
        if not self._approvals.granted(service, sender):
            self._note(service, sender, asked.run)
            raise RonError(
                ErrorCode.NO_CAPABILITY,
                f"{sender} waits for an operator's approval",
                hint=f"ronctl balance approve {sender}, at a node that holds {service}",
            )
        self._waiting.pop((service, sender), None)
        key = self._ring.whole.get(service)
        if key is None:
            self._restore(service, sender)
            raise unavailable(f"a new share of {service} is being dealt to {sender}")
        return Given(box=self._sealed(service, sender, key))

    def _note(self, service: ServiceName, sender: NodeName, run: bytes) -> None:
        if len(self._waiting) < MAX_NODES * MAX_SERVICES:
            self._waiting[service, sender] = run

    def _sealed(self, service: ServiceName, to: NodeName, key: WholeKey) -> bytes:
        theirs = self._mesh.peers()[to].seal_key
        info = self._info(service, self._mesh.name, to, self._seal.public.raw, theirs)
        try:
            with _wiped(key.copy()) as expanded:
                box = PublicKey(Suite.PQ, theirs).seal(bytes(expanded), info=info)
        except InvalidKeyError:
            raise bad_request(f"{to} has no proper seal key") from None
        self._telemetry.handed(service, to)
        return box

    def _info(self, service: ServiceName, giver: NodeName, taker: NodeName, gives: bytes, takes: bytes) -> bytes:
        return joined(_LABEL, self._cluster, service.encode(), giver.encode(), taker.encode(), gives, takes)

    # The one that lacks it

    def seek(self) -> None:
        """Ask for everything that is missing, unless this is being done."""
        if not self._seeking:
            self._seeking = True
            Deferred.fromCoroutine(self._seek()).addErrback(
                lambda failure: _log.failure("asking for keys failed", failure, event="vault_seek_failed")
            )

    async def _seek(self) -> None:
        try:
            for key in self._mesh.book.keys(SERVICE):
                service = key.removeprefix(SERVICE)
                record = self._mesh.book.get(key, ServiceRecord)
                if record is not None and service not in self._ring.holds():
                    await self._ask_round(service, record)
        finally:
            self._seeking = False

    async def _ask_round(self, service: ServiceName, record: ServiceRecord) -> None:
        """One after another, until somebody gives it. Who deals a share does so in a ceremony."""
        self._rounds += 1
        peers = list(self._mesh.peers().items())
        # another one first in each round: the first may not be able to
        turned = self._rounds % max(len(peers), 1)
        for name, peer in peers[turned:] + peers[:turned]:
            if not peer.connected or service in self._ring.holds():
                continue
            asked = Ask(service=service, run=self._approvals.run_of(self._mesh.name))
            try:
                given = await self._mesh.call(name, ASK, asked, Given, deadline_s=CALL_S)
                self._taken(service, record, name, given.box)
            except RonError as error:
                _log.debug("{name} gives nothing: {why}", event="vault_not_given", name=name, why=error.message)
                if error.code is ErrorCode.STORE_UNAVAILABLE and record.mode == "threshold":
                    # a ceremony is on its way; two would be in each other's
                    return

    def _taken(self, service: ServiceName, record: ServiceRecord, giver: NodeName, box: bytes) -> None:
        peer = self._mesh.peers().get(giver)
        gives = peer.seal_key if peer is not None else b""
        info = self._info(service, giver, self._mesh.name, gives, self._seal.public.raw)
        try:
            opened = bytearray(self._seal.open(box, info=info))
        except OpenError:
            self._telemetry.refused("sealed")
            raise bad_request("a key that is not sealed to this run") from None
        with _wiped(opened):
            key = WholeKey(bytearray(opened), allow_unlocked=self._ring.allow_unlocked)
            key.wipe()
            if key.onion != record.onion:
                self._telemetry.refused("other_key")
                _log.warn(
                    "{name} gave another key than that of {service}",
                    event="vault_other_key",
                    name=giver,
                    service=service,
                )
                raise bad_request("the key of another address")
            self._ring.take_whole(service, opened)
        _log.info(
            "this node holds the key of {service}, from {name}", event="vault_key_taken", service=service, name=giver
        )


@contextmanager
def _wiped(secret: bytearray) -> Iterator[bytearray]:
    """`secret` for the block, overwritten at its end."""
    try:
        yield secret
    finally:
        secret[:] = bytes(len(secret))
