"""A consensus of another day or hour, a host that is behind: what tor does not notice is found, and nothing else is."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.services.oniond import publisher as publisher_module
from ron.services.oniond.networktime import TimeWatch, network_time
from ron.tor.descriptor.periods import NetworkTime
from tests.services.oniond.fakes import OnionTor, create
from tests.web.wire import until

DAY_S = 86_400
NOON = 1_795_262_400  # 2026-11-21 12:00:00


def period(valid_after: str, fresh_until: str) -> int | None:
    """The number of it."""
    time = network_time(valid_after, fresh_until)
    return time.period.number if time is not None else None


class Reckoning(SynchronousTestCase):
    """Numbers."""

    def setUp(self) -> None:
        self.now = float(NOON)

    def watch(self) -> TimeWatch:
        return TimeWatch(None, lambda: self.now)

    def public(self, at_s: int) -> NetworkTime:
        return NetworkTime(valid_after_s=at_s, interval_s=3600, testing=True)

    def test_the_first_is_no_jump(self) -> None:
        self.assertFalse(self.watch().judge(self.public(NOON)).skipped)

    @given(st.lists(st.integers(1, 50), min_size=2))
    def test_one_at_a_time(self, days: list[int]) -> None:
        watch = self.watch()
        watch.judge(self.public(days[0] * DAY_S))
        for before, now in pairwise(days):
            self.assertEqual(watch.judge(self.public(now * DAY_S)).skipped, now not in (before, before + 1))

    def test_another_tor_begins_anew(self) -> None:
        watch = self.watch()
        watch.judge(self.public(NOON))
        watch.forget()
        self.assertFalse(watch.judge(self.public(NOON + 7 * DAY_S)).skipped)

    def test_behind_is_before_the_run_of_shared_randomness(self) -> None:
        """The public network's began at midnight; before it, tor has no number for a descriptor."""
        for hours, behind in ((0, False), (-11, False), (-12, False), (-13, True), (-36, True), (5, False)):
            self.now = NOON + 3600.0 * hours
            self.assertEqual(self.watch().judge(self.public(NOON)).behind, behind, hours)

    def test_periods_of_our_own_network(self) -> None:
        """Votes every 20 s: eight minutes, that begin at the middle of eight."""
        at = [period(f"2026-11-21 {time}:00", f"2026-11-21 {time}:20") for time in ("11:59", "12:03", "12:04")]
        self.assertEqual([at[1] - at[0], at[2] - at[1]], [0, 1])  # type: ignore[operator]
        self.assertEqual(period('"2026-11-21 12:03:00"', "2026-11-21 12:03:20\n"), at[1])

    def test_periods_of_the_public_network(self) -> None:
        """A day, from noon; as in rend-spec-v3 §2.2.1, where 2016-04-13 11:00 is of period 16903."""
        self.assertEqual(period("2016-04-13 11:00:00", "2016-04-13 12:00:00"), 16903)
        self.assertEqual(period("2016-04-13 12:00:00", "2016-04-13 13:00:00"), 16904)

    def test_what_is_no_time(self) -> None:
        good = "2026-11-21 12:00:00"
        for after, fresh in (("", ""), (good, ""), (good, good), (good, "2026-11-21 11:00:00"), ("x", good)):
            self.assertIsNone(network_time(after, fresh), (after, fresh))
        self.assertIsNone(network_time("1950-01-01 00:00:00", "1950-01-01 01:00:00"))


class Publishing(OnionTor):
    """What comes of it."""

    async def look(self) -> None:
        await self.service._hosting.look_at_time()

    def mutes(self) -> list[str]:
        return [one.partition("=")[2] for one in self.commands if one.startswith("SETCONF PublishHidServDescriptors")]

    async def test_an_hour_forward_everything_is_published_anew(self) -> None:
        await self.up()
        self.consensus_of("12:08:00")
        await self.look()
        self.assertEqual(self.onion_commands(), ["ADD_ONION"], "tor takes one step by itself")
        self.consensus_of("13:00:00")
        await self.look()
        await until(lambda: self.onion_commands() == ["ADD_ONION", "DEL_ONION", "ADD_ONION"])
        await until(lambda: self.service.status()[0].published)
        await self.look()
        self.assertEqual(len(self.onion_commands()), 3, "once")

    async def test_readiness_says_so(self) -> None:
        await self.up()
        self.deaf = True
        self.consensus_of("13:00:00")
        await self.look()
        self.assertIn("published", self.health.snapshot().reasons["onion.wiki"])

    async def test_a_tor_that_does_not_say(self) -> None:
        await self.up()
        for text in ("", "soon"):
            self.consensus["GETINFO consensus/valid-after"] = text
            await self.look()
        self.assertEqual(self.onion_commands(), ["ADD_ONION"])

    async def test_behind_what_is_there_stays_and_nothing_new_is_published(self) -> None:
        await self.up()
        self.now = NOON - 3600.0
        await self.look()
        self.assertEqual(self.mutes()[-1], "0")
        self.assertTrue(self.service.status()[0].published, "the directories have it")
        view = await self.service.create(create(1, wait_s=0.2))
        self.assertFalse(view.ready)
        await self.look()
        shown = self.service.view(self.service.find(view.id))
        self.assertIn("the clock of this host is behind", shown.reason or "")
        self.assertEqual(self.onion_commands(), ["ADD_ONION"])
        self.now = float(NOON)
        await self.look()
        self.assertEqual(self.mutes()[-1], "1")
        await until(lambda: self.service.view(self.service.find(view.id)).ready)

    async def test_a_tor_that_comes_up_behind_is_not_let_publish(self) -> None:
        self.now = NOON - 3600.0
        self.patch(publisher_module, "RETRY_S", 0.02)
        self.service.startService()
        await until(lambda: "is behind" in self.health.snapshot().reasons.get("onion.wiki", ""))
        self.assertEqual((self.onion_commands(), self.mutes()[-1]), ([], "0"))
        self.now = float(NOON)
        await self.look()
        await until(lambda: self.service.status()[0].published)
