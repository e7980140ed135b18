"""Ceremonies as they are proposed: written down by one node, and examined by every other before it agrees.

In: an operator's order, or somebody else's `Proposal`. Out: a `Proposal`, or the `Plan` in it; or `RonError` with what
speaks against it. Every node judges by what it holds and sees itself; the one that proposes is not trusted.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Sequence

import msgspec

from ron.crypto.frost.errors import InvalidGroupError
from ron.crypto.frost.keys import GroupKey
from ron.crypto.frost.plan import NONCE_BYTES, OWNER, Plan, Purpose
from ron.proto.balance import NodeName, ServiceName
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict, not_found, unavailable
from ron.services.balance.ports import Member, Mesh, ServiceRecord
from ron.services.balance.vault.approvals import Approvals
from ron.services.balance.vault.keyring import Keyring
from ron.services.balance.vault.words import SERVICE, Proposal, Seat
from ron.tor.descriptor.blinding import identity_of

_NEW = (Purpose.KEYGEN, Purpose.IMPORT)


class Proposals:
    """floor: the lowest threshold that this node's config wants for a service; None where it says nothing."""

    def __init__(
        self, mesh: Mesh, ring: Keyring, approvals: Approvals, *, floor: Callable[[ServiceName], int | None]
    ) -> None:
        self._mesh = mesh
        self._ring = ring
        self._approvals = approvals
        self._floor = floor

    # Written

    def birth(self, service: ServiceName, threshold: int, among: Sequence[NodeName], public: bytes = b"") -> Proposal:
        """A new key for `among`; or the one with the key `public`, which this node brings. Raises `RonError`."""
        members = [self._member(name) for name in among]
        numbers = tuple(sorted(member.number for member in members))
        return Proposal(
            service=service,
            purpose=Purpose.IMPORT if public else Purpose.KEYGEN,
            nonce=secrets.token_bytes(NONCE_BYTES),
            threshold=threshold,
            dealers=(OWNER,) if public else numbers,
            receivers=numbers,
            seats=self._seats(members, owner=bool(public)),
            public=public,
        )

    def refresh(self, service: ServiceName, group: GroupKey) -> Proposal:
        """New shares for all members of `group`."""
        members = self._numbered(group.members)
        return self._renewal(service, Purpose.REFRESH, group, group.threshold, group.members, group.members, members)

    def reshare(
        self,
        service: ServiceName,
        group: GroupKey,
        *,
        threshold: int,
        dealers: Sequence[int],
        receivers: Sequence[int],
        removed: Sequence[int] = (),
    ) -> Proposal:
        """The key of `group` for `receivers`, by `dealers`; `removed` are to get no share again by themselves."""
        members = self._numbered({*dealers, *receivers})
        made = self._renewal(service, Purpose.RESHARE, group, threshold, dealers, receivers, members)
        return msgspec.structs.replace(made, removed=tuple(removed))

    def _renewal(
        self,
        service: ServiceName,
        purpose: Purpose,
        group: GroupKey,
        threshold: int,
        dealers: Iterable[int],
        receivers: Iterable[int],
        members: Sequence[Member],
    ) -> Proposal:
        return Proposal(
            service=service,
            purpose=purpose,
            nonce=secrets.token_bytes(NONCE_BYTES),
            threshold=threshold,
            dealers=tuple(sorted(dealers)),
            receivers=tuple(sorted(receivers)),
            seats=self._seats(members),
            public=group.public,
            previous=group.encode(),
        )

    def _seats(self, members: Sequence[Member], *, owner: bool = False) -> tuple[Seat, ...]:
        seats = [Seat(member.number, member.name, self._run(member.name)) for member in members]
        if owner:
            seats.append(Seat(OWNER, self._mesh.name, self._run(self._mesh.name)))
        return tuple(sorted(seats, key=lambda seat: seat.number))

    def _run(self, name: NodeName) -> bytes:
        run = self._approvals.run_of(name)
        if not run or (name != self._mesh.name and not self._mesh.peers()[name].connected):
            raise unavailable(f"{name} is not connected", "all who take part in a ceremony have to be there")
        return run

    def _member(self, name: NodeName) -> Member:
        member = self._mesh.members().get(name)
        if member is None:
            raise not_found(f"{name} is no member of this cluster")
        return member

    def _numbered(self, numbers: Iterable[int]) -> list[Member]:
        known = {member.number: member for member in self._mesh.members().values()}
        missing = sorted(set(numbers) - set(known))
        if missing:
            raise conflict(f"members {missing} are not in this cluster any more", "reshare without them")
        return [known[number] for number in sorted(set(numbers))]

    # Examined

    def examined(self, proposal: Proposal, starter: NodeName) -> Plan:
        """The plan, when this node will take part in it. Raises `RonError`."""
        plan = plan_of(proposal)
        self._check_seats(proposal, plan, starter)
        if plan.purpose in _NEW:
            self._check_new(proposal, plan, starter)
        else:
            self._check_renewal(proposal, plan)
        return plan

    def _check_seats(self, proposal: Proposal, plan: Plan, starter: NodeName) -> None:
        numbers = [seat.number for seat in proposal.seats]
        if sorted(numbers) != sorted(plan.participants):
            raise bad_request("the seats are not those of the plan")
        for seat in proposal.seats:
            if seat.number != OWNER and self._member(seat.name).number != seat.number:
                raise bad_request(f"{seat.name} has another number than its seat")
            if self._approvals.run_of(seat.name) != seat.run:
                raise conflict(f"{seat.name} does not run as the proposal says", "has it been started again?")
        names = {seat.name for seat in proposal.seats}
        owner = proposal.seat(OWNER)
        if self._mesh.name not in names or starter not in names or (owner is not None and owner.name != starter):
            raise bad_request("somebody has no seat in this ceremony who has to have one")

    def _check_new(self, proposal: Proposal, plan: Plan, starter: NodeName) -> None:
        service = proposal.service
        if self._ring.uses(service) or self._mesh.book.get(SERVICE + service, ServiceRecord) is not None:
            raise conflict(f"{service} has an address already")
        here = starter == self._mesh.name
        self._all(
            proposal, plan.receivers, lambda name: name == starter or self._approvals.named(name, here=here), service
        )

    def _check_renewal(self, proposal: Proposal, plan: Plan) -> None:
        service = proposal.service
        record = self._mesh.book.get(SERVICE + service, ServiceRecord)
        if record is None or identity_of(record.onion) != plan.public:
            raise conflict(f"that is not the address of {service}")
        if plan.previous is not None and self._mesh.me.number in plan.dealers:
            if self._ring.epoch(service, plan.previous.digest) is None:
                raise conflict(f"{self._mesh.name} has no share of that epoch of {service}", "reshare without it")
            self._check_threshold(service, plan.previous.threshold, plan.threshold)
        if self._ring.current(service) is not None:
            self._all(proposal, plan.receivers, lambda name: self._approvals.granted(service, name), service)

    def _check_threshold(self, service: ServiceName, before: int, after: int) -> None:
        """Fewer than before could sign: that is for the operators of all who deal, not for one node to say."""
        if after < min(before, self._floor(service) or before):
            raise RonError(
                ErrorCode.NO_CAPABILITY,
                f"{self._mesh.name} does not let {service} be signed by {after} nodes",
                hint="set the service's threshold in the config of every node that has a share",
            )

    def _all(
        self, proposal: Proposal, numbers: Iterable[int], may: Callable[[NodeName], bool], service: ServiceName
    ) -> None:
        names = sorted(seat.name for number in numbers if (seat := proposal.seat(number)) is not None)
        refused = [name for name in names if not may(name)]
        if refused:
            raise RonError(
                ErrorCode.NO_CAPABILITY,
                f"{self._mesh.name} has no approval of {', '.join(refused)} for {service}",
                hint=f"ronctl balance approve {refused[0]}, on as many nodes with a share as have to sign",
            )


def plan_of(proposal: Proposal) -> Plan:
    """What `ron.crypto.frost` makes of it. Raises `RonError` (BadRequest)."""
    try:
        return Plan(
            purpose=proposal.purpose,
            nonce=proposal.nonce,
            threshold=proposal.threshold,
            dealers=proposal.dealers,
            receivers=proposal.receivers,
            public=proposal.public or None,
            previous=GroupKey.decode(proposal.previous) if proposal.previous else None,
        )
    except InvalidGroupError as error:
        raise bad_request(f"a ceremony that cannot be carried out: {error}") from None
