"""`/pow/autotune` in memory: who may look and who may switch, an op_id is good once, all workers hear of it."""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import msgspec
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import Authority, Caveat, ReplayGuard, RootKeys
from ron.auth.pow import KEY_BYTES, PowGate, PowSettings
from ron.auth.pow.gate import WINDOW_S
from ron.kernel import Bus, Metrics
from ron.web import Edge, make_site
from ron.web.caps import OwnReplay
from ron.web.pow import TOPIC, pow_endpoints
from tests.web.wire import Response, exchange, request, split_response

NOW_S = 1_800_000_000.0
SETTINGS = PowSettings(auto_tune=True, target_ms=3.0, upper_bound=20, difficulty=9)
RATE_PER_S = 1e6
# 2^11 tries are the most that a million a second do within 3 ms
BASE = 11


class Worker:
    """One process: a gate, a bus, the endpoints."""

    def __init__(self, clock: Clock, authority: Authority, *, origin: str = "node", gate: bool = True) -> None:
        self.clock = clock
        metrics = Metrics()
        self.bus = Bus(clock, metrics, origin=origin, now=clock.seconds)
        self.gate: PowGate | None = None
        if gate:
            key = os.urandom(KEY_BYTES)
            self.gate = PowGate(key, SETTINGS, clock.seconds, metrics, hash_rate_per_s=RATE_PER_S)
        edge = Edge(authority=authority, metrics=metrics, reactor=clock)
        replay = OwnReplay(ReplayGuard(3600, 100, clock.seconds))
        endpoints = pow_endpoints(self.gate, replay, self.bus, hash_rate_per_s=RATE_PER_S)
        self.site = make_site(edge, endpoints)

    def call(self, method: str, token: str | None, body: object = None) -> Response:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        raw = None if body is None else json.dumps(body).encode()
        whole = split_response(exchange(self.site, request(method, "/pow/autotune", headers, raw)))
        assert whole is not None
        return whole[0]


class Autotune(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW_S
        self.authority = Authority(RootKeys.generate(), audience="ron-node", now=self.clock.seconds)
        self.worker = Worker(self.clock, self.authority)

    def token(self, scope: str) -> str:
        return self.authority.mint([Caveat("scope", scope)])

    def switch(self, state: object, *, scope: str = "pow:tune", **more: object) -> Response:
        return self.worker.call("POST", self.token(scope), {"op_id": str(uuid.uuid4()), "state": state, **more})

    def look(self, worker: Worker | None = None) -> Any:
        answer = (worker or self.worker).call("GET", self.token("pow:read"))
        self.assertEqual(answer.status, 200, answer.body)
        return answer.json


class Refusals(Autotune):
    def test_bad_bodies(self) -> None:
        op_id = str(uuid.uuid4())
        for body in (
            {},
            [],
            "on",
            {"state": "on"},
            {"op_id": op_id},
            {"op_id": op_id, "state": "maybe"},
            {"op_id": op_id, "state": True},
            {"op_id": op_id, "state": "ON"},
            {"op_id": "1", "state": "off"},
            {"op_id": op_id, "state": "off", "difficulty": 1},
        ):
            answer = self.worker.call("POST", self.token("pow:tune"), body)
            self.assertEqual((answer.status, answer.json["error"]["code"]), (400, "BadRequest"), body)
        self.assertTrue(self.look()["auto_tune"])

    def test_the_scope_each_needs(self) -> None:
        body = {"op_id": str(uuid.uuid4()), "state": "off"}
        self.assertEqual(self.worker.call("GET", None).status, 401)
        self.assertEqual(self.worker.call("POST", None, body).status, 401)
        for scope in ("pow:tune", "mailbox:send", "node:read"):
            self.assertEqual(self.worker.call("GET", self.token(scope)).status, 403)
        for scope in ("pow:read", "mailbox:send", "node:read"):
            self.assertEqual(self.worker.call("POST", self.token(scope), body).status, 403)
        self.assertTrue(self.look()["auto_tune"])

    def test_an_op_id_is_good_once(self) -> None:
        body = {"op_id": str(uuid.uuid4()), "state": "off"}
        tuner = self.token("pow:tune")
        self.assertEqual(self.worker.call("POST", tuner, body).status, 200)
        self.assertEqual(self.switch("on").status, 200)
        again = self.worker.call("POST", tuner, body)
        self.assertEqual((again.status, again.json["error"]["code"]), (409, "Conflict"))
        self.assertTrue(self.look()["auto_tune"])

    def test_without_proof_of_work(self) -> None:
        self.worker = Worker(self.clock, self.authority, gate=False)
        self.assertEqual(
            self.look(),
            {
                "enabled": False,
                "auto_tune": False,
                "state": None,
                "difficulty": 0,
                "upper_bound": 0,
                "target_ms": 0,
                "measured_ms": 0,
            },
        )
        answer = self.switch("on")
        self.assertEqual((answer.status, answer.json["error"]["code"]), (400, "Unsupported"))
        self.assertIn("dos.proof_of_work", answer.json["error"]["hint"])


class Looking(Autotune):
    def test_the_target(self) -> None:
        self.assertEqual(
            self.look(),
            {
                "enabled": True,
                "auto_tune": True,
                "state": "resting",
                "difficulty": BASE,
                "upper_bound": 20,
                "target_ms": 3.0,
                "measured_ms": 2.048,
            },
        )

    def test_measured_where_no_rate_is_given(self) -> None:
        """Nobody can say how fast this machine is, only that it takes some time."""
        handlers = {e.method: e.handler for e in pow_endpoints(self.worker.gate, None, self.worker.bus)}  # type: ignore[arg-type]
        self.assertGreater(handlers["GET"](None).measured_ms, 0)


class Switching(Autotune):
    def test_off_is_the_configured_difficulty(self) -> None:
        answer = self.switch("off")
        self.assertEqual((answer.status, answer.json), (200, self.look()))
        shown = answer.json
        self.assertEqual((shown["auto_tune"], shown["state"], shown["difficulty"]), (False, None, 9))
        self.assertEqual(shown["measured_ms"], 0.512)

    def test_on_begins_at_the_base(self) -> None:
        self.switch("off")
        shown = self.switch("on").json
        self.assertEqual((shown["auto_tune"], shown["state"], shown["difficulty"]), (True, "resting", BASE))

    def test_switching_on_what_is_on_does_not_lower_what_the_load_has_raised(self) -> None:
        self.raised()
        self.assertEqual(self.switch("on").json["difficulty"], BASE + 1)

    def raised(self) -> None:
        """More redeemed than the budget allows, for one window."""
        gate = self.worker.gate
        assert gate is not None
        # set as a flood would leave it; the flood itself is tests/auth/test_pow.py's
        gate._redeemed = int(SETTINGS.budget_rps * WINDOW_S * 2)
        self.clock.advance(WINDOW_S)
        self.assertEqual(self.look()["state"], "raised")


class Workers(Autotune):
    def test_what_one_was_told_the_others_hear(self) -> None:
        other = Worker(self.clock, self.authority, origin="gateway.2")
        # what the bus's carrier does between processes: bodies arrive as plain values
        self.worker.bus.tap(
            lambda message: other.bus.inject(
                msgspec.structs.replace(message, body=msgspec.to_builtins(message.body), origin="gateway.1")
            )
        )
        for state, on in (("off", False), ("on", True)):
            self.switch(state)
            self.clock.advance(0)
            self.assertEqual((self.look()["auto_tune"], self.look(other)["auto_tune"]), (on, on))

    def test_nonsense_on_the_topic_changes_nothing(self) -> None:
        for body in ({}, {"auto_tune": "off"}, None, [False], {"auto_tune": False, "more": 1}):
            message = self.worker.bus.publish(body, topic="other")
            self.worker.bus.inject(msgspec.structs.replace(message, topic=TOPIC, origin="gateway.2"))
            self.clock.advance(0)
        self.assertTrue(self.look()["auto_tune"])
        self.assertEqual(len(self.flushLoggedErrors()), 5)
