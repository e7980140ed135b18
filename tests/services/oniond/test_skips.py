"""A consensus of another day or hour: what tor does not notice in time is found, and nothing else is."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.oniond.skips import Skips, period_of
from tests.services.oniond.fakes import OnionTor
from tests.web.wire import until


class Skipping(SynchronousTestCase):
    """Numbers."""

    def test_the_first_is_no_jump(self) -> None:
        self.assertFalse(Skips().skipped(7))

    @given(st.lists(st.integers(0, 50), min_size=2))
    def test_one_at_a_time(self, periods: list[int]) -> None:
        skips = Skips()
        skips.skipped(periods[0])
        for before, now in pairwise(periods):
            self.assertEqual(skips.skipped(now), now < before or now > before + 1)

    def test_periods_of_our_own_network(self) -> None:
        """Votes every 20 s: eight minutes, that begin at the middle of eight."""
        at = [period_of(f"2026-11-21 {time}:00", f"2026-11-21 {time}:20") for time in ("11:59", "12:03", "12:04")]
        self.assertEqual([at[1] - at[0], at[2] - at[1]], [0, 1])  # type: ignore[operator]
        self.assertEqual(period_of('"2026-11-21 12:03:00"', "2026-11-21 12:03:20\n"), at[1])

    def test_periods_of_the_public_network(self) -> None:
        """A day, from noon; as in rend-spec-v3 §2.2.1, where 2016-04-13 11:00 is of period 16903."""
        self.assertEqual(period_of("2016-04-13 11:00:00", "2016-04-13 12:00:00"), 16903)
        self.assertEqual(period_of("2016-04-13 12:00:00", "2016-04-13 13:00:00"), 16904)

    def test_what_is_no_time(self) -> None:
        good = "2026-11-21 12:00:00"
        for after, fresh in (("", ""), (good, ""), (good, good), (good, "2026-11-21 11:00:00"), ("x", good)):
            self.assertIsNone(period_of(after, fresh), (after, fresh))
        self.assertIsNone(period_of("1950-01-01 00:00:00", "1950-01-01 01:00:00"))


class Publishing(OnionTor):
    """What comes of it."""

    async def test_an_hour_forward_everything_is_published_anew(self) -> None:
        await self.up()
        await self.look()
        self.consensus_of("12:08:00")
        await self.look()
        self.assertEqual(self.onion_commands(), ["ADD_ONION"], "tor takes one step by itself")
        self.consensus_of("13:00:00")
        await self.look()
        await until(lambda: self.onion_commands() == ["ADD_ONION", "DEL_ONION", "ADD_ONION"])
        await until(lambda: self.service.status()[0].published)
        await self.look()
        self.assertEqual(len(self.onion_commands()), 3, "once")

    async def test_readiness_says_why(self) -> None:
        await self.up()
        await self.look()
        self.deaf = True
        self.consensus_of("13:00:00")
        await self.look()
        self.assertIn("published", self.health.snapshot().reasons["onion.wiki"])

    async def test_a_tor_that_does_not_say(self) -> None:
        await self.up()
        for text in ("", "soon"):
            self.consensus["GETINFO consensus/valid-after"] = text
            await self.look()
        self.consensus_of("13:00:00")
        await self.look()
        self.assertEqual(self.onion_commands(), ["ADD_ONION"])

    async def look(self) -> None:
        await self.service._hosting.look_at_time()
