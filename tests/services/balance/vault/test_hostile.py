"""Members that lie in ceremonies, or propose what they should not: refused, named, counted; nothing comes out."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

import msgspec

from ron.crypto.frost.ceremony import Ceremony, Outgoing
from ron.crypto.frost.plan import OWNER, Purpose
from ron.crypto.frost.wire import Kind
from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.ports import ServiceRecord
from ron.services.balance.vault.ceremonies import MAX_PROPOSALS
from ron.services.balance.vault.telemetry import figures
from ron.services.balance.vault.words import (
    BEGIN,
    DEAL,
    GAVE_UP,
    PROPOSE,
    STANDING,
    Agreed,
    Begin,
    Dealt,
    GaveUp,
    Proposal,
    Seat,
    Standing,
    Stands,
)
from tests.crypto.test_frost_support import HEAD, dealt, integer, kind, scalar
from tests.services.balance.vault.support import WEB, Cluster

Tamper = Callable[[Outgoing], bytes]


def changed(what: Kind, at: int, value: bytes | None = None) -> Tamper:
    """Messages of this kind with another scalar, or these bytes, at an offset of their bodies."""

    def tamper(message: Outgoing) -> bytes:
        body = message.body
        if kind(body) is not what:
            return body
        start = HEAD + at
        new = value if value is not None else scalar(integer(body[start : start + 32]) + 1)
        return body[:start] + new + body[start + len(new) :]

    return tamper


class Lying(Cluster):
    """`b` takes part in a refresh of 2 of 3, or in a birth, and lies."""

    def lie(self, tamper: Tamper) -> None:
        ceremonies = self.nodes["b"].vault._ceremonies
        make = ceremonies._part

        def part(*of: Any) -> Ceremony:
            made = make(*of)
            honest = made.outgoing
            made.outgoing = lambda: [msgspec.structs.replace(one, body=tamper(one)) for one in honest()]  # type: ignore[method-assign]
            return made

        ceremonies._part = part  # type: ignore[method-assign]

    def spoilt(self, reason: str, tamper: Tamper) -> None:
        """The refresh ends by name, the old shares stay and sign."""
        record = self.born("abc", 2)
        before = self.secrets_of("abc")
        self.lie(tamper)
        error = self.refused(self.nodes["a"].vault.refresh(WEB), 30)
        self.assertIn("b", error.message)
        self.pass_s(60, 0.1)
        self.assertEqual(self.secrets_of("abc"), before)
        refused = [node for node in self.nodes.values() if node.refusals().get(reason)]
        self.assertTrue(refused)
        if reason != "disputed":
            self.assertTrue(any("b" in node.vault.suspects() for node in refused))
        self.assertFalse(any(set(node.vault.suspects()) - {"b"} for node in self.nodes.values() if node.name != "b"))
        self.sign("a", record.onion, 3)
        self.sign("c", record.onion, 3)

    def test_a_dealing_without_its_proof(self) -> None:
        self.spoilt("bad_proof", changed(Kind.DEALING, 32, secrets.token_bytes(31) + b"\0"))

    def test_a_commitment_outside_the_group(self) -> None:
        self.spoilt("malformed", changed(Kind.DEALING, 0, b"\x01" + bytes(31)))

    def test_a_dealing_that_breaks_off(self) -> None:
        self.spoilt("malformed", lambda one: one.body[:-1] if kind(one.body) is Kind.DEALING else one.body)

    def test_a_message_that_is_none(self) -> None:
        self.spoilt("malformed", lambda one: b"nonsense")

    def test_a_share_that_fits_neither_in_private_nor_before_all(self) -> None:
        def tamper(message: Outgoing) -> bytes:
            return changed(Kind.JUSTIFICATION, 2)(
                msgspec.structs.replace(message, body=changed(Kind.SHARE, 0)(message))
            )

        self.spoilt("unjustified", tamper)

    def test_another_digest_of_what_was_dealt(self) -> None:
        self.spoilt("disputed", changed(Kind.SHARE, 32))

    def test_another_group_confirmed_leaves_both_epochs_usable(self) -> None:
        """The others cannot know whether a third heard the right one: they keep both shares."""
        record = self.born("abc", 2)
        self.lie(changed(Kind.CONFIRMATION, 0))
        self.refused(self.nodes["a"].vault.refresh(WEB), 30)
        self.pass_s(30, 0.1)
        for name in "ac":
            self.sign(name, record.onion, 3)
        self.done(self.nodes["a"].vault.reshare(WEB, remove=["b"]), 5)
        for name in "ac":
            self.sign(name, record.onion, 3)

    def test_a_bad_share_in_private_is_made_good_in_public(self) -> None:
        record = self.born("abc", 2)
        self.lie(changed(Kind.SHARE, 0))
        after = self.done(self.nodes["a"].vault.refresh(WEB), 5)
        self.assertNotEqual(after.group, record.group)
        self.assertEqual(self.nodes["a"].refusals()["bad_share"], 1)
        self.sign("c", record.onion)

    def test_a_birth_is_aborted_by_name(self) -> None:
        a, *_ = self.start("abc")
        self.pass_s(0.1)
        self.approve_all("a", "bc")
        self.lie(changed(Kind.DEALING, 64))
        error = self.refused(a.vault.share(WEB, threshold=2, among=["a", "b", "c"]), 20)
        self.assertEqual(error.message, "the ceremony ended: bad_proof of b")
        self.assertEqual((a.vault.suspects(), a.vault.holds()), ({"b": "bad_proof in a ceremony"}, frozenset()))
        self.assertEqual(figures(a.metrics, "balance_vault_ceremonies_total"), {("keygen", "failed"): 1.0})

    def test_one_liar_does_not_decide_how_a_ceremony_ended(self) -> None:
        """`e` is cut off as it confirms; `d` says that all is over, one way or the other."""
        for lie in ("adopted", "failed"):
            record = self.born("abcde", 3)
            waiting = self.begin(self.nodes["a"].vault.refresh(WEB))
            waiting.addErrback(lambda failure: failure.trap(RonError))
            while not (running := self.nodes["e"].vault._ceremonies._here.get(WEB)) or not running._kept:
                self.pass_s(0.0005, 0.0005)
            self.hub.partition("abcd", "e")
            told = Stands(state=lie)  # type: ignore[arg-type]

            async def lying(_sender: str, _asked: object, told: Stands = told) -> Stands:
                return told

            self.nodes["d"].mesh.handlers._served[STANDING] = (Standing, lying)
            self.pass_s(40, 0.1)
            for name in "abc":
                holding = self.nodes[name].vault._ring.holding(WEB)
                self.assertEqual(len(holding.epochs()), 2)
            self.sign("a", record.onion, 3)
            self.hub.heal()
            self.pass_s(20, 0.1)
            self.assertTrue(all(len(node.vault._ring.holding(WEB).epochs()) >= 1 for node in self.nodes.values()))
            for name in "abce":
                self.sign(name, record.onion, 3)
            for name in "abcde":
                self.kill(name)
            super().setUp()

    def test_silence_is_named(self) -> None:
        self.born("abc", 2)
        # it agrees, and then says nothing
        self.nodes["b"].vault._ceremonies._part = lambda *of: Mute()  # type: ignore[assignment,method-assign,return-value]
        error = self.refused(self.nodes["a"].vault.refresh(WEB), 20)
        self.assertRegex(error.message, "nothing came from b|gave up \\(silent of b\\)|b gave up")


class Mute:
    """A part that says nothing."""

    pending = failure = group = None
    state = "dealing"
    waiting_for = frozenset[int]()

    def outgoing(self) -> list[Outgoing]:
        return []

    def receive(self, sender: int, raw: bytes) -> None:
        pass

    def give_up(self) -> None:
        pass


class Interfering(Cluster):
    """`d`, a member of the cluster without a part, and replays."""

    def test_what_is_sent_twice_is_counted_and_does_no_harm(self) -> None:
        record = self.born("abc", 2)
        for node in self.nodes.values():
            call = node.mesh.call

            async def twice(to: str, what: str, body: Any, answer: Any, *, deadline_s: float, call: Any = call) -> Any:
                if what == DEAL:
                    await call(to, what, body, answer, deadline_s=deadline_s)
                return await call(to, what, body, answer, deadline_s=deadline_s)

            node.mesh.call = twice  # type: ignore[assignment,method-assign]
        after = self.done(self.nodes["a"].vault.refresh(WEB), 5)
        self.assertNotEqual(after.group, record.group)
        # a second message is a repetition, or comes when its time is over
        self.assertGreater(
            self.nodes["a"].refusals().get("repeated", 0) + self.nodes["a"].refusals().get("out_of_place", 0), 0
        )
        self.sign("b", record.onion)

    def test_yesterdays_messages_and_messages_in_anothers_name(self) -> None:
        record = self.born("abc", 2)
        (d,) = self.start("d")
        self.pass_s(2)
        seen = self.dealt_messages()
        waiting = self.begin(self.nodes["a"].vault.refresh(WEB))
        self.pass_s(0.005, 0.0005)
        (today,) = {message.ceremony for message in self.dealt_messages()} - {one.ceremony for one in seen} or {b""}
        for message in seen:
            for name in "abc":
                forged = msgspec.structs.replace(message, ceremony=today or message.ceremony)
                self.no(d.mesh.call(name, DEAL, forged, Agreed, deadline_s=1.0))
        self.pass_s(3)
        self.successResultOf(waiting)
        self.assertGreater(self.nodes["a"].refusals()["stranger"], 0)
        # one of them repeats what was said in another ceremony
        before = self.secrets_of("abc")
        for message in seen:
            self.begin(self.nodes["b"].mesh.call("a", DEAL, message, Agreed, deadline_s=1.0)).addErrback(
                lambda failure: failure.trap(RonError)
            )
        self.pass_s(3)
        self.assertEqual(self.secrets_of("abc"), before)
        self.assertEqual(
            self.no(
                d.mesh.call(
                    "a", DEAL, Dealt(ceremony=bytes(32), of=1, to=2, sealed=False, frame=b""), Agreed, deadline_s=1.0
                )
            ),
            ErrorCode.NOT_FOUND,
        )
        self.assertGreater(self.nodes["a"].refusals()["other_session"], 0)
        self.sign("a", record.onion)

    def test_a_private_share_does_not_open_in_another_place(self) -> None:
        """A box is bound to ceremony, seats and runs: `b` passes on what it got from `c` as its own."""
        self.born("abc", 2)
        numbers = {name: node.mesh.me.number for name, node in self.nodes.items()}
        sealed = [m for m in self.dealt_messages() if m.sealed and (m.of, m.to) == (numbers["c"], numbers["a"])]
        running = self.nodes["a"].vault._ceremonies._known[sealed[0].ceremony]
        moved = msgspec.structs.replace(sealed[0], of=numbers["b"])
        seat = running.proposal.seat(numbers["b"])
        assert seat
        error = self.assertRaises(RonError, running._opened, seat, moved)
        self.assertEqual((error.code, self.nodes["a"].refusals()["sealed"]), (ErrorCode.BAD_REQUEST, 1.0))

    def test_who_gives_up_in_another_ceremony_ends_nothing(self) -> None:
        self.born("abc", 2)
        (d,) = self.start("d")
        self.pass_s(2)
        waiting = self.begin(self.nodes["a"].vault.refresh(WEB))
        for _ in range(30):
            self.pass_s(0.0005, 0.0005)
            for running in self.nodes["a"].vault._ceremonies._known:
                d.mesh.send("a", GAVE_UP, GaveUp(ceremony=running, reason="bad_proof", members=(1,)))
        self.pass_s(3)
        self.assertIsInstance(self.successResultOf(waiting), ServiceRecord)

    def test_a_member_that_gives_up_ends_it_at_once_and_is_named(self) -> None:
        self.born("abc", 2)
        waiting = self.begin(self.nodes["a"].vault.refresh(WEB))
        while not (running := self.running("a")) or running.state != "running":
            self.pass_s(0.0005, 0.0005)
        self.nodes["b"].mesh.send("a", GAVE_UP, GaveUp(ceremony=running.id, reason="bad_proof", members=()))
        self.pass_s(0.5)
        error = self.failureResultOf(waiting, RonError).value
        self.assertEqual(error.message, "b gave up (bad_proof)")

    def running(self, name: str) -> Any:
        return self.nodes[name].vault._ceremonies._here.get(WEB)

    def dealt_messages(self) -> list[Dealt]:
        found = []
        for what, body in self.wire:
            if what == DEAL:
                try:
                    found.append(msgspec.msgpack.decode(body, type=Dealt))
                except msgspec.ValidationError:
                    continue
        return found

    def no(self, asked: Any) -> ErrorCode:
        waiting = self.begin(asked)
        self.pass_s(0.005, 0.0005)
        error = self.failureResultOf(waiting, RonError).value
        assert isinstance(error, RonError)
        return error.code


class Proposals(Cluster):
    """`b` proposes to `a`, who has a share of 2 of 3."""

    def setUp(self) -> None:
        super().setUp()
        self.record = self.born("abc", 2)
        self.start("d")
        self.pass_s(2)

    def proposal(self, **change: Any) -> Proposal:
        share = self.nodes["b"].share()
        assert share
        made = self.nodes["b"].vault._proposals.refresh(WEB, share.group)
        return msgspec.structs.replace(made, **change)

    def code(self, proposal: Proposal, sender: str = "b") -> ErrorCode:
        asked = self.nodes[sender].mesh.call("a", PROPOSE, proposal, Agreed, deadline_s=1.0)
        return self.refused(asked, 0.1).code

    def reshare(self, receivers: str, threshold: int = 2) -> Proposal:
        share = self.nodes["b"].share()
        assert share
        numbers = {name: node.mesh.me.number for name, node in self.nodes.items()}
        return self.nodes["b"].vault._proposals.reshare(
            WEB,
            share.group,
            threshold=threshold,
            dealers=[numbers["a"], numbers["b"]],
            receivers=[numbers[name] for name in receivers],
        )

    def test_for_whom_there_is_no_approval(self) -> None:
        self.assertEqual(self.code(self.reshare("bd")), ErrorCode.NO_CAPABILITY)
        self.nodes["b"].vault.approve("d")
        self.pass_s(0.1)
        self.assertEqual(self.code(self.reshare("bd")), ErrorCode.NO_CAPABILITY)

    def test_of_another_key_epoch_or_name(self) -> None:
        numbers = sorted(node.mesh.me.number for name, node in self.nodes.items() if name != "d")
        other = dealt(scalar(5), 2, numbers)[numbers[0]].group
        self.assertEqual(self.code(self.proposal(public=other.public, previous=other.encode())), ErrorCode.CONFLICT)
        share = self.nodes["b"].share()
        assert share
        known = dealt(scalar(5), 2, numbers)
        self.assertEqual(self.code(self.proposal(previous=known[numbers[0]].group.encode())), ErrorCode.BAD_REQUEST)
        self.assertEqual(self.code(self.proposal(previous=b"nonsense")), ErrorCode.BAD_REQUEST)
        self.assertEqual(self.code(self.proposal(service="other")), ErrorCode.CONFLICT)
        self.assertEqual(self.code(self.proposal(purpose=Purpose.KEYGEN, public=b"", previous=b"")), ErrorCode.CONFLICT)

    def test_seats_that_are_wrong(self) -> None:
        good = self.proposal()
        seats = good.seats
        for wrong in (
            seats[:-1],
            seats + seats[:1],
            (Seat(seats[0].number, seats[1].name, seats[1].run), *seats[1:]),
            (Seat(OWNER, seats[0].name, seats[0].run), *seats[1:]),
        ):
            self.assertEqual(self.code(msgspec.structs.replace(good, seats=wrong)), ErrorCode.BAD_REQUEST)
        another = (Seat(seats[0].number, seats[0].name, bytes(32)), *seats[1:])
        self.assertEqual(self.code(msgspec.structs.replace(good, seats=another)), ErrorCode.CONFLICT)
        self.assertEqual(self.code(good, sender="d"), ErrorCode.BAD_REQUEST)

    def test_the_same_again(self) -> None:
        good = self.proposal()
        self.done(self.nodes["b"].mesh.call("a", PROPOSE, good, Agreed, deadline_s=1.0), 0.1)
        self.assertEqual(self.code(good), ErrorCode.CONFLICT)
        begin = self.nodes["c"].mesh.call("a", BEGIN, Begin(ceremony=good.ceremony), Agreed, deadline_s=1.0)
        self.assertEqual(self.refused(begin, 0.1).code, ErrorCode.BAD_REQUEST)
        # what was proposed and never begun is forgotten
        self.pass_s(10, 0.1)
        self.done(self.nodes["a"].vault.refresh(WEB), 3)

    def test_many_proposals_leave_nothing_behind(self) -> None:
        for _ in range(MAX_PROPOSALS):
            self.done(self.nodes["b"].mesh.call("a", PROPOSE, self.proposal(), Agreed, deadline_s=1.0), 0.02)
        self.assertEqual(self.code(self.proposal()), ErrorCode.BACKPRESSURE)
        ceremonies = self.nodes["a"].vault._ceremonies
        self.pass_s(10, 0.1)
        self.assertEqual((ceremonies._here, len([t for t in ceremonies._timers if t.active()])), ({}, 0))
        self.sign("a", self.record.onion)

    def test_any_change_of_a_byte_is_another_ceremony(self) -> None:
        good = self.proposal()
        changes = (
            {"threshold": 3},
            {"nonce": bytes(32)},
            {"removed": (1,)},
            {"seats": good.seats[:1]},
            {"service": "x"},
        )
        names = {good.ceremony, *(msgspec.structs.replace(good, **one).ceremony for one in changes)}
        self.assertEqual(len(names), 1 + len(changes))
