"""Time periods and shared random values, reckoned as tor reckons them."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.tor.descriptor.periods import NetworkTime, TimePeriod, disaster_srv

HOUR_S = 3600
CURRENT, PREVIOUS = b"c" * 32, b"p" * 32
hours = st.integers(48, 900_000)


def unix(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


def public(at_s: int) -> NetworkTime:
    return NetworkTime(valid_after_s=at_s, interval_s=HOUR_S, testing=False, srv_current=CURRENT, srv_previous=PREVIOUS)


def testing(at_s: int, interval_s: int = 20) -> NetworkTime:
    return NetworkTime(valid_after_s=at_s, interval_s=interval_s, testing=True)


class PublicNetwork(SynchronousTestCase):
    def test_the_specifications_example(self) -> None:
        """Figures of rend-spec-v3 §2.2.1 and of tor's own test of them."""
        for text, number in (
            ("2016-04-13T11:00:00", 16903),
            ("2016-04-13T11:59:59", 16903),
            ("2016-04-13T12:00:00", 16904),
            ("1973-05-20T01:50:33", 1234),
        ):
            self.assertEqual(public(unix(text)).period.number, number, text)
        self.assertEqual(public(unix("2016-04-13T11:00:00")).period.end_s, unix("2016-04-13T12:00:00"))

    def test_which_half_of_the_day(self) -> None:
        """From noon to midnight a value is awaited, from midnight to noon there is a new one (tor's test)."""
        halves = {"T00:00:00": False, "T11:00:00": False, "T12:00:00": True, "T23:00:00": True}
        for hour, awaits in halves.items():
            self.assertIs(public(unix("1985-10-26" + hour)).awaits_srv, awaits, hour)

    def test_due_before_noon_and_after(self) -> None:
        older, newer = public(unix("2016-04-13T09:00:00")).due()
        self.assertEqual((older.period.number, older.srv), (16903, PREVIOUS))
        self.assertEqual((newer.period.number, newer.srv), (16904, CURRENT))
        older, newer = public(unix("2016-04-13T13:00:00")).due()
        self.assertEqual((older.period.number, older.srv), (16903, PREVIOUS))
        self.assertEqual((newer.period.number, newer.srv), (16904, CURRENT))

    @given(hours)
    def test_clients_ask_for_what_is_due_in_every_hour(self, hour: int) -> None:
        """A service one consensus behind or ahead still has what a client looks for, and where it looks."""

        def at(later: int) -> NetworkTime:
            run = (hour + later) // 24
            current, previous = (number.to_bytes(32, "big") for number in (run, run - 1))
            return NetworkTime(
                valid_after_s=(hour + later) * HOUR_S,
                interval_s=HOUR_S,
                testing=False,
                srv_current=current,
                srv_previous=previous,
            )

        asked = at(0).asked_for()
        self.assertEqual(asked.period, at(0).period)
        for service in (at(-1), at(0), at(1)):
            self.assertIn(asked, service.due())

    @given(st.integers(2 * 86_400, 2**33))
    def test_periods_are_without_gap(self, at_s: int) -> None:
        period = public(0).period_at(at_s)
        self.assertTrue(period.start_s <= at_s < period.end_s)
        self.assertEqual(public(0).period_at(period.end_s), period.shifted(1))
        self.assertEqual(public(0).period_at(period.start_s - 1), period.shifted(-1))

    def test_the_networks_own_length(self) -> None:
        time = NetworkTime(valid_after_s=unix("2016-04-13T11:00:00"), interval_s=HOUR_S, testing=False, length_min=60)
        self.assertEqual(time.period.length_min, 60)

    def test_disaster(self) -> None:
        """Without agreement of the authorities each period has a value that everybody can reckon."""
        period = TimePeriod(number=16903, length_min=1440, start_s=0)
        self.assertNotEqual(disaster_srv(period), disaster_srv(period.shifted(1)))
        older, newer = testing(1_800_000_000).due()
        self.assertEqual((older.srv, newer.srv), (disaster_srv(older.period), disaster_srv(newer.period)))


class TestingNetwork(SynchronousTestCase):
    def test_length_and_offset_come_from_the_voting_interval(self) -> None:
        self.assertEqual((testing(0).period_length_min, testing(0).phase_s), (8, 240))
        self.assertEqual(testing(0, 300).period_length_min, 120)
        # the first consensus of our own network: minutes are rounded down
        self.assertEqual((testing(0, 6).period_length_min, testing(0, 6).phase_s), (2, 72))

    @given(st.integers(90_000_000, 100_000_000), st.sampled_from((6, 10, 20, 30, 300, 3600)))
    def test_half_of_the_votes_await_a_value(self, vote: int, interval_s: int) -> None:
        """When the interval makes whole minutes, every run splits into its two halves."""
        times = [testing((vote + later) * interval_s, interval_s) for later in range(24)]
        for time in times:
            older, newer = time.due()
            self.assertEqual(newer.period, older.period.shifted(1))
            self.assertEqual(time.asked_for().period, time.period)
        if interval_s * 12 % 60 == 0:
            self.assertEqual(sum(time.awaits_srv for time in times), 12)
