"""A tor that somebody else runs: found, lost and found again; the peer speaks the control protocol."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from txtorcon import TorControlProtocol

from ron.proto.errors import RonError, unavailable
from ron.tor import attached as attached_module
from ron.tor.attached import AttachedTor
from tests.tor.fake_tor import FakeTor
from tests.web.wire import until


class Host:
    """Runs the tor `onion`, when `port` is set."""

    def __init__(self) -> None:
        self.port = 0
        self.restarted = 0
        self.looked = 0

    async def control_port(self, name: str) -> int:
        assert name == "onion"
        self.looked += 1
        if not self.port:
            raise unavailable("tor onion is not up")
        return self.port

    async def restart(self, name: str) -> None:
        assert name == "onion"
        self.restarted += 1


class Attached(FakeTor):
    def setUp(self) -> None:
        super().setUp()
        self.patch(attached_module, "CEILING_S", 0.02)
        self.host = Host()
        self.ups: list[TorControlProtocol] = []
        self.downs = 0
        self.work: Deferred[None] | None = None
        self.trouble: Exception | None = None
        self.tor = AttachedTor(reactor, name="onion", host=self.host, on_up=self.up, on_down=self.down)
        self.addCleanup(self.tor.stop)

    async def up(self, control: TorControlProtocol) -> None:
        self.ups.append(control)
        if self.trouble is not None:
            trouble, self.trouble = self.trouble, None
            raise trouble
        if self.work is not None:
            await self.work

    def down(self) -> None:
        self.downs += 1

    async def found(self, times: int = 1) -> None:
        await until(lambda: len(self.ups) == times)

    async def test_found_as_soon_as_it_is_there(self) -> None:
        self.tor.start()
        await until(lambda: self.host.looked > 3)
        self.assertEqual((self.ups, self.tor.control), ([], None))
        self.host.port = self.listen()
        await self.found()
        self.assertIs(self.tor.control, self.ups[0])
        self.assertEqual((await self.ups[0].get_info("version"))["version"], "0.4.9.11")
        self.assertEqual((self.downs, self.host.restarted), (0, 0))

    async def test_lost_and_found_again_with_another_cookie(self) -> None:
        self.host.port = self.listen()
        self.tor.start()
        await self.found()
        self.cookie = b"x" * 32
        self._hang_up()
        await until(lambda: self.downs)
        await deferLater(reactor, 0.1)
        self.assertEqual(len(self.ups), 1, "the old cookie does not open it")
        self.cookie_path.write_bytes(self.cookie)
        await self.found(2)
        self.assertEqual((self.downs, self.host.restarted), (1, 0))

    async def test_what_is_under_way_ends_with_the_connection(self) -> None:
        ended: list[Any] = []
        self.work = Deferred(lambda _deferred: ended.append("cancelled"))
        self.host.port = self.listen()
        self.tor.start()
        await self.found()
        self.work = None
        self._hang_up()
        await self.found(2)
        self.assertEqual((ended, self.host.restarted), (["cancelled"], 0))

    async def test_of_no_use_it_is_started_anew(self) -> None:
        self.host.port = self.listen()
        self.trouble = unavailable("no directory takes it")
        self.tor.start()
        await self.found(2)
        self.assertEqual((self.host.restarted, self.downs), (1, 1))
        self.assertEqual(len(self.flushLoggedErrors(RonError)), 1)

    async def test_let_go_of_it_runs_on(self) -> None:
        self.host.port = self.listen()
        self.tor.start()
        await self.found()
        self.tor.stop()
        await until(lambda: not self.controllers)
        self.assertIsNone(self.tor.control)
        self.assertEqual(self.told("SIGNAL"), [])
        await deferLater(reactor, 0.1)
        self.assertEqual((len(self.ups), self.controllers), (1, []))

    async def test_stopped_while_it_is_looked_for(self) -> None:
        self.tor.start()
        await until(lambda: self.host.looked > 1)
        self.tor.stop()
        looked = self.host.looked
        await deferLater(reactor, 0.1)
        self.assertEqual(self.host.looked, looked)

    async def test_started_again_after_it_was_stopped(self) -> None:
        self.host.port = self.listen()
        self.tor.start()
        await self.found()
        self.tor.stop()
        self.tor.start()
        await self.found(2)
