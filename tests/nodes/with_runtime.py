"""A real `Runtime` in a home of its own, for tests of what stands on one."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from treq.client import HTTPClient
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase
from twisted.web.client import Agent

from ron.kernel import Config
from ron.kernel.config import Layers
from ron.nodes.runtime import Runtime
from ron.services.configs import SCHEMAS


class WithRuntime(TestCase):
    """`home` and `runtime`; the runtime is started with `start`."""

    def setUp(self) -> None:
        # short: trial's own folders may be too deep for a Unix socket
        self.home = Path(tempfile.mkdtemp(prefix="ron-home-"))
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)
        self.patch(os, "environ", {**os.environ, "RON_HOME": str(self.home)})
        self.runtime = self.make_runtime()

    def make_runtime(self) -> Runtime:
        """As a node makes it, without a config file."""
        return Runtime(reactor, name="node", config=Config(Layers(*SCHEMAS["ron-node"])))

    def start(self) -> None:
        """Until the test ends."""
        self.runtime.start()
        self.addCleanup(self.runtime.stop)

    async def until(self, condition: Any, what: str, timeout_s: float = 30.0) -> None:
        """Return when `condition()` is true."""
        for _ in range(int(timeout_s / 0.02)):
            if condition():
                return
            pause: Deferred[None] = deferLater(reactor, 0.02)
            await pause
        self.fail(f"{what} did not happen within {timeout_s} s")


async def ask(
    method: str, url: str, *, cap: str | None = None, body: Any = None, timeout_s: float = 20.0
) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers of one call on a connection of its own."""
    headers = {"Connection": "close", **({"Authorization": f"Bearer {cap}"} if cap else {})}
    more = {"json": body} if body is not None else {}
    answer = await HTTPClient(Agent(reactor)).request(method, url, headers=headers, timeout=timeout_s, **more)
    fields = {k.decode().lower(): v[0].decode() for k, v in answer.headers.getAllRawHeaders()}
    return answer.code, await answer.json(), fields
