"""The root keys: private on disk, kept from start to start, silent about themselves."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import Epoch, RootKeys
from ron.auth.rootkeys import DAY_S, GRACE_S, KEY_BYTES, MAX_EPOCHS, ROTATE_AFTER_S
from ron.auth.sharedfile import SharedLock
from ron.proto.errors import ErrorCode, RonError

NOW = 1_800_000_000.0


def old_record(*epochs: tuple[object, object], v: object = 1) -> bytes:
    """A key file of the first form, which knew no times."""
    return json.dumps({"v": v, "epochs": [{"kid": kid, "key_b64": key} for kid, key in epochs]}).encode()


def record(*epochs: tuple[object, object], v: object = 2, **fields: object) -> bytes:
    """A key file as it stands on disk: the last epoch mints, the others retire at 2000000000."""
    stored = [
        {
            "kid": kid,
            "key_b64": key,
            "created_at": 1.0,
            "retires_at": None if index == len(epochs) - 1 else 2e9,
            **fields,
        }
        for index, (kid, key) in enumerate(epochs)
    ]
    return json.dumps({"v": v, "epochs": stored}).encode()


def b64(key: bytes) -> str:
    return base64.b64encode(key).decode()


class WithFolder(SynchronousTestCase):
    """A folder of its own, under no umask at all."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "auth" / "root.json"
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)

    def written(self, content: bytes) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(content)
        self.path.chmod(0o600)
        return self.path


class OnDisk(WithFolder):
    def test_made_private(self) -> None:
        RootKeys.open(self.path)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o700)
        self.assertEqual(sorted(p.name for p in self.path.parent.iterdir()), [".lock", "root.json"])
        self.assertEqual(stat.S_IMODE((self.path.parent / ".lock").stat().st_mode), 0o600)

    def test_kept_across_opens(self) -> None:
        first = RootKeys.open(self.path)
        before = self.path.read_bytes()
        again = RootKeys.open(self.path)
        self.assertEqual(again.current, first.current)
        self.assertEqual(len(first.current.key), KEY_BYTES)
        self.assertEqual(self.path.read_bytes(), before)

    def test_the_newest_epoch_mints_and_every_known_one_verifies(self) -> None:
        old, new = os.urandom(32), os.urandom(32)
        keys = RootKeys.open(self.written(record((3, b64(old)), (7, b64(new)))))
        self.assertEqual(keys.current, Epoch(7, new, 1.0))
        self.assertEqual([keys.epoch(kid) for kid in (3, 7, 4)], [Epoch(3, old, 1.0, 2e9), keys.current, None])
        self.assertEqual([epoch.kid for epoch in keys.epochs], [3, 7])

    def test_the_first_form_is_read_and_upgraded(self) -> None:
        old, new = os.urandom(32), os.urandom(32)
        self.written(old_record((7, b64(new)), (3, b64(old))))
        os.utime(self.path, (NOW, NOW))
        keys = RootKeys.open(self.path)
        self.assertEqual(keys.epochs, (Epoch(3, old, NOW, NOW + GRACE_S), Epoch(7, new, NOW)))
        self.assertEqual(json.loads(self.path.read_bytes())["v"], 2)
        self.assertEqual(RootKeys.open(self.path).epochs, keys.epochs)

    def test_an_exposed_file_is_refused(self) -> None:
        RootKeys.open(self.path)
        self.path.chmod(0o640)
        error = self.assertRaises(RonError, RootKeys.open, self.path)
        self.assertEqual(error.hint, f"chmod 600 {self.path}")

    def test_a_damaged_file_is_said_to_be_so_and_left_alone(self) -> None:
        key = b64(os.urandom(32))
        for content in (
            b"",
            b"{}",
            b"null",
            b"\xff\xfe",
            b"[" * 50_000,
            record((1, key))[:-5],
            record(),
            record((1, key[:-8])),
            record((1, b64(b"short"))),
            record((1, "not base64 !" + key[12:])),
            record(("1", key)),
            record((1, key), (1, b64(os.urandom(32)))),
            record((-1, key)),
            record((1, key), v=3),
            record((1, key), v=True),
            record((1, key)).replace(b'"v"', b'"w"'),
            record((1, key)).replace(b'{"v"', b'{"x": 1, "v"'),
            record((1, key), created_at=-1.0),
            record((1, key)).replace(b"1.0", b"1e999"),
            record((1, key), retires_at=5.0),
            record((1, key), (2, key), retires_at=None),
            record((2, key), (1, key)),
            record(*((kid, key) for kid in range(MAX_EPOCHS + 1))),
            old_record((1, key), v=2),
            old_record((1, b64(b"short"))),
            old_record(),
        ):
            error = self.assertRaises(RonError, RootKeys.open, self.written(content))
            self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE, content)
            self.assertIn("root.json", error.message)
            self.assertIn("restore", str(error.hint))
            self.assertNotIn(key, error.message + str(error.hint))
            self.assertEqual(self.path.read_bytes(), content)

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_no_damage_makes_a_shorter_key(self, data: st.DataObject) -> None:
        good = bytearray(data.draw(st.sampled_from([record, old_record]))((1, b64(bytes(range(32))))))
        at = data.draw(st.integers(0, len(good) - 1))
        good[at] = data.draw(st.integers(0, 255))
        try:
            keys = RootKeys.open(self.written(bytes(good)))
        except RonError:
            return
        self.assertEqual(len(keys.current.key), KEY_BYTES)
        self.assertGreaterEqual(keys.current.kid, 0)


class InMemory(SynchronousTestCase):
    def test_fresh_each_time(self) -> None:
        self.assertNotEqual(RootKeys.generate().current, RootKeys.generate().current)

    def test_neither_repr_nor_str_shows_a_key(self) -> None:
        keys = RootKeys([Epoch(1, b"A" * 32, NOW, NOW), Epoch(2, b"B" * 32, NOW)])
        for shown in (repr(keys), str(keys), f"{keys}"):
            self.assertEqual(shown, "<RootKeys epochs=[1, 2]>")
        self.assertNotIn("BB", repr(keys.current) + str(keys.epochs))


class Rotating(WithFolder):
    """A key mints for 30 days and verifies for 48 hours more."""

    def setUp(self) -> None:
        super().setUp()
        self.keys = RootKeys.open(self.path, now_s=NOW)

    def test_due_after_thirty_days(self) -> None:
        self.assertEqual((ROTATE_AFTER_S, GRACE_S), (30 * DAY_S, 2 * DAY_S))
        self.assertFalse(self.keys.due(NOW + ROTATE_AFTER_S - 1))
        self.assertTrue(self.keys.due(NOW + ROTATE_AFTER_S))

    def test_the_old_one_retires_after_its_grace(self) -> None:
        first, before = self.keys.current, self.keys.generation
        newest = self.keys.rotate(NOW + 5)
        self.assertEqual(self.keys.current, newest)
        self.assertEqual((newest.kid, newest.created_at_s, newest.retires_at_s), (2, NOW + 5, None))
        self.assertNotEqual(newest.key, first.key)
        self.assertEqual(self.keys.epoch(1), Epoch(1, first.key, NOW, NOW + 5 + GRACE_S))
        self.assertFalse(self.keys.epochs[0].retired(NOW + 5 + GRACE_S - 1))
        self.assertTrue(self.keys.epochs[0].retired(NOW + 5 + GRACE_S))
        self.assertGreater(self.keys.generation, before)
        self.assertEqual(RootKeys.open(self.path).epochs, self.keys.epochs)

    def test_a_shorter_grace_shortens_and_a_longer_one_never_prolongs(self) -> None:
        self.keys.rotate(NOW)
        self.keys.rotate(NOW + 10, grace_s=0)
        self.assertTrue(all(epoch.retired(NOW + 10) for epoch in self.keys.epochs[:-1]))
        self.keys.rotate(NOW + 20, grace_s=10**9)
        self.assertEqual([epoch.kid for epoch in self.keys.epochs], [3, 4])
        self.assertEqual(self.keys.epochs[0].retires_at_s, NOW + 20 + GRACE_S)

    def test_maintenance(self) -> None:
        self.assertFalse(self.keys.maintain(NOW + 1))
        self.assertTrue(self.keys.maintain(NOW + ROTATE_AFTER_S))
        self.assertFalse(self.keys.maintain(NOW + ROTATE_AFTER_S + GRACE_S - 1))
        gone = self.keys.epochs[0]
        self.assertTrue(self.keys.maintain(NOW + ROTATE_AFTER_S + GRACE_S))
        self.assertEqual([epoch.kid for epoch in self.keys.epochs], [2])
        # the key itself is destroyed, on disk too
        self.assertNotIn(base64.b64encode(gone.key), self.path.read_bytes())

    def test_two_processes_rotate_once(self) -> None:
        other = RootKeys.open(self.path)
        late = NOW + ROTATE_AFTER_S
        self.assertTrue(self.keys.maintain(late))
        self.assertTrue(other.maintain(late))
        self.assertEqual(other.epochs, self.keys.epochs)
        self.assertEqual(other.current.kid, 2)

    def test_what_is_not_on_disk_does_not_mint(self) -> None:
        before = self.keys.epochs
        self.patch(os, "open", _refusing(os.open))
        error = self.assertRaises(RonError, self.keys.rotate, NOW)
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(self.keys.epochs, before)

    def test_bounded(self) -> None:
        for _ in range(MAX_EPOCHS - 1):
            self.keys.rotate(NOW)
        error = self.assertRaises(RonError, self.keys.rotate, NOW)
        self.assertIs(error.code, ErrorCode.BACKPRESSURE)
        self.assertEqual(self.keys.rotate(NOW + GRACE_S).kid, MAX_EPOCHS + 1)

    def test_upkeep_waits_for_nobody(self) -> None:
        with SharedLock(self.path.parent).held():
            self.assertFalse(self.keys.maintain(NOW + ROTATE_AFTER_S))
        self.assertTrue(self.keys.maintain(NOW + ROTATE_AFTER_S))


def _refusing(real: object) -> object:
    """`os.open` on a disk without room for new files."""

    def opened(path: object, flags: int, *rest: object, **more: object) -> int:
        if flags & os.O_EXCL:
            raise OSError(28, "No space left on device")
        return real(path, flags, *rest, **more)  # type: ignore[operator, no-any-return]

    return opened


class Sharing(WithFolder):
    """Several processes hold the same file; a damaged one never takes a key away."""

    def setUp(self) -> None:
        super().setUp()
        self.keys = RootKeys.open(self.path, now_s=NOW)
        self.other = RootKeys.open(self.path)

    def test_a_rotation_elsewhere_is_seen(self) -> None:
        self.assertFalse(self.other.refresh())
        self.keys.rotate(NOW)
        self.assertTrue(self.other.refresh())
        self.assertEqual(self.other.epochs, self.keys.epochs)
        self.assertFalse(self.other.refresh())

    def test_damage_keeps_the_keys_and_is_logged_once(self) -> None:
        good, before = self.path.read_bytes(), self.keys.epochs
        for bad in (b"", b"garbage", good[:-9], None, "directory", "fifo", "exposed"):
            self.put(bad)
            with capturedLogs() as logged:
                for _ in range(3):
                    self.assertFalse(self.keys.refresh(), bad)
            self.assertEqual([event["event"] for event in logged], ["auth_file_damaged"])
            self.assertEqual(self.keys.epochs, before)
            assert self.keys.fault is not None
            self.assertTrue(self.keys.fault.hint)
            self.assertRaises(RonError, self.keys.rotate, NOW)
            self.put(good)
            self.assertTrue(self.keys.refresh(), bad)
            self.assertIsNone(self.keys.fault)

    def put(self, content: object) -> None:
        if self.path.is_dir():
            self.path.rmdir()
        self.path.unlink(missing_ok=True)
        if content == "directory":
            self.path.mkdir()
        elif content == "fifo":
            os.mkfifo(self.path, 0o600)
        elif content == "exposed":
            self.written(record((1, b64(os.urandom(32))))).chmod(0o644)
        elif isinstance(content, bytes):
            self.written(content)

    def test_a_mode_that_is_mended_is_noticed(self) -> None:
        """chmod changes neither inode, time nor size: while there is a fault the file is read each time."""
        self.keys.rotate(NOW)
        self.path.chmod(0o644)
        self.assertFalse(self.other.refresh())
        self.path.chmod(0o600)
        self.assertTrue(self.other.refresh())
        self.assertEqual(self.other.epochs, self.keys.epochs)
