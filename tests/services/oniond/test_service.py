"""What the runtime does with a tor that has onions already, and with one that loses them."""

from __future__ import annotations

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from ron.kernel import HealthState
from ron.proto.errors import unavailable
from ron.services.oniond.service import OniondService
from ron.services.oniond.store import MemoryOnionStore
from ron.tor import attached as attached_module
from ron.tor import onions as onions_module
from ron.tor.onionkeys import OnionKey, address_of, new_key
from ron.tor.onions import PortMap
from tests.tor.fake_tor import KEY, SERVICE_ID, FakeTor, uploaded
from tests.web.wire import until

WIKI = [PortMap(80, "127.0.0.1:8080")]
ADDRESS = f"{SERVICE_ID}.onion"


class Runtime(FakeTor):
    """`service` with the app wiki, whose key is known to the fake."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(attached_module, "CEILING_S", 0.02)
        self.patch(onions_module, "STRAGGLERS_S", 0.02)
        self.port = self.listen()
        self.restarted: list[str] = []
        self.health = HealthState()
        self.store = MemoryOnionStore()
        self.store.save("wiki", OnionKey(KEY))
        self.events_after = [uploaded("A")]
        self.service = self.make()
        self.detached()

    async def control_port(self, _name: str) -> int:
        if not self.port:
            raise unavailable("not up")
        return self.port

    async def restart(self, name: str) -> None:
        self.restarted.append(name)

    def make(self, ports: list[PortMap] = WIKI) -> OniondService:
        service = OniondService(reactor, tors=self, store=self.store, health=self.health)
        service.add_app("wiki", ports)
        self.addCleanup(lambda: service.stopService() if service.running else None)
        return service

    def detached(self, *addresses: str) -> None:
        """What tor has."""
        ids = [address.removesuffix(".onion") for address in addresses]
        self.answers["GETINFO onions/detached"] = ["250+onions/detached=", *ids, ".", "250 OK"]

    async def up(self, service: OniondService | None = None) -> None:
        service = service or self.service
        service.startService()
        await service.bring_up()

    async def kill(self) -> None:
        """End the service as kill -9 does: nothing is said to tor."""
        self.service._tor.stop()
        self.service.running = False
        await until(lambda: not self.controllers)
        self.commands.clear()

    async def test_published_and_kept(self) -> None:
        self.assertFalse(self.health.snapshot().ready)
        await self.up()
        self.assertEqual(self.service.onion("wiki"), ADDRESS)
        (status,) = self.service.status()
        self.assertEqual((status.onion, status.ports, status.published), (ADDRESS, (80,), True))
        self.assertIsNotNone(status.bringup_ms)
        self.assertEqual(list(self.store.applied()), [ADDRESS])
        self.assertTrue(self.health.snapshot().ready)

    async def test_a_key_of_its_own_is_kept_before_tor_hears_of_it(self) -> None:
        self.store = MemoryOnionStore()
        self.service = self.make()
        self.answers["ADD_ONION"] = ["250 OK"]  # whatever tor says, it is not our address
        self.service.startService()
        await until(lambda: self.told("ADD_ONION"))
        key = self.store.load("wiki")
        assert key is not None
        self.assertIn(key.blob, self.told("ADD_ONION")[0])
        await until(lambda: self.restarted)
        self.flushLoggedErrors()

    async def test_the_next_one_leaves_it_as_it_is(self) -> None:
        await self.up()
        await self.kill()
        self.detached(ADDRESS)
        await self.up(self.make())
        self.assertEqual(self.told("ADD_ONION") + self.told("DEL_ONION"), [])
        self.assertTrue(self.health.snapshot().ready)

    async def test_one_that_is_to_be_another_is_published_anew(self) -> None:
        await self.up()
        await self.kill()
        self.detached(ADDRESS)
        await self.up(self.make([PortMap(81, "127.0.0.1:8080")]))
        self.assertEqual([c.split()[0] for c in self.commands if "ONION" in c], ["DEL_ONION", "ADD_ONION"])

    async def test_one_that_was_never_seen_published_is_published_anew(self) -> None:
        """Killed between ADD_ONION and the first upload: whether any directory has it is not known."""
        self.detached(ADDRESS)
        await self.up()
        self.assertEqual([c.split()[0] for c in self.commands if "ONION" in c], ["DEL_ONION", "ADD_ONION"])

    async def test_what_nobody_wants_any_more_goes(self) -> None:
        stray = address_of(new_key())
        self.detached(stray)
        await self.up()
        self.assertEqual(self.told("DEL_ONION"), [f"DEL_ONION {stray.removesuffix('.onion')}"])

    async def test_a_fresh_tor_gets_them_back(self) -> None:
        await self.up()
        self.port, port = 0, self.port
        self._hang_up()
        await until(lambda: not self.health.snapshot().ready)
        self.assertEqual(self.service.onion("wiki"), ADDRESS, "the address is known all the same")
        self.port = port
        await until(lambda: self.health.snapshot().ready)
        self.assertEqual(len(self.told("ADD_ONION")), 2)

    async def test_stopped_in_order_it_takes_them_down(self) -> None:
        await self.up()
        await Deferred.fromCoroutine(self.service._take_down())
        self.assertEqual(self.told("DEL_ONION"), [f"DEL_ONION {SERVICE_ID}"])
        self.assertEqual(self.store.applied(), {})

    async def test_stopped_without_a_tor(self) -> None:
        self.port = 0
        self.service.startService()
        await self.service.stopService()

    async def test_no_directory_takes_it(self) -> None:
        self.patch(onions_module, "UPLOAD_TIMEOUT_S", 0.05)
        self.events_after = []
        self.service.startService()
        await until(lambda: self.restarted)
        self.assertEqual(self.restarted[0], "onion")
        self.assertIn("directory", self.health.snapshot().reasons["onion.wiki"])
        await self.service.stopService()
        self.flushLoggedErrors()

    async def test_stopped_and_started_again(self) -> None:
        await self.up()
        await self.service.stopService()
        await self.up()
        self.assertEqual(len(self.told("ADD_ONION")), 2)
