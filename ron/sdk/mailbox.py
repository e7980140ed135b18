"""The mailbox as an app uses it: send, receive, acknowledge; bytes in, bytes out."""

from __future__ import annotations

import base64
from typing import NamedTuple

import msgspec

from ron.proto.errors import ErrorCode, RonError
from ron.proto.ids import uuid7
from ron.sdk.client import Api


class _Send(msgspec.Struct, omit_defaults=True):
    topic: str
    payload_b64: str
    idempotency_key: str
    priority: str = "normal"


class _Sent(msgspec.Struct):
    msg_id: str
    duplicate: bool


class _Recv(msgspec.Struct):
    topic: str
    max: int
    visibility_timeout_s: float
    wait_s: float


class _Wire(msgspec.Struct):
    msg_id: str
    payload_b64: bytes  # msgspec decodes it, strictly
    attempt: int
    receipt: str


class _Received(msgspec.Struct):
    messages: list[_Wire]


class _Ack(msgspec.Struct):
    receipt: str


class _Acked(msgspec.Struct):
    acked: bool


class Message(NamedTuple):
    """A message lent to us until its visibility timeout; `attempt` counts from 1."""

    msg_id: str
    payload: bytes
    attempt: int
    receipt: str


class Mailbox:
    """Calls of the mailbox service. Sending is made idempotent, so that a retry never delivers twice."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def send(
        self, topic: str, payload: bytes, *, priority: str = "normal", idempotency_key: str | None = None
    ) -> str:
        """Store `payload` for whoever receives on `topic`; returns its id once it is durable."""
        body = _Send(topic, base64.b64encode(payload).decode(), idempotency_key or str(uuid7()), priority)
        return (await self._api.call("POST", "/v1/send", _Sent, body)).msg_id

    async def recv(
        self, topic: str, *, at_most: int = 1, visibility_timeout_s: float = 30.0, wait_s: float = 0.0
    ) -> list[Message]:
        """Up to `at_most` messages; waits up to `wait_s` (≤ 25) for the first. Each must be acknowledged in time."""
        body = _Recv(topic, at_most, visibility_timeout_s, wait_s)
        received = await self._api.call("POST", "/v1/recv", _Received, body)
        return [Message(m.msg_id, m.payload_b64, m.attempt, m.receipt) for m in received.messages]

    async def ack(self, message: Message) -> None:
        """Done with `message`; it is not delivered again. One that is gone already is fine."""
        try:
            await self._api.call("POST", f"/v1/ack/{message.msg_id}", _Acked, _Ack(message.receipt))
        except RonError as error:
            if error.code is not ErrorCode.NOT_FOUND:
                raise
