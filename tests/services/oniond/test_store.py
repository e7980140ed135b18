"""Where onion keys are remembered."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.services.oniond.store import FileOnionStore, MemoryOnionStore, OnionStore
from ron.tor.onionkeys import new_key

WIKI = new_key()
CHAT = new_key()


class EveryStore:
    """What the two kinds promise alike."""

    keys: OnionStore

    def test_none_at_first(self) -> None:
        self.assertIsNone(self.keys.load("wiki"))

    def test_each_app_has_its_own(self) -> None:
        self.keys.save("wiki", WIKI)
        self.keys.save("chat", CHAT)
        self.assertEqual((self.keys.load("wiki"), self.keys.load("chat")), (WIKI, CHAT))

    def test_the_last_one_saved_counts(self) -> None:
        self.keys.save("wiki", WIKI)
        self.keys.save("wiki", CHAT)
        self.assertEqual(self.keys.load("wiki"), CHAT)

    def test_what_tor_was_seen_to_publish(self) -> None:
        self.assertEqual(self.keys.applied(), {})
        for applied in ({"a.onion": "1", "b.onion": "2"}, {}):
            self.keys.save_applied(applied)
            self.assertEqual(self.keys.applied(), applied)


class InMemory(EveryStore, SynchronousTestCase):
    def setUp(self) -> None:
        self.keys = MemoryOnionStore()

    def test_amnesia(self) -> None:
        self.keys.save("wiki", WIKI)
        self.assertIsNone(MemoryOnionStore().load("wiki"))


class InFiles(EveryStore, SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute() / "onions"
        self.keys = FileOnionStore(self.folder)
        umask = os.umask(0)
        self.addCleanup(os.umask, umask)

    def test_kept_from_start_to_start(self) -> None:
        self.keys.save("wiki", WIKI)
        self.assertEqual(FileOnionStore(self.folder).load("wiki"), WIKI)

    def test_private(self) -> None:
        self.keys.save("wiki", WIKI)
        self.assertEqual([p.name for p in self.folder.iterdir()], ["wiki.key"])
        self.assertEqual(stat.S_IMODE((self.folder / "wiki.key").stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.folder.stat().st_mode), 0o700)

    def test_looking_makes_nothing(self) -> None:
        self.keys.load("wiki")
        self.assertFalse(self.folder.exists())

    def test_an_exposed_key_is_refused(self) -> None:
        self.keys.save("wiki", WIKI)
        path = self.folder / "wiki.key"
        path.chmod(0o644)
        error = self.assertRaises(RonError, self.keys.load, "wiki")
        self.assertEqual(error.hint, f"chmod 600 {path}")

    def test_a_damaged_key_is_refused_and_left_for_its_owner_to_mend(self) -> None:
        """A new key in its place would be a new address without anyone having asked for it."""
        self.keys.save("wiki", WIKI)
        path = self.folder / "wiki.key"
        for content in (b"", b"\n", b"\xff\xfe", WIKI.blob.encode()[:-1], b"RSA1024:" + b"A" * 86, b"x" * 100_000):
            path.write_bytes(content)
            error = self.assertRaises(RonError, self.keys.load, "wiki")
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)
            self.assertIn("backup", str(error.hint))
            self.assertEqual(path.read_bytes(), content)

    def test_an_editors_line_break_does_no_harm(self) -> None:
        self.keys.save("wiki", WIKI)
        path = self.folder / "wiki.key"
        for end in ("", "\n", "\r\n", "  \n\n"):
            path.write_text(WIKI.blob + end)
            self.assertEqual(self.keys.load("wiki"), WIKI)

    def test_a_damaged_note_of_what_is_published_means_nothing_is_known(self) -> None:
        self.keys.save_applied({"a.onion": "1"})
        path = self.folder / "applied.json"
        for content in (b"", b"{", b"[]", b'{"a": 1}', b"\xff"):
            path.write_bytes(content)
            self.assertEqual(self.keys.applied(), {})
