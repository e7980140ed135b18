"""The mailbox over HTTP: decode, call, encode. In: DTOs behind `ron.web`. Out: `endpoints`, the three hot routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ron.proto.errors import RonError
from ron.services.mailbox import model
from ron.services.mailbox.service import MailboxService
from ron.web import Call, Endpoint

# For `make_site`. Base64 of the largest payload alone would fill it: over HTTP some 500 bytes less are to be had.
BODY_LIMIT_BYTES = 1024 * 1024
_TOPIC = frozenset({"topic"})


class SendRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `/v1/send`."""

    topic: str
    payload_b64: str
    idempotency_key: str | None = None
    priority: str | None = None


class SendAnswer(msgspec.Struct, frozen=True):
    """Answer of `/v1/send`."""

    msg_id: str
    duplicate: bool


class RecvRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `/v1/recv`."""

    topic: str
    max: int = 1
    visibility_timeout_s: float | None = None
    wait_s: float = 0.0


class ReceivedMessage(msgspec.Struct, frozen=True):
    """A message in the answer of `/v1/recv`. msgspec writes `payload_b64` as padded standard base64."""

    msg_id: str
    payload_b64: bytes
    attempt: int
    receipt: str


class RecvAnswer(msgspec.Struct, frozen=True):
    """Answer of `/v1/recv`."""

    messages: list[ReceivedMessage]


class AckRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of `/v1/ack/<msg_id>`."""

    receipt: str


class AckAnswer(msgspec.Struct, frozen=True):
    """Answer of `/v1/ack/<msg_id>`."""

    acked: bool
    duplicate: bool


def endpoints(mailbox: MailboxService) -> list[Endpoint]:
    """The routes of `mailbox`."""

    async def send(call: Call, body: SendRequest) -> SendAnswer:
        call.require("topic", model.check_topic(body.topic))
        sent = await mailbox.send(
            body.topic,
            model.decode_payload(body.payload_b64),
            idempotency_key=body.idempotency_key,
            priority=body.priority,
        )
        return SendAnswer(sent.msg_id, sent.duplicate)

    async def recv(call: Call, body: RecvRequest) -> RecvAnswer:
        call.require("topic", model.check_topic(body.topic))
        deliveries = await mailbox.recv(
            body.topic,
            max_messages=body.max,
            visibility_timeout_s=body.visibility_timeout_s,
            wait_s=body.wait_s,
        )
        return RecvAnswer([ReceivedMessage(d.msg_id, d.payload, d.attempt, d.receipt) for d in deliveries])

    async def ack(call: Call, body: AckRequest, msg_id: str) -> AckAnswer:
        acked = await mailbox.ack(msg_id, body.receipt, may=_allowed_topic(call))
        return AckAnswer(acked=True, duplicate=acked.duplicate)

    def endpoint(
        path: str, scope: str, body: type[msgspec.Struct], handler: Callable[..., object], **more: Any
    ) -> Endpoint:
        return Endpoint(
            method="POST",
            path=path,
            scope=f"mailbox:{scope}",
            body=body,
            handler=handler,
            enforces=_TOPIC,
            hot=True,
            **more,
        )

    return [
        # under trouble new messages are shed first: receiving and acknowledging is what makes room
        endpoint("/v1/send", "send", SendRequest, send, writes=True, gate=True),
        endpoint("/v1/recv", "recv", RecvRequest, recv, waits=True, gate=True),
        endpoint("/v1/ack/<msg_id>", "ack", AckRequest, ack),
    ]


def _allowed_topic(call: Call) -> Callable[[str], bool]:
    """Does the caller's capability reach a topic? The topic of an ack is known only once its message is found."""

    def allowed(topic: str) -> bool:
        try:
            call.require("topic", topic)
        except RonError:
            return False
        return True

    return allowed
