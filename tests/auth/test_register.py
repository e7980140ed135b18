"""The register of what was minted: durable lines, bounded, and the family tree that revoking follows."""

from __future__ import annotations

import stat
from pathlib import Path

from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import register as module
from ron.auth.register import Minted, Register
from ron.proto.errors import ErrorCode, RonError

NOW = 1_800_000_000.0


def minted(number: int, parent: int | None = None) -> Minted:
    return Minted(
        cap_id=f"{number:032x}",
        kid=1,
        caveats=("aud = ron-node", "scope = a:b"),
        label=f"number {number}",
        minted_at=NOW,
        parent=None if parent is None else f"{parent:032x}",
    )


def never(_entry: Minted) -> bool:
    return False


class Lines(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "auth" / "minted.jsonl"
        self.register = Register(self.path)

    def test_kept_and_seen_by_others(self) -> None:
        other = Register(self.path)
        self.assertEqual(other.entries(), ())
        self.register.append(minted(1), never)
        self.assertEqual(other.entries(), (minted(1),))
        other.append(minted(2), never)
        self.register.append(minted(3), never)
        for seen in (self.register, other, Register(self.path)):
            self.assertEqual(seen.entries(), (minted(1), minted(2), minted(3)))
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(self.register.find(minted(2).cap_id), minted(2))
        self.assertIsNone(self.register.find("nobody"))

    def test_a_writer_that_was_killed_in_the_middle_of_its_line(self) -> None:
        self.register.append(minted(1), never)
        with self.path.open("ab") as file:
            file.write(b'{"cap_id":"00')
        with capturedLogs() as logged:
            Register(self.path).append(minted(2), never)
            self.assertEqual(Register(self.path).entries(), (minted(1), minted(2)))
        self.assertIn("auth_register_damaged", {event["event"] for event in logged})

    def test_garbage_is_left_out(self) -> None:
        self.register.append(minted(1), never)
        with self.path.open("ab") as file:
            file.write(b"\xff\xfe\n[[[\n{}\n\n" + b"[" * 50_000 + b"\n")
        self.register.append(minted(2), never)
        self.assertEqual(self.register.entries(), (minted(1), minted(2)))

    def test_bounded_and_the_ended_make_room(self) -> None:
        self.patch(module, "MAX_MINTED", 3)
        for number in range(3):
            self.register.append(minted(number), never)
        error = self.assertRaises(RonError, self.register.append, minted(3), never)
        self.assertIs(error.code, ErrorCode.BACKPRESSURE)
        self.register.append(minted(4), lambda entry: entry == minted(1))
        self.assertEqual(Register(self.path).entries(), (minted(0), minted(2), minted(4)))
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_in_memory(self) -> None:
        memory = Register()
        memory.append(minted(1), never)
        self.assertEqual(memory.entries(), (minted(1),))

    def test_descendants(self) -> None:
        for number, parent in ((1, None), (2, 1), (3, 2), (4, None), (5, 3), (6, 1), (7, 4)):
            self.register.append(minted(number, parent), never)
        self.assertEqual(
            self.register.descendants(minted(1).cap_id), [minted(2, 1), minted(3, 2), minted(5, 3), minted(6, 1)]
        )
        self.assertEqual(self.register.descendants(minted(5).cap_id), [])
