"""The HTTP edge on the wire: limits, envelope, correlation, deadlines, drain; whatever arrives, the answer is ours."""

from __future__ import annotations

import json
import uuid
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from twisted.web import http

from ron.auth import Authority, RootKeys
from ron.kernel import HealthState, Metrics
from ron.kernel.limits_config import LimitsConfig
from ron.proto.assets import Asset, strong_etag
from ron.proto.errors import ErrorCode, RonError, backpressure, conflict, unavailable
from ron.proto.ids import uuid7
from ron.web import Call, Edge, Endpoint, Raw, make_site
from ron.web import request as request_module
from ron.web.health import OwnHealth, health_endpoints
from ron.web.site import RonSite
from tests.web.wire import OnTheWire, Response, chunked, exchange, request, split_response, until

LIMIT = 1000
HEADERS_LIMIT_BYTES = LimitsConfig().headers_bytes
READ_IDLE_S = LimitsConfig().read_idle_ms / 1000
PICTURE = b"0123456789" * 10


class Note(msgspec.Struct, forbid_unknown_fields=True):
    """A body."""

    text: str
    count: int = 1
    tree: Any = None


class Handlers:
    """Endpoints of every kind, each once hot (`/hot/…`) and once through Klein (`/klein/…`)."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.waiting: list[Deferred[Any]] = []
        self.cancelled = 0

    def endpoints(self) -> list[Endpoint]:
        return [endpoint for hot in (True, False) for endpoint in self._under("/hot" if hot else "/klein", hot)]

    def _under(self, root: str, hot: bool) -> list[Endpoint]:
        def get(path: str, handler: Any, scope: str | None = None, **more: Any) -> Endpoint:
            return Endpoint(method="GET", path=root + path, handler=handler, scope=scope, hot=hot, **more)

        return [
            get("/get", self.get),
            get("/guarded", self.get, scope="node:read"),
            get("/by/<a>/<b>", lambda call, a, b: {"a": a, "b": b}),
            get("/picture", lambda call: Asset(PICTURE, "image/png", strong_etag(PICTURE))),
            get("/raw", lambda call: Raw(b"<p>", "text/html", 201, {"X-Mine": "1"})),
            get("/nothing", lambda call: Raw(b"", "text/plain", 204)),
            get("/split", lambda call: Raw(b"", "text/plain", headers={"X-Mine": "a\r\nX-Evil: 1\nb\rü"})),
            get("/big", lambda call: Raw(b"x" * 8_000_000, "application/octet-stream")),
            get("/slow", self.slow, deadline_s=7.0),
            get("/awaits", self.awaits),
            get("/fails/<how>", self.fails),
            get("/fails-later", self.fails_later),
            get("/unencodable", lambda call: object()),
            Endpoint(method="POST", path=root + "/post", handler=self.post, scope=None, body=Note, hot=hot),
        ]

    def get(self, call: Call) -> dict[str, str]:
        self.calls.append(call)
        return {"corr_id": call.corr_id, "path": call.path}

    def post(self, call: Call, note: Note) -> Note:
        self.calls.append(call)
        return note

    def slow(self, _call: Call) -> Deferred[Any]:
        def gone(_deferred: object) -> None:
            self.cancelled += 1

        waiting: Deferred[Any] = Deferred(gone)
        self.waiting.append(waiting)
        return waiting

    async def awaits(self, call: Call) -> Any:
        return await self.slow(call)

    def fails(self, _call: Call, how: str) -> Any:
        raise {
            "bug": KeyError("the secret detail"),
            "full": backpressure("the queue is full"),
            "down": unavailable("the disk is gone", "plug it in"),
            "later": RonError(ErrorCode.STORE_UNAVAILABLE, "x", retry_after_s=4),
            "conflict": conflict("taken"),
        }[how]

    async def fails_later(self, call: Call) -> None:
        await self.slow(call)
        raise KeyError("the secret detail")


class Site(OnTheWire):
    """Every test with a site of its own."""

    def setUp(self) -> None:
        super().setUp()
        self.handlers = Handlers()
        self.site = self.serve(self.handlers.endpoints(), body_limit=LIMIT)

    def is_envelope(self, response: Response, status: int, code: ErrorCode) -> dict[str, Any]:
        """Check that `response` is an envelope with all its headers; the error's fields."""
        self.assertEqual(response.status, status, response.body)
        self.assertEqual(response.headers["content-type"], "application/json")
        self.assertEqual(response.headers["x-content-type-options"], "nosniff")
        error: dict[str, Any] = response.json["error"]
        self.assertEqual(set(response.json), {"error"})
        self.assertLessEqual({"code", "message", "retryable", "ts", "request_id"}, set(error))
        self.assertEqual(error["code"], code.value)
        self.assertEqual(error["retryable"], RonError(code, "").retryable)
        self.assertEqual(error["request_id"], response.headers["x-request-id"])
        self.assertRegex(error["ts"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")
        return error


class Answers(Site):
    """What handlers return, on the wire; hot and Klein alike."""

    async def test_a_struct_is_json(self) -> None:
        for root in ("/hot", "/klein"):
            response = await self.ask(request("GET", f"{root}/get?x=1"))
            self.assertEqual(response.status, 200)
            self.assertEqual(response.headers["content-type"], "application/json")
            self.assertEqual(response.headers["cache-control"], "no-store")
            self.assertEqual(response.json["path"], f"{root}/get")

    async def test_every_answer_has_the_security_headers_and_a_date(self) -> None:
        for path in ("/hot/get", "/klein/get", "/nowhere", "/hot/fails/conflict"):
            headers = (await self.ask(request("GET", path))).headers
            self.assertEqual(headers["x-content-type-options"], "nosniff")
            self.assertEqual(headers["referrer-policy"], "no-referrer")
            self.assertEqual(headers["cross-origin-resource-policy"], "same-origin")
            self.assertIn("GMT", headers["date"])

    async def test_raw_bytes_with_their_own_headers(self) -> None:
        for root in ("/hot", "/klein"):
            response = await self.ask(request("GET", f"{root}/raw"))
            self.assertEqual((response.status, response.body), (201, b"<p>"))
            self.assertEqual((response.headers["content-type"], response.headers["x-mine"]), ("text/html", "1"))

    async def test_an_asset_whole_in_part_and_not_again(self) -> None:
        etag = strong_etag(PICTURE)
        for root in ("/hot", "/klein"):
            wire = await self.wire()
            for headers, status, body in (
                ({}, 200, PICTURE),
                ({"Range": "bytes=2-4"}, 206, b"234"),
                ({"Range": "bytes=2-4", "If-Range": '"old"'}, 200, PICTURE),
                ({"If-None-Match": etag}, 304, b""),
            ):
                wire.send(request("GET", f"{root}/picture", headers))
                response = await wire.response()
                self.assertEqual((response.status, response.body), (status, body))
                self.assertEqual(response.headers["etag"], etag)
            wire.send(request("GET", f"{root}/picture", {"Range": "bytes=100-"}))
            error = self.is_envelope(await wire.response(), 416, ErrorCode.BAD_REQUEST)
            self.assertIn("100 bytes", error["message"])

    async def test_head_is_get_without_the_body(self) -> None:
        for path in ("/hot/picture", "/klein/picture", "/hot/get", "/klein/get", "/nowhere"):
            wire = await self.wire()
            wire.send(request("GET", path))
            whole = await wire.response()
            wire.send(request("HEAD", path), request("GET", "/hot/raw"))
            head = await wire.response(headless=True)
            self.assertEqual(head.status, whole.status)
            self.assertEqual(set(head.headers), set(whole.headers))
            self.assertEqual(head.headers["content-length"], whole.headers["content-length"])
            self.assertEqual((await wire.response()).body, b"<p>")

    async def test_a_range_means_nothing_to_head(self) -> None:
        """RFC 9110 §14.2."""
        for root in ("/hot", "/klein"):
            for asked in ("bytes=0-1", "bytes=9999-"):
                head = await self.ask(request("HEAD", f"{root}/picture", {"Range": asked}), headless=True)
                self.assertEqual((head.status, head.headers["content-length"]), (200, "100"))

    async def test_an_awaited_answer_is_waited_for(self) -> None:
        for path in ("/hot/slow", "/klein/slow", "/hot/awaits", "/klein/awaits"):
            wire = await self.wire()
            wire.send(request("GET", path))
            await until(lambda: self.handlers.waiting)
            self.assertEqual(wire.received, b"")
            self.handlers.waiting.pop().callback({"done": True})
            response = await wire.response()
            self.assertEqual((response.status, response.json), (200, {"done": True}), path)

    async def test_pipelined_requests_are_answered_in_order(self) -> None:
        wire = await self.wire()
        wire.send(
            request("GET", "/klein/slow"),
            request("POST", "/hot/post", body=b'{"text":"two"}'),
            request("GET", "/nowhere"),
            request("GET", "/hot/by/x/4"),
        )
        await until(lambda: self.handlers.waiting)
        self.assertEqual(self.handlers.calls, [])
        self.handlers.waiting.pop().callback(1)
        self.assertEqual((await wire.response()).json, 1)
        self.assertEqual((await wire.response()).json["text"], "two")
        self.assertEqual((await wire.response()).status, 404)
        self.assertEqual((await wire.response()).json, {"a": "x", "b": "4"})

    async def test_http_1_0(self) -> None:
        for path in ("/hot/raw", "/klein/raw", "/nowhere"):
            wire = await self.wire()
            wire.send(request("GET", path, version="1.0"))
            await wire.end()
            self.assertTrue(wire.received.startswith(b"HTTP/1.0 "), wire.received)
            response = await wire.response()
            self.assertEqual(response.headers["connection"], "close")
            self.assertEqual(wire.received, b"")

    async def test_connection_close(self) -> None:
        for path in ("/hot/raw", "/klein/raw", "/nowhere", "/klein/fails/conflict"):
            wire = await self.wire()
            wire.send(request("GET", path), request("GET", path, {"Connection": "Close"}), request("GET", path))
            self.assertNotIn("connection", (await wire.response()).headers)
            self.assertEqual((await wire.response()).headers["connection"], "close")
            await wire.end()
            self.assertEqual(wire.received, b"")

    async def test_no_content_has_no_length(self) -> None:
        """RFC 9110 §8.6."""
        for root in ("/hot", "/klein"):
            wire = await self.wire()
            wire.send(request("GET", f"{root}/nothing"), request("GET", "/hot/raw"))
            await until(lambda wire=wire: wire.received.endswith(b"<p>"))
            head, _, rest = wire.received.partition(b"\r\n\r\n")
            self.assertTrue(head.startswith(b"HTTP/1.1 204 No Content\r\n"))
            self.assertNotIn(b"content-length", head.lower())
            self.assertTrue(rest.startswith(b"HTTP/1.1 201 "))

    async def test_no_value_adds_a_header(self) -> None:
        for root in ("/hot", "/klein"):
            headers = (await self.ask(request("GET", f"{root}/split"))).headers
            self.assertEqual(headers["x-mine"].split(), ["a", "X-Evil:", "1", "b", "ü".encode().decode("latin-1")])
            self.assertNotIn("x-evil", headers)

    async def test_each_header_once(self) -> None:
        for path in ("/hot/get", "/klein/get", "/nowhere", "/klein/picture", "/hot/fails/full"):
            wire = await self.wire()
            wire.send(request("GET", path))
            await until(lambda wire=wire: split_response(wire.received))
            names = [line.partition(b":")[0].lower() for line in wire.received.partition(b"\r\n\r\n")[0].splitlines()]
            self.assertEqual(len(set(names)), len(names), names)
            self.assertNotIn(b"server", names)


class Refusals(Site):
    """Every failure is the envelope with its status."""

    async def test_400_bodies_that_are_not_the_dto(self) -> None:
        for root in ("/hot", "/klein"):
            wire = await self.wire()
            for body, words in (
                (b"", "not JSON"),
                (b"hello", "not JSON"),
                (b'{"text":"a"', "not JSON"),
                (b'{"text":"\xff"}', "not JSON"),
                (b'{"text":"a","tree":' + b"[" * 900, "not JSON"),
                (b'{"text":"a"} {}', "not JSON"),
                (b'{"text":"a","txet":1}', "unknown field txet"),
                (b'{"text":5}', "text"),
                (b'{"text":"a","count":"1"}', "count"),
                (b'{"count":1}', "text"),
                (b"[]", "object"),
                (b"null", "object"),
            ):
                wire.send(request("POST", f"{root}/post", body=body))
                error = self.is_envelope(await wire.response(), 400, ErrorCode.BAD_REQUEST)
                self.assertIn(words, error["message"])
                self.assertTrue(error["hint"])
            self.assertEqual(self.handlers.calls, [])

    async def test_400_a_body_where_none_belongs(self) -> None:
        """And the connection stays in step: the body is not taken for the next request."""
        for root in ("/hot", "/klein"):
            wire = await self.wire()
            for smuggled in (request("GET", "/hot/raw"), b"{}"):
                wire.send(request("GET", f"{root}/get", body=smuggled), request("GET", "/hot/by/x/y"))
                error = self.is_envelope(await wire.response(), 400, ErrorCode.BAD_REQUEST)
                self.assertIn("no body", error["message"])
                self.assertEqual((await wire.response()).json, {"a": "x", "b": "y"})
            wire.send(request("GET", f"{root}/get", body=b""))
            self.assertEqual((await wire.response()).status, 200)

    async def test_401_and_403(self) -> None:
        for root in ("/hot", "/klein"):
            path = f"{root}/guarded"
            good = self.bearer(("scope", "node:*"), ("path", path))
            self.assertEqual((await self.ask(request("GET", path, good))).status, 200)
            token = good["Authorization"].split(" ")[1]
            self.assertEqual((await self.ask(request("GET", path, {"authorization": f"bEARER  {token}"}))).status, 200)
            for headers in (
                {},
                {"Authorization": "Bearer"},
                {"Authorization": "Bearer x"},
                {"Authorization": f"Basic {token}"},
                {"Authorization": token},
                {"Authorization": f"Bearer {token} {token}"},
                {"Authorization": "Bearer \xff\xfe"},
                self.bearer(("exp", "2020-01-01T00:00:00Z")),
            ):
                response = await self.ask(request("GET", path, headers))
                self.is_envelope(response, 401, ErrorCode.NO_CAPABILITY)
                self.assertEqual(response.headers["www-authenticate"], 'Bearer realm="ron"')
            for caveat in (("scope", "node:write"), ("method", "POST"), ("path", "/other"), ("topic", "t")):
                response = await self.ask(request("GET", path, self.bearer(caveat)))
                self.is_envelope(response, 403, ErrorCode.NO_CAPABILITY)
                self.assertNotIn("www-authenticate", response.headers)

    async def test_a_capability_for_a_path_is_not_talked_round(self) -> None:
        """Other spellings of the path fail closed, whichever way they are routed."""
        for root in ("/hot", "/klein"):
            headers = self.bearer(("scope", "*"), ("path", "/allowed"))
            for path in (
                f"/allowed/..{root}/guarded",
                f"/allowed/%2e%2e{root}/guarded",
                f"/allowed//../{root}/guarded",
                f"/allowed%2f..{root}/guarded",
                f"//allowed/..{root}/guarded",
            ):
                self.assertIn((await self.ask(request("GET", path, headers))).status, (403, 404), path)
        self.assertEqual(self.handlers.calls, [])

    async def test_404(self) -> None:
        for path in (
            "/",
            "/hot",
            "/hot/get/x",
            "/hotter/get",
            "/hot/by/a",
            "/hot/by/a/b/c",
            "/klein/by/a",
            "/%00",
            "/*",
        ):
            self.is_envelope(await self.ask(request("GET", path)), 404, ErrorCode.NOT_FOUND)

    async def test_405_says_what_is_allowed(self) -> None:
        for method in ("POST", "DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "BREW"):
            for root in ("/hot", "/klein"):
                response = await self.ask(request(method, f"{root}/get"))
                self.is_envelope(response, 405, ErrorCode.UNSUPPORTED)
                self.assertEqual(response.headers["allow"], "GET, HEAD")
        response = await self.ask(request("GET", "/hot/post"))
        self.is_envelope(response, 405, ErrorCode.UNSUPPORTED)
        self.assertEqual(response.headers["allow"], "POST")

    async def test_methods_are_case_sensitive(self) -> None:
        """RFC 9110 §9.1: `get` is no GET."""
        for method in ("get", "Get", "gET", "post", "head", "brew"):
            for root in ("/hot", "/klein"):
                response = await self.ask(request(method, f"{root}/get"))
                self.is_envelope(response, 501, ErrorCode.UNSUPPORTED)
                self.assertIn("capitals", response.json["error"]["hint"])
        self.assertEqual(self.handlers.calls, [])

    async def test_500_keeps_the_detail_in_the_log(self) -> None:
        for path in ("/hot/fails/bug", "/klein/fails/bug"):
            corr_id = str(uuid7())
            response = await self.ask(request("GET", path, {"X-Corr-ID": corr_id}))
            error = self.is_envelope(response, 500, ErrorCode.INTERNAL)
            self.assertNotIn(b"secret detail", response.body)
            self.assertNotIn(b"Traceback", response.body)
            self.assertIn("log", error["hint"])
            (failure,) = self.flushLoggedErrors(KeyError)
            self.assertIn("the secret detail", failure.getErrorMessage())

    async def test_500_when_it_fails_later(self) -> None:
        for path in ("/hot/fails-later", "/klein/fails-later"):
            wire = await self.wire()
            wire.send(request("GET", path))
            await until(lambda: self.handlers.waiting)
            self.handlers.waiting.pop().callback(None)
            self.is_envelope(await wire.response(), 500, ErrorCode.INTERNAL)
            self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    async def test_500_when_the_answer_cannot_be_encoded(self) -> None:
        for path in ("/hot/unencodable", "/klein/unencodable"):
            self.is_envelope(await self.ask(request("GET", path)), 500, ErrorCode.INTERNAL)
            self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
            wire = await self.wire()
            wire.send(request("GET", path.replace("unencodable", "slow")))
            await until(lambda: self.handlers.waiting)
            self.handlers.waiting.pop().callback(object())
            self.is_envelope(await wire.response(), 500, ErrorCode.INTERNAL)
            self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)

    async def test_504_at_the_deadline_and_the_handler_is_cancelled(self) -> None:
        for path in ("/hot/slow", "/klein/slow"):
            wire = await self.wire()
            wire.send(request("GET", path))
            await until(lambda: self.handlers.waiting)
            self.clock.advance(6.9)
            self.assertEqual(self.handlers.cancelled, 0)
            self.clock.advance(0.1)
            self.assertEqual(self.handlers.cancelled, 1)
            error = self.is_envelope(await wire.response(), 504, ErrorCode.TIMEOUT)
            self.assertTrue(error["retryable"])
            wire.send(request("GET", "/hot/raw"))
            self.assertEqual((await wire.response()).body, b"<p>")
            self.handlers.waiting.clear()
            self.handlers.cancelled = 0

    async def test_429_and_503_say_when_to_come_back(self) -> None:
        told = set()
        for how, status, code in (
            ("full", 429, ErrorCode.BACKPRESSURE),
            ("down", 503, ErrorCode.STORE_UNAVAILABLE),
        ):
            wire = await self.wire()
            for _ in range(60):
                wire.send(request("GET", f"/hot/fails/{how}"))
                response = await wire.response()
                self.is_envelope(response, status, code)
                told.add(response.headers["retry-after"])
        self.assertEqual(told, {"1", "2", "3", "4", "5"})
        self.assertEqual((await self.ask(request("GET", "/klein/fails/later"))).headers["retry-after"], "4")
        self.assertNotIn("retry-after", (await self.ask(request("GET", "/hot/fails/conflict"))).headers)

    async def test_text_that_is_not_utf8_in_path_or_host(self) -> None:
        for head in (
            b"GET /klein/by/%ff/x HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET /hot/by/%ff/x HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET /%c3%28 HTTP/1.1\r\nHost: h\r\n\r\n",
            b"GET /klein/get HTTP/1.1\r\nHost: \xff\r\n\r\n",
        ):
            self.is_envelope(await self.ask(head), 400, ErrorCode.BAD_REQUEST)

    async def test_headers_of_any_bytes_do_no_harm(self) -> None:
        for root in ("/hot", "/klein"):
            for name in (b"X-Corr-ID", b"Range", b"If-None-Match", b"If-Range", b"Cookie", b"Content-Type", b"Accept"):
                head = b"GET %s/picture HTTP/1.1\r\nHost: h\r\n%s: \xff\xfe=;\x01\r\n\r\n" % (root.encode(), name)
                self.assertEqual((await self.ask(head)).body, PICTURE, name)


class Limits(Site):
    """Refused before work, and told why."""

    async def test_413_by_the_declared_length(self) -> None:
        self.is_envelope(
            await self.ask(request("POST", "/hot/post", {"Content-Length": str(LIMIT + 1)})), 413, ErrorCode.TOO_LARGE
        )
        whole = b'{"text":"%s"}' % (b"x" * (LIMIT - 11))
        self.assertEqual(len(whole), LIMIT)
        self.assertEqual((await self.ask(request("POST", "/hot/post", body=whole))).status, 200)

    async def test_413_chunked_at_the_first_byte_too_many(self) -> None:
        wire = await self.wire()
        wire.send(request("POST", "/klein/post", {"Transfer-Encoding": "chunked"}), b"3e8\r\n" + b"x" * LIMIT)
        await until(lambda: self.site.channels)
        self.assertEqual(wire.received, b"")
        wire.send(b"\r\n1\r\nx")
        error = self.is_envelope(await wire.response(), 413, ErrorCode.TOO_LARGE)
        self.assertIn(str(LIMIT), error["hint"])
        wire.send(b"\r\n0\r\n\r\n", request("GET", "/hot/raw"))
        await wire.end()
        self.assertEqual(wire.received, b"")
        self.assertEqual(self.handlers.calls, [])

    async def test_a_chunked_body_that_fits(self) -> None:
        response = await self.ask(
            request("POST", "/hot/post", {"Transfer-Encoding": "chunked"}), chunked(b'{"te', b'xt":"a"', b"}")
        )
        self.assertEqual(response.json["text"], "a")

    async def test_a_client_that_keeps_sending_still_sees_the_413(self) -> None:
        """RFC 9112 §9.6: closing at once would reset the connection under the answer."""
        wire = await self.wire()
        size = 3_000_000
        wire.send(request("POST", "/hot/post", {"Content-Length": str(size)}), b"x" * size)
        self.is_envelope(await wire.response(), 413, ErrorCode.TOO_LARGE)
        await wire.end()
        self.assertEqual(wire.received, b"")

    async def test_a_client_that_sends_without_end_is_hung_up_on(self) -> None:
        self.patch(request_module, "LINGER_LIMIT_BYTES", 5000)
        wire = await self.wire()
        wire.send(request("POST", "/hot/post", {"Content-Length": "999999999"}), b"x" * 4999)
        self.is_envelope(await wire.response(), 413, ErrorCode.TOO_LARGE)
        self.assertEqual(len(self.site.channels), 1)
        wire.send(b"xx")
        await wire.end()

    async def test_nonsense_after_a_413_is_not_answered_again(self) -> None:
        wire = await self.wire()
        wire.send(
            request("POST", "/hot/post", {"Transfer-Encoding": "chunked"}), b"7d0\r\n" + b"x" * 2000 + b"\r\nzz\r\n"
        )
        self.is_envelope(await wire.response(), 413, ErrorCode.TOO_LARGE)
        await wire.end()
        self.assertEqual(wire.received, b"")

    async def test_expect_100_continue(self) -> None:
        body = b'{"text":"a"}'
        wire = await self.wire()
        wire.send(request("POST", "/hot/post", {"Expect": "100-continue", "Content-Length": str(len(body))}))
        self.assertEqual((await wire.response()).status, 100)
        wire.send(body)
        self.assertEqual((await wire.response()).json["text"], "a")

    async def test_expect_100_continue_with_too_large_a_body_is_not_told_to_continue(self) -> None:
        wire = await self.wire()
        wire.send(request("POST", "/hot/post", {"Expect": "100-continue", "Content-Length": str(LIMIT + 1)}))
        self.is_envelope(await wire.response(), 413, ErrorCode.TOO_LARGE)
        await wire.end()
        self.assertEqual(wire.received, b"")

    async def test_header_floods(self) -> None:
        lines = HEADERS_LIMIT_BYTES // 1000 + 1
        for flood in (
            b"".join(b"X-%d: %s\r\n" % (n, b"a" * 1000) for n in range(lines)),
            b"".join(b"X-%d: a\r\n" % n for n in range(600)),
            b"X: " + b"a" * HEADERS_LIMIT_BYTES + b"\r\n",
        ):
            wire = await self.wire()
            wire.send(b"GET /hot/get HTTP/1.1\r\nHost: h\r\n", flood, b"\r\n")
            self.is_envelope(await wire.response(), 400, ErrorCode.BAD_REQUEST)
            await wire.end()
            self.assertEqual(wire.received, b"")
        self.assertEqual(self.handlers.calls, [])

    async def test_headers_just_below_the_limit_are_fine(self) -> None:
        flood = b"".join(b"X-%d: %s\r\n" % (n, b"a" * 10_000) for n in range(6))
        self.assertEqual((await self.ask(b"GET /hot/get HTTP/1.1\r\nHost: h\r\n", flood, b"\r\n")).status, 200)

    async def test_malformed_requests(self) -> None:
        for raw in (
            b"hello\r\n\r\n",
            b"GET /hot/get\r\n\r\n",
            b"GET  /hot/get HTTP/1.1\r\n\r\n",
            b"GET /hot/get HTTP/2.0\r\n\r\n",
            b"GET /hot/g\xc3\xa4t HTTP/1.1\r\n\r\n",
            b"G\xffT /hot/get HTTP/1.1\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n",
            b"GET /hot/get HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET /hot/get HTTP/1.1\r\nX : a\r\n\r\n",
            b"GET /hot/get HTTP/1.1\r\nX: a\0b\r\n\r\n",
            b"POST /hot/post HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST /hot/post HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
            b"POST /hot/post HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            b"POST /hot/post HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"POST /hot/post HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            b"POST /hot/post HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ):
            wire = await self.wire()
            wire.send(raw)
            self.is_envelope(await wire.response(), 400, ErrorCode.BAD_REQUEST)
            await wire.end()
            self.assertEqual(wire.received, b"", raw[:60])
        self.assertEqual(self.handlers.calls, [])

    async def test_who_says_nothing_is_hung_up_on(self) -> None:
        silent, half = await self.wire(), await self.wire()
        half.send(b"GET /hot/get HTTP/1.1\r\nHo")
        await until(lambda: any(channel.busy for channel in self.site.channels))
        self.clock.advance(READ_IDLE_S - 0.1)
        self.assertEqual(len(self.site.channels), 2)
        self.clock.advance(0.2)
        await silent.end()
        await half.end()
        self.assertEqual(silent.received + half.received, b"")


class Forms(Site):
    """Bodies are DTOs whatever their Content-Type says: twisted.web's own form parsing must stay out of the way.

    It would run before the capability is looked at, on the reactor thread, for seconds.
    """

    def setUp(self) -> None:
        super().setUp()

        def parsed(line: bytes) -> bytes:
            raise AssertionError(f"Twisted parses the Content-Type {line!r} of a POST again")

        self.patch(http, "_parseContentType", parsed)

    async def test_twisted_parses_neither_content_type_nor_form(self) -> None:
        for root in ("/hot", "/klein"):
            wire = await self.wire()
            for content_type in (
                "application/json",
                "application/x-www-form-urlencoded",
                "multipart/form-data; boundary=x",
                "multipart/form-data",
            ):
                wire.send(request("POST", f"{root}/post", {"Content-Type": content_type}, b'{"text":"a=b&c=d"}'))
                self.assertEqual((await wire.response()).json["text"], "a=b&c=d", content_type)

    def test_by_default_twisted_would(self) -> None:
        """Otherwise the test above proves nothing."""
        site = make_site(self.edge, self.handlers.endpoints())
        site._parsePOSTFormSubmission = True
        raw = request("POST", "/klein/post", {"Content-Type": "text/plain"}, b'{"text":"a"}')
        self.assertRaises(AssertionError, exchange, site, raw)


class Correlation(Site):
    """X-Corr-ID: honoured when it is a UUID, otherwise made; on every answer."""

    PATHS = ("/hot/get", "/klein/get", "/hot/fails/conflict", "/klein/guarded", "/nowhere")

    async def test_a_uuid_is_honoured(self) -> None:
        for path in self.PATHS:
            for chosen in (str(uuid7()), str(uuid.uuid4()).upper()):
                response = await self.ask(request("GET", path, {"x-corr-id": chosen}))
                self.assertEqual(response.headers["x-corr-id"], chosen)
        self.assertEqual(len({call.corr_id for call in self.handlers.calls}), 4)

    async def test_anything_else_is_replaced_by_a_uuid7(self) -> None:
        for path in self.PATHS:
            for nonsense in ("", "1", "x" * 36, "\xff", '"><script>'):
                made = (await self.ask(request("GET", path, {"X-Corr-ID": nonsense}))).headers["x-corr-id"]
                self.assertEqual(uuid.UUID(made).version, 7)


class Routing(Site):
    """Path parameters, and nothing between the two ways a request is routed."""

    async def test_parameters_are_percent_decoded(self) -> None:
        for root in ("/hot", "/klein"):
            for path, a, b in (
                ("/by/x/y", "x", "y"),
                ("/by/a%20b/%C3%A4", "a b", "ä"),
                ("/by/a+b/c%25d", "a+b", "c%d"),
                ("/by/a;v=1/..", "a;v=1", ".."),
                ("/by/%3Cscript%3E/%22", "<script>", '"'),
            ):
                response = await self.ask(request("GET", root + path))
                self.assertEqual(response.json, {"a": a, "b": b}, root + path)

    async def test_a_slash_in_a_parameter_is_not_a_parameter(self) -> None:
        for root in ("/hot", "/klein"):
            for path in ("/by/a%2Fb/c", "/by//c", "/by/a/", "/by/a%2f"):
                self.assertEqual((await self.ask(request("GET", root + path))).status, 404, root + path)

    def test_a_hot_path_that_the_table_cannot_hold_is_refused_at_once(self) -> None:
        for path in ("/v1/<msg_id>/ack", "/assets/<path:path>"):
            endpoint = Endpoint(method="GET", path=path, handler=lambda call: None, scope=None, hot=True)
            error = self.assertRaises(ValueError, make_site, self.edge, [endpoint])
            self.assertIn(path, str(error))


class Lifecycle(Site):
    """Clients that go away, and a node that does."""

    async def test_the_handler_is_cancelled_when_the_client_goes_away(self) -> None:
        for path in ("/hot/slow", "/klein/slow", "/hot/awaits", "/klein/awaits"):
            wire = await self.wire()
            wire.send(request("GET", path))
            await until(lambda: self.handlers.waiting)
            wire.abort()
            await until(lambda: self.handlers.cancelled == 1)
            self.handlers.waiting.clear()
            self.handlers.cancelled = 0
        self.assertEqual(self.inflight(), 0)
        counted = self.metrics.render().decode()
        self.assertIn('route="/hot/slow",status="499"', counted)
        self.assertNotIn('status="504"', counted)

    async def test_drain_closes_idle_connections_and_waits_for_busy_ones(self) -> None:
        idle, busy = await self.wire(), await self.wire()
        idle.send(request("GET", "/hot/raw"))
        await idle.response()
        busy.send(request("GET", "/klein/slow"))
        await until(lambda: self.handlers.waiting)
        draining = ensureDeferred(self.site.drain(5))
        await idle.end()
        self.clock.advance(1)
        self.assertNoResult(draining)
        self.handlers.waiting.pop().callback({"done": 1})
        self.assertEqual((await busy.response()).json, {"done": 1})
        self.clock.advance(0.05)
        await busy.end()
        await until(lambda: not self.site.channels)
        self.clock.advance(0.05)
        self.assertEqual(self.successResultOf(draining), 0)

    async def test_drain_cuts_off_at_the_deadline(self) -> None:
        wire = await self.wire()
        wire.send(request("GET", "/hot/slow"))
        await until(lambda: self.handlers.waiting)
        draining = ensureDeferred(self.site.drain(2))
        for _ in range(45):
            self.clock.advance(0.05)
        self.assertEqual(self.successResultOf(draining), 1)
        await wire.end()
        self.assertEqual(wire.received, b"")
        await until(lambda: self.handlers.cancelled)

    async def test_drain_waits_until_the_last_byte_has_left(self) -> None:
        """The handler is done, the client is slow: the rest of the answer is in our buffers."""
        wire = await self.wire()
        transport: Any = wire.transport
        transport.pauseProducing()
        wire.send(request("GET", "/hot/big"))
        await until(lambda: self.counted("/hot/big", "GET", 200))
        draining = ensureDeferred(self.site.drain(5))
        self.clock.advance(0.05)
        self.assertNoResult(draining)
        transport.resumeProducing()
        self.assertEqual(len((await wire.response()).body), 8_000_000)
        await until(lambda: not self.site.channels)
        self.clock.advance(0.05)
        self.assertEqual(self.successResultOf(draining), 0)

    async def test_draining_nothing_is_done_at_once(self) -> None:
        self.assertEqual(await self.site.drain(0), 0)

    def inflight(self) -> float:
        return sum(
            sample.value
            for family in self.metrics.registry.collect()
            if family.name == "inflight_requests"
            for sample in family.samples
        )


class Counting(Site):
    """Metrics by route, never by what a caller can choose."""

    async def test_by_the_routes_pattern(self) -> None:
        for root in ("/hot", "/klein"):
            for path in ("/by/a/b", "/by/c/d?x=1", "/by/%41/b"):
                await self.ask(request("GET", root + path))
            self.assertEqual(self.counted(f"{root}/by/<a>/<b>", "GET", 200), 3)
            await self.ask(request("GET", f"{root}/guarded"))
            self.assertEqual(self.counted(f"{root}/guarded", "GET", 401), 1)
        labels = {sample.labels.get("route") for f in self.metrics.registry.collect() for sample in f.samples}
        self.assertLessEqual(labels - {None}, {endpoint.path for endpoint in self.handlers.endpoints()})

    async def test_strangers_under_a_route_nobody_chose(self) -> None:
        for method, path, status in (
            ("GET", "/nowhere", 404),
            ("GET", "/else/where", 404),
            ("DELETE", "/hot/get", 405),
            ("BREW", "/klein/get", 405),
            ("get", "/klein/get", 501),
            ("X" * 300, "/nowhere", 404),
        ):
            self.assertEqual((await self.ask(request(method, path))).status, status)
        await self.ask(b"nonsense\r\n\r\n")
        self.assertEqual(self.counted("-", "GET", 404), 2)
        self.assertEqual(self.counted("-", "DELETE", 405), 1)
        self.assertEqual((self.counted("-", "-", 405), self.counted("-", "-", 404)), (1, 1))
        self.assertEqual((self.counted("-", "-", 501), self.counted("-", "-", 400)), (1, 1))

    async def test_latency_once_per_answer_and_nothing_left_in_flight(self) -> None:
        for how in ("bug", "full", "conflict"):
            await self.ask(request("GET", f"/hot/fails/{how}"))
        self.flushLoggedErrors(KeyError)
        read = self.metrics.registry.get_sample_value
        route = "/hot/fails/<how>"
        self.assertEqual(read("request_latency_seconds_count", {"route": route, "method": "GET"}), 3)
        self.assertEqual(read("inflight_requests", {"route": route}), 0)

    async def test_refusals_by_reason(self) -> None:
        await self.ask(request("GET", "/hot/guarded"))
        await self.ask(request("GET", "/hot/guarded", self.bearer(("scope", "x:y"))))
        await self.ask(request("GET", "/hot/fails/full"))
        await self.ask(request("GET", "/hot/fails/down"))
        await self.ask(request("POST", "/hot/post", {"Content-Length": "9999"}))
        await self.ask(request("GET", "/nowhere"))
        for reason, count in (("unauth", 2), ("backpressure", 1), ("store_unavailable", 1), ("too_large", 1)):
            self.assertEqual(self.metrics.registry.get_sample_value("rejected_total", {"reason": reason}), count)


class Health(OnTheWire):
    """`/healthz`, `/readyz`, `/metrics`, `/version`."""

    def setUp(self) -> None:
        super().setUp()
        self.health = HealthState()
        self.serve(health_endpoints(OwnHealth(self.health, self.metrics), name="ron-node"))

    async def test_alive_even_when_not_ready(self) -> None:
        self.assertEqual((await self.ask(request("GET", "/healthz"))).json, {"status": "ok"})

    async def test_readyz_tells_what_is_missing(self) -> None:
        self.health.missing("tor", "starting")
        response = await self.ask(request("GET", "/readyz"))
        self.assertEqual((response.status, response.headers["retry-after"]), (503, "2"))
        self.assertEqual((response.json["ready"], response.json["missing"]), (False, ["tor"]))
        self.health.ok("tor")
        response = await self.ask(request("GET", "/readyz"))
        self.assertEqual((response.status, response.json["ready"]), (200, True))
        self.assertNotIn("retry-after", response.headers)

    async def test_metrics_need_a_capability(self) -> None:
        self.assertEqual((await self.ask(request("GET", "/metrics"))).status, 401)
        response = await self.ask(request("GET", "/metrics", self.bearer(("scope", "metrics:read"))))
        self.assertEqual(response.headers["content-type"], Metrics.content_type)
        self.assertIn(b'http_requests_total{method="GET",route="/metrics",status="401"} 1.0', response.body)

    async def test_version(self) -> None:
        version = (await self.ask(request("GET", "/version"))).json
        self.assertEqual(set(version), {"name", "version", "python", "twisted"})
        self.assertEqual(version["name"], "ron-node")


def in_memory() -> RonSite:
    """The same endpoints without a port."""
    edge = Edge(
        authority=Authority(RootKeys.generate(), audience="ron-node", now=lambda: 1_800_000_000.0),
        metrics=Metrics(),
        reactor=Clock(),
    )
    return make_site(edge, Handlers().endpoints(), body_limit=LIMIT)


class Properties(SynchronousTestCase):
    """Over many requests, in memory."""

    def setUp(self) -> None:
        self.site = in_memory()

    METHODS = st.sampled_from(["GET", "POST", "HEAD", "PUT"])
    SEGMENTS = st.text("ab.%24fFcCA;?:@&=+$,~-_/", max_size=5)
    PATHS = st.sampled_from(["get", "guarded", "post", "picture", "by/x/y"]) | st.lists(SEGMENTS, max_size=3).map(
        lambda parts: "/".join(["by", *parts])
    )

    @settings(max_examples=100, deadline=None)
    @given(METHODS, PATHS, st.none() | st.binary(max_size=20), st.sampled_from([{}, {"Range": "bytes=1-2"}]))
    def test_hot_and_klein_answer_alike(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> None:
        hot, klein = (
            self.outcome(
                exchange(self.site, request(method, f"{root}/{path}", headers, body)), headless=method == "HEAD"
            )
            for root in ("/hot", "/klein")
        )
        self.assertEqual(hot, klein)

    def outcome(self, written: bytes, *, headless: bool) -> tuple[int, Any, set[str]] | None:
        whole = split_response(written, headless=headless)
        if whole is None:
            self.assertEqual(written, b"")
            return None
        response, rest = whole
        self.assertEqual(rest, b"")
        body: Any = response.body
        if response.headers.get("content-type") == "application/json" and body:
            body = json.loads(body)
            if response.status == 200:
                body = {k: v for k, v in body.items() if k not in {"corr_id", "path"}}
            else:
                body = (body["error"]["code"], body["error"]["message"])
        return response.status, body, set(response.headers) - {"server"}

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.sampled_from(
                [
                    b"GET /hot/get HTTP/1.1\r\n",
                    b"POST /klein/post HTTP/1.1\r\n",
                    b"GET /hot/by/%zz/%ff HTTP/1.0\r\n",
                    b"Host: h\r\n",
                    b"Content-Length: 12\r\n",
                    b"Content-Length: 99999\r\n",
                    b"Transfer-Encoding: chunked\r\n",
                    b"Expect: 100-continue\r\n",
                    b"Connection: close\r\n",
                    b" folded\r\n",
                    b'{"text":"a"}',
                    b"c\r\n",
                    b"\r\n",
                    b"0\r\n\r\n",
                    b"\r\n\r\n",
                ]
            )
            | st.binary(max_size=20),
            max_size=10,
        )
    )
    def test_no_bytes_whatsoever_make_it_stumble(self, pieces: list[bytes]) -> None:
        """Whole answers of ours or silence; no traceback in the log."""
        written = exchange(self.site, *pieces)
        self.assertEqual(self.flushLoggedErrors(), [])
        while written:
            whole = split_response(written)
            assert whole is not None, written
            response, written = whole
            self.assertIn(response.status, (100, 200, 400, 404, 405, 413, 501))
            if response.status >= 400:
                self.assertIn("error", response.json)
