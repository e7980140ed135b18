"""Joint approvals as `approve --folder` and `aggregate` run them: who waits, who is named, what comes of it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from ron.ctl import governance_together
from ron.ctl.governance_ceremony import sealed_share
from ron.ctl.governance_together import Calls, aggregate, approve_together
from ron.proto.errors import RonError
from ron.proto.governance import Role
from ron.services.kms.governance.signers import key_id
from ron.services.kms.governance.views import proposal_view, standing
from tests.ctl.test_governance_joint import ROLES, SignersCase
from tests.services.kms.governance.people import CUSTODIAN, OFFICER, OWNER, World, key_of, public_of


class Together(SignersCase):
    """As `approve --folder` and `aggregate` run it, on a clock of the test's."""

    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()
        for role in ROLES:
            path = self.folder / f"{role}.share"
            path.write_bytes(sealed_share(self.joint.shares[public_of(role)], key_of(role)))
            path.chmod(0o600)

    def begin(self, role: Role, *with_: str) -> Any:
        """One signer's process. What comes of it is in the list."""
        how = governance_together.Together(self.folder, self.folder / f"{role}.share", with_, 5.0, now=self.world.now)
        work = approve_together(self.clock, _Service(self.world), self.case.proposal.id, key_of(role), how)  # type: ignore[arg-type]
        return self.caught(work)

    def caught(self, work: Any) -> list[Any]:
        """What comes of it, once it does."""
        found: list[Any] = []
        Deferred.fromCoroutine(work).addBoth(found.append)
        return found

    def run_on(self, seconds: float) -> None:
        """Time goes by."""
        self.clock.pump([0.25] * int(seconds * 4))

    def message(self, found: list[Any]) -> str:
        """Of the error that it is."""
        self.assertEqual(len(found), 1)
        error = found[0].value
        assert isinstance(error, RonError)
        return error.message

    def test_two_of_them(self) -> None:
        """Whoever joins may be there first; both are told how the proposal stands."""
        second = self.begin(CUSTODIAN)
        self.run_on(1)
        first = self.begin(OWNER, CUSTODIAN)
        self.run_on(3)
        self.assertEqual(([one.state for one in first], len(second)), (["approved"], 1))
        (vote,) = self.world.governance.ledger.case(self.case.proposal.id).votes
        self.assertEqual(set(vote.signers), {key_id(public_of(role)) for role in (OWNER, CUSTODIAN)})

    def test_the_other_does_not_come(self) -> None:
        """Named at the deadline, in each place where somebody is waited for; the nonces are gone."""
        found = self.begin(OWNER, CUSTODIAN)
        self.run_on(6)
        self.assertIn(f"{CUSTODIAN} (", self.message(found))
        self.assertIn("anybody who began", self.message([*self.begin_and_wait(OFFICER)]))
        joined = self.begin(CUSTODIAN)
        self.run_on(6)
        self.assertIn(f"{OWNER} (", self.message(joined))

    def begin_and_wait(self, role: Role) -> list[Any]:
        """Until nobody came."""
        found = self.begin(role)
        self.run_on(6)
        return found

    def test_an_attempt_that_failed_is_not_taken_up_again(self) -> None:
        """A new one is begun beside it, and that one is joined."""
        self.begin_and_wait(CUSTODIAN)
        late = self.begin(OWNER, CUSTODIAN)
        self.run_on(6)
        self.assertIn("nothing came from", self.message(late))
        self.world.clock.advance(5)
        first, second = self.begin(OWNER, OFFICER), self.begin(OFFICER)
        self.run_on(3)
        self.assertEqual([one.state for one in first], ["approved"], second)

    def test_anybody_puts_it_together(self) -> None:
        """What lies there is enough, also when whoever began is gone; a share that does not fit is its maker's."""
        call = self.call(OWNER, CUSTODIAN)
        Calls(self.folder, self.quorum, self.case.proposal.id, key_of(OWNER)).put(call)
        first, second = self.part(call, OWNER), self.part(call, CUSTODIAN)
        nothing = self.caught(aggregate(_Service(self.world), self.case.proposal.id, self.folder, now=self.world.now))  # type: ignore[arg-type]
        self.assertIn("nothing in that folder", self.message(nothing))
        first.step(), first.step(), second.step()
        (found,) = self.caught(aggregate(_Service(self.world), self.case.proposal.id, self.folder, now=self.world.now))  # type: ignore[arg-type]
        self.assertEqual(found.state, "approved")

    def test_nobody_puts_a_lie_together(self) -> None:
        """It names who lied."""
        call = self.call(OWNER, CUSTODIAN)
        Calls(self.folder, self.quorum, self.case.proposal.id, key_of(OWNER)).put(call)
        first, liar = self.part(call, OWNER), self.part(call, CUSTODIAN)
        put = liar.session.box.put
        liar.session.box.put = lambda body, **to: put(body[:-32] + bytes((body[-32] ^ 1,)) + body[-31:], **to)  # type: ignore[method-assign]
        first.step(), liar.step()
        found = self.caught(aggregate(_Service(self.world), self.case.proposal.id, self.folder, now=self.world.now))  # type: ignore[arg-type]
        self.assertIn(f"bad_share by {CUSTODIAN}", self.message(found))
        self.assertEqual(self.world.governance.ledger.case(self.case.proposal.id).votes, ())

    def test_a_service_that_shows_another_proposal(self) -> None:
        """Nothing is signed."""
        other = self.world.propose("pq_mode", {"pq_mode": "and"})
        service = _Service(self.world)
        service.shown = other.proposal.id
        how = governance_together.Together(
            self.folder, self.folder / f"{OWNER}.share", (CUSTODIAN,), 5.0, now=self.world.now
        )
        found = self.caught(approve_together(self.clock, service, self.case.proposal.id, key_of(OWNER), how))  # type: ignore[arg-type]
        self.assertIn("another proposal", self.message(found))
        self.assertEqual(self.letters(), [])


class _Service:
    """What the SDK's client would bring of a real governance. shown: the proposal it shows, whatever is asked for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.shown = ""

    async def standing(self) -> Any:
        return standing(self._world.governance)

    async def proposal(self, proposal: str) -> Any:
        case = self._world.governance.ledger.case(self.shown or proposal)
        return proposal_view(case, self._world.governance)

    async def vote(self, _proposal: str, signed: Any) -> Any:
        case = await self._world.governance.state(signed)
        assert case is not None
        return proposal_view(case, self._world.governance)
