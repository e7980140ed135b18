"""The gateway on the wire: tiles as HTTP caches and browsers expect them, and refusals that say what is wrong."""

from __future__ import annotations

from pathlib import Path

from twisted.internet import reactor

from ron.kernel import HealthState, Metrics
from ron.proto.assets import strong_etag
from ron.proto.facts import HelloReport, NodeFacts, NodeStatus, PingReport
from ron.services.edge.config import EdgeConfig
from ron.services.edge.service import EdgeService
from ron.services.gateway.api import CONTENT_SECURITY_POLICY, GatewayApi
from tests.services.edge.packs import grid, write_pack
from tests.web.wire import OnTheWire, Response

BODY = b"tile 1/0/1" * 3
ETAG = strong_etag(BODY)


def hello() -> HelloReport:
    return HelloReport(onion=None, ready=False, network="private", ping=PingReport())


def status() -> NodeStatus:
    facts = NodeFacts(gateway_url="", mailbox_url="", onion=None, socks_port=0, pids={})
    nothing = {"missing": (), "degraded": (), "reasons": {}, "tor": None, "onions": (), "queues": {}, "packs": ()}
    return NodeStatus(facts=facts, uptime_s=1.0, ready=True, **nothing)


class GatewayTests(OnTheWire):
    """A real edge over a small pack behind a real site."""

    def setUp(self) -> None:
        super().setUp()
        self.home = Path(self.mktemp()).absolute()
        write_pack(self.home / "a.pmtiles", grid(1))

    async def start(self) -> None:
        config = EdgeConfig(packs=("a.pmtiles",))
        edge = EdgeService(config, home=self.home, reactor=reactor, health=HealthState(), metrics=Metrics())
        edge.startService()
        self.addCleanup(edge.stopService)
        await edge.opened
        self.serve(GatewayApi(edge=edge, hello=hello, status=status).endpoints())

    async def get(self, path: str, method: str = "GET", **headers: str) -> Response:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        return await self.ask(f"{method} {path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode(), headless=method == "HEAD")

    async def test_a_tile(self) -> None:
        await self.start()
        for _ in range(2):  # from the pack, then from memory
            reply = await self.get("/tiles/1/0/1.png")
            self.assertEqual((reply.status, reply.body), (200, BODY))
            self.assertEqual((reply.headers["etag"], reply.headers["content-type"]), (ETAG, "image/png"))
            self.assertEqual(reply.headers["accept-ranges"], "bytes")
            self.assertEqual(reply.headers["x-content-type-options"], "nosniff")
        head = await self.get("/tiles/1/0/1.png", "HEAD")
        self.assertEqual((head.status, head.body, head.headers["content-length"]), (200, b"", str(len(BODY))))

    async def test_conditional_and_partial(self) -> None:
        await self.start()
        tile = "/tiles/1/0/1.png"
        unchanged = await self.get(tile, If_None_Match=ETAG)
        self.assertEqual((unchanged.status, unchanged.body, unchanged.headers["etag"]), (304, b"", ETAG))
        self.assertEqual((await self.get(tile, If_None_Match='"other"')).status, 200)
        part = await self.get(tile, Range="bytes=5-9")
        self.assertEqual((part.status, part.body), (206, BODY[5:10]))
        self.assertEqual(part.headers["content-range"], f"bytes 5-9/{len(BODY)}")
        beyond = await self.get(tile, Range="bytes=1000-")
        self.assertEqual((beyond.status, beyond.headers["content-range"]), (416, f"bytes */{len(BODY)}"))
        self.assertEqual(beyond.json["error"]["code"], "BadRequest")

    async def test_what_there_is_not(self) -> None:
        await self.start()
        for path, code, name in [
            ("/tiles/5/0/0.png", 404, "NotFound"),
            ("/tiles/1/0/1.jpg", 404, "NotFound"),
            ("/tiles/1/0/9.png", 400, "BadRequest"),
            ("/tiles/one/0/0.png", 400, "BadRequest"),
            ("/assets/nothing.js", 404, "NotFound"),
            ("/assets/../api.py", 404, "NotFound"),
            ("/assets/%2e%2e/service.py", 404, "NotFound"),
        ]:
            reply = await self.get(path)
            self.assertEqual((reply.status, reply.json["error"]["code"]), (code, name), path)

    async def test_a_broken_pack_is_503(self) -> None:
        (self.home / "a.pmtiles").write_bytes(b"nonsense")
        await self.start()
        reply = await self.get("/tiles/0/0/0.png")
        self.assertEqual((reply.status, reply.json["error"]["code"]), (503, "StoreUnavailable"))
        self.assertIn(int(reply.headers["retry-after"]), range(1, 6))
        self.assertIn("a.pmtiles", reply.json["error"]["message"])

    async def test_the_page_and_its_report(self) -> None:
        await self.start()
        page = await self.get("/")
        self.assertEqual(page.headers["content-security-policy"], CONTENT_SECURITY_POLICY)
        self.assertTrue(page.headers["content-type"].startswith("text/html"))
        self.assertEqual((await self.get("/hello.json")).json["ping"]["state"], "idle")
        script = await self.get("/assets/leaflet/1.9.4/leaflet.js")
        self.assertTrue(script.headers["content-type"].startswith("text/javascript"))
        self.assertEqual((await self.get("/v1/status")).status, 401)
