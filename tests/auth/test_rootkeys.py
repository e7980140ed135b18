"""The root keys: private on disk, kept from start to start, silent about themselves."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import RootKeys
from ron.auth.rootkeys import KEY_BYTES
from ron.proto.errors import ErrorCode, RonError


def record(*epochs: tuple[object, object], v: object = 1) -> bytes:
    """A key file as it stands on disk."""
    return json.dumps({"v": v, "epochs": [{"kid": kid, "key_b64": key} for kid, key in epochs]}).encode()


def b64(key: bytes) -> str:
    return base64.b64encode(key).decode()


class OnDisk(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute() / "auth" / "root.json"
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)

    def written(self, content: bytes) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_bytes(content)
        self.path.chmod(0o600)
        return self.path

    def test_made_private(self) -> None:
        RootKeys.open(self.path)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o700)
        self.assertEqual([p.name for p in self.path.parent.iterdir()], ["root.json"])

    def test_kept_across_opens(self) -> None:
        first = RootKeys.open(self.path)
        before = self.path.read_bytes()
        again = RootKeys.open(self.path)
        self.assertEqual(again.current, first.current)
        self.assertEqual(len(first.current[1]), KEY_BYTES)
        self.assertEqual(self.path.read_bytes(), before)

    def test_the_newest_epoch_mints_and_every_known_one_verifies(self) -> None:
        old, new = os.urandom(32), os.urandom(32)
        keys = RootKeys.open(self.written(record((7, b64(new)), (3, b64(old)))))
        self.assertEqual(keys.current, (7, new))
        self.assertEqual((keys.get(3), keys.get(7), keys.get(4)), (old, new, None))

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
            record((1, key), v=2),
            record((1, key)).replace(b'"v"', b'"w"'),
            record((1, key)).replace(b'{"v"', b'{"x": 1, "v"'),
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
        good = bytearray(record((1, b64(bytes(range(32))))))
        at = data.draw(st.integers(0, len(good) - 1))
        good[at] = data.draw(st.integers(0, 255))
        try:
            keys = RootKeys.open(self.written(bytes(good)))
        except RonError:
            return
        self.assertEqual(len(keys.current[1]), KEY_BYTES)
        self.assertGreaterEqual(keys.current[0], 0)


class InMemory(SynchronousTestCase):
    def test_fresh_each_time(self) -> None:
        self.assertNotEqual(RootKeys.generate().current, RootKeys.generate().current)

    def test_neither_repr_nor_str_shows_a_key(self) -> None:
        keys = RootKeys({1: b"A" * 32, 2: b"B" * 32})
        for shown in (repr(keys), str(keys), f"{keys}"):
            self.assertEqual(shown, "<RootKeys epochs=[1, 2]>")
