"""The rules of the mailbox, pure: what may be sent, who may acknowledge, what is too much.

In: values. Out: values, verdicts, or a `RonError` that names the rule. No clock, disk, socket or randomness.
A message is *ready*, then *leased* (again and again), then *acked*; docs/mailbox.rst has the table.
"""

from __future__ import annotations

import binascii
import enum
import hmac
import math
import re

import msgspec

from ron.proto.errors import RonError, backpressure, bad_request, conflict, not_found, too_large
from ron.services.mailbox.config import MailboxConfig

MAX_PAYLOAD_BYTES = 768 * 1024
MAX_PAYLOAD_B64_CHARS = MAX_PAYLOAD_BYTES // 3 * 4
MAX_TOPIC_CHARS = 128
MAX_KEY_CHARS = 128
MAX_BATCH = 64
# One answer carries at most this many payload bytes beyond its first message: a hundred large messages would be
# leased at once to a receiver that still reads the first, and sit in our memory meanwhile.
MAX_BATCH_BYTES = 4 * 1024 * 1024
MIN_VISIBILITY_S = 0.1
MAX_VISIBILITY_S = 43_200.0
MAX_WAIT_S = 25.0
MSG_ID_ENTROPY_BYTES = 10
RECEIPT_BYTES = 16
NO_RECEIPT = bytes(RECEIPT_BYTES)

_TOPIC = re.compile(r"[A-Za-z0-9._:/-]{1,128}")
_MSG_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


class Priority(enum.IntEnum):
    """What recv takes first: the higher number. First come first served within one."""

    LOW = 0
    NORMAL = 1
    HIGH = 2


class State(enum.IntEnum):
    """Of a message in the store."""

    READY = 0
    LEASED = 1
    ACKED = 2


class AckVerdict(enum.Enum):
    """What an acknowledgement amounts to."""

    SETTLES = "settles"
    DUPLICATE = "duplicate"
    STALE = "stale"
    UNKNOWN = "unknown"


class NewMessage(msgspec.Struct, frozen=True, gc=False):
    """A message to be stored. msg_id: 16 bytes of a UUID. now_ms: Unix milliseconds of the send."""

    msg_id: bytes
    topic: str
    priority: Priority
    payload: bytes
    idempotency_key: str | None
    now_ms: int


class Sent(msgspec.Struct, frozen=True, gc=False):
    """Outcome of a send. duplicate: `msg_id` is that of an earlier send with the same idempotency key."""

    msg_id: str
    duplicate: bool


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a receiver wants: at most `limit` messages of `topic`, each for `visibility_ms`."""

    topic: str
    limit: int
    visibility_ms: int


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """A message under lease. attempt: 1 at the first delivery. receipt: acknowledges this delivery and no other."""

    msg_id: str
    payload: bytes
    attempt: int
    receipt: str


class Acked(msgspec.Struct, frozen=True, gc=False):
    """Outcome of an ack. duplicate: it was acknowledged with this receipt before."""

    duplicate: bool


class MailboxStats(msgspec.Struct, frozen=True):
    """For status pages. ready + inflight = total; bytes: of payload in those; waiting: receivers; keys: remembered."""

    ready: int
    inflight: int
    total: int
    bytes: int
    topics: int
    keys: int
    waiting: int


def check_topic(topic: str) -> str:
    """`topic` when it is well-formed; 400 otherwise. A well-formed topic is ASCII."""
    if _TOPIC.fullmatch(topic) is None:
        raise bad_request("topic is malformed", f"1 to {MAX_TOPIC_CHARS} characters of A-Z a-z 0-9 . _ : / -")
    return topic


def check_payload(payload: bytes) -> bytes:
    """`payload` when it is not too large; 413 otherwise."""
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise _payload_too_large()
    return payload


def decode_payload(payload_b64: str) -> bytes:
    """The bytes behind canonical standard base64, padded (RFC 4648 §3.5, §4). 413 before the work when too large."""
    if len(payload_b64) > MAX_PAYLOAD_B64_CHARS:
        raise _payload_too_large()
    try:
        encoded = payload_b64.encode("ascii")
        payload = binascii.a2b_base64(encoded, strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _not_base64() from None
    whole = len(payload) // 3 * 3
    if len(encoded) % 4 or encoded[whole // 3 * 4 :] != binascii.b2a_base64(payload[whole:], newline=False):
        raise _not_base64()
    return payload


def check_key(idempotency_key: str | None) -> str | None:
    """`idempotency_key` when it is well-formed or None; 400 otherwise."""
    if idempotency_key is None:
        return None
    if not 1 <= len(idempotency_key) <= MAX_KEY_CHARS or not idempotency_key.isprintable():
        raise bad_request("idempotency_key is malformed", f"1 to {MAX_KEY_CHARS} printable characters")
    return idempotency_key


def parse_priority(name: str) -> Priority:
    """The priority called `name`; 400 for another word."""
    try:
        return _PRIORITIES[name]
    except KeyError:
        raise bad_request("priority is unknown", "low, normal or high") from None


def make_ask(topic: str, limit: int, visibility_s: float) -> Ask:
    """What recv wants, checked; 400 when a number is out of its range."""
    if not 1 <= limit <= MAX_BATCH:
        raise bad_request("max is out of range", f"1 to {MAX_BATCH}")
    if not MIN_VISIBILITY_S <= visibility_s <= MAX_VISIBILITY_S:
        raise bad_request("visibility_timeout_s is out of range", f"{MIN_VISIBILITY_S:g} to {MAX_VISIBILITY_S:g}")
    return Ask(check_topic(topic), limit, math.ceil(visibility_s * 1000))


def check_wait(wait_s: float) -> float:
    """`wait_s` when it is in range; 400 otherwise."""
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise bad_request("wait_s is out of range", f"0 to {MAX_WAIT_S:g}")
    return wait_s


def make_msg_id(now_ms: int, entropy: bytes) -> bytes:
    """A time-ordered UUID (RFC 9562 §5.7) of `now_ms` and 10 random bytes."""
    value = (now_ms & 0xFFFF_FFFF_FFFF) << 80 | int.from_bytes(entropy, "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return value.to_bytes(16, "big")


def format_msg_id(msg_id: bytes) -> str:
    """The text form of 16 bytes: canonical UUID."""
    text = msg_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def parse_msg_id(text: str) -> bytes:
    """The 16 bytes of a message id; 404 for text that cannot be one."""
    if _MSG_ID.fullmatch(text) is None:
        raise unknown_message()
    return bytes.fromhex(text.replace("-", ""))


def judge_resend(known: tuple[bytes, int], again: tuple[bytes, int]) -> None:
    """(digest, priority) of the message behind a key and of the one sent again: 409 unless they are the same."""
    if known != again:
        raise conflict(
            "the idempotency key was used for another message", hint="use a new key for each new message of a topic"
        )


def judge_ack(state: State, held_receipt: bytes, receipt: str) -> AckVerdict:
    """What an ack with `receipt` means for a message whose newest lease is `held_receipt`. Constant time.

    A lease that has run out still counts until the message is leased anew: only then is there a newer receipt.
    """
    same = hmac.compare_digest(held_receipt.hex().encode(), receipt.encode("utf-8", "replace"))
    if not same or held_receipt == NO_RECEIPT:
        return AckVerdict.STALE
    return AckVerdict.DUPLICATE if state is State.ACKED else AckVerdict.SETTLES


def unknown_message() -> RonError:
    """404: never sent, forgotten, or none of the caller's business."""
    return not_found("no such message")


def stale_receipt() -> RonError:
    """409: the message was delivered again, or the receipt is none of its."""
    return conflict("the receipt is not the newest of this message", hint="ack with the receipt of the latest delivery")


class Tally:
    """Messages, payload bytes and leases, of a topic or of all."""

    __slots__ = ("bytes", "leased", "messages")

    def __init__(self) -> None:
        self.messages = 0
        self.bytes = 0
        self.leased = 0

    def add(self, messages: int, size: int, leased: int) -> None:
        """Count in; negative numbers count out."""
        self.messages += messages
        self.bytes += size
        self.leased += leased


class Usage:
    """What the mailbox holds, against what it may hold; counted as it changes and undone with a failed transaction.

    keys: messages with an idempotency key, waiting or remembered. remembered: acknowledged ones without a key.
    """

    def __init__(self, config: MailboxConfig) -> None:
        self._config = config
        self.total = Tally()
        self.topics: dict[str, Tally] = {}
        self.keys = 0
        self.remembered = 0
        self._changes: list[tuple[str, int, int, int, int, int]] = []
        self._mark = 0

    def admit(self, topic: str, size: int, *, keyed: bool) -> None:
        """429 when a message of `size` bytes for `topic` would be too much."""
        config, total, mine = self._config, self.total, self.topics.get(topic)
        if total.messages >= config.max_messages or total.bytes + size > config.max_bytes:
            raise backpressure("the mailbox is full")
        if mine is not None and (
            mine.messages >= config.topic_max_messages or mine.bytes + size > config.topic_max_bytes
        ):
            raise backpressure("the topic is full")
        if keyed and self.keys >= config.max_keys:
            raise backpressure("too many idempotency keys are remembered")

    def capacity(self, topic: str) -> int:
        """How many more messages of `topic` may be leased."""
        mine = self.topics.get(topic)
        return self._config.max_inflight - mine.leased if mine is not None else 0

    def mean_size(self, topic: str) -> int:
        """Payload bytes of a message of `topic`, on average. Safe to ask while another thread counts."""
        mine = self.topics.get(topic)
        return mine.bytes // max(1, mine.messages) if mine is not None else 0

    def change(
        self, topic: str, *, messages: int = 0, size: int = 0, leased: int = 0, keys: int = 0, remembered: int = 0
    ) -> None:
        """Count a change of `topic`, to be kept or undone with the transaction it belongs to."""
        self._apply(topic, messages, size, leased, keys, remembered)
        self._changes.append((topic, messages, size, leased, keys, remembered))

    def mark(self) -> None:
        """A step of the transaction begins."""
        self._mark = len(self._changes)

    def undo_step(self) -> None:
        """What was counted since `mark` never happened."""
        self._undo_to(self._mark)

    def keep(self) -> None:
        """The transaction holds."""
        self._changes.clear()

    def undo(self) -> None:
        """The transaction is void."""
        self._undo_to(0)

    def _undo_to(self, mark: int) -> None:
        for topic, *amounts in reversed(self._changes[mark:]):
            self._apply(topic, *(-amount for amount in amounts))
        del self._changes[mark:]

    def _apply(self, topic: str, messages: int, size: int, leased: int, keys: int, remembered: int) -> None:
        self.total.add(messages, size, leased)
        self.keys += keys
        self.remembered += remembered
        mine = self.topics.get(topic)
        if mine is None:
            mine = self.topics[topic] = Tally()
        mine.add(messages, size, leased)
        if mine.messages == 0:
            del self.topics[topic]


def _payload_too_large() -> RonError:
    return too_large("payload over the limit", f"at most {MAX_PAYLOAD_BYTES} bytes before base64")


def _not_base64() -> RonError:
    return bad_request("payload_b64 is not canonical base64", "standard alphabet, with padding, no line breaks")


_PRIORITIES = {priority.name.lower(): priority for priority in Priority}
