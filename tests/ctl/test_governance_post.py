"""Letters between signers in a folder that others can write to, too."""

from __future__ import annotations

from nacl.signing import SigningKey

from ron.ctl.governance_post import Postbox
from ron.proto.errors import RonError
from tests.ctl.test_governance_joint import KEYS, PUBLICS, Folder
from tests.services.kms.governance.shares import hexed


class Letters(Folder):
    """What a folder may hold."""

    def test_what_is_no_letter_of_ours(self) -> None:
        """A stranger's, a changed one, one under another's name, rubbish: told, and nobody reads it."""
        mine, theirs = (Postbox(self.folder, PUBLICS, "a" * 32, key) for key in KEYS[:2])
        theirs.put(b"hello")
        (good,) = self.letters()
        content = good.read_bytes()
        stranger = SigningKey.generate()
        Postbox(self.folder, [hexed(stranger)], "a" * 32, stranger).put(b"I am the officer")
        (self.folder / good.name.replace("-0000", "-0007")).write_bytes(content)
        (self.folder / good.name.replace("-0000", "-0008")).write_bytes(content.replace(b"aGVsbG8", b"aGVsbG9"))
        (self.folder / good.name.replace("-0000", "-0009")).write_bytes(b"\xff" * 10)
        (self.folder / good.name.replace("-0000", "-0010")).write_bytes(b" " * 40_000)
        self.assertEqual([post.body for post in mine.new()], [b"hello"])
        self.assertEqual(len(mine.spoilt), 5)
        self.assertEqual(list(mine.new()), [])

    def test_a_letter_that_is_still_being_copied(self) -> None:
        """Is read once it is whole."""
        mine, theirs = (Postbox(self.folder, PUBLICS, "a" * 32, key) for key in KEYS[:2])
        theirs.put(b"hello")
        (path,) = self.letters()
        content = path.read_bytes()
        path.write_bytes(content[:50])
        self.assertEqual(list(mine.new()), [])
        path.write_bytes(content)
        self.assertEqual([post.body for post in mine.new()], [b"hello"])
        self.assertEqual(mine.spoilt, set())

    def test_a_sealed_letter(self) -> None:
        """Its receiver reads it, nobody else does, and it is not there in clear."""
        first, second, third = (Postbox(self.folder, PUBLICS, "a" * 32, key) for key in KEYS)
        first.put(b"the share", to=PUBLICS[1])
        self.assertEqual(([post.body for post in second.new()], list(third.new())), ([b"the share"], []))
        self.assertEqual(list(Postbox(self.folder, PUBLICS, "a" * 32).new()), [])
        self.assertNotIn(b"dGhlIHNoYXJl", self.letters()[0].read_bytes())

    def test_nothing_is_overwritten(self) -> None:
        """An earlier letter stays; going on counts after it."""
        Postbox(self.folder, PUBLICS, "a" * 32, KEYS[0]).put(b"one")
        again = Postbox(self.folder, PUBLICS, "a" * 32, KEYS[0])
        self.assertRaises(RonError, again.put, b"two")
        again.go_on()
        again.put(b"two")
        self.assertEqual([post.body for post in again.new(own=True)], [b"one", b"two"])
        self.assertRaises(RonError, Postbox, self.folder / "none", PUBLICS, "a" * 32)
