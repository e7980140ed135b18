"""An op_id is used once, whichever process of the node is asked; without the node nothing is claimed."""

from __future__ import annotations

import uuid

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import ReplayGuard
from ron.kernel import Bus, Metrics
from ron.nodes.replay import SharedReplay, serve_replay
from ron.proto.errors import ErrorCode, RonError

OP = str(uuid.uuid4())


class Shared(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.bus = Bus(self.clock, Metrics())
        self.one, self.other = SharedReplay(self.bus), SharedReplay(self.bus)

    def serve(self) -> None:
        serve_replay(self.bus, ReplayGuard(60, 10, self.clock.seconds))

    def claim(self, worker: SharedReplay, op_id: str = OP) -> None:
        self.successResultOf(Deferred.fromCoroutine(worker.claim("c" * 32, op_id)))

    def refused(self, worker: SharedReplay, op_id: str = OP) -> ErrorCode:
        failure = self.failureResultOf(Deferred.fromCoroutine(worker.claim("c" * 32, op_id)), RonError)
        return ErrorCode(failure.value.code)

    def test_no_other_worker_takes_it(self) -> None:
        self.serve()
        self.claim(self.one)
        self.assertEqual(self.refused(self.other), ErrorCode.CONFLICT)
        self.assertEqual(self.refused(self.one), ErrorCode.CONFLICT)

    def test_what_failed_may_be_tried_elsewhere(self) -> None:
        self.serve()
        self.claim(self.one)
        self.successResultOf(Deferred.fromCoroutine(self.one.release("c" * 32, OP)))
        self.claim(self.other)

    def test_no_uuid(self) -> None:
        self.serve()
        self.assertEqual(self.refused(self.one, "again"), ErrorCode.BAD_REQUEST)

    def test_without_the_node(self) -> None:
        self.assertEqual(self.refused(self.one), ErrorCode.STORE_UNAVAILABLE)
