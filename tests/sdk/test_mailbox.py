"""The mailbox as an app uses it, against the real service."""

from __future__ import annotations

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from ron.proto.errors import ErrorCode, RonError
from ron.sdk import Api, Mailbox, Message
from ron.web import Endpoint
from tests.sdk.with_mailbox import WithMailbox
from tests.web.wire import OnTheWire, until


class SendReceiveAck(WithMailbox):
    async def test_bytes_in_bytes_out(self) -> None:
        mailbox = self.client(("scope", "mailbox:*"))
        payload = bytes(range(256)) * 10
        msg_id = await mailbox.send("t", payload)
        (message,) = await mailbox.recv("t")
        self.assertEqual((message.msg_id, message.payload, message.attempt), (msg_id, payload, 1))
        await mailbox.ack(message)
        self.assertEqual(await mailbox.recv("t"), [])
        self.assertEqual(self.mailbox.stats().total, 0)

    async def test_an_empty_topic_is_an_empty_list(self) -> None:
        self.assertEqual(await self.client(("scope", "*")).recv("t"), [])

    async def test_at_most_as_many_as_asked_for_oldest_first(self) -> None:
        mailbox = self.client(("scope", "*"))
        for number in range(5):
            await mailbox.send("t", b"%d" % number)
        self.assertEqual([m.payload for m in await mailbox.recv("t", at_most=3)], [b"0", b"1", b"2"])
        self.assertEqual([m.payload for m in await mailbox.recv("t", at_most=3)], [b"3", b"4"])

    async def test_high_priority_goes_first(self) -> None:
        mailbox = self.client(("scope", "*"))
        await mailbox.send("t", b"can wait")
        await mailbox.send("t", b"cannot", priority="high")
        self.assertEqual([m.payload for m in await mailbox.recv("t", at_most=2)], [b"cannot", b"can wait"])

    async def test_waiting_for_the_first(self) -> None:
        mailbox = self.client(("scope", "*"))
        receiving = Deferred.fromCoroutine(mailbox.recv("t", wait_s=10))
        await until(lambda: self.mailbox.stats().waiting)
        self.assertNoResult(receiving)
        await mailbox.send("t", b"there")
        (message,) = await receiving
        self.assertEqual(message.payload, b"there")

    async def test_who_gives_up_waiting_takes_no_message_away(self) -> None:
        mailbox = self.client(("scope", "*"))
        receiving = Deferred.fromCoroutine(mailbox.recv("t", wait_s=10))
        await until(lambda: self.mailbox.stats().waiting)
        receiving.cancel()
        self.failureResultOf(receiving, CancelledError)
        await until(lambda: not self.mailbox.stats().waiting)
        await mailbox.send("t", b"there")
        self.assertEqual([m.attempt for m in await mailbox.recv("t")], [1])

    async def test_sending_again_with_the_same_key_is_one_message(self) -> None:
        mailbox = self.client(("scope", "*"))
        first = await mailbox.send("t", b"x", idempotency_key="k")
        self.assertEqual(await mailbox.send("t", b"x", idempotency_key="k"), first)
        self.assertEqual(self.mailbox.stats().total, 1)

    async def test_every_send_has_a_key_of_its_own(self) -> None:
        """So that the client's own retries never deliver twice, and two equal messages are two."""
        mailbox = self.client(("scope", "*"))
        self.assertNotEqual(await mailbox.send("t", b"x"), await mailbox.send("t", b"x"))
        self.assertEqual((self.mailbox.stats().total, self.mailbox.stats().keys), (2, 2))

    async def test_acknowledging_twice_and_too_late_is_fine(self) -> None:
        mailbox = self.client(("scope", "*"))
        await mailbox.send("t", b"x")
        (message,) = await mailbox.recv("t")
        await mailbox.ack(message)
        await mailbox.ack(message)
        await mailbox.ack(message._replace(msg_id=self.unknown_id(message.msg_id)))

    def unknown_id(self, msg_id: str) -> str:
        return msg_id[:-2] + ("00" if msg_id[-2:] != "00" else "11")

    async def test_acknowledging_what_was_lent_to_another_since_is_a_conflict(self) -> None:
        mailbox = self.client(("scope", "*"))
        await mailbox.send("t", b"x")
        (first,) = await mailbox.recv("t", visibility_timeout_s=0.1)
        await deferLater(reactor, 0.12)
        (second,) = await mailbox.recv("t")
        self.assertEqual((second.msg_id, second.attempt), (first.msg_id, 2))
        await self.fails(ErrorCode.CONFLICT, mailbox.ack(first))
        await mailbox.ack(second)

    async def test_the_capability_narrows_what_can_be_done(self) -> None:
        await self.client(("scope", "mailbox:send")).send("t", b"x")
        await self.fails(ErrorCode.NO_CAPABILITY, self.client(("scope", "mailbox:send")).recv("t"))
        other = self.client(("scope", "mailbox:*"), ("topic", "other"))
        await self.fails(ErrorCode.NO_CAPABILITY, other.recv("t"))
        await self.fails(ErrorCode.NO_CAPABILITY, other.send("t", b"x"))
        (message,) = await self.client(("scope", "*"), ("topic", "t")).recv("t")
        await other.ack(message)
        self.assertEqual(self.mailbox.stats().inflight, 1)

    async def test_refusals_come_through(self) -> None:
        mailbox = self.client(("scope", "*"))
        await self.fails(ErrorCode.BAD_REQUEST, mailbox.recv("t", wait_s=26))
        await self.fails(ErrorCode.BAD_REQUEST, mailbox.send("no spaces please", b"x"))
        await self.fails(ErrorCode.BAD_REQUEST, mailbox.send("t", b"x", priority="urgent"))
        await self.fails(ErrorCode.TOO_LARGE, mailbox.send("t", b"x" * 2_000_000))

    async def fails(self, code: ErrorCode, call: object) -> None:
        with self.assertRaises(RonError) as caught:
            await call  # type: ignore[misc]
        self.assertIs(caught.exception.code, code)


class HostileMailbox(OnTheWire):
    """A mailbox that answers nonsense gives its client a `RonError`, never anything else."""

    async def test_payloads_that_are_not_base64(self) -> None:
        class Received(msgspec.Struct):
            messages: list[dict[str, object]]

        for payload in ("not base64!", "AAA", "AA==\n", "é", 5, None):
            wire = {"msg_id": "m", "payload_b64": payload, "attempt": 1, "receipt": "r"}
            self.answered = Received([wire])
            with self.assertRaises(RonError) as caught:
                await self.mailbox().recv("t")
            self.assertIs(caught.exception.code, ErrorCode.INTERNAL)

    async def test_base64_as_the_service_writes_it(self) -> None:
        wire = {"msg_id": "m", "payload_b64": "+/8=", "attempt": 2, "receipt": "r"}
        self.answered = {"messages": [wire]}
        self.assertEqual(await self.mailbox().recv("t"), [Message("m", b"\xfb\xff", 2, "r")])

    def mailbox(self) -> Mailbox:
        class Body(msgspec.Struct):
            topic: str

        self.serve(
            [Endpoint(method="POST", path="/v1/recv", handler=lambda _c, _b: self.answered, scope=None, body=Body)]
        )
        return Mailbox(Api(reactor, self.http(), f"http://127.0.0.1:{self.port}"))
