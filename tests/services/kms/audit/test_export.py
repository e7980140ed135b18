"""Records go on to an audit service: in order, at least once, whatever happens to either side."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from ron.kernel import Metrics
from ron.proto.errors import unavailable
from ron.services.kms.audit.export import BATCH, Batch, Exporter
from ron.services.kms.audit.log import Watcher

ORIGIN = "ron-kms/test"


class Log:
    """What the exporter needs of a log: leaves that grow."""

    def __init__(self) -> None:
        self.leaves: list[bytes] = []
        self._watchers: list[Watcher] = []

    @property
    def size(self) -> int:
        return len(self.leaves)

    def entries(self, start: int, count: int) -> Sequence[bytes]:
        return self.leaves[start : start + count]

    def watch(self, watcher: Watcher) -> None:
        self._watchers.append(watcher)

    def grow(self, count: int) -> None:
        first = self.size
        fresh = [b"%d" % index for index in range(first, first + count)]
        self.leaves += fresh
        for watcher in self._watchers:
            watcher(first, fresh)


class Export(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.log = Log()
        self.away = False
        self.got: list[Batch] = []
        self.path = Path(self.mktemp())

    async def send(self, raw: bytes) -> None:
        if self.away:
            raise unavailable("away")
        self.got.append(msgspec.json.decode(raw, type=Batch))

    async def begin(self) -> Exporter:
        self.metrics = Metrics()
        exporter = Exporter(reactor, self.log, ORIGIN, self.send, path=self.path, metrics=self.metrics)
        await exporter.start()
        return exporter

    async def until(self, condition: Any) -> None:
        for _ in range(2000):
            if condition():
                return
            pause: Deferred[None] = deferLater(reactor, 0.005)
            await pause
        raise AssertionError("it did not come to that")

    def leaves(self) -> list[bytes]:
        return [base64.b64decode(one) for batch in self.got for one in batch.entries]

    def metric(self, name: str) -> float:
        return float(self.metrics.registry.get_sample_value(name) or 0)

    async def test_all_of_them_in_batches(self) -> None:
        self.log.grow(2 * BATCH + 7)
        exporter = await self.begin()
        await self.until(lambda: exporter.sent == self.log.size)
        self.log.grow(3)
        await self.until(lambda: exporter.sent == self.log.size)
        self.assertEqual(self.leaves(), self.log.leaves)
        self.assertEqual([batch.start for batch in self.got], [0, BATCH, 2 * BATCH, 2 * BATCH + 7])
        self.assertEqual({batch.origin for batch in self.got}, {ORIGIN})
        await exporter.stop()

    async def test_nobody_takes_them_for_a_while(self) -> None:
        self.away = True
        exporter = await self.begin()
        self.log.grow(5)
        await self.until(lambda: exporter._failing)
        self.log.grow(5)
        self.assertEqual((self.got, exporter.sent, self.metric("kms_audit_export_lag_records")), ([], 0, 10))
        self.assertGreater(exporter.behind_s, 0)
        self.away = False
        await self.until(lambda: exporter.sent == 10)
        self.assertEqual(self.leaves(), self.log.leaves)
        await self.until(lambda: exporter.behind_s == 0)
        self.assertEqual(self.metric("kms_audit_export_lag_records"), 0)
        await exporter.stop()

    async def test_over_a_restart(self) -> None:
        exporter = await self.begin()
        self.log.grow(4)
        await self.until(lambda: self.path.exists())
        await exporter.stop()
        self.log.grow(4)
        self.got.clear()
        exporter = await self.begin()
        await self.until(lambda: exporter.sent == 8)
        await exporter.stop()
        self.assertEqual(self.leaves(), self.log.leaves[4:])

    async def test_a_cursor_of_nothing_that_is_there(self) -> None:
        """Damaged, of another log, or beyond the end: from the first again."""
        self.log.grow(2)
        other = msgspec.json.encode({"origin": "ron-kms/other", "sent": 1})
        ahead = msgspec.json.encode({"origin": ORIGIN, "sent": 9})
        for content in (b"x", other, ahead):
            self.path.write_bytes(content)
            self.got.clear()
            exporter = await self.begin()
            await self.until(lambda exporter=exporter: exporter.sent == 2)
            await exporter.stop()
            self.assertEqual(self.leaves(), self.log.leaves)
        self.flushLoggedErrors()

    async def test_ended_while_it_sends(self) -> None:
        waiting: Deferred[None] = Deferred()
        begun: list[bytes] = []

        async def send(raw: bytes) -> None:
            begun.append(raw)
            await waiting

        exporter = Exporter(reactor, self.log, ORIGIN, send, path=None, metrics=Metrics())
        await exporter.start()
        self.log.grow(1)
        await self.until(lambda: bool(begun))
        await exporter.stop()
        self.assertEqual(exporter.sent, 0)
