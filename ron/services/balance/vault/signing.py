"""A signature by t of n nodes, coordinated from here: the fastest that are known to be good sign, liars are left out.

In: a message and a time period. Out: 64 bytes, verified; or `RonError` (Unavailable) naming how many are needed and how
many are there. The coordinator holds no more than its own share and is trusted by nobody (docs/threshold.rst).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from ron.crypto.frost.errors import Refused
from ron.crypto.frost.keys import GroupKey
from ron.crypto.frost.session import NONCE_BYTES, Coordinator, Request
from ron.proto.balance import NodeName, ServiceName
from ron.proto.errors import RonError, bad_request, unavailable
from ron.services.balance.ports import Mesh
from ron.services.balance.vault.cosigning import Cosigner
from ron.services.balance.vault.keyring import Epoch, Keyring
from ron.services.balance.vault.rounds import Round
from ron.services.balance.vault.telemetry import Telemetry
from ron.services.balance.vault.words import COMMIT, SIGN, Commit, Framed, Package
from ron.tor.descriptor.periods import TimePeriod

TRY_S = 2.0
# One more than needed is asked to commit: it costs it a millisecond, and saves a second when another is dead.
SPARE = 1
_UNKNOWN_S = 0.1
_KEEP = 0.7


class Form:
    """How quickly others have answered lately, in seconds; a node without a record is taken for a middling one."""

    def __init__(self) -> None:
        self._took_s: dict[NodeName, float] = {}

    def took(self, name: NodeName, seconds: float) -> None:
        """An answer, or a deadline that passed."""
        before = self._took_s.get(name, seconds)
        self._took_s[name] = _KEEP * before + (1 - _KEEP) * seconds

    def of(self, name: NodeName) -> float:
        """What is to be expected."""
        return self._took_s.get(name, _UNKNOWN_S)


class ThresholdSigner:
    """`ron.tor.descriptor.blinding.Signer` over the mesh. Made by `KeyVault.signer`."""

    def __init__(
        self,
        reactor: Any,
        mesh: Mesh,
        ring: Keyring,
        cosigner: Cosigner,
        telemetry: Telemetry,
        form: Form,
        service: ServiceName,
    ) -> None:
        self._reactor = reactor
        self._mesh = mesh
        self._ring = ring
        self._cosigner = cosigner
        self._telemetry = telemetry
        self._form = form
        self._service = service
        self.identity: bytes = self._epochs()[0].group.public

    async def sign(self, period: TimePeriod, message: bytes) -> bytes:
        """As `Signer.sign`. Raises `RonError`: Unavailable when too few take part."""
        began_s = self._reactor.seconds()
        failed: RonError | None = None
        for epoch in self._epochs():
            try:
                made = await self._sign(epoch, period, message)
            except RonError as error:
                # while it is open which epoch is in use, it is the one that enough others have
                failed = failed or error
                continue
            self._telemetry.signed(self._reactor.seconds() - began_s)
            return made
        self._telemetry.not_signed()
        raise failed or unavailable(f"this node has no share of {self._service}")

    def _epochs(self) -> tuple[Epoch, ...]:
        holding = self._ring.shared.get(self._service)
        found = holding.epochs() if holding is not None else ()
        if not found:
            raise unavailable(f"this node has no share of {self._service}")
        return found

    async def _sign(self, epoch: Epoch, period: TimePeriod, message: bytes) -> bytes:
        out: dict[int, str] = {}
        while True:
            there = self._candidates(epoch.group, out)
            if len(there) < epoch.group.threshold:
                raise self._too_few(epoch.group, len(there), out)
            made = await Attempt(self, epoch, there, period, message, out).run()
            if made is not None:
                return made

    def _candidates(self, group: GroupKey, out: Mapping[int, str]) -> dict[int, NodeName]:
        """Members of the group that can be asked, the most promising first."""
        peers = self._mesh.peers()
        names = {member.number: name for name, member in self._mesh.members().items()}
        found = {
            number: names[number]
            for number in group.members
            if number in names
            and number not in out
            and (names[number] == self._mesh.name or peers[names[number]].connected)
        }
        return dict(sorted(found.items(), key=lambda one: self._rank(one[1])))

    def _rank(self, name: NodeName) -> tuple[bool, bool, float]:
        return name in self._telemetry.suspects, name != self._mesh.name, self._form.of(name)

    def _too_few(self, group: GroupKey, there: int, out: Mapping[int, str]) -> RonError:
        names = {member.number: name for name, member in self._mesh.members().items()}
        why = "; ".join(f"{names.get(number, number)}: {reason}" for number, reason in sorted(out.items()))
        return unavailable(
            f"a signature for {self._service} needs {group.threshold} of {len(group.members)} nodes, {there} are there"
            + (f" ({why})" if why else ""),
            "bring nodes back; the last descriptor lives on until it ends",
        )


class Attempt:
    """One session. Whoever is silent, refuses or lies is added to `out`."""

    def __init__(
        self,
        signer: ThresholdSigner,
        epoch: Epoch,
        there: Mapping[int, NodeName],
        period: TimePeriod,
        message: bytes,
        out: dict[int, str],
    ) -> None:
        self._signer = signer
        self._epoch = epoch
        self._there = there
        self._out = out
        self._group = epoch.blinded_group(period)
        self._request = Request(message=message, nonce=secrets.token_bytes(NONCE_BYTES))
        self._me = signer._mesh.me.number
        # looks at each commitment as it comes; who signs in the end is known only when enough are there
        self._door = self._coordinator(list(there))

    async def run(self) -> bytes | None:
        """The signature; None when somebody was left out and there is to be another attempt."""
        need = self._group.threshold
        first = Round(self._signer._reactor, self._commitment, list(self._there), need=need, spare=SPARE)
        enough = await first.run()
        self._out.update(first.refusals)
        if not enough:
            return None
        signers = sorted(list(first.answers)[:need])
        coordinator = self._coordinator(signers)
        for number in signers:
            coordinator.receive(number, first.answers[number])
        second = Round(
            self._signer._reactor, lambda number: self._share(coordinator, number), signers, need=len(signers)
        )
        if not await second.run():
            self._out.update(second.refusals)
            return None
        return self._signature(coordinator)

    def _coordinator(self, signers: list[int]) -> Coordinator:
        return Coordinator(self._group, self._request, self._me, signers)

    async def _commitment(self, number: int) -> bytes:
        asked = Commit(
            service=self._signer._service,
            epoch=self._epoch.group.digest,
            nonce=self._request.nonce,
            message=self._request.message,
        )
        return self._received(self._door, number, await self._ask(number, COMMIT, asked))

    async def _share(self, coordinator: Coordinator, number: int) -> bytes:
        package = Package(nonce=self._request.nonce, frame=coordinator.package())
        return self._received(coordinator, number, await self._ask(number, SIGN, package))

    async def _ask(self, number: int, kind: str, body: Commit | Package) -> bytes:
        name, signer = self._there[number], self._signer
        if name == signer._mesh.name:
            own = signer._cosigner
            answer = await (own.commit(name, body) if isinstance(body, Commit) else own.sign(name, body))
            return answer.frame
        began_s = signer._reactor.seconds()
        try:
            answered = await signer._mesh.call(name, kind, body, Framed, deadline_s=TRY_S)
        finally:
            signer._form.took(name, signer._reactor.seconds() - began_s)
        return answered.frame

    def _received(self, coordinator: Coordinator, number: int, frame: bytes) -> bytes:
        try:
            coordinator.receive(number, frame)
        except Refused as refused:
            self._caught(refused)
            raise bad_request(f"its message is {refused.reason}") from None
        return frame

    def _signature(self, coordinator: Coordinator) -> bytes | None:
        try:
            return coordinator.signature()
        except Refused as refused:
            self._caught(refused)
            self._out.update(dict.fromkeys(refused.members, f"its message is {refused.reason}"))
            return None

    def _caught(self, refused: Refused) -> None:
        self._signer._telemetry.refused(refused.reason)
        for number in refused.members if refused.blames else ():
            if self._there[number] != self._signer._mesh.name:
                self._signer._telemetry.blame(self._there[number], refused.reason)
