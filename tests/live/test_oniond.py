"""`twistd -n ron-oniond`: any local server gets an onion. Needs tor."""

from __future__ import annotations

import http.server
import json
import threading
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.sdk import Api, onion_http
from ron.sdk.transport import connection_pool
from tests.live.support import NO_TOR, Daemon
from tests.live.support import http as request


class Greeter(http.server.BaseHTTPRequestHandler):
    """Somebody's app, which knows nothing of onions."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


class OniondTests(TestCase):
    """The daemon by itself, with somebody's app behind it."""

    skip = NO_TOR
    timeout = 240

    def setUp(self) -> None:
        self.pool = connection_pool(reactor)
        self.addCleanup(self.pool.closeCachedConnections)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Greeter)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)
        local = f"127.0.0.1:{self.server.server_address[1]}"
        self.daemon = Daemon(
            "ron-oniond",
            '[admin]\nbind = "127.0.0.1:0"\n'
            f'[[apps]]\nname = "greeter"\nexpose = [{{ local = "{local}", onion_port = 80 }}]\n'
            f'[[apps]]\nname = "other"\nexpose = [{{ local = "{local}", onion_port = 8080 }}]\n',
            "onions.json",
        )
        self.addCleanup(self.daemon.destroy)
        self.daemon.start()

    async def fetch(self, url: str, socks_port: int) -> bytes:
        http_client = onion_http(reactor, socks_port, self.pool)
        return (await Api(reactor, http_client, url).fetch("GET", "/")).body

    async def test_each_app_has_an_onion_of_its_own(self) -> None:
        facts = self.daemon.facts()
        greeter, other = facts["onions"]
        self.assertEqual((greeter["app"], other["app"]), ("greeter", "other"))
        self.assertNotEqual(greeter["onion"], other["onion"])
        self.assertEqual(await self.fetch(f"http://{greeter['onion']}", facts["socks_port"]), b"hello")
        self.assertEqual(await self.fetch(f"http://{other['onion']}:8080", facts["socks_port"]), b"hello")
        admin = facts["admin_url"]
        self.assertEqual(request("GET", f"{admin}/readyz").status, 200)
        self.assertEqual(request("GET", f"{admin}/v1/onions").status, 401)
        listed = request("GET", f"{admin}/v1/onions", cap=self.daemon.admin_cap())
        self.assertEqual([o["onion"] for o in json.loads(listed.body)["onions"]], [greeter["onion"], other["onion"]])


class RefusalTests(SynchronousTestCase):
    """A config that cannot work is named in one line."""

    def test_an_app_without_ports(self) -> None:
        config = '[admin]\nbind = "127.0.0.1:0"\n[[apps]]\nname = "wiki"\nexpose = []\n'
        daemon = Daemon("ron-oniond", config, "onions.json")
        self.addCleanup(daemon.destroy)
        daemon.start(wait=False)
        self.assertEqual(daemon.wait(), 3)
        self.assertIn("apps", daemon.output.read_text())
