"""A store that cannot be written to shows in readiness, and only what can be written again ends that."""

from __future__ import annotations

from twisted.trial.unittest import TestCase

from ron.kernel import HealthState
from ron.proto.errors import unavailable
from ron.services.oniond.storehealth import STORE_KEY, StoreHealth
from ron.store import BatchReport

WELL = BatchReport(1, 0.0, wrote=True, trouble=None, lost=False)
FULL = BatchReport(1, 0.0, wrote=False, trouble=unavailable("no room on the disk"), lost=True)


class Trouble(TestCase):
    def setUp(self) -> None:
        self.health = HealthState()
        self.health.ok("onions")
        self.full = False
        self.probes = 0
        self.store = StoreHealth(self.health, self.probe)

    async def probe(self) -> None:
        self.probes += 1
        if self.full:
            raise unavailable("no room on the disk")

    def said(self) -> str:
        return self.health.snapshot().reasons.get(STORE_KEY, "")

    async def test_nobody_is_asked_while_all_is_well(self) -> None:
        self.store.observe(WELL)
        self.assertTrue(await self.store.writable())
        self.assertEqual((self.probes, self.said()), (0, ""))

    async def test_told_until_a_probe_goes_through(self) -> None:
        self.full = True
        self.store.observe(FULL)
        self.assertEqual(self.said(), "no room on the disk")
        self.assertTrue(self.health.snapshot().ready, "what is there is served on")
        self.assertFalse(await self.store.writable())
        self.store.observe(WELL)
        self.assertEqual(self.said(), "no room on the disk", "a small write that found room proves little")
        self.full = False
        self.assertTrue(await self.store.writable())
        self.assertEqual(self.said(), "")
