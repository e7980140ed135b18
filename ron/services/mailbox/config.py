"""The mailbox's section of the config. In: `[mailbox]` of a node's file. Out: a frozen, checked struct."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ron.kernel.units import DAY_S, GIB, HOUR_S, MIB

Address = Annotated[str, Meta(pattern=r"^\S+:\d{1,5}\Z")]
Count = Annotated[int, Meta(ge=1, le=100_000_000)]
Bytes = Annotated[int, Meta(ge=1 * MIB, le=64 * 1024 * GIB, extra={"unit": "bytes"})]
LeaseMs = Annotated[int, Meta(ge=100, le=12 * HOUR_S * 1000, extra={"unit": "ms"})]


class MailboxConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator may choose.

    listen: host and port of the HTTP listener. ws_listen: the same for WebSocket subscriptions, empty is nowhere.
    max_inflight: messages of one topic that may be leased at a time; beyond it recv yields nothing more of the topic.
    visibility_timeout_ms: how long a lease lasts when recv does not say.
    ack_deadline_ms: how long a delivery over a subscription may stay without its ack.
    dead_letter_dir: where messages go that nobody can process.
    priority_levels: how many; qos_default: the priority of a send that names none.
    max_messages, max_bytes: what may wait in all, not counting what is acknowledged; beyond it send is refused (429).
    topic_max_messages, topic_max_bytes: the same for each topic.
    idempotency_window_s: how long an idempotency key is remembered after its message was acknowledged.
    max_keys: messages with an idempotency key, waiting or remembered; beyond it such a send is refused (429).
    ack_window_s: how long an acknowledged message without a key is remembered, to answer a repeated ack.
    max_remembered_acks: how many of those at most; beyond it the oldest are forgotten early.
    max_waiters, topic_max_waiters: receivers that wait for a message, in all and for one topic; beyond it 429.
    """

    listen: Address = "127.0.0.1:9410"
    ws_listen: str = ""
    max_inflight: Annotated[int, Meta(ge=1, le=10_000)] = 128
    visibility_timeout_ms: LeaseMs = 30_000
    ack_deadline_ms: LeaseMs | None = None
    dead_letter_dir: Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00-\x1f]*\Z")] = ""
    priority_levels: Annotated[int, Meta(ge=1, le=16)] = 3
    qos_default: Literal["low", "normal", "high"] = "normal"
    max_messages: Count = 1_000_000
    max_bytes: Bytes = 4 * GIB
    topic_max_messages: Count = 100_000
    topic_max_bytes: Bytes = 1 * GIB
    idempotency_window_s: Annotated[int, Meta(ge=60, le=30 * DAY_S, extra={"unit": "s"})] = DAY_S
    max_keys: Count = 10_000_000
    ack_window_s: Annotated[int, Meta(ge=1, le=DAY_S, extra={"unit": "s"})] = HOUR_S
    max_remembered_acks: Count = 100_000
    max_waiters: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    topic_max_waiters: Annotated[int, Meta(ge=1, le=100_000)] = 128
