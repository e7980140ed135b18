"""Onions that the config names, with tor's proof of work: from the start, later, and where tor cannot."""

from __future__ import annotations

from ron.proto.onions import Pow
from ron.services.oniond.service import OniondService
from ron.tor.backends import BackendReport, Capability, Gap
from tests.services.oniond.fakes import WIKI, OnionTor

POW = Pow(queue_rate=7, queue_burst=9)
ARGUMENTS = "PoWDefensesEnabled=1 PoWQueueRate=7 PoWQueueBurst=9"


class Declared(OnionTor):
    """`add_app` with and without."""

    def other(self, pow_: Pow | None) -> OniondService:
        """The next life of the daemon, whose config says this."""
        service = self.make()
        service.add_app("wiki", WIKI, pow_)
        return service

    def told(self) -> list[str]:
        """What tor was asked to run, the key left out."""
        return [command.partition(" ")[2].partition(" ")[2] for command in self.commands if "ADD_ONION" in command]

    async def test_without(self) -> None:
        await self.up()
        (arguments,) = self.told()
        self.assertNotIn("PoW", arguments)

    async def test_with(self) -> None:
        service = await self.up(self.other(POW))
        (arguments,) = self.told()
        self.assertIn(ARGUMENTS, arguments)
        (view,) = service.list()
        self.assertEqual(view.pow, POW)

    async def test_an_onion_from_before_gets_it_and_keeps_its_address(self) -> None:
        before = (await self.up()).onion("wiki")
        await self.taken_down()
        self.commands.clear()
        service = await self.up(self.other(POW))
        self.assertEqual(service.onion("wiki"), before)
        self.assertIn(ARGUMENTS, self.told()[-1])
        await self.taken_down(service)
        self.commands.clear()
        service = await self.up(self.other(None))
        self.assertEqual(service.onion("wiki"), before)
        self.assertNotIn("PoW", self.told()[-1])

    async def test_a_tor_that_cannot_serves_it_without(self) -> None:
        gap = Gap(capability=Capability.ONION_POW, why="tor is too old for it")
        able = frozenset(Capability) - {Capability.ONION_POW}
        report = BackendReport(
            name="binary-tor", available=True, path=None, version="0.4.8.1", capabilities=able, gaps=(gap,)
        )
        service = self.make()
        service._backend = report
        service.add_app("wiki", WIKI, POW)
        await self.up(service)
        (arguments,) = self.told()
        self.assertNotIn("PoW", arguments)
        self.assertIsNone(service.list()[0].pow)
