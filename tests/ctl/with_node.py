"""A node's operator endpoints on a loopback port, and `ronctl` as a process against them."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from ron.auth import AUDIENCE, Authority, Caveat, RootKeys
from ron.kernel import Bus, Metrics
from ron.proto.facts import NodeFacts
from ron.web import Edge, make_site
from ron.web.admin import AdminApi
from tests.ctl.forkserver import RONCTL
from tests.web.wire import until

# A process on a busy machine takes its time to start.
PATIENCE_S = 40.0


class Ronctl(ProcessProtocol):
    """A running `ronctl`."""

    def __init__(self) -> None:
        self.out = b""
        self.err = b""
        self.code: int | None = None
        self._waiting: list[tuple[Callable[[], object], Deferred[None]]] = []

    def outReceived(self, data: bytes) -> None:
        self.out += data
        self._wake()

    def errReceived(self, data: bytes) -> None:
        self.err += data
        self._wake()

    def processEnded(self, reason: Failure) -> None:
        self.code = reason.value.exitCode if reason.value.exitCode is not None else -reason.value.signal
        self._wake()

    @property
    def lines(self) -> list[str]:
        """Whole lines of stdout so far."""
        return self.out.decode().split("\n")[:-1]

    def signal(self, name: str) -> None:
        with contextlib.suppress(ProcessExitedAlready):
            self.transport.signalProcess(name)  # type: ignore[union-attr]

    async def shows(self, true: Callable[[], object]) -> None:
        """Return once `true()` is; looked at whenever it writes or ends."""
        if not true():
            change: Deferred[None] = Deferred()
            self._waiting.append((true, change))
            await change.addTimeout(PATIENCE_S, reactor)

    async def end(self) -> int:
        """Its exit code."""
        await self.shows(lambda: self.code is not None)
        assert self.code is not None
        return self.code

    def _wake(self) -> None:
        for one in [one for one in self._waiting if one[0]()]:
            self._waiting.remove(one)
            one[1].callback(None)


class RonctlCalls(TestCase):
    """Commands of `group` in `home`, each as a process."""

    group: str
    home: Path

    def start(self, *arguments: str, tty: bool = False, **environment: str) -> Ronctl:
        process = Ronctl()
        known = {**os.environ, "RON_HOME": str(self.home), "RON_CAP": "", "COLUMNS": "100", **environment}
        words = [str(RONCTL), self.group, *arguments]
        reactor.spawnProcess(process, RONCTL, words, env=known, usePTY=tty)
        self.addCleanup(process.end)
        self.addCleanup(process.signal, "KILL")
        return process

    async def done(self, *arguments: str, **environment: str) -> Ronctl:
        process = self.start(*arguments, **environment)
        await process.end()
        return process

    async def said(self, *arguments: str) -> Any:
        """The object that it prints."""
        process = await self.done(*arguments, "--json")
        self.assertEqual(process.code, 0, process.err)
        return json.loads(process.out)

    async def refused(self, code: int, *arguments: str, **environment: str) -> str:
        process = await self.done(*arguments, **environment)
        self.assertEqual((process.code, process.out), (code, b""), process.err)
        return process.err.decode()


class WithNode(TestCase):
    """A bus, `AdminApi` on a port, `node.json` and `admin.cap` in a home."""

    timeout = 60

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir(parents=True)
        self.authority = Authority(RootKeys.generate(), audience=AUDIENCE, now=time.time)
        self.start_node()
        cap = self.home / "admin.cap"
        cap.write_text(self.capability("*"))
        cap.chmod(0o600)

    def start_node(self) -> None:
        """A node that remembers nothing of an earlier one."""
        metrics = Metrics()
        self.bus = Bus(reactor, metrics)
        self.api = AdminApi(self.bus, reactor, time.time)
        edge = Edge(authority=self.authority, metrics=metrics, reactor=reactor)
        self.site = make_site(edge, self.api.endpoints())
        self.port = reactor.listenTCP(0, self.site, interface="127.0.0.1")
        self.url = f"http://127.0.0.1:{self.port.getHost().port}"
        facts = NodeFacts(gateway_url=self.url, mailbox_url="", onion=None, socks_port=0, pids={})
        (self.home / "node.json").write_bytes(msgspec.json.encode(facts))
        self.addCleanup(self.stop_node)

    async def stop_node(self) -> None:
        """As a killed one: connections end without a word."""
        await maybeDeferred(self.port.stopListening)
        for channel in list(self.site.channels):
            channel.forceAbortClient()
        await until(lambda: not self.site.channels)

    def capability(self, scope: str) -> str:
        return self.authority.mint([Caveat("scope", scope)])

    def ronctl(self, *arguments: str, **environment: str) -> Ronctl:
        """Start `ronctl arguments`; it is killed after the test."""
        process = Ronctl()
        known: dict[str, Any] = {**os.environ, "RON_HOME": str(self.home), "RON_CAP": "", "COLUMNS": "100"}
        reactor.spawnProcess(process, RONCTL, [str(RONCTL), *arguments], env={**known, **environment})
        self.addCleanup(process.end)
        self.addCleanup(process.signal, "KILL")
        return process

    async def done(self, *arguments: str, **environment: str) -> Ronctl:
        """`ronctl arguments` at its end."""
        process = self.ronctl(*arguments, **environment)
        await process.end()
        return process
