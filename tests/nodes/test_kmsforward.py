"""A worker's listener that has the owner answer: what goes there, what comes back, and what happens without it."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from ron.kernel import Metrics
from ron.nodes import kmsforward
from ron.nodes.kmsforward import Forwarder
from ron.nodes.listeners import Listening
from ron.proto.errors import conflict
from ron.proto.ids import uuid7
from ron.web import Call, Edge, Endpoint, Raw
from ron.web.site import make_site
from tests.web.wire import OnTheWire, chunked, request, until


class Body(msgspec.Struct, forbid_unknown_fields=True):
    x: int


class Forwarding(OnTheWire):
    def setUp(self) -> None:
        super().setUp()
        self.folder = Path(tempfile.mkdtemp(prefix="ron-fwd-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.seen: list[Call] = []
        self.hangs: Deferred[None] = Deferred()
        self.path = self.folder / "s"
        owner = Edge(authority=self.authority, metrics=Metrics(), reactor=self.clock)
        self.owners = make_site(owner, self.endpoints(), body_limit=10_000)
        self.listening = Listening(reactor, self.path, self.owners)
        self.addCleanup(until, lambda: not self.owners.channels)
        self.addCleanup(self.listening.stop_accepting)
        own = Endpoint(method="POST", path="/own", handler=lambda _call: {"by": "worker"}, scope=None, hot=True)
        site = self.serve([own], body_limit=10_000)
        self.forwarder = Forwarder(reactor, self.path, self.edge)
        self.addCleanup(self.forwarder.close)
        self.forwarder.serve(site)

    def endpoints(self) -> list[Endpoint]:
        def seen(call: Call, *_body: Body, **_params: str) -> dict[str, str]:
            self.seen.append(call)
            return {"by": "owner"}

        def no(_call: Call) -> None:
            raise conflict("no", "not so")

        def hang(_call: Call) -> Deferred[None]:
            return self.hangs

        return [
            Endpoint(method="GET", path="/a/<path:rest>", handler=seen, scope="kms:read"),
            Endpoint(method="POST", path="/b", handler=seen, scope="kms:read", body=Body),
            Endpoint(method="GET", path="/text", handler=lambda _c: Raw(b"abc", "text/plain", headers={"X-Y": "1"}),
                     scope=None),
            Endpoint(method="GET", path="/no", handler=no, scope=None),
            Endpoint(method="GET", path="/hang", handler=hang, scope=None),
        ]  # fmt: skip

    async def test_what_is_its_own(self) -> None:
        answer = await self.ask(request("POST", "/own", body=b""))
        self.assertEqual(answer.json, {"by": "worker"})

    async def test_refusals_of_the_owner(self) -> None:
        for asked, status in (
            (request("GET", "/nothing"), 404),
            (request("PUT", "/b", body=b"{}"), 405),
            (request("GET", "/a/b"), 401),
            (request("GET", "/a/b", {"Authorization": "Bearer x"}), 401),
            (request("POST", "/b", self.bearer(("scope", "*")), b"{"), 400),
            (request("POST", "/b", self.bearer(("scope", "*")), b'{"x": 1, "y": 2}'), 400),
            (request("GET", "/no"), 409),
            (request("GET", "http://localhost/text"), 404),
            (request("get", "/text"), 501),
        ):
            answer = await self.ask(asked)
            self.assertEqual(answer.status, status, (asked, answer.body))
            self.assertIn("code", answer.json["error"])
        self.assertEqual(self.seen, [])
        self.assertIn("Allow".lower(), (await self.ask(request("PUT", "/b", body=b"{}"))).headers)

    async def test_path_query_body_and_names_arrive(self) -> None:
        corr_id = str(uuid7())
        headers = {**self.bearer(("scope", "*")), "X-Corr-ID": corr_id}
        answer = await self.ask(request("GET", "/a/x%2Fy%23v1?tenant=core&after=%2B", headers))
        self.assertEqual((answer.status, answer.json), (200, {"by": "owner"}))
        self.assertEqual(answer.headers["x-corr-id"], corr_id)
        (call,) = self.seen
        self.assertEqual((call.corr_id, call.asked("tenant"), call.asked("after")), (corr_id, "core", "+"))
        self.assertEqual(call.path, "/a/x%2Fy%23v1")
        body = json.dumps({"x": 1}).encode()
        self.assertEqual((await self.ask(request("POST", "/b", headers, body))).status, 200)
        pieces = request("POST", "/b", {**headers, "Transfer-Encoding": "chunked"}), chunked(body[:3], body[3:])
        self.assertEqual((await self.ask(*pieces)).status, 200)

    async def test_the_answer_is_as_the_owner_gave_it_once(self) -> None:
        answer = await self.ask(request("GET", "/text"))
        self.assertEqual(
            (answer.body, answer.headers["x-y"], answer.headers["content-type"]), (b"abc", "1", "text/plain")
        )
        wire = await self.wire()
        wire.send(request("HEAD", "/text"))
        head = await wire.response(headless=True)
        self.assertEqual((head.status, head.headers["content-length"]), (200, "3"))
        wire.send(request("GET", "/text"))
        raw = (await wire.response()).headers
        self.assertEqual(raw["x-content-type-options"], "nosniff")
        wire.send(request("GET", "/text"), request("GET", "/no"))
        self.assertEqual([(await wire.response()).status, (await wire.response()).status], [200, 409])

    async def test_too_long_a_body_does_not_get_there(self) -> None:
        answer = await self.ask(request("POST", "/b", self.bearer(("scope", "*")), b"x" * 20_000))
        self.assertEqual(answer.status, 413)

    async def test_without_an_owner(self) -> None:
        await self.listening.stop_accepting()
        answer = await self.ask(request("GET", "/text"))
        self.assertEqual((answer.status, answer.json["error"]["code"]), (503, "StoreUnavailable"))

    async def test_an_owner_that_does_not_answer(self) -> None:
        self.patch(kmsforward, "DEADLINE_S", 0.05)
        answer = await self.ask(request("GET", "/hang"))
        self.assertEqual((answer.status, answer.json["error"]["code"]), (504, "Timeout"))
        self.assertEqual(self.edge.concurrency.busy, 0)

    async def test_whoever_hangs_up_is_not_waited_for(self) -> None:
        wire = await self.wire()
        wire.send(request("GET", "/hang"))
        await until(lambda: self.owners.channels)
        wire.abort()
        await until(lambda: not self.edge.concurrency.busy)

    async def test_no_more_at_a_time_than_its_limit(self) -> None:
        self.edge.concurrency.limit = 0
        answer = await self.ask(request("GET", "/text"))
        self.assertEqual(answer.status, 503)
