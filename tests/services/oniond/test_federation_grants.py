"""Whose keys are on the list, in which order and version; and what is kept of it on disk."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import AUDIENCE, AuthFiles, Caveat
from ron.auth.register import Minted
from ron.crypto.schnorr import MAX_KEYS, HolderKey
from ron.proto.errors import ErrorCode, RonError
from ron.services.oniond.federation.grants import Listed, first_list, holders, next_list, parse_public
from ron.services.oniond.federation.roster import Pin, Roster
from ron.services.oniond.federation.shelf import Shelf, read_holder, write_holder
from ron.tor.onionkeys import address_of, new_key

KEYS = [HolderKey.generate().public for _ in range(6)]
ANNA, BERT = (address_of(new_key()) for _ in range(2))


def minted(*caveats: str) -> Minted:
    return Minted(cap_id="0" * 32, kid=1, caveats=caveats, label="", minted_at=0.0)


def good(key: bytes) -> Minted:
    return minted(f"aud = {AUDIENCE}", "scope = federation:peer", f"holder = {key.hex()}")


class Granting(SynchronousTestCase):
    """A capability counts when it is for federation and for nothing else."""

    def test_what_is_no_grant(self) -> None:
        key = KEYS[0].hex()
        small_order = "01" + "00" * 31
        for caveats in (
            (),
            (f"holder = {key}",),
            ("scope = federation:peer",),
            ("scope = mailbox:send", f"holder = {key}"),
            ("scope = federation:peer", "scope = mailbox:*", f"holder = {key}"),
            ("scope = federation:read", f"holder = {key}"),
            ("aud = other", "scope = federation:peer", f"holder = {key}"),
            ("scope = federation:peer", f"holder = {key}", f"holder = {KEYS[1].hex()}"),
            ("scope = federation:peer", f"holder = {key}", "app = wiki"),
            ("scope = federation:peer", f"holder = {key}", "tomorrow = maybe"),
            ("scope = federation:peer", f"holder = {small_order}"),
            ("scope = federation:peer", f"holder = {'ff' * 32}"),
        ):
            self.assertEqual(holders([(minted(*caveats), False)]), (), caveats)

    def test_valid_ones_the_oldest_first_each_key_once(self) -> None:
        entries = [(good(KEYS[1]), False), (good(KEYS[0]), True), (good(KEYS[2]), False), (good(KEYS[1]), True)]
        self.assertEqual(holders(entries), (KEYS[1], KEYS[2]))
        wide = minted("scope = mailbox:send,federation:*", f"holder = {KEYS[3].hex()}", "exp = 2040-01-01T00:00:00Z")
        self.assertEqual(holders([(wide, False)]), (KEYS[3],))

    def test_what_the_files_say(self) -> None:
        """Minted, listed, expired and revoked by the real authority."""
        now_s = [1_800_000_000.0]
        files = AuthFiles(None, lambda: now_s[0])
        authority = files.authority(AUDIENCE)
        ids = []
        for key, until in ((KEYS[0], "2027-01-15T09:00:00Z"), (KEYS[1], "2027-01-15T08:00:10Z")):
            texts = {"scope": "federation:peer", "holder": key.hex(), "exp": until}
            ids.append(files.issue(authority, [Caveat(*item) for item in texts.items()]).entry.cap_id)
        self.assertEqual(holders(files.listed()), (KEYS[0], KEYS[1]))
        now_s[0] += 10
        self.assertEqual(holders(files.listed()), (KEYS[0],))
        files.revoke(ids[0])
        self.assertEqual(holders(files.listed()), ())

    def test_public_keys_as_people_type_them(self) -> None:
        self.assertEqual(parse_public(KEYS[0].hex()), KEYS[0])
        for text in ("", KEYS[0].hex().upper(), KEYS[0].hex()[:-1], "00" * 32, "01" + "00" * 31, "ff" * 32, "x" * 64):
            self.assertEqual(self.assertRaises(RonError, parse_public, text).code, ErrorCode.BAD_REQUEST)


class Listing(SynchronousTestCase):
    """The next version of the list."""

    def test_without_holders_there_is_one_key_that_is_nobodys(self) -> None:
        listed = first_list(1_800_000_000.9)
        self.assertEqual((listed.version, listed.keys), (1_800_000_000, (listed.nobody,)))
        self.assertEqual(next_list(listed, ()), listed)
        one = next_list(listed, KEYS[:1])
        self.assertEqual((one.version, one.keys), (listed.version + 1, (KEYS[0],)))
        self.assertEqual(next_list(one, ()).keys, (listed.nobody,))
        Roster(listed.version, listed.keys)

    def test_a_crowd_does_not_keep_anybody_on_the_list(self) -> None:
        crowd = [n.to_bytes(32, "big") for n in range(MAX_KEYS + 1)]
        listed = next_list(first_list(1), crowd)
        self.assertEqual(listed.keys, tuple(crowd[:-1]))
        self.assertEqual(set(next_list(listed, crowd[1:]).keys), set(crowd[1:]))

    @settings(deadline=None)
    @given(st.lists(st.lists(st.sampled_from(KEYS), unique=True), max_size=12))
    def test_every_change_counts_up_and_nothing_else_does(self, steps: list[list[bytes]]) -> None:
        listed = first_list(5)
        for granted in steps:
            before, listed = listed, next_list(listed, granted)
            self.assertEqual(set(listed.keys), set(granted) or {listed.nobody})
            changed = set(before.keys) != set(listed.keys)
            self.assertEqual(listed.version - before.version, int(changed))
            self.assertEqual(listed == before, not changed)
            stayed = [key for key in before.keys if key in listed.keys]
            self.assertEqual(stayed, list(listed.keys[: len(stayed)]))


class Keeping(SynchronousTestCase):
    """Files: read strictly, private, whole."""

    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ron-shelf-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.shelf = Shelf(self.folder / "federation")
        self.key = HolderKey.generate()

    def test_a_new_shelf_is_empty(self) -> None:
        self.assertEqual((self.shelf.listed(), self.shelf.pins(), self.shelf.holdings()), (None, {}, ({}, [])))
        self.assertFalse((self.folder / "federation").exists())

    def test_there_and_back(self) -> None:
        listed = Listed(version=7, keys=tuple(KEYS), nobody=KEYS[0])
        self.shelf.keep_list(listed)
        self.shelf.keep_pins({ANNA: Pin(3, b"x" * 32)})
        path = self.shelf.hold(BERT, self.key)
        fresh = Shelf(self.folder / "federation")
        self.assertEqual((fresh.listed(), fresh.pins()), (listed, {ANNA: Pin(3, b"x" * 32)}))
        held, wrong = fresh.holdings()
        self.assertEqual(({issuer: key.secret for issuer, key in held.items()}, wrong), ({BERT: self.key.secret}, []))
        self.assertEqual(
            [p.stat().st_mode & 0o777 for p in (path, path.parent, path.parent.parent)], [0o600, 0o700, 0o700]
        )

    def test_what_is_damaged_is_not_taken_for_an_empty_one(self) -> None:
        """Else the version would begin anew, and peers would go on with a list that is too old."""
        self.shelf.keep_list(Listed(version=7, keys=tuple(KEYS), nobody=KEYS[0]))
        self.shelf.keep_pins({})
        for name, read in (("list.json", self.shelf.listed), ("pins.json", self.shelf.pins)):
            path = self.folder / "federation" / name
            for content in (b"", b"{", b"[]", b'{"version":"7"}', b"\xff"):
                path.write_bytes(content)
                self.assertEqual(self.assertRaises(RonError, read).code, ErrorCode.STORE_UNAVAILABLE)
            path.chmod(0o644)
            self.assertIn("others may read", self.assertRaises(RonError, read).message)

    def test_files_that_hold_no_key_are_named_and_others_go_on(self) -> None:
        good = self.shelf.hold(BERT, self.key)
        folder = good.parent
        (folder / f"{ANNA}.key").write_bytes(good.read_bytes())  # others may read it
        (folder / "x.onion.key").write_bytes(b"")
        held, wrong = self.shelf.holdings()
        self.assertEqual((set(held), len(wrong)), ({BERT}, 2))
        other = HolderKey.generate()
        write_holder(good, other)
        self.assertEqual(self.shelf.holdings()[0][BERT].secret, other.secret)
        good.unlink()
        self.assertEqual(self.shelf.holdings()[0], {})

    def test_a_key_file_that_is_none(self) -> None:
        path = self.folder / "k.key"
        self.assertRaises(RonError, read_holder, path)
        write_holder(path, self.key)
        text = path.read_text()
        self.assertEqual(read_holder(path).secret, self.key.secret)
        for spoilt in (
            text.replace(self.key.public.hex(), KEYS[0].hex()),
            text.replace(self.key.secret.hex(), "ff" * 32),
            text.replace(self.key.secret.hex(), "zz"),
            text.replace("ron-federation/1", "ron-federation/2"),
            "",
        ):
            path.write_text(spoilt)
            error = self.assertRaises(RonError, read_holder, path)
            self.assertNotIn(self.key.secret.hex(), error.one_line())

    def test_nothing_is_held_for_what_is_no_onion(self) -> None:
        for issuer in ("../x", "x.onion", ANNA.upper(), ""):
            self.assertRaises(RonError, self.shelf.hold, issuer, self.key)
