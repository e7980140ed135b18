"""Edge: what is in memory comes at once, what is broken is named, and nothing outside the bundle can be reached."""

from __future__ import annotations

from pathlib import Path

from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from ron.kernel import HealthState, Metrics
from ron.proto.assets import Asset, strong_etag
from ron.proto.errors import RonError
from ron.proto.tiles import TileAddress
from ron.services.edge.config import EdgeConfig
from ron.services.edge.service import EdgeService
from tests.services.edge.packs import grid, write_pack

HERE = TileAddress(1, 0, 1, "png")


class EdgeTests(TestCase):
    """One service over packs in a folder of its own."""

    timeout = 60

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()
        self.health = HealthState()

    async def start(self, *packs: str, cache: int = 1024 * 1024) -> EdgeService:
        config = EdgeConfig(packs=packs, tile_cache_bytes=cache)
        edge = EdgeService(config, home=self.home, reactor=reactor, health=self.health, metrics=Metrics())
        edge.startService()
        self.addCleanup(edge.stopService)
        await edge.opened
        return edge

    async def refusal(self, edge: EdgeService, address: TileAddress) -> RonError:
        try:
            await ensureDeferred(edge.tile(address))  # type: ignore[arg-type]
        except RonError as error:
            return error
        raise AssertionError("it was not refused")

    async def test_a_tile_is_read_once_and_then_comes_from_memory(self) -> None:
        write_pack(self.home / "a.pmtiles", grid(1))
        edge = await self.start("a.pmtiles")
        first = await edge.tile(HERE)  # type: ignore[misc]
        self.assertEqual((first.body, first.content_type), (b"tile 1/0/1" * 3, "image/png"))
        self.assertEqual(first.etag, strong_etag(first.body))
        second = edge.tile(HERE)
        self.assertIsInstance(second, Asset)
        self.assertIs(second, first)
        self.assertTrue(self.health.snapshot().ready)
        self.assertEqual(edge.pack_info()[0].tiles, 5)

    async def test_memory_is_bounded(self) -> None:
        write_pack(self.home / "a.pmtiles", grid(1))
        edge = await self.start("a.pmtiles", cache=40)
        await edge.tile(HERE)  # type: ignore[misc]
        await edge.tile(TileAddress(1, 1, 1, "png"))  # type: ignore[misc]
        self.assertNotIsInstance(again := edge.tile(HERE), Asset)
        await again  # type: ignore[misc]

    async def test_the_first_pack_that_has_it_wins(self) -> None:
        write_pack(self.home / "a.pmtiles", {0: b"from a"})
        write_pack(self.home / "b.pmtiles", {0: b"from b", 1: b"only b"})
        edge = await self.start("a.pmtiles", "b.pmtiles")
        self.assertEqual((await edge.tile(TileAddress(0, 0, 0, "png"))).body, b"from a")  # type: ignore[misc]
        self.assertEqual((await edge.tile(TileAddress(1, 0, 0, "png"))).body, b"only b")  # type: ignore[misc]
        self.assertEqual((await self.refusal(edge, TileAddress(5, 0, 0, "png"))).status, 404)

    async def test_a_broken_pack_is_named_and_served_again_once_repaired(self) -> None:
        broken = self.home / "a.pmtiles"
        broken.write_bytes(b"not a pack")
        edge = await self.start("a.pmtiles")
        self.assertEqual(self.health.snapshot().missing, ("edge.pack:a.pmtiles",))
        self.assertIn("a.pmtiles", (await self.refusal(edge, HERE)).message)
        self.assertEqual((await self.refusal(edge, HERE)).status, 503)
        self.assertFalse(edge.pack_info()[0].ok)
        write_pack(broken, grid(1))
        while not self.health.snapshot().ready:
            await deferLater(reactor, 0.1)
        self.assertEqual((await edge.tile(HERE)).body, b"tile 1/0/1" * 3)  # type: ignore[misc]

    async def test_a_pack_that_goes_bad_while_serving(self) -> None:
        path = write_pack(self.home / "a.pmtiles", grid(2))
        edge = await self.start("a.pmtiles")
        kept = await edge.tile(HERE)  # type: ignore[misc]
        with path.open("r+b") as file:
            file.truncate(200)
        refusal = await self.refusal(edge, TileAddress(2, 3, 3, "png"))
        self.assertEqual(refusal.status, 503)
        self.assertIn("edge.pack:a.pmtiles", self.health.snapshot().missing)
        self.assertIs(edge.tile(HERE), kept, "what is in memory is still good")

    async def test_assets_are_just_the_bundle(self) -> None:
        edge = await self.start()
        script = edge.asset("leaflet/1.9.4/leaflet.js")
        self.assertTrue(script.content_type.startswith("text/javascript"))
        for path in ("", "../service.py", "leaflet/../../service.py", "/etc/passwd", "leaflet", "nothing.js"):
            refusal = self.assertRaises(RonError, edge.asset, path)
            self.assertEqual(refusal.status, 404, path)
