"""What is revoked stays revoked: across processes, damage and removal of the list; it is forgotten when it may be."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import Epoch, Revocations, RootKeys
from ron.auth import revocations as module
from ron.auth.revocations import KEPT_AFTER_S, Revocation
from ron.proto.errors import ErrorCode, RonError

NOW = 1_800_000_000.0
A, B, C = ("a" * 32, "b" * 32, "c" * 32)


def entry(cap_id: str, kid: int = 5, until: float | None = None) -> Revocation:
    return Revocation(cap_id=cap_id, kid=kid, until=until)


def stored(revoked: object) -> bytes:
    """A list as it stands on disk, with the digest that fits it."""
    raw = json.dumps(revoked)
    return f'{{"v":1,"sha256":"{hashlib.sha256(raw.encode()).hexdigest()}","revoked":{raw}}}'.encode()


class Listed(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "auth" / "revoked.json"
        self.keys = RootKeys([Epoch(4, b"4" * 32, NOW, NOW + 100), Epoch(5, b"5" * 32, NOW)])
        self.list = self.opened()

    def opened(self) -> Revocations:
        return Revocations(self.keys, self.path)


class Keeping(Listed):
    def test_nothing_is_written_before_something_is_revoked(self) -> None:
        self.assertEqual((len(self.list), self.list.fault), (0, None))
        self.assertFalse(self.path.parent.exists())

    def test_durable_private_and_seen_by_others(self) -> None:
        other = self.opened()
        self.list.revoke([entry(A)], NOW)
        self.assertIn(A, self.list)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertIn(A, self.opened())
        self.assertTrue(other.refresh())
        self.assertIn(A, other)
        self.assertFalse(other.refresh())

    def test_two_writers_lose_nothing(self) -> None:
        other = self.opened()
        self.list.revoke([entry(A)], NOW)
        other.revoke([entry(B)], NOW)
        self.list.revoke([entry(C)], NOW)
        self.assertEqual(set(self.list.ids), {A, B, C})

    def test_in_memory(self) -> None:
        memory = Revocations(self.keys)
        memory.revoke([entry(A)], NOW)
        self.assertIn(A, memory)
        self.assertFalse(memory.refresh())

    def test_a_malformed_id(self) -> None:
        for cap_id in ("", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 32 + "\n"):
            error = self.assertRaises(RonError, self.list.revoke, [entry(cap_id)], NOW)
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)
        self.assertFalse(self.path.exists())

    def test_what_cannot_be_written_is_not_said_to_be_revoked(self) -> None:
        self.list.revoke([entry(A)], NOW)

        def full(*_arguments: object) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "fsync", full)
        error = self.assertRaises(RonError, self.list.revoke, [entry(B)], NOW)
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(set(self.list.ids), {A})
        self.assertEqual(set(self.opened().ids), {A})

    def test_bounded(self) -> None:
        self.patch(module, "MAX_REVOKED", 2)
        self.list.revoke([entry(A, until=NOW + 10), entry(B)], NOW)
        error = self.assertRaises(RonError, self.list.revoke, [entry(C)], NOW)
        self.assertIs(error.code, ErrorCode.TOO_LARGE)
        self.assertEqual(set(self.opened().ids), {A, B})
        self.list.revoke([entry(C)], NOW + 10 + KEPT_AFTER_S)
        self.assertEqual(set(self.list.ids), {B, C})

    def test_as_many_as_it_promises(self) -> None:
        many = [entry(f"{number:032x}") for number in range(module.MAX_REVOKED)]
        self.list.revoke(many, NOW)
        self.assertEqual(len(self.opened()), module.MAX_REVOKED)
        self.assertRaises(RonError, self.list.revoke, [entry(A)], NOW)


class Forgetting(Listed):
    def after(self, now_s: float, *entries: Revocation) -> set[str]:
        self.list.revoke(entries, NOW)
        self.list.revoke([entry(C)], now_s)
        return set(self.list.ids) - {C}

    def test_once_every_token_with_it_has_expired(self) -> None:
        self.assertEqual(self.after(NOW + 9, entry(A, until=NOW + 10)), {A})
        self.assertEqual(self.after(NOW + 10 + KEPT_AFTER_S, entry(A, until=NOW + 10)), set())

    def test_not_by_a_clock_that_was_ahead_for_a_while(self) -> None:
        """Something else is revoked while it is; once it is set right, the token would count again."""
        for ahead_s in (10.0, 3600.0, KEPT_AFTER_S + 9):
            self.assertEqual(self.after(NOW + ahead_s, entry(A, until=NOW + 10)), {A})

    def test_once_its_epoch_has_retired_and_not_before(self) -> None:
        self.assertEqual(self.after(NOW + 99, entry(A, kid=4), entry(B, kid=5)), {A, B})
        self.assertEqual(self.after(NOW + 100, entry(A, kid=4), entry(B, kid=5)), {B})

    def test_an_epoch_that_is_gone_has_retired_one_not_yet_read_has_not(self) -> None:
        self.assertEqual(self.after(NOW, entry(A, kid=3), entry(B, kid=6)), {B})

    def test_revoking_again_never_shortens(self) -> None:
        for again in (entry(A, kid=4, until=NOW + 5), entry(A, kid=4)):
            self.list.revoke([entry(A, kid=5, until=NOW + 50)], NOW)
            self.list.revoke([again], NOW)
            self.assertEqual(self.list.ids[A].kid, 5)
            self.assertIn(self.list.ids[A].until, {NOW + 50, None})
        self.assertEqual(self.list.ids[A].until, None)
        self.list.revoke([entry(A, until=NOW + 5)], NOW)
        self.assertEqual(self.list.ids[A].until, None)


class Damaged(Listed):
    """Who is revoked cannot be told: nobody is let in until it can."""

    def setUp(self) -> None:
        super().setUp()
        self.list.revoke([entry(A)], NOW)
        self.good = self.path.read_bytes()

    def put(self, content: bytes) -> None:
        self.path.write_bytes(content)
        self.path.chmod(0o600)

    def test_it_says_so_keeps_what_it_knows_and_recovers(self) -> None:
        one = json.loads(self.good)["revoked"][0]
        for bad in (
            b"",
            b"{}",
            b"[" * 50_000,
            b"\xff",
            self.good[:-2],
            self.good.replace(b'"v":1', b'"v":2'),
            self.good.replace(b'"kid"', b'"kif"'),
            stored([one, one]),
            stored([{**one, "cap_id": "x"}]),
            stored([{**one, "until": "soon"}]),
            stored([{**one, "more": 1}]),
            stored(one),
            stored([one]).replace(b"aaaa", b"aaab"),
        ):
            self.put(bad)
            with capturedLogs() as logged:
                self.assertTrue(self.list.refresh())
                self.assertFalse(self.list.refresh() and self.list.fault is None)
            self.assertEqual([event["event"] for event in logged], ["auth_file_damaged"])
            for seen in (self.list, self.opened()):
                assert seen.fault is not None
                self.assertIs(seen.fault.code, ErrorCode.STORE_UNAVAILABLE)
                self.assertIn("restore", str(seen.fault.hint))
            self.assertIn(A, self.list)
            self.assertRaises(RonError, self.list.revoke, [entry(B)], NOW)
            self.assertEqual(self.path.read_bytes(), bad)
            self.put(self.good)
            self.assertTrue(self.list.refresh())
            self.assertIsNone(self.list.fault)

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_no_damage_lets_anybody_in_unnoticed(self, data: st.DataObject) -> None:
        at, byte = data.draw(st.integers(0, len(self.good) - 1)), data.draw(st.integers(0, 255))
        assume(self.good[at] != byte)
        self.put(self.good[:at] + bytes([byte]) + self.good[at + 1 :])
        self.assertIsNotNone(self.opened().fault)

    def test_removing_the_file_lets_nobody_in(self) -> None:
        self.path.unlink()
        self.list.refresh()
        self.assertIn(A, self.list)
        self.assertIsNone(self.list.fault)
        self.assertIn(A, self.opened())

    def test_others_may_read_it(self) -> None:
        self.path.chmod(0o644)
        self.assertIn("chmod 600", str(self.opened().fault and self.opened().fault.hint))  # type: ignore[union-attr]
