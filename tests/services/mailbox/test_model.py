"""The rules of the mailbox, by plain calls."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import TestCase

from hypothesis import given
from hypothesis import strategies as st

from ron.kernel.config import ConfigError, convert
from ron.proto.errors import ErrorCode, RonError
from ron.services.mailbox import model
from ron.services.mailbox.config import MailboxConfig
from ron.services.mailbox.model import AckVerdict, State, Usage

TOPIC_ALPHABET = "abcXYZ019._:/-"
DOCS = Path(__file__).parents[3] / "docs" / "mailbox.rst"


class RuleCase(TestCase):
    def refused(self, code: ErrorCode, call: Callable[..., Any], *args: Any) -> RonError:
        with self.assertRaises(RonError) as refused:
            call(*args)
        self.assertEqual(refused.exception.code, code)
        return refused.exception


class PayloadTests(RuleCase):
    """Only canonical base64 is a payload."""

    @given(st.binary(max_size=200))
    def test_what_was_encoded_comes_back(self, payload: bytes) -> None:
        self.assertEqual(model.decode_payload(base64.b64encode(payload).decode()), payload)

    @given(st.text(alphabet="ABab01+/=-_ \n\u00e9\ud800", max_size=12))
    def test_what_is_accepted_has_one_spelling(self, text: str) -> None:
        try:
            payload = model.decode_payload(text)
        except RonError as error:
            self.assertEqual(error.code, ErrorCode.BAD_REQUEST)
        else:
            self.assertEqual(base64.b64encode(payload).decode(), text)

    def test_near_misses_are_refused(self) -> None:
        for text in ("QQ", "QQ=", "QR==", "QUI", "QUJ=", "Q U=", "QUJD\n", "QUJDQQ==QUJD", "-_-_", "====", "="):
            with self.subTest(text):
                self.refused(ErrorCode.BAD_REQUEST, model.decode_payload, text)

    def test_the_largest_payload_passes_and_one_byte_more_does_not(self) -> None:
        largest = bytes(model.MAX_PAYLOAD_BYTES)
        self.assertEqual(model.check_payload(model.decode_payload(base64.b64encode(largest).decode())), largest)
        self.refused(ErrorCode.TOO_LARGE, model.check_payload, largest + b"x")
        self.refused(ErrorCode.TOO_LARGE, model.decode_payload, base64.b64encode(largest + b"x").decode())

    def test_oversize_is_told_before_the_text_is_looked_at(self) -> None:
        self.refused(ErrorCode.TOO_LARGE, model.decode_payload, "!" * (model.MAX_PAYLOAD_B64_CHARS + 1))


class NameTests(RuleCase):
    """Topics, keys, priorities and ids."""

    @given(st.text(alphabet=TOPIC_ALPHABET, min_size=1, max_size=model.MAX_TOPIC_CHARS))
    def test_good_topics(self, topic: str) -> None:
        self.assertEqual(model.check_topic(topic), topic)

    def test_bad_topics(self) -> None:
        for topic in ("", "a" * 129, "a b", "a\n", "ä", "a\x00", "a?b", "\ud800"):
            with self.subTest(ascii(topic)):
                self.refused(ErrorCode.BAD_REQUEST, model.check_topic, topic)

    def test_idempotency_keys(self) -> None:
        for key in (None, "k", "k" * 128, "Schlüssel 1"):
            self.assertEqual(model.check_key(key), key)
        for key in ("", "k" * 129, "a\nb", "\x00", "\ud800"):
            with self.subTest(ascii(key)):
                self.refused(ErrorCode.BAD_REQUEST, model.check_key, key)

    def test_priorities_are_ordered(self) -> None:
        low, normal, high = (model.parse_priority(name) for name in ("low", "normal", "high"))
        self.assertTrue(low < normal < high)
        self.refused(ErrorCode.BAD_REQUEST, model.parse_priority, "HIGH")

    @given(st.integers(0, 2**48 - 1), st.binary(min_size=10, max_size=10))
    def test_message_ids_are_time_ordered_uuids(self, now_ms: int, entropy: bytes) -> None:
        msg_id = model.make_msg_id(now_ms, entropy)
        text = model.format_msg_id(msg_id)
        parsed = uuid.UUID(text)
        self.assertEqual((str(parsed), parsed.version, parsed.variant), (text, 7, uuid.RFC_4122))
        self.assertEqual(parsed.int >> 80, now_ms)
        self.assertEqual(model.parse_msg_id(text), msg_id)

    @given(st.text(max_size=40))
    def test_what_is_no_id_names_no_message(self, text: str) -> None:
        self.refused(ErrorCode.NOT_FOUND, model.parse_msg_id, text)

    def test_one_spelling_of_an_id(self) -> None:
        text = model.format_msg_id(bytes(range(0xA0, 0xB0)))
        for other in (text.upper(), text.replace("-", ""), f"{{{text}}}", text + "\n"):
            self.refused(ErrorCode.NOT_FOUND, model.parse_msg_id, other)


class AskTests(RuleCase):
    """What a receiver may ask for."""

    def test_good(self) -> None:
        ask = model.make_ask("t", 64, 0.1)
        self.assertEqual((ask.topic, ask.limit, ask.visibility_ms), ("t", 64, 100))
        self.assertEqual(model.make_ask("t", 1, 43200).visibility_ms, 43_200_000)
        self.assertEqual(model.check_wait(0), 0)
        self.assertEqual(model.check_wait(25.0), 25.0)

    def test_out_of_range(self) -> None:
        for limit, visibility_s in ((0, 1), (65, 1), (-1, 1), (1, 0.09), (1, 43200.1), (1, 0), (1, float("nan"))):
            with self.subTest((limit, visibility_s)):
                self.refused(ErrorCode.BAD_REQUEST, model.make_ask, "t", limit, visibility_s)
        for wait_s in (-0.1, 25.01, float("nan"), float("inf")):
            with self.subTest(wait_s):
                self.refused(ErrorCode.BAD_REQUEST, model.check_wait, wait_s)


class VerdictTests(RuleCase):
    """Who may acknowledge, and what a repeated send means."""

    HELD = bytes(range(16))

    def test_ack(self) -> None:
        table = {
            (State.READY, self.HELD.hex()): AckVerdict.SETTLES,
            (State.LEASED, self.HELD.hex()): AckVerdict.SETTLES,
            (State.ACKED, self.HELD.hex()): AckVerdict.DUPLICATE,
        }
        for state in State:
            for receipt in (self.HELD.hex(), self.HELD.hex().upper(), "", "00", "\ud800", "ü" * 32):
                with self.subTest((state, ascii(receipt))):
                    expected = table.get((state, receipt), AckVerdict.STALE if receipt != self.HELD.hex() else None)
                    self.assertEqual(model.judge_ack(state, self.HELD, receipt), expected)

    def test_a_message_that_was_never_leased_has_no_receipt(self) -> None:
        for state in State:
            verdict = model.judge_ack(state, model.NO_RECEIPT, model.NO_RECEIPT.hex())
            self.assertEqual(verdict, AckVerdict.STALE)

    def test_resend(self) -> None:
        model.judge_resend((b"digest", 1), (b"digest", 1))
        self.refused(ErrorCode.CONFLICT, model.judge_resend, (b"digest", 1), (b"digest", 2))
        self.refused(ErrorCode.CONFLICT, model.judge_resend, (b"digest", 1), (b"other", 1))


class UsageTests(RuleCase):
    """Counting, and taking it back."""

    CHANGE = st.tuples(st.sampled_from("abc"), st.integers(1, 9))

    def snapshot(self, usage: Usage) -> tuple[Any, ...]:
        topics = {t: (n.messages, n.bytes, n.leased) for t, n in usage.topics.items()}
        return topics, usage.total.messages, usage.total.bytes, usage.total.leased, usage.keys, usage.remembered

    @given(st.lists(CHANGE), st.lists(CHANGE), st.lists(CHANGE))
    def test_undo_goes_back_exactly(self, kept: list[Any], step: list[Any], rest: list[Any]) -> None:
        usage = Usage(MailboxConfig())
        self.count(usage, kept)
        usage.keep()
        at_commit = self.snapshot(usage)
        self.count(usage, rest)
        before_step = self.snapshot(usage)
        usage.mark()
        self.count(usage, step)
        usage.undo_step()
        self.assertEqual(self.snapshot(usage), before_step)
        usage.undo()
        self.assertEqual(self.snapshot(usage), at_commit)

    def count(self, usage: Usage, changes: list[tuple[str, int]]) -> None:
        """Messages come, are leased, and some of them go again."""
        for topic, size in changes:
            usage.change(topic, messages=1, size=size, keys=size % 2)
            usage.change(topic, leased=1)
            if size % 3 == 0:
                usage.change(topic, messages=-1, size=-size, leased=-1, remembered=1)

    def test_limits(self) -> None:
        mib = 1024 * 1024
        config = MailboxConfig(
            max_messages=3, max_bytes=3 * mib, topic_max_messages=2, topic_max_bytes=2 * mib, max_keys=1
        )
        usage = Usage(config)
        usage.admit("a", mib, keyed=True)
        usage.change("a", messages=1, size=mib, keys=1)
        self.refused(ErrorCode.BACKPRESSURE, lambda: usage.admit("a", 1, keyed=True))
        self.refused(ErrorCode.BACKPRESSURE, lambda: usage.admit("a", mib + 1, keyed=False))
        usage.change("a", messages=1, size=1)
        self.refused(ErrorCode.BACKPRESSURE, lambda: usage.admit("a", 0, keyed=False))
        self.refused(ErrorCode.BACKPRESSURE, lambda: usage.admit("b", 2 * mib, keyed=False))
        usage.change("b", messages=1, size=1)
        self.refused(ErrorCode.BACKPRESSURE, lambda: usage.admit("c", 0, keyed=False))

    def test_capacity(self) -> None:
        usage = Usage(MailboxConfig(max_inflight=2))
        self.assertEqual(usage.capacity("a"), 0)
        usage.change("a", messages=3, leased=1)
        self.assertEqual(usage.capacity("a"), 1)


class ConfigTests(TestCase):
    """The `[mailbox]` section."""

    def test_the_documented_example(self) -> None:
        table = {"listen": "127.0.0.1:9410", "max_inflight": 128, "visibility_timeout_ms": 30000}
        self.assertEqual(convert(table, MailboxConfig), MailboxConfig())

    def test_mistakes_are_named(self) -> None:
        for key, value in (
            ("max_inflght", 1),
            ("max_inflight", 0),
            ("visibility_timeout_ms", 99),
            ("max_bytes", 1),
            ("idempotency_window_s", "a day"),
            ("listen", "9410"),
        ):
            with self.subTest(key), self.assertRaises(ConfigError) as refused:
                convert({key: value}, MailboxConfig)
            self.assertEqual(refused.exception.key, key)

    def test_every_key_is_documented_with_its_default(self) -> None:
        documented = " ".join(DOCS.read_text(encoding="utf-8").split())
        for key, default in zip(MailboxConfig.__struct_fields__, MailboxConfig.__struct_defaults__, strict=True):
            shown = "none" if default in ("", None) else default
            self.assertIn(f"* - ``{key}`` - {shown}", documented)
