"""Anything anybody may do, in any order, with clocks, crashes and an audit log that comes and goes."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as some
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import RonError, unavailable
from ron.proto.governance import Statement
from ron.services.kms.governance.canonical import decode_canonical
from ron.services.kms.governance.ledger import Ledger, apply
from tests.services.kms.governance.people import AUDITOR, CUSTODIAN, DAY, HOUR, KID, OFFICER, OWNER, World

CHANGES = (
    ("pq_mode", {"pq_mode": "and"}, "tenant:acme"),
    ("hybrid_off", {"pq_mode": "or"}, "global"),
    ("destroy_key", {"kid": KID}, "tenant:acme"),
    ("freeze", {"freeze": "on"}, "tenant:acme"),
    ("freeze", {"freeze": "off"}, "tenant:acme"),
    ("override", {"quota": "20"}, "tenant:acme"),
)
acts = some.one_of(
    some.tuples(some.just("propose"), some.sampled_from(CHANGES), some.sampled_from([1, 5])),
    some.tuples(some.just("decide"), some.integers(0, 3), some.sampled_from([OWNER, CUSTODIAN])),
    some.tuples(
        some.sampled_from(["approve", "approve", "reject", "tiebreak"]),
        some.integers(0, 3),
        some.sampled_from([OWNER, OFFICER, CUSTODIAN, AUDITOR]),
    ),
    some.tuples(some.sampled_from(["execute", "use"]), some.integers(0, 3), some.none()),
    some.tuples(some.just("wait"), some.sampled_from([60, HOUR // 2, HOUR, DAY, 2 * DAY]), some.none()),
    some.tuples(some.just("set"), some.sampled_from([0, -60, 60, -DAY, DAY]), some.none()),
    some.tuples(some.just("audit"), some.booleans(), some.none()),
    some.tuples(some.just("restart"), some.none(), some.none()),
)


class Model(SynchronousTestCase):
    @settings(deadline=None, max_examples=100)
    @given(
        some.lists(some.tuples(some.sampled_from(CHANGES), some.sampled_from([1, 5])), min_size=1, max_size=3),
        some.lists(acts, min_size=4, max_size=40),
    )
    def test_nothing_without_its_quorum(self, first: list[Any], steps: list[tuple[str, object, object]]) -> None:
        folder = Path(tempfile.mkdtemp(prefix="ron-governance-"))
        try:
            self.play(World(folder / "book"), [("propose", *one) for one in first] + steps)
        finally:
            shutil.rmtree(folder)

    def play(self, world: World, steps: list[tuple[str, object, object]]) -> None:
        made: list[str] = []
        used = Counter[str]()
        for step in steps:
            with contextlib.suppress(RonError):
                self.act(world, made, used, step)
            self.check(world, used)
        world.governance.stop()

    def act(self, world: World, made: list[str], used: Counter[str], step: tuple[str, object, object]) -> None:
        what, one, two = step
        governance = world.governance
        if what == "propose":
            action, change, scope = one  # type: ignore[misc]
            created = int(world.now() - world.wrong_s)
            made.append("")
            case = world.propose(action, change, scope, created_at=created, expires_at=created + two * DAY)  # type: ignore[operator]
            made[-1] = case.proposal.id
        elif what == "wait":
            world.clock.pump([float(one), 15.0])  # type: ignore[arg-type]
        elif what == "set":
            world.wrong_s = float(one)  # type: ignore[arg-type]
        elif what == "audit":
            world.trouble = None if one else unavailable("the audit log is away")
        elif what == "restart":
            # a host that starts with a wrong clock cannot know; it starts with the right one here
            world.wrong_s = 0.0
            world.restart()
        elif made and (name := made[int(one) % len(made)]):  # type: ignore[call-overload]
            case = governance.ledger.case(name)
            if what == "decide":
                if case.state == "pending":
                    world.approve(case, OFFICER, two)  # type: ignore[arg-type]
                if two == OWNER:
                    world.do(governance.execute(name))
            elif what == "execute":
                world.do(governance.execute(name))
            elif what == "use":
                governance.require(case.proposal.action, case.proposal.scope, case.proposal.change, name)
                used[name] += 1
            else:
                world.say(what, case, two)  # type: ignore[arg-type]

    def check(self, world: World, used: Counter[str]) -> None:
        ledger = world.governance.ledger
        for name, case in ledger.cases.items():
            if case.state not in ("approved", "executed"):
                continue
            votes = [vote.statement for vote in case.votes if vote.statement.digest == case.digest]
            members = {vote.signer for vote in votes if vote.verb == "approve" and vote.role != AUDITOR}
            tie = any(vote.verb == "tiebreak" for vote in votes) and case.proposal.action in ("pq_mode", "override")
            self.assertGreaterEqual(len(members) + tie, 2, name)
            self.assertGreaterEqual(len(members), 1, name)
        for name, times in used.items():
            self.assertEqual((times, ledger.case(name).state), (1, "executed"))
        frozen = world.governance.frozen("acme")
        if frozen is not None:
            self.assertEqual(ledger.case(frozen).state, "executed")
        self.replay(world)

    def replay(self, world: World) -> None:
        """What is in effect is what the book says, but for a last record that the audit log has not taken yet."""
        records = world.governance.book.records
        told = len(records) - (world.governance._waiting is not None)
        again = Ledger()
        for record in records[:told]:
            apply(again, record)
        ledger = world.governance.ledger
        for part in ("cases", "freezes", "pq_modes", "signers"):
            self.assertEqual(getattr(again, part), getattr(ledger, part), part)
        for record in records:
            if record.kind == "state" and record.signed is not None:
                self.assertLessEqual(decode_canonical(record.signed.object.encode(), Statement).at, record.at + 300)
