"""One signature for a quorum: what a joint key decides, and what it does not."""

from __future__ import annotations

import base64
import hashlib
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace
from nacl.signing import VerifyKey
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import RonError
from ron.proto.governance import JointStatement, Role, SignedObject, SignerSet, Statement
from ron.services.kms.governance.canonical import canonical
from ron.services.kms.governance.proposals import Case
from ron.services.kms.governance.signers import MICRONODE, key_id, read_signers, set_digest, sign, signer_set
from ron.services.kms.governance.views import log_page, proposal_view, standing
from tests.services.kms.governance.people import (
    AUDITOR,
    CUSTODIAN,
    OFFICER,
    OWNER,
    START,
    World,
    code_of,
    key_of,
    public_of,
    the_three,
)
from tests.services.kms.governance.shares import JointKey

JOINT = JointKey([key_of(role) for role in (OWNER, OFFICER, CUSTODIAN)])
MEMBERS: list[tuple[Role, str]] = [(role, public_of(role)) for role in (OWNER, OFFICER, CUSTODIAN, AUDITOR)]


def with_group(group: str = JOINT.text, threshold: int = 2) -> SignerSet:
    """The three and their joint key."""
    return signer_set(MEMBERS, threshold, START, group=group)


class Sets(SynchronousTestCase):
    """Which joint key a set may have."""

    def test_a_set_without_one_is_written_as_before(self) -> None:
        """Books from before there was any stay what they were, byte for byte."""
        old = b'{"members":[%s],"rotated_at":1,"threshold":2}'
        self.assertEqual(canonical(replace(the_three(1), members=())), old % b"")
        self.assertNotIn(b"group", canonical(the_three()))
        self.assertNotEqual(set_digest(the_three()), set_digest(with_group()))

    def test_groups_of_others(self) -> None:
        """Another threshold, other members, no group at all, a changed one: refused when the set is made."""
        of_two = JointKey([key_of(role) for role in (OWNER, OFFICER)])
        flipped = f"{JOINT.text[:-2]}{int(JOINT.text[-2:], 16) ^ 1:02x}"
        for group in (of_two.text, flipped, JOINT.text[:-68], "00" * 136, "zz", "00"):
            self.assertRaises(RonError, with_group, group)
        self.assertRaises(RonError, with_group, JOINT.text, 3)
        self.assertRaises(RonError, signer_set, MEMBERS[:2], 1, START, profile=MICRONODE, group=of_two.text)
        own: list[tuple[Role, str]] = [*MEMBERS[:3], (AUDITOR, JOINT.group.public.hex())]
        self.assertRaises(RonError, signer_set, own, 2, START, group=JOINT.text)

    def test_the_signers_file(self) -> None:
        """Has it, if they have one."""
        self.assertEqual(read_signers(msgspec.json.encode(with_group()), START).group, JOINT.text)
        self.assertEqual(read_signers(msgspec.json.encode(the_three()), START).group, "")


class Voting(SynchronousTestCase):
    """Against the real governance."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ron-"))
        self.addCleanup(shutil.rmtree, self.folder, True)
        self.world = World(self.folder / "book", signers=with_group())
        self.addCleanup(lambda: self.world.governance.stop())

    def statement(self, case: Case, by: Sequence[Role] = (OWNER, OFFICER), **more: Any) -> JointStatement:
        """An approval that names them."""
        made: dict[str, Any] = {
            "book": self.world.governance.ledger.book,
            "signer": JOINT.key_id,
            "by": tuple(sorted(key_id(public_of(role)) for role in by)),
            "at": int(START + self.world.clock.seconds()),
            "proposal": case.proposal.id,
            "digest": case.digest,
        }
        return JointStatement(**{**made, **more})

    def joint(self, case: Case, by: Sequence[Role] = (OWNER, OFFICER), **more: Any) -> SignedObject:
        """Signed by those whom it names."""
        return JOINT.sign(self.statement(case, by, **more), [key_of(role) for role in by])

    def state(self, signed: SignedObject) -> Case | None:
        """What becomes of it."""
        return self.world.do(self.world.governance.state(signed, "cap-1"))

    def code(self, signed: SignedObject) -> str:
        """The error's."""
        return code_of(lambda: self.state(signed))

    def test_forgeries(self) -> None:
        """Whatever is not exactly this, signed by the joint key: refused, and nothing has changed."""
        case = self.world.propose("pq_mode", {"pq_mode": "and"})
        good = self.joint(case)
        short = self.statement(case)
        alone = replace(short, by=(key_id(public_of(OWNER)), key_id(public_of(AUDITOR))))
        stranger = replace(short, by=tuple(sorted((key_id(public_of(OWNER)), "0" * 32))))
        two = [key_of(OWNER), key_of(OFFICER)]
        self.assertEqual(self.code(replace(good, signature=self.joint(case, reason="else").signature)), "NoCapability")
        self.assertEqual(self.code(replace(good, key_id=key_id(public_of(OWNER)))), "NoCapability")
        self.assertEqual(self.code(sign(self.statement(case), key_of(OWNER))), "BadRequest")
        self.assertEqual(self.code(JOINT.sign(replace(short, by=short.by[::-1]), two)), "NoCapability")
        self.assertEqual(self.code(JOINT.sign(replace(short, by=short.by * 2), two)), "NoCapability")
        self.assertEqual(self.code(JOINT.sign(alone, two)), "NoCapability")
        self.assertEqual(self.code(JOINT.sign(stranger, two)), "NoCapability")
        self.assertEqual(self.code(JOINT.sign(replace(short, signer=key_id(public_of(OWNER))), two)), "NoCapability")
        self.assertEqual(self.code(JOINT.sign(replace(short, book="0" * 32), two)), "NoCapability")
        self.assertEqual(self.code(JOINT.sign(replace(short, digest="0" * 64), two)), "NoCapability")
        self.assertEqual(self.code(JOINT.sign(replace(short, at=START + 3600), two)), "BadRequest")
        self.assertEqual(self.code(replace(good, object=good.object.replace('","', '", "', 1))), "NoCapability")
        self.assertEqual(self.world.governance.ledger.case(case.proposal.id), case)

    def test_the_joint_key_says_nothing_else(self) -> None:
        """It makes no proposal, and no vote of one."""
        case = self.world.propose("pq_mode", {"pq_mode": "and"})
        two = [key_of(OWNER), key_of(OFFICER)]
        made = replace(self.world.proposal("pq_mode", {"pq_mode": "and"}), author=JOINT.key_id)
        self.assertEqual(
            code_of(lambda: self.world.do(self.world.governance.propose(JOINT.sign(made, two)))), "NoCapability"
        )
        vote = Statement(
            book=self.world.governance.ledger.book,
            verb="approve",
            signer=JOINT.key_id,
            role=OWNER,
            at=START,
            proposal=case.proposal.id,
            digest=case.digest,
        )
        self.assertEqual(self.code(JOINT.sign(vote, two)), "BadRequest")

    def test_one_signature_decides(self) -> None:
        """Any two of the three; who they were is in the book, in the audit log and shown."""
        for by in ((OWNER, OFFICER), (OFFICER, CUSTODIAN), (OWNER, OFFICER, CUSTODIAN)):
            case = self.world.propose("pq_mode", {"pq_mode": "and"})
            after = self.state(self.joint(case, by))
            assert after is not None
            self.assertEqual((after.state, after.approvals), ("approved", len(by)))
            names = tuple(sorted(key_id(public_of(role)) for role in by))
            event = self.world.events[-1]
            self.assertEqual((event.op, event.extra["signer"]), ("governance.approve", JOINT.key_id))
            self.assertEqual(event.extra["by"], " ".join(names))
            (vote,) = proposal_view(after, self.world.governance).signatures
            self.assertEqual((vote.role, vote.by, vote.key_id), ("joint", names, JOINT.key_id))
            record = log_page(self.world.governance.book, 0, 0).records[-1]
            self.assertIn(names[0], record.detail)
        self.assertEqual(standing(self.world.governance).group, JOINT.text)
        executed = self.world.do(self.world.governance.execute(case.proposal.id))
        self.assertEqual((executed.state, self.world.governance.pq_mode("acme")), ("executed", "and"))

    def test_anybody_verifies_it(self) -> None:
        """It is one plain Ed25519 signature over the SHA-256 of what is in the book."""
        signed = self.joint(self.world.propose("pq_mode", {"pq_mode": "and"}))
        signature = base64.b64decode(signed.signature)
        VerifyKey(JOINT.group.public).verify(hashlib.sha256(signed.object.encode()).digest(), signature)

    def test_a_freeze_holds_at_once(self) -> None:
        """With the one signature."""
        case = self.world.propose("freeze", {"freeze": "on"})
        self.state(self.joint(case))
        self.assertEqual(self.world.governance.frozen("acme"), case.proposal.id)

    def test_each_counts_once(self) -> None:
        """Alone first and together then, or the other way round; the same again changes nothing."""
        case = self.world.approve(self.world.propose("pq_mode", {"pq_mode": "and"}), OWNER)
        self.assertEqual((case.state, case.approvals), ("pending", 1))
        signed = self.joint(case)
        after = self.state(signed)
        assert after is not None
        self.assertEqual((after.state, after.approvals), ("approved", 2))
        records = len(self.world.governance.book)
        self.state(signed)
        self.state(self.world.word("approve", after, OFFICER))
        self.assertEqual(len(self.world.governance.book), records)
        self.assertEqual(self.code(self.world.word("reject", after, OFFICER)), "Conflict")
        self.assertEqual(self.code(self.joint(case, (OFFICER, CUSTODIAN))), "Conflict")

    def test_who_is_against_it_is_not_named_for_it(self) -> None:
        """A vote stands; the others may go on without."""
        case = self.world.say("reject", self.world.propose("pq_mode", {"pq_mode": "and"}), OFFICER)
        self.assertEqual(self.code(self.joint(case)), "Conflict")
        after = self.state(self.joint(case, (OWNER, CUSTODIAN)))
        assert after is not None
        self.assertEqual(after.state, "approved")

    def test_not_for_a_draft(self) -> None:
        """It waits for its author."""
        case = self.world.propose("pq_mode", {"pq_mode": "and"}, draft=True)
        self.assertEqual(self.code(self.joint(case)), "Conflict")

    def test_a_set_takes_up_a_joint_key_and_gives_it_up(self) -> None:
        """By a decision; what the old key signs is then nobody's word. The book is read again as it was."""
        self.world.governance.stop()
        self.world = World(self.folder / "other")
        signers = ",".join(f"{role}:{public}" for role, public in MEMBERS)
        change = {"signers": signers, "threshold": "2"}
        self.assertEqual(
            code_of(lambda: self.world.propose("signers", {**change, "group": "00"}, "global")), "BadRequest"
        )
        self.world.decide("signers", {**change, "group": JOINT.text}, "global")
        self.assertEqual(standing(self.world.governance).group, JOINT.text)
        case = self.world.propose("signers", change, "global")
        self.state(self.joint(case))
        self.world.restart()
        self.assertEqual(self.world.governance.ledger.case(case.proposal.id).approvals, 2)
        self.world.do(self.world.governance.execute(case.proposal.id))
        self.assertEqual(standing(self.world.governance).group, "")
        case = self.world.propose("pq_mode", {"pq_mode": "and"})
        self.assertEqual(self.code(self.joint(case)), "NoCapability")
