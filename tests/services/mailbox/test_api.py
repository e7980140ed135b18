"""The mailbox over real HTTP on loopback: what the wire says, and what every refusal looks like."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import Any, NamedTuple

from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from ron.auth import Authority, Caveat, RootKeys
from ron.kernel import HealthState, Metrics
from ron.proto.errors import ErrorBody
from ron.services.mailbox.api import BODY_LIMIT_BYTES, endpoints
from ron.services.mailbox.config import MailboxConfig
from ron.services.mailbox.service import MailboxService
from ron.web import Edge, make_site

DEADLINE_S = 30.0
ANY = "a capability for everything here"


class Answer(NamedTuple):
    """An HTTP answer; `json` is its body."""

    status: int
    headers: dict[str, str]
    json: Any


class Conversation(Protocol):
    """Writes one request and reads one answer. done: the whole answer. lost: the connection is no more."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks
        self.received = b""
        self.done: Deferred[bytes] = Deferred()
        self.lost: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        for chunk in self.chunks:
            self.transport.write(chunk)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        head, _, body = self.received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if length and len(body) >= int(length[1]) and not self.done.called:
            self.done.callback(self.received)

    def connectionLost(self, reason: Any) -> None:
        self.lost.callback(None)


class ApiCase(TestCase):
    """A mailbox behind its site on a free port."""

    async def setUp(self) -> None:
        metrics = Metrics()
        self.authority = Authority(RootKeys.generate(), audience="ron-node", now=time.time)
        self.box = MailboxService(MailboxConfig(), path=None, reactor=reactor, health=HealthState(), metrics=metrics)
        self.box.startService()
        self.addCleanup(self.box.stopService)
        await self.box.opened()
        edge = Edge(authority=self.authority, metrics=metrics, reactor=reactor)
        site = make_site(edge, endpoints(self.box), body_limit=BODY_LIMIT_BYTES)
        self.port = reactor.listenTCP(0, site, interface="127.0.0.1")
        self.addCleanup(self.port.stopListening)
        self.addCleanup(lambda: Deferred.fromCoroutine(site.drain(DEADLINE_S)))

    def token(self, scope: str = "mailbox:*", **caveats: str) -> str:
        return self.authority.mint([Caveat("scope", scope), *(Caveat(*item) for item in caveats.items())])

    def head(self, path: str, token: str | None, framing: str) -> bytes:
        lines = [
            f"POST {path} HTTP/1.1",
            "Host: mailbox",
            "Connection: close",
            "Content-Type: application/json",
            framing,
        ]
        if token is not None:
            lines.append(f"Authorization: Bearer {token}")
        return "\r\n".join([*lines, "", ""]).encode()

    async def converse(self, *chunks: bytes) -> Answer:
        conversation = await self.connect(*chunks)
        raw = await conversation.done.addTimeout(DEADLINE_S, reactor)
        conversation.transport.abortConnection()
        await conversation.lost
        head, _, body = raw.partition(b"\r\n\r\n")
        status_line, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        return Answer(int(status_line.split()[1]), headers, json.loads(body))

    async def connect(self, *chunks: bytes) -> Conversation:
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", self.port.getHost().port)
        return await connectProtocol(endpoint, Conversation(*chunks))

    async def post(self, path: str, body: Any, token: str | None = ANY) -> Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        token = self.token() if token is ANY else token
        return await self.converse(self.head(path, token, f"Content-Length: {len(raw)}"), raw)

    async def good(self, path: str, body: Any, token: str | None = ANY) -> Any:
        answer = await self.post(path, body, token)
        self.assertEqual(answer.status, 200, answer.json)
        self.assertEqual(answer.headers["content-type"], "application/json")
        return answer.json

    def assertRefused(self, answer: Answer, status: int, code: str) -> None:
        """`answer` is the error envelope with `code`."""
        self.assertEqual((answer.status, answer.json["error"]["code"]), (status, code), answer.json)
        self.assertEqual(list(answer.json), ["error"])
        self.assertLessEqual(set(answer.json["error"]), set(ErrorBody.__struct_fields__))
        self.assertEqual(answer.headers["content-type"], "application/json")
        if status in {429, 503}:
            self.assertIn(int(answer.headers["retry-after"]), range(1, 6))

    async def assertBad(self, path: str, body: Any) -> None:
        self.assertRefused(await self.post(path, body), 400, "BadRequest")


def b64(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


class RoundTripTests(ApiCase):
    """The three calls as clients see them."""

    async def test_send_recv_ack(self) -> None:
        sent = await self.good("/v1/send", {"topic": "t", "payload_b64": b64(b"\x00\xff")})
        self.assertEqual(sent, {"msg_id": sent["msg_id"], "duplicate": False})
        received = await self.good("/v1/recv", {"topic": "t"})
        (message,) = received["messages"]
        expected = {"msg_id": sent["msg_id"], "payload_b64": "AP8=", "attempt": 1, "receipt": message["receipt"]}
        self.assertEqual(message, expected)
        receipt = {"receipt": message["receipt"]}
        self.assertEqual(await self.good(f"/v1/ack/{sent['msg_id']}", receipt), {"acked": True, "duplicate": False})
        self.assertEqual(await self.good(f"/v1/ack/{sent['msg_id']}", receipt), {"acked": True, "duplicate": True})
        self.assertEqual(await self.good("/v1/recv", {"topic": "t"}), {"messages": []})

    async def test_all_fields(self) -> None:
        body = {"topic": "t", "payload_b64": "", "idempotency_key": "k", "priority": "high"}
        first = await self.good("/v1/send", body)
        self.assertEqual(await self.good("/v1/send", body), {"msg_id": first["msg_id"], "duplicate": True})
        ask = {"topic": "t", "max": 64, "visibility_timeout_s": 0.5, "wait_s": 1}
        self.assertEqual(len((await self.good("/v1/recv", ask))["messages"]), 1)

    async def test_a_large_payload(self) -> None:
        payload = bytes(range(256)) * 3 * 1023
        await self.good("/v1/send", {"topic": "t", "payload_b64": b64(payload)})
        (message,) = (await self.good("/v1/recv", {"topic": "t"}))["messages"]
        self.assertEqual(base64.b64decode(message["payload_b64"], validate=True), payload)

    async def test_waiting_is_answered_by_a_send(self) -> None:
        waiting = Deferred.fromCoroutine(self.good("/v1/recv", {"topic": "t", "wait_s": 8}))
        await self.until(lambda: self.box.stats().waiting == 1)
        await self.good("/v1/send", {"topic": "t", "payload_b64": b64(b"x")})
        (message,) = (await waiting)["messages"]
        self.assertEqual(message["attempt"], 1)

    async def test_waiting_ends_with_nothing(self) -> None:
        self.assertEqual(await self.good("/v1/recv", {"topic": "t", "wait_s": 0.05}), {"messages": []})

    async def test_a_receiver_that_hangs_up_leaves_its_message_to_others(self) -> None:
        raw = json.dumps({"topic": "t", "wait_s": 8}).encode()
        gone = await self.connect(self.head("/v1/recv", self.token(), f"Content-Length: {len(raw)}"), raw)
        await self.until(lambda: self.box.stats().waiting == 1)
        gone.transport.abortConnection()
        await gone.lost
        await self.until(lambda: self.box.stats().waiting == 0)
        await self.good("/v1/send", {"topic": "t", "payload_b64": b64(b"x")})
        (message,) = (await self.good("/v1/recv", {"topic": "t"}))["messages"]
        self.assertEqual(message["attempt"], 1)

    async def until(self, condition: Any) -> None:
        deadline = reactor.seconds() + DEADLINE_S
        while not condition():
            self.assertLess(reactor.seconds(), deadline)
            await deferLater(reactor, 0.005, lambda: None)


class RefusalTests(ApiCase):
    """Every refusal is an envelope with the right code, and changes nothing."""

    SEND = {"topic": "t", "payload_b64": "eA=="}  # noqa: RUF012

    async def tearDown(self) -> None:
        self.assertEqual(self.box.stats().total, 0)

    async def test_bodies_that_are_not_ours(self) -> None:
        for body in (b"", b"[]", b"null", b"{", b'{"topic":"t"}', b"\xff", b'{"topic":"\\ud800","payload_b64":""}'):
            await self.assertBad("/v1/send", body)
        for field in ({"extra": 1}, {"topic": 7}, {"payload_b64": None}, {"priority": "urgent"}, {"priority": 2}):
            await self.assertBad("/v1/send", {**self.SEND, **field})
        for field in ({"idempotency_key": ""}, {"idempotency_key": "k" * 129}, {"idempotency_key": "a\nb"}):
            await self.assertBad("/v1/send", {**self.SEND, **field})

    async def test_topics(self) -> None:
        for topic in ("", "a b", "a" * 129, "ä", "a\n"):
            await self.assertBad("/v1/send", {**self.SEND, "topic": topic})
            await self.assertBad("/v1/recv", {"topic": topic})

    async def test_base64_that_is_not_canonical(self) -> None:
        for text in ("eA", "eA=", "eB==", "e A==", "eA==\n", "-_-_", "eA==eA==", "é"):
            await self.assertBad("/v1/send", {**self.SEND, "payload_b64": text})

    async def test_numbers_out_of_range(self) -> None:
        for field in ({"max": 0}, {"max": 65}, {"max": 1.5}, {"max": True}, {"max": "1"}):
            await self.assertBad("/v1/recv", {"topic": "t", **field})
        for field in ({"wait_s": -1}, {"wait_s": 26}, {"visibility_timeout_s": 0}, {"visibility_timeout_s": 43201}):
            await self.assertBad("/v1/recv", {"topic": "t", **field})
        await self.assertBad("/v1/recv", b'{"topic":"t","wait_s":NaN}')
        await self.assertBad("/v1/recv", b'{"topic":"t","wait_s":1e400}')

    async def test_no_capability_and_the_wrong_one(self) -> None:
        for path, body in (
            ("/v1/send", self.SEND),
            ("/v1/recv", {"topic": "t"}),
            ("/v1/ack/018f0000-0000-7000-8000-000000000000", {"receipt": "0"}),
        ):
            anonymous = await self.post(path, body, None)
            self.assertRefused(anonymous, 401, "NoCapability")
            self.assertIn("www-authenticate", anonymous.headers)
            self.assertRefused(await self.post(path, body, "forged"), 401, "NoCapability")
            self.assertRefused(await self.post(path, body, self.token("kms:*")), 403, "NoCapability")
        wrong = {"send": "mailbox:recv", "recv": "mailbox:ack", "ack": "mailbox:send"}
        self.assertRefused(await self.post("/v1/send", self.SEND, self.token(wrong["send"])), 403, "NoCapability")
        self.assertRefused(await self.post("/v1/recv", {"topic": "t"}, self.token(wrong["recv"])), 403, "NoCapability")
        ack = await self.post("/v1/ack/x", {"receipt": "0"}, self.token(wrong["ack"]))
        self.assertRefused(ack, 403, "NoCapability")

    async def test_a_capability_for_another_topic(self) -> None:
        mine, theirs = self.token(topic="t"), self.token(topic="u")
        self.assertRefused(await self.post("/v1/send", self.SEND, theirs), 403, "NoCapability")
        self.assertRefused(await self.post("/v1/recv", {"topic": "t"}, theirs), 403, "NoCapability")
        sent = await self.good("/v1/send", self.SEND, mine)
        (message,) = (await self.good("/v1/recv", {"topic": "t"}, mine))["messages"]
        receipt = {"receipt": message["receipt"]}
        foreign = await self.post(f"/v1/ack/{sent['msg_id']}", receipt, theirs)
        unknown = await self.post("/v1/ack/018f0000-0000-7000-8000-000000000000", receipt, theirs)
        self.assertRefused(foreign, 404, "NotFound")
        self.assertEqual(self.told(foreign), self.told(unknown))
        await self.good(f"/v1/ack/{sent['msg_id']}", receipt, mine)

    def told(self, answer: Answer) -> tuple[Any, ...]:
        error = answer.json["error"]
        return answer.status, sorted(answer.headers), error["code"], error["message"], error.get("hint")

    async def test_a_caveat_the_mailbox_cannot_honour(self) -> None:
        self.assertRefused(await self.post("/v1/send", self.SEND, self.token(tenant="acme")), 403, "NoCapability")

    async def test_unknown_messages_and_stale_receipts(self) -> None:
        for msg_id in ("x", "018f0000-0000-7000-8000-000000000000", "%00", "018F0000-0000-7000-8000-000000000000"):
            self.assertRefused(await self.post(f"/v1/ack/{msg_id}", {"receipt": "0"}), 404, "NotFound")
        sent = await self.good("/v1/send", self.SEND)
        (first,) = (await self.good("/v1/recv", {"topic": "t", "visibility_timeout_s": 0.1}))["messages"]
        (second,) = (await self.good("/v1/recv", {"topic": "t", "wait_s": 5}))["messages"]
        self.assertEqual(second["attempt"], 2)
        path = f"/v1/ack/{sent['msg_id']}"
        for receipt in (first["receipt"], "", "0" * 32, "ü"):
            self.assertRefused(await self.post(path, {"receipt": receipt}), 409, "Conflict")
        await self.good(path, {"receipt": second["receipt"]})

    async def test_a_key_used_for_another_message(self) -> None:
        body = {**self.SEND, "idempotency_key": "k"}
        sent = await self.good("/v1/send", body)
        self.assertRefused(await self.post("/v1/send", {**body, "payload_b64": "eQ=="}), 409, "Conflict")
        self.assertRefused(await self.post("/v1/send", {**body, "priority": "low"}), 409, "Conflict")
        (message,) = (await self.good("/v1/recv", {"topic": "t"}))["messages"]
        await self.good(f"/v1/ack/{sent['msg_id']}", {"receipt": message["receipt"]})

    async def test_too_large_by_its_declared_length(self) -> None:
        answer = await self.converse(self.head("/v1/send", self.token(), f"Content-Length: {BODY_LIMIT_BYTES + 1}"))
        self.assertRefused(answer, 413, "TooLarge")

    async def test_too_large_in_chunks(self) -> None:
        head = self.head("/v1/send", self.token(), "Transfer-Encoding: chunked")
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        answer = await self.converse(head, *[piece] * (BODY_LIMIT_BYTES // 0x10000 + 1), b"0\r\n\r\n")
        self.assertRefused(answer, 413, "TooLarge")

    async def test_another_method(self) -> None:
        answer = await self.converse(b"GET /v1/send HTTP/1.1\r\nHost: mailbox\r\n\r\n")
        self.assertRefused(answer, 405, "Unsupported")

    async def test_full_and_stopped(self) -> None:
        small = MailboxConfig(max_waiters=1)
        self.box._waiting._limit = small.max_waiters
        raw = json.dumps({"topic": "t", "wait_s": 8}).encode()
        waiting = await self.connect(self.head("/v1/recv", self.token(), f"Content-Length: {len(raw)}"), raw)
        await deferLater(reactor, 0.05, lambda: None)
        self.assertRefused(await self.post("/v1/recv", {"topic": "u", "wait_s": 8}), 429, "Backpressure")
        await self.box.stopService()
        self.assertIn(b'{"messages":[]}', await waiting.done)
        waiting.transport.abortConnection()
        await waiting.lost
        self.assertRefused(await self.post("/v1/send", self.SEND), 503, "StoreUnavailable")


class CrowdTests(ApiCase):
    """Many at once."""

    async def test_every_message_is_delivered_once_while_leases_hold(self) -> None:
        async def send(number: int) -> str:
            return str((await self.good("/v1/send", {"topic": "t", "payload_b64": b64(b"%d" % number)}))["msg_id"])

        async def receive() -> list[str]:
            got = []
            for _ in range(4):
                for message in (await self.good("/v1/recv", {"topic": "t", "wait_s": 3}))["messages"]:
                    got.append(message["msg_id"])
                    await self.good(f"/v1/ack/{message['msg_id']}", {"receipt": message["receipt"]})
            return got

        receivers = gatherResults([Deferred.fromCoroutine(receive()) for _ in range(10)])
        sent = await gatherResults([Deferred.fromCoroutine(send(number)) for number in range(40)])
        received = [msg_id for got in await receivers for msg_id in got]
        self.assertEqual(sorted(received), sorted(sent))
        self.assertEqual(self.box.stats().total, 0)
