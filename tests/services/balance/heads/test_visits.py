"""Circuits of a head's onions, by lines as tor 0.4.9.11 writes them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.heads.visits import Visits
from ron.tor.backendonion import CircuitLine, read_circuit

ONION, OTHER = "a" * 56 + ".onion", "b" * 56 + ".onion"
FLAGS = "$B69918DF3A5BA369590DD2713A6D4DA066F680FD~relay1 BUILD_FLAGS=IS_INTERNAL,NEED_UPTIME"


def line(number: int, status: str, purpose: str, state: str, onion: str = ONION) -> CircuitLine:
    query = f" REND_QUERY={onion.removesuffix('.onion')}" if onion else ""
    read = read_circuit(f"{number} {status} {FLAGS} PURPOSE=HS_SERVICE_{purpose} HS_STATE={state}{query}")
    assert read is not None
    return read


class VisitsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.visits = Visits()

    def tell(self, number: int, status: str, purpose: str, state: str, onion: str = ONION) -> str | None:
        return self.visits.heard(line(number, status, purpose, state, onion))

    def session(self, number: int, onion: str = ONION) -> list[str | None]:
        return [
            self.tell(number, "LAUNCHED", "REND", "HSSR_CONNECTING", ""),
            self.tell(number, "EXTENDED", "REND", "HSSR_CONNECTING", onion),
            self.tell(number, "BUILT", "REND", "HSSR_CONNECTING", onion),
            self.tell(number, "PURPOSE_CHANGED", "REND", "HSSR_JOINED", onion),
        ]

    def point(self, number: int, onion: str = ONION) -> list[str | None]:
        return [
            self.tell(number, "LAUNCHED", "INTRO", "HSSI_CONNECTING", ""),
            self.tell(number, "EXTENDED", "INTRO", "HSSI_CONNECTING", onion),
            self.tell(number, "BUILT", "INTRO", "HSSI_CONNECTING", onion),
            self.tell(number, "PURPOSE_CHANGED", "INTRO", "HSSI_ESTABLISHED", onion),
        ]

    def test_what_is_no_line(self) -> None:
        for text in ("", "7", "7! BUILT", "x" * 20 + " BUILT"):
            self.assertIsNone(read_circuit(text), text)

    def test_keywords_in_a_user_name_are_not_tors(self) -> None:
        text = f'7 BUILT PURPOSE=GENERAL SOCKS_USERNAME="x PURPOSE=HS_SERVICE_REND REND_QUERY={"a" * 56} \\" y"'
        read = read_circuit(text)
        self.assertEqual(read, CircuitLine("7", "BUILT", "GENERAL", "", ""))

    def test_a_query_that_is_no_address_is_none(self) -> None:
        read = read_circuit("7 BUILT PURPOSE=HS_SERVICE_REND REND_QUERY=duckduckgo")
        self.assertEqual(read, CircuitLine("7", "BUILT", "HS_SERVICE_REND", "", ""))

    def test_sessions_and_points_of_an_open_onion(self) -> None:
        self.assertEqual(self.session(1) + self.point(2), [None] * 8)
        self.assertEqual((self.visits.sessions()[ONION], self.visits.points(ONION)), (1, 1))
        self.assertEqual((self.visits.introductions, self.visits.attacks), (1, 0))
        self.tell(1, "CLOSED", "REND", "HSSR_JOINED")
        self.tell(2, "CLOSED", "INTRO", "HSSI_ESTABLISHED")
        self.assertEqual((self.visits.sessions()[ONION], self.visits.points(ONION)), (0, 0))

    def test_shut_closes_the_points_that_are_there_and_each_new_one_once_built(self) -> None:
        self.point(1)
        self.point(9, OTHER)
        self.assertEqual(self.visits.shut(ONION), ["1"])
        self.assertEqual(self.visits.shut(ONION), [])
        self.assertEqual(self.point(2), [None, None, "2", None])
        self.assertEqual(self.point(10, OTHER), [None] * 4)
        self.assertEqual((self.visits.points(ONION), self.visits.points(OTHER)), (0, 2))

    def test_a_point_under_way_is_closed_when_it_is_built(self) -> None:
        self.tell(1, "EXTENDED", "INTRO", "HSSI_CONNECTING")
        self.assertEqual(self.visits.shut(ONION), [])
        self.assertEqual(self.tell(1, "BUILT", "INTRO", "HSSI_CONNECTING"), "1")

    def test_shut_keeps_sessions_and_closes_new_ones_as_attacks(self) -> None:
        self.session(1)
        self.visits.shut(ONION)
        self.assertEqual(self.session(2), [None, None, "2", None])
        self.assertEqual(self.session(3, OTHER), [None] * 4)
        self.assertEqual(self.visits.attacks, 1)
        self.assertEqual(self.visits.sessions(), {ONION: 1, OTHER: 1})

    def test_whoever_was_on_the_way_gets_in(self) -> None:
        self.tell(1, "LAUNCHED", "REND", "HSSR_CONNECTING", "")
        self.tell(2, "EXTENDED", "REND", "HSSR_CONNECTING")
        self.visits.shut(ONION)
        for number in (1, 2):
            self.assertIsNone(self.tell(number, "EXTENDED", "REND", "HSSR_CONNECTING"))
            self.assertIsNone(self.tell(number, "BUILT", "REND", "HSSR_CONNECTING"))
        self.assertEqual((self.visits.sessions()[ONION], self.visits.attacks), (2, 0))

    def test_circuits_from_before_we_came_are_nobodys_attack(self) -> None:
        self.visits.shut(ONION)
        there = [line(1, "BUILT", "REND", "HSSR_JOINED"), None, line(2, "BUILT", "GENERAL", "")]
        points = [line(3, "BUILT", "INTRO", "HSSI_ESTABLISHED"), line(4, "BUILT", "INTRO", "HSSI_ESTABLISHED", OTHER)]
        self.assertEqual(self.visits.begin([*there, *points]), ["3"])
        self.assertEqual((self.visits.sessions()[ONION], self.visits.attacks), (1, 0))
        self.assertIsNone(self.tell(1, "PURPOSE_CHANGED", "REND", "HSSR_JOINED"))

    def test_a_cannibalised_circuit(self) -> None:
        self.visits.shut(ONION)
        self.assertIsNone(self.tell(5, "BUILT", "HSDIR", "HSSI_CONNECTING", ""))
        self.assertIsNone(self.tell(5, "CANNIBALIZED", "REND", "HSSR_CONNECTING", ""))
        self.assertIsNone(self.tell(5, "EXTENDED", "REND", "HSSR_CONNECTING"))
        self.assertEqual(self.tell(5, "BUILT", "REND", "HSSR_CONNECTING"), "5")

    @given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["LAUNCHED", "EXTENDED", "BUILT", "CLOSED", "shut"]))))
    def test_a_session_that_was_up_is_never_closed(self, steps: list[tuple[int, str]]) -> None:
        visits, up, closed, shut = Visits(), set(), set(), False
        for number, step in steps:
            if step == "shut":
                self.assertEqual(visits.shut(ONION), [])
                shut = True
                continue
            told = visits.heard(line(number, step, "REND", "", "" if step == "LAUNCHED" else ONION))
            if step == "CLOSED":
                up.discard(number)
                closed.discard(number)
            elif step == "BUILT" and not shut:
                up.add(number)
            if told is not None:
                self.assertTrue(shut)
                self.assertNotIn(number, up | closed, "closed a session, or twice")
                closed.add(number)
