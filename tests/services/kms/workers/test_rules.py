"""Which configs may have workers, sums of what they have counted, answers that wait for them."""

from __future__ import annotations

import inspect
from typing import Any

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import ConfigError, convert
from ron.kernel.metrics import Family, Sample
from ron.proto.errors import RonError, conflict
from ron.services.kms.config import KmsConfig
from ron.services.kms.rules import check_kms
from ron.services.kms.workers.gate import gated
from ron.services.kms.workers.sums import left_behind, shown
from ron.web import Call, Endpoint


class Rules(SynchronousTestCase):
    def test_where_keys_cannot_be_lent(self) -> None:
        for service in (
            {"backend": "inmem"},
            {"backend": "tpm"},
            {"backend": "cloud", "multi_backends": ["cloud", "file"]},
            {"backend": "file", "multi_backends": ["file", "inmem"]},
        ):
            backends = {"cloud": {"key_id": "k"}}
            config = convert({"workers": 2, "service": service, "backends": backends}, KmsConfig)
            with self.assertRaises(ConfigError) as caught:
                check_kms(config)
            self.assertEqual(caught.exception.key, "workers")
            check_kms(convert({"service": service, "backends": backends}, KmsConfig))

    def test_in_a_node(self) -> None:
        config = convert({"workers": 1}, KmsConfig)
        check_kms(config)
        with self.assertRaises(ConfigError) as caught:
            check_kms(config, "kms.")
        self.assertEqual(caught.exception.key, "kms.workers")

    def test_how_many(self) -> None:
        for count in (-1, 17, "x"):
            with self.assertRaises(ConfigError):
                convert({"workers": count}, KmsConfig)


class Gated(SynchronousTestCase):
    def setUp(self) -> None:
        self.settled: Deferred[None] = Deferred()
        self.waits = 0

    async def wait(self) -> None:
        self.waits += 1
        await self.settled

    def asked(self, method: str, handler: Any) -> Deferred[Any]:
        endpoint = gated(Endpoint(method=method, path="/x", handler=handler, scope=None), self.wait)
        return maybeDeferred(lambda: ensured(endpoint.handler(Call("c", method, "/x", "p"), "body", name="n")))

    def test_what_only_reads(self) -> None:
        answer = self.asked("GET", lambda _call, body, name: (body, name))
        self.assertEqual((self.successResultOf(answer), self.waits), (("body", "n"), 0))

    def test_what_changes_something(self) -> None:
        async def later(_call: Call, body: str, name: str) -> Any:
            return body, name

        for handler in (later, lambda _call, body, name: (body, name)):
            self.setUp()
            answer = self.asked("POST", handler)
            self.assertNoResult(answer)
            self.settled.callback(None)
            self.assertEqual(self.successResultOf(answer), ("body", "n"))

    def test_what_was_refused_waits_for_nobody(self) -> None:
        def no(_call: Call, _body: str, name: str) -> Any:
            raise conflict(name)

        self.failureResultOf(self.asked("POST", no), RonError)
        self.assertEqual(self.waits, 0)


class Sums(SynchronousTestCase):
    def family(self, name: str, kind: str, *values: float) -> Family:
        samples = tuple(Sample(f"{name}_total", {"n": str(n)}, value) for n, value in enumerate(values))
        return Family(name=name, type=kind, help="", samples=samples)

    def test_the_dead_add_up(self) -> None:
        ops = self.family("kms_ops", "counter", 1, 2)
        dead = left_behind(
            [], [ops, self.family("open_connections", "gauge", 5), self.family("process_cpu", "counter", 9)]
        )
        self.assertEqual(dead, [ops], "a gauge and what is of one process go with it")
        dead = left_behind(dead, [self.family("kms_ops", "counter", 10, 20, 30), self.family("other", "histogram", 4)])
        self.assertEqual([sample.value for sample in dead[0].samples], [11, 22, 30])
        self.assertEqual([one.name for one in dead], ["kms_ops", "other"])

    def test_what_a_living_one_shows(self) -> None:
        told = [
            self.family("kms_ops", "counter", 1),
            self.family("open_connections", "gauge", 5),
            self.family("kms_keys", "gauge", 7),
            self.family("node_ready", "gauge", 1),
            self.family("process_open_fds", "gauge", 9),
        ]
        names = [one.name for one in shown(told)]
        self.assertEqual(names, ["kms_ops", "open_connections", "process_open_fds"])


def ensured(found: Any) -> Any:
    return Deferred.fromCoroutine(found) if inspect.iscoroutine(found) else found
