"""What a single seized member can do to the others' places: with `remove_by` of two, nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.task import deferLater
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import x509
from ron.proto.balanceviews import RemoveAnswer
from ron.services.balance.gate import MeshGate
from ron.services.balance.mesh.book import LocalBook, number_of
from ron.services.balance.mesh.codec import encode
from ron.services.balance.mesh.entries import TOKEN, Entry, Removed, write
from ron.services.balance.mesh.files import NodeFiles, accept, found, invitation
from ron.services.balance.mesh.seconding import strike_key
from ron.services.balance.mesh.tokens import new_token, notice_of
from ron.services.balance.mesh.vouching import Struck, Vouching
from ron.services.balance.ports import Member
from tests.services.balance.mesh.cluster import CA, OTHER_CA, ClusterTest, reactor


class Places(SynchronousTestCase):
    """Books of a to d; whoever is x is made up by the seized b."""

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        first = found(folder / "a", "a", CA)
        self.files: dict[str, NodeFiles] = {"a": first}
        for name in "bcd":
            self.files[name] = accept(folder / name, invitation(first, name, CA, ("h:1",)))
        self.folder, self.cluster = folder, first.cluster
        members = [self.written(f"member/{name}", self.member(name), "a", at + 1) for at, name in enumerate("abcd")]
        self.books = {name: self.book(name) for name in "abcd"}
        for book in self.books.values():
            self.assertEqual(book.take(members, vouched=True), [])
            book.fresh = False

    def book(self, name: str) -> LocalBook:
        files = self.files[name]
        return LocalBook(self.cluster, name, files.signing, needed=2, vouches=Vouching(files))

    def member(self, name: str, files: NodeFiles | None = None) -> Member:
        key = bytes((files or self.files[name]).signing.verify_key)
        return Member(name=name, number=number_of(name, key), key=key)

    def written(self, key: str, value: Any, author: str, version: int, files: NodeFiles | None = None) -> Entry:
        packed = encode(value) if value is not None else b""
        return write(key, packed, version, author, (files or self.files[author]).signing, self.cluster)

    def strike(self, author: str, name: str, version: int, files: NodeFiles | None = None) -> Entry:
        files = files or self.files[author]
        struck = Vouching(files).vouch(name, self.member(name).key)
        return self.written(strike_key(name, struck.key, author), struck, author, version, files)

    def removal(self, author: str, name: str, version: int, **more: Any) -> Entry:
        removed = Removed(**{"keys": (self.member(name).key,), "before": version, **more})
        return self.written(f"removed/{name}", removed, author, version)

    def refused(self, reason: str, *entries: Entry) -> None:
        """By all honest ones."""
        for name in "acd":
            book = self.books[name]
            before = book.digest()
            self.assertEqual({why for _entry, why in book.take(entries)}, {reason})
            self.assertEqual(book.digest(), before)

    # What one alone writes

    def test_one_alone_removes_nobody(self) -> None:
        self.refused("unseconded", self.removal("b", "c", 9))
        for book in self.books.values():
            book.take([self.strike("b", "c", 9)])
        self.refused("unseconded", self.removal("b", "c", 10))

    def test_one_alone_takes_nobodys_name(self) -> None:
        made_up = accept(self.folder / "other", invitation(self.files["a"], "c", CA, ("h:1",)))
        self.refused("name_taken", self.written("member/c", self.member("c", made_up), "b", 9))
        self.refused("name_taken", self.written("member/c", None, "b", 9))

    def test_made_up_members_have_no_word(self) -> None:
        """They can be written; a certificate for them cannot."""
        stranger = found(self.folder / "x", "x", OTHER_CA)
        stranger.cluster = self.cluster
        for book in self.books.values():
            self.assertEqual(book.take([self.written("member/x", self.member("x", stranger), "b", 8)]), [])
        self.refused("malformed", self.strike("x", "c", 9, stranger))
        # nor by the certificate of the one who made them up
        struck = Vouching(self.files["b"]).vouch("c", self.member("c").key)
        key = strike_key("c", struck.key, "x")
        self.refused("malformed", self.written(key, struck, "x", 9, stranger))

    def test_nobody_speaks_twice_or_in_anothers_place(self) -> None:
        struck = Vouching(self.files["b"]).vouch("c", self.member("c").key)
        mine = strike_key("c", struck.key, "a")
        self.refused("malformed", self.written(mine, struck, "b", 9))
        self.refused("malformed", self.written(mine, None, "b", 9))
        self.refused("malformed", self.written("strike/abc", struck, "b", 9))
        forged = msgspec.structs.replace(struck, proof=b"0" * 70)
        self.refused("malformed", self.written(strike_key("c", struck.key, "b"), forged, "b", 9))
        garbage = msgspec.structs.replace(struck, certificate=b"no certificate")
        self.refused("malformed", self.written(strike_key("c", struck.key, "b"), garbage, "b", 9))

    def test_one_alone_lets_nobody_back_in(self) -> None:
        self.agreed("d")
        self.refused("malformed", self.written("removed/d", None, "b", 20))
        key = bytes(32)
        self.refused("malformed", self.removal("b", "d", 20, keys=(key,)))
        self.refused("malformed", self.removal("b", "d", 20, before=9))

    def test_the_word_of_who_was_removed_is_not_stored_up(self) -> None:
        """b asks for a's removal, is removed, and another seized one comes to it."""
        for book in self.books.values():
            book.take([self.strike("b", "a", 6)])
        self.agreed("b")
        self.assertEqual(self.books["d"].asked_by("a", self.member("a").key), frozenset())
        self.books["d"].take([self.strike("c", "a", 20)])
        self.assertEqual([why for _e, why in self.books["d"].take([self.removal("c", "a", 21)])], ["unseconded"])

    # What two do

    def agreed(self, name: str) -> None:
        entries = [self.strike("a", name, 8), self.strike("c", name, 9), self.removal("c", name, 10)]
        for other in "acd":
            self.assertEqual(self.books[other].take(entries), [])

    def test_two_do(self) -> None:
        self.agreed("b")
        for name in "acd":
            self.assertEqual(self.books[name].get("removed/b", Removed).keys, (self.member("b").key,))

    def test_in_any_order(self) -> None:
        entries = [self.removal("c", "b", 10), self.strike("c", "b", 9), self.strike("a", "b", 8)]
        self.assertEqual(self.books["d"].take(entries), [])
        self.assertEqual([why for _e, why in self.books["a"].take(entries[:1])], ["unseconded"])
        self.assertEqual(self.books["a"].take(entries), [])
        self.assertEqual(self.books["a"].digest(), self.books["d"].digest())

    def test_a_removed_name_may_come_back_with_another_key(self) -> None:
        self.agreed("b")
        again = accept(self.folder / "again", invitation(self.files["a"], "b", CA, ("h:1",)))
        self.assertEqual(self.books["d"].take([self.written("member/b", self.member("b", again), "a", 11)]), [])

    def test_leaving_needs_nobody(self) -> None:
        self.assertEqual(self.books["a"].take([self.removal("b", "b", 9)]), [])

    def test_a_newcomer_believes_whom_it_joins_until_it_has_the_book(self) -> None:
        """Removals from a time when one member's word was enough, too."""
        old = self.removal("a", "c", 9)
        book = LocalBook(self.cluster, "e", self.files["d"].signing, needed=2, vouches=Vouching(self.files["d"]))
        self.assertEqual(book.take([*self.books["a"].entries, old], vouched=True), [])
        book.fresh = False
        late = self.removal("a", "b", 10)
        self.assertEqual(book.take([late], vouched=True), [(late, "unseconded")])

    def test_who_strikes_itself_off_is_no_newcomer_to_be_believed(self) -> None:
        """It would be a stranger who has proved the token then, and such a one is believed who the members are."""
        self.refused("name_taken", self.written("member/b", None, "b", 9))
        for name in "acd":
            removal = self.removal("b", name, 10)
            self.assertEqual(self.books[name].take([removal], vouched=True), [(removal, "unseconded")])


class Cluster(ClusterTest):
    """The same over real links."""

    async def test_two_operators(self) -> None:
        a = self.founder(remove_by=2)
        b, c, d = (self.join(a, name, remove_by=2) for name in "bcd")
        await self.until(lambda: self.meshed(a, b, c, d), "a full mesh")
        # the seized one, as its operators' socket and as its book let it
        self.assertEqual(await d.mesh.remove("a"), {"d"})
        self.assertEqual(await d.mesh.remove("a"), {"d"})
        d.mesh._local.remove("b")
        await self.until(lambda: b.refused("unseconded") and a.refused("unseconded"), "refused")
        await deferLater(reactor, 0.5)
        for node in (a, b, c):
            self.assertEqual((node.ended, set(node.mesh.members())), ([], {"a", "b", "c", "d"}))
        version = a.files.token.version
        gate = MeshGate(b.mesh, b.files, self.directory, 2)
        asked = RemoveAnswer(name="d", removed=False, asked_by=("b",), needed=2)
        self.assertEqual(await gate.remove("d"), asked)
        await self.until(lambda: c.mesh._local.asked_by("d", d.mesh.me.key), "b's word is with c")
        gate = MeshGate(c.mesh, c.files, self.directory, 2)
        self.assertEqual(await gate.remove("d"), RemoveAnswer(name="d", asked_by=("b", "c"), needed=2))
        await self.until(lambda: "d" not in a.mesh.members(), "cut off")
        # its own book has b as removed, so it does not believe b; it is refused all the same, and says so
        await self.until(lambda: "removed" in d.mesh.refused, "told")
        await self.until(lambda: a.files.token == b.files.token == c.files.token, "one token")
        self.assertGreater(a.files.token.version, version)
        await self.until(lambda: self.meshed(a, b, c), "the others go on")

    async def test_both_at_once(self) -> None:
        """Their words cross: whoever sees the other's completes it."""
        a = self.founder(remove_by=2)
        b, c = self.join(a, "b", remove_by=2), self.join(a, "c", remove_by=2)
        await self.until(lambda: self.meshed(a, b, c), "a full mesh")
        key = c.mesh.me.key
        for node in (a, b):
            struck = node.mesh._removals._vouching.vouch("c", key)
            node.mesh._local.strike(struck)
        await self.until(lambda: c.ended and "c" not in a.mesh.members() and "c" not in b.mesh.members(), "removed")
        await self.until(lambda: a.files.token == b.files.token and a.files.token.version > 1, "one token")


class Tokens(ClusterTest):
    async def test_a_token_that_nobody_knows_keeps_newcomers_out_until_it_is_rotated(self) -> None:
        a = self.founder()
        b = self.join(a, "b")
        await self.until(lambda: self.meshed(a, b))
        b.mesh.book.put(TOKEN, notice_of(new_token(7)))
        await self.until(lambda: a.mesh._sync.present_token() is None, "a has none")
        c = self.join(a, "c")
        await self.until(lambda: "wrong_token" in c.mesh.refused, "kept out")
        self.assertTrue(self.meshed(a, b))
        await self.stop(c)
        await a.mesh.rotate_token()
        await self.until(lambda: a.files.token == b.files.token, "one token again")
        d = self.join(a, "d")
        await self.until(lambda: self.meshed(a, b, d), "let in")


class Words(SynchronousTestCase):
    def test_a_certificate_of_another_kind_of_key(self) -> None:
        files = found(Path(self.mktemp()), "a", CA)
        self.assertTrue(Vouching(files).is_vouched(Vouching(files).vouch("b", bytes(32)), "a"))
        self.assertFalse(Vouching(files).is_vouched(Vouching(files).vouch("b", bytes(32)), "b"))
        self.assertEqual(x509.node_identity(CA.certificate), None)
        self.assertIsInstance(Vouching(files).vouch("b", bytes(32)), Struck)
