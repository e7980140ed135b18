"""Which frame may follow which: the rules one by one, a model that plays both ends, and the drawing in the docs."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.limits import Refused
from ron.oap.frames import Flags, Violation
from ron.oap.streams import EVENTS, TRANSITIONS, Means, Side, Streams, event_of, machine

ROOT = Path(__file__).resolve().parents[2]
REQ, RESP, EVENT, START, END = Flags.REQ, Flags.RESP, Flags.EVENT, Flags.START, Flags.END
WHOLE = REQ | START | END


class Contradictions(SynchronousTestCase):
    def test_flags_that_exclude_one_another(self) -> None:
        for bits in range(256):
            roles = sum(bool(bits & role) for role in (REQ, RESP, EVENT))
            wrong = (
                roles != 1 or (bits & RESP and bits & START) or (bits & EVENT and bits & (START | END | Flags.ACK_REQ))
            )
            if wrong:
                self.assertRaises(Violation, event_of, bits)
            else:
                self.assertIn(event_of(bits), {"", *EVENTS})


class Answering(SynchronousTestCase):
    """As the server sees it."""

    def setUp(self) -> None:
        self.streams = Streams(Side.ANSWERS, max_inflight=3)

    def violates(self, flags: Flags, corr_id: int = 1) -> None:
        violation = self.assertRaises(Violation, self.streams.receive, flags, corr_id)
        self.assertEqual((violation.status, violation.corr_id), (400, corr_id))
        self.assertNotIn(corr_id, self.streams)

    def test_end_or_more_without_start(self) -> None:
        self.violates(REQ | END)
        self.violates(REQ)

    def test_a_second_start(self) -> None:
        for first in (REQ | START, WHOLE):
            for second in (REQ | START, WHOLE):
                self.streams.receive(first, 1)
                self.violates(second)

    def test_more_after_the_end(self) -> None:
        for late in (REQ, REQ | END):
            self.streams.receive(WHOLE, 1)
            self.violates(late)

    def test_answers_from_whoever_asks(self) -> None:
        self.violates(RESP)
        self.streams.receive(WHOLE, 2)
        self.assertRaises(Violation, self.streams.receive, RESP | END, 2)

    def test_our_own_answers_keep_the_order_too(self) -> None:
        self.assertRaises(Violation, self.streams.send, RESP | END, 1)
        self.streams.receive(WHOLE, 1)
        self.streams.send(RESP | END, 1)
        self.assertRaises(Violation, self.streams.send, RESP | END, 1)

    def test_one_too_many_is_refused_and_its_rest_dropped(self) -> None:
        for corr_id in (1, 2, 3):
            self.streams.receive(REQ | START, corr_id)
        refused = self.assertRaises(Refused, self.streams.receive, REQ | START, 4)
        self.assertEqual((refused.status, refused.reason), (429, "inflight"))
        self.assertRaises(Refused, self.streams.receive, WHOLE, 5)
        self.assertNotIn(5, self.streams)
        self.assertIs(self.streams.receive(REQ, 4), Means.DROPPED)
        self.assertIs(self.streams.receive(REQ | END, 4), Means.DROPPED)
        self.assertNotIn(4, self.streams)
        self.assertIs(self.streams.receive(REQ | END, 1), Means.GOES_ON)
        self.streams.send(RESP | END, 1)
        self.assertIs(self.streams.receive(WHOLE, 6), Means.BEGINS)

    def test_refused_ones_that_never_end_do_not_pile_up(self) -> None:
        for corr_id in (1, 2, 3):
            self.streams.receive(REQ | START, corr_id)
        for corr_id in (4, 5, 6):
            self.assertRaises(Refused, self.streams.receive, REQ | START, corr_id)
        self.violates(REQ | START, 7)

    def test_those_answered_early_do_not_pile_up_either(self) -> None:
        for corr_id in (1, 2, 3):
            self.streams.receive(REQ | START, corr_id)
            self.streams.send(RESP | END, corr_id)
        self.assertEqual(len(self.streams), 0)
        self.violates(REQ | START, 4)
        self.assertIs(self.streams.receive(WHOLE, 5), Means.BEGINS)

    def test_an_early_answer_and_the_rest_of_its_request(self) -> None:
        self.streams.receive(REQ | START, 1)
        self.streams.send(RESP, 1)
        self.assertIs(self.streams.receive(REQ, 1), Means.GOES_ON)
        self.streams.send(RESP | END, 1)
        self.assertIs(self.streams.receive(REQ | END, 1), Means.DROPPED)
        self.assertIs(self.streams.receive(WHOLE, 1), Means.BEGINS)

    def test_cancelled_wherever_it_is(self) -> None:
        self.assertFalse(self.streams.cancel(1))
        for steps in ([REQ | START], [WHOLE], [REQ | START, RESP], [WHOLE, RESP], [REQ | START, RESP | END]):
            for flags in steps:
                (self.streams.receive if flags & REQ else self.streams.send)(flags, 1)
            self.assertTrue(self.streams.cancel(1))
            self.assertNotIn(1, self.streams)
        self.assertEqual(len(self.streams), 0)

    def test_events_belong_to_no_conversation(self) -> None:
        self.assertIs(self.streams.receive(EVENT, 9), Means.EVENT)
        self.streams.send(EVENT | Flags.COMP, 9)
        self.assertNotIn(9, self.streams)


class Asking(SynchronousTestCase):
    """As the client sees it."""

    def setUp(self) -> None:
        self.streams = Streams(Side.ASKS, max_inflight=2)

    def test_an_answer_before_the_request(self) -> None:
        self.assertRaises(Violation, self.streams.receive, RESP | END, 1)
        self.assertRaises(Violation, self.streams.receive, RESP, 1)

    def test_requests_from_whoever_answers(self) -> None:
        self.assertRaises(Violation, self.streams.receive, WHOLE, 1)

    def test_no_more_than_the_peer_takes(self) -> None:
        self.streams.send(WHOLE, 1)
        self.streams.send(REQ | START, 2)
        self.assertEqual(self.assertRaises(Refused, self.streams.send, WHOLE, 3).status, 429)
        self.assertIs(self.streams.receive(RESP, 1), Means.GOES_ON)
        self.assertIs(self.streams.receive(RESP | END, 1), Means.GOES_ON)
        self.streams.send(WHOLE, 3)


class TwoEnds(RuleBasedStateMachine):
    """A client and a server, each with its own view, and a plain model: who has said the last word in which direction.

    Whatever either may do at any time, the other must understand; whatever it may not, must be refused.
    """

    ids = st.integers(1, 7)

    def __init__(self) -> None:
        super().__init__()
        self.limit = 3
        self.client, self.server = Streams(Side.ASKS, 3), Streams(Side.ANSWERS, 3)
        self.asking: dict[int, bool] = {}  # corr_id → the request's END is out
        self.answered: dict[int, bool] = {}  # corr_id → the answer's END is out

    def settle(self, corr_id: int) -> None:
        if self.asking.get(corr_id) and self.answered.get(corr_id):
            del self.asking[corr_id], self.answered[corr_id]

    @rule(corr_id=ids, start=st.booleans(), end=st.booleans())
    def client_says(self, corr_id: int, start: bool, end: bool) -> None:
        flags = REQ | (START if start else 0) | (END if end else 0)
        known = corr_id in self.asking
        busy = sum(not self.answered[each] for each in self.asking)
        unended = len(self.asking) - busy
        if start and not known and (busy >= self.limit or (not end and unended >= self.limit)):
            expected: type[Exception] | None = Refused
        else:
            expected = None if (not known if start else known and not self.asking[corr_id]) else Violation
        if expected is Violation:
            # the client's own machine would forget the conversation; what matters is that it was not sent
            self.refused_by(Streams.receive, self.server, flags, corr_id, known)
            return
        if expected is Refused:
            self.refuses(Refused, self.client.send, flags, corr_id)
            return
        self.client.send(flags, corr_id)
        means = self.server.receive(flags, corr_id)
        assert means is (Means.BEGINS if start else Means.DROPPED if self.answered[corr_id] else Means.GOES_ON)
        self.asking[corr_id] = end
        self.answered.setdefault(corr_id, False)
        self.settle(corr_id)

    @rule(corr_id=ids, end=st.booleans())
    def server_says(self, corr_id: int, end: bool) -> None:
        flags = RESP | END if end else RESP
        if corr_id not in self.asking or self.answered[corr_id]:
            return
        self.server.send(flags, corr_id)
        assert self.client.receive(flags, corr_id) is Means.GOES_ON
        self.answered[corr_id] = end
        self.settle(corr_id)

    @rule(corr_id=ids)
    def client_gives_up(self, corr_id: int) -> None:
        assert self.client.cancel(corr_id) is self.server.cancel(corr_id) is (corr_id in self.asking)
        self.asking.pop(corr_id, None)
        self.answered.pop(corr_id, None)

    def refused_by(self, receive: object, server: Streams, flags: int, corr_id: int, known: bool) -> None:
        """The server refuses it, and forgets the conversation it broke; so does everybody."""
        if not known and flags & START:
            return
        self.refuses(Violation, server.receive, flags, corr_id)
        self.client.cancel(corr_id)
        self.asking.pop(corr_id, None)
        self.answered.pop(corr_id, None)

    def refuses(self, kind: type[Exception], work: object, *arguments: int) -> None:
        try:
            work(*arguments)  # type: ignore[operator]
        except kind:
            return
        raise AssertionError(f"{arguments} was taken")

    @invariant()
    def both_see_the_same(self) -> None:
        for corr_id in range(1, 8):
            assert self.client.state(corr_id) == self.server.state(corr_id)
            assert (corr_id in self.client) is (corr_id in self.asking)
        assert len(self.client) == len(self.server) == sum(not done for done in self.answered.values()) <= self.limit


class Model(SynchronousTestCase):
    def test_streams(self) -> None:
        run_state_machine_as_test(TwoEnds, settings=settings(max_examples=100, stateful_step_count=60, deadline=None))


class Drawing(SynchronousTestCase):
    def test_the_machine_is_the_table(self) -> None:
        real = {
            (before.name, event): after.name
            for before, event, after, _out in machine.__automat_automaton__.allTransitions()
        }
        self.assertEqual(real, TRANSITIONS)

    def test_the_table_in_the_docs_is_the_machine(self) -> None:
        text = (ROOT / "docs" / "oap.rst").read_text()
        table = text.partition(".. stream-states begin")[2].partition(".. stream-states end")[0]
        rows = re.findall(r"^   \* - (\w+)\n     - (\w+)\n     - (\w+)$", table, re.MULTILINE)
        self.assertEqual({(a, b): c for a, b, c in rows if a != "state"}, TRANSITIONS)
