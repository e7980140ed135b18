"""Circuits that have done their work: which of them end, and which never."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from ron.tor.control import connect_control
from ron.tor.spent import SPARE, SpentBook, close_spent
from tests.tor.fake_tor import FakeTor
from tests.web.wire import until

PATH = "$AA~a,$BB~b,$CC~c BUILD_FLAGS=IS_INTERNAL,NEED_CAPACITY"
UPLOAD, SPARED, INTRO = (f"PURPOSE={name}" for name in ("HS_SERVICE_HSDIR", "HS_VANGUARDS", "HS_SERVICE_INTRO"))


class Book(SynchronousTestCase):
    def setUp(self) -> None:
        self.book = SpentBook()

    def built(self, number: int, purpose: str = UPLOAD) -> str | None:
        return self.book.circuit(f"{number} BUILT {PATH} {purpose} TIME_CREATED=2026-11-21T00:00:00.000000")

    def test_an_upload_that_was_answered(self) -> None:
        self.assertIsNone(self.built(7))
        for status in ("NEW", "SENTCONNECT", "SUCCEEDED"):
            self.assertIsNone(self.book.stream(f"31 {status} 7 10.0.0.1:443 PURPOSE=DIR_UPLOAD"))
        self.assertEqual(self.book.stream("31 CLOSED 7 10.0.0.1:443 REASON=DONE"), "7")
        self.assertIsNone(self.book.stream("31 CLOSED 7 10.0.0.1:443 REASON=DONE"))

    def test_an_upload_that_failed(self) -> None:
        self.built(7)
        self.assertEqual(self.book.stream("31 FAILED 7 10.0.0.1:443 REASON=TIMEOUT"), "7")

    def test_streams_of_other_circuits(self) -> None:
        """A visitor's, a program's own, one without a circuit."""
        for number, purpose in enumerate(("PURPOSE=HS_SERVICE_REND", "PURPOSE=GENERAL", INTRO, "")):
            self.built(number, purpose)
            self.assertIsNone(self.book.stream(f"31 CLOSED {number} 10.0.0.1:80 REASON=DONE"))
        self.assertIsNone(self.book.stream("31 CLOSED 0 10.0.0.1:80 REASON=DONE"))

    def test_one_that_serves_something_else_by_now(self) -> None:
        self.built(7)
        self.book.circuit(f"7 PURPOSE_CHANGED {PATH} PURPOSE=HS_SERVICE_REND OLD_PURPOSE=HS_SERVICE_HSDIR")
        self.assertIsNone(self.book.stream("31 CLOSED 7 10.0.0.1:443 REASON=DONE"))

    def test_one_that_has_gone(self) -> None:
        for end in (f"7 CLOSED {PATH} {UPLOAD} REASON=FINISHED", f"7 FAILED {UPLOAD} REASON=TIMEOUT", "7 CLOSED", "7"):
            self.built(7)
            self.book.circuit(end)
            self.assertIsNone(self.book.stream("31 CLOSED 7 10.0.0.1:443 REASON=DONE"))

    def test_so_many_are_spared_and_no_more(self) -> None:
        told = [self.built(number, SPARED) for number in range(SPARE + 3)]
        self.assertEqual(told, [None] * SPARE + [str(SPARE + n) for n in range(3)])

    def test_one_that_was_used_makes_room(self) -> None:
        for number in range(SPARE):
            self.built(number, SPARED)
        self.assertIsNone(self.built(0, SPARED))  # told of twice
        self.book.circuit(f"3 CANNIBALIZED {PATH} PURPOSE=HS_SERVICE_REND OLD_PURPOSE=HS_VANGUARDS")
        self.book.circuit(f"4 CLOSED {PATH} {SPARED} REASON=FINISHED")
        self.assertEqual([self.built(100 + n, SPARED) for n in range(3)], [None, None, "102"])

    def test_one_on_its_way_is_not_yet_spared(self) -> None:
        self.assertIsNone(self.book.circuit(f"1 LAUNCHED {SPARED}"))
        self.assertIsNone(self.book.circuit(f"1 EXTENDED {PATH} {SPARED}"))

    def test_what_an_application_writes_into_an_event(self) -> None:
        self.book.circuit(f'7 BUILT {PATH} PURPOSE=GENERAL SOCKS_USERNAME="a {UPLOAD} b" {UPLOAD}')
        self.assertIsNone(self.book.stream("31 CLOSED 7 10.0.0.1:80 REASON=DONE"))

    @settings(max_examples=50, deadline=None)
    @given(st.text(max_size=60), st.sampled_from(["", "7 ", "7 BUILT ", f"7 BUILT {UPLOAD} ", "7 CLOSED 7 "]))
    def test_any_text(self, text: str, before: str) -> None:
        """No event harms, and nothing but a number that was told of is ever closed."""
        self.assertIn(self.book.circuit(before + text), (None, "7", before.strip() and "7"))
        self.book.stream(before + text)


class Closing(FakeTor):
    async def test_the_one_and_no_other(self) -> None:
        control = await connect_control(reactor, self.listen())
        self.answers["CLOSECIRCUIT 8 IfUnused"] = ['552 Unknown circuit "8"']
        await close_spent(reactor, control)
        for number in (7, 8, 9):
            self.tell(f"CIRC {number} BUILT {PATH} {UPLOAD}")
        for number in (8, 7):
            self.tell(f"STREAM {number} CLOSED {number} 10.0.0.1:443 REASON=DONE")
        await until(lambda: len(self.told("CLOSECIRCUIT")) == 2)
        self.assertEqual(self.told("CLOSECIRCUIT"), ["CLOSECIRCUIT 8 IfUnused", "CLOSECIRCUIT 7 IfUnused"])
