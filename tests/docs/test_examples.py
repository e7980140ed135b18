"""The example of docs/kernel.rst does what the page says: it is hosted, called, crashed, released and drained."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent

from ron.auth import Caveat
from ron.kernel import Config
from ron.kernel.config import Layers
from ron.kernel.supervisor import Supervisor
from ron.nodes.listeners import BoundSocket
from ron.nodes.parts import Host, PartUnit
from ron.nodes.runtime import Runtime
from ron.proto.addresses import HostPort
from ron.proto.errors import RonError
from ron.services.configs import NodeConfig

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "tally.py"


def load_example() -> Any:
    spec = importlib.util.spec_from_file_location("tally", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TallyTests(TestCase):
    """A process with the example as its only part."""

    async def setUp(self) -> None:
        self.home = self.own_home()
        self.runtime = Runtime(reactor, name="tally", config=Config(Layers(NodeConfig, lambda _config: None)))
        self.socket = BoundSocket(HostPort("127.0.0.1", 0), "tally")
        host = Host(
            runtime=self.runtime,
            config=self.runtime.config.current,
            addresses={"tally": self.socket.address},
            sockets={"tally": self.socket.fileno()},
            run=self.home / "run",
        )
        self.unit = PartUnit("tally", load_example().TallyPart(host))
        runtime = self.runtime
        self.supervisor = Supervisor(reactor, runtime.bus, runtime.health, runtime.metrics)
        self.supervisor.add(self.unit)
        runtime.start()
        await self.supervisor.start()

    def own_home(self) -> Path:
        """A fresh `RON_HOME`, for this test only."""
        home, before = Path(self.mktemp()).absolute(), os.environ.get("RON_HOME")
        os.environ["RON_HOME"] = str(home)
        self.addCleanup(os.environ.pop, "RON_HOME") if before is None else self.addCleanup(
            os.environ.update, {"RON_HOME": before}
        )
        return home

    async def tearDown(self) -> None:
        self.assertEqual(await self.supervisor.stop(), 0)
        self.socket.close()
        self.runtime.stop()

    async def add(self, name: str, scope: str = "tally:add") -> tuple[int, Any]:
        token = self.runtime.authority.mint([Caveat("scope", scope)])
        answer = await HTTPClient(Agent(reactor)).request(
            "POST",
            f"http://{self.socket.address}/v1/tally/{name}",
            headers={"Authorization": f"Bearer {token}", "Connection": "close"},
        )
        return answer.code, await answer.json()

    async def test_it_is_short(self) -> None:
        lines = [line for line in EXAMPLE.read_text().splitlines() if line.strip()]
        self.assertLessEqual(len(lines), 60)

    async def test_over_http_and_over_the_bus(self) -> None:
        self.assertEqual(await self.add("apples"), (200, {"name": "apples", "count": 1}))
        reply = await self.runtime.bus.call("tally", "add", "apples", answer=dict[str, Any])
        self.assertEqual(reply, {"name": "apples", "count": 2})
        status, body = await self.add("apples", scope="other:thing")
        self.assertEqual((status, body["error"]["code"]), (403, "NoCapability"))
        self.assertIn(b"tally_names 1.0", self.runtime.exposition())
        self.assertEqual(self.runtime.health.snapshot().missing, ())

    async def test_it_is_bounded(self) -> None:
        for number in range(1000):
            await self.runtime.bus.call("tally", "add", str(number))
        with self.assertRaises(RonError):
            await self.runtime.bus.call("tally", "add", "one more")

    async def test_a_crash_is_told_and_mended(self) -> None:
        await self.add("apples")
        crashes = self.runtime.bus.subscribe("kernel", name="test")
        self.unit.service.on_crash("the counter overflowed")
        self.assertIn("service.tally", self.runtime.health.snapshot().missing)
        message = await crashes.receive()
        self.assertEqual((message.body.service, message.body.reason), ("tally", "the counter overflowed"))
        crashes.close()
        await self.until_up()
        self.assertEqual(await self.add("apples"), (200, {"name": "apples", "count": 1}))

    async def until_up(self) -> None:
        for _ in range(100):
            if self.supervisor.status()[0].state == "up":
                return
            waiting: Deferred[None] = deferLater(reactor, 0.05)
            await waiting
        self.fail(f"not up again: {self.supervisor.status()}")
