"""The book: what is refused of others' writings, and that all copies become one."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.mesh.book import LocalBook, number_of
from ron.services.balance.mesh.codec import encode
from ron.services.balance.mesh.entries import MAX_BY_AUTHOR, MAX_ENTRIES, Entries, Entry, Removed, write
from ron.services.balance.mesh.wire import Refused
from ron.services.balance.ports import Member

CLUSTER = b"c" * 16
KEYS = {name: SigningKey(name.encode() * 32) for name in "abcdx"}


class Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    text: str = ""


def member(name: str, signing: SigningKey | None = None) -> Member:
    key = bytes((signing or KEYS[name]).verify_key)
    return Member(name=name, number=number_of(name, key), key=key)


def book_of(name: str, *, members: str = "abc") -> LocalBook:
    """The book of `name`, in which `members` stand, on a's word."""
    book = LocalBook(CLUSTER, name, KEYS[name])
    known = [written(f"member/{each}", member(each), version=n + 1, author="a") for n, each in enumerate(members)]
    assert book.take(known, vouched=True) == []
    return book


def written(
    key: str, value: msgspec.Struct | bytes, *, version: int, author: str, signing: SigningKey | None = None
) -> Entry:
    packed = value if isinstance(value, bytes) else encode(value)
    return write(key, packed, version, author, signing or KEYS[author], CLUSTER)


class Refusals(SynchronousTestCase):
    """Entries that are not taken."""

    def setUp(self) -> None:
        self.book = book_of("a")
        self.changed: list[str] = []
        self.book.on_change(self.changed.append)

    def refused(self, reason: str, entry: Entry, *, vouched: bool = False) -> None:
        before = self.book.digest()
        self.assertEqual([(entry, reason)], self.book.take([entry], vouched=vouched))
        self.assertEqual((before, []), (self.book.digest(), self.changed))

    def test_forged(self) -> None:
        self.refused("bad_signature", written("promote", Note(), version=9, author="b", signing=KEYS["x"]))
        good = written("promote", Note(text="b"), version=9, author="b")
        for change in ({"version": 10}, {"key": "roulette"}, {"value": b"\x80"}, {"author": "c"}):
            self.refused("bad_signature", msgspec.structs.replace(good, **change))
        other_cluster = write("promote", b"\x80", 9, "b", KEYS["b"], b"d" * 16)
        self.refused("bad_signature", other_cluster)

    def test_a_strangers(self) -> None:
        self.refused("stranger", written("promote", Note(), version=9, author="x"))
        self.refused("stranger", written("member/x", member("x"), version=9, author="x"))

    def test_members_that_make_no_sense(self) -> None:
        wrong = msgspec.structs.replace(member("x"), number=member("x").number ^ 1)
        self.refused("malformed", written("member/x", wrong, version=9, author="b"))
        self.refused("malformed", written("member/d", member("x"), version=9, author="b"))
        self.refused("malformed", written("member/x", Note(), version=9, author="b"))
        self.refused("malformed", written("removed/x", Note(), version=9, author="b"))
        many = msgspec.structs.replace(member("x"), addresses=("h:1",) * 9)
        self.refused("malformed", written("member/x", many, version=9, author="b"))

    def test_a_version_that_would_leave_nobody_another(self) -> None:
        self.refused("stale", written("promote", Note(), version=2**53 - 1, author="b"))
        self.refused("stale", written("promote", Note(), version=2**33, author="b"))

    def test_after_its_authors_removal(self) -> None:
        before = written("siege/b", Note(text="before"), version=4, author="b")
        self.book.take([before])
        self.book.remove("b")
        self.changed.clear()
        self.refused("removed", written("siege/b", Note(text="after"), version=7, author="b"))
        self.refused("removed", written("roulette", Note(), version=99, author="b"))
        self.assertEqual(Note(text="before"), self.book.get("siege/b", Note))

    def test_a_removal_that_comes_late_takes_back_what_was_written_after_it(self) -> None:
        other = book_of("c")
        other.take([written("siege/b", Note(text="before"), version=4, author="b")])
        removal = written("removed/b", Removed(keys=(member("b").key,), before=4), version=5, author="a")
        after = written("siege/b", Note(text="after"), version=6, author="b")
        other.take([after])
        other.take([removal])
        self.assertIsNone(other.get("siege/b", Note))
        self.book.take([removal, after, written("siege/b", Note(text="before"), version=4, author="b")])
        other.take(self.book.entries)
        self.assertEqual(Note(text="before"), other.get("siege/b", Note))
        self.assertEqual(self.book.digest(), other.digest())

    def test_a_name_that_came_back_with_another_key(self) -> None:
        self.book.remove("b")
        self.book.put("member/b", member("b", KEYS["x"]))
        self.changed.clear()
        self.refused("removed", written("promote", Note(), version=20, author="b"))
        new = written("promote", Note(), version=20, author="b", signing=KEYS["x"])
        self.assertEqual([], self.book.take([new]))

    def test_too_much_of_ours(self) -> None:
        for act, code in (
            (lambda: self.book.put("promote", Note(text="x" * 4096)), ErrorCode.TOO_LARGE),
            (lambda: self.book.put("Promote", Note()), ErrorCode.BAD_REQUEST),
            (lambda: self.book.put("", Note()), ErrorCode.BAD_REQUEST),
        ):
            self.assertEqual(code, self.assertRaises(RonError, act).code)
        for number in range(MAX_BY_AUTHOR - 3):
            self.book.put(f"siege/{number}", Note())
        self.assertEqual(ErrorCode.BACKPRESSURE, self.assertRaises(RonError, self.book.put, "one", Note()).code)
        self.book.put("siege/1", Note(text="those there are may change"))

    def test_too_much_of_anothers(self) -> None:
        entries = Entries()
        for number in range(MAX_ENTRIES):
            entries.merge(Entry(f"k{number}", b"", 1, "abc"[number % 3], bytes(64)))
        problem = self.assertRaises(Refused, entries.merge, Entry("more", b"", 1, "a", bytes(64)))
        self.assertEqual("full", problem.reason)
        self.assertEqual(MAX_ENTRIES, len(entries))


class Values(SynchronousTestCase):
    """The port."""

    def test_put_get_end(self) -> None:
        told: list[Entry] = []
        book = book_of("a")
        book.tell = told.append
        changed: list[str] = []
        book.on_change(changed.append)
        book.put("siege/b", Note(text="1"))
        book.put("siege/a", Note(text="2"))
        self.assertEqual(("siege/a", "siege/b"), book.keys("siege/"))
        self.assertEqual(Note(text="1"), book.get("siege/b", Note))
        self.assertIsNone(book.get("siege/b", Removed))
        book.put("siege/b", None)
        self.assertIsNone(book.get("siege/b", Note))
        self.assertEqual(("siege/a",), book.keys("siege/"))
        self.assertEqual(["siege/b", "siege/a", "siege/b"], changed)
        self.assertEqual([], book_of("b").take(told))

    def test_only_changes_are_told(self) -> None:
        book, changed = book_of("a"), []
        book.on_change(changed.append)
        entry = written("promote", Note(), version=9, author="b")
        for _ in range(2):
            book.take([entry, written("promote", Note(text="older"), version=8, author="c")])
        self.assertEqual(["promote"], changed)

    def test_a_newcomer_believes_who_vouches(self) -> None:
        old = book_of("a")
        old.put("promote", Note(text="x"))
        entries = list(old.entries)
        stranger = LocalBook(CLUSTER, "d", KEYS["d"])
        self.assertEqual({"stranger"}, {reason for _entry, reason in stranger.take(entries)})
        self.assertEqual([], stranger.take(entries, vouched=True))
        self.assertEqual(old.digest(), stranger.digest())

    def test_authors_in_any_order(self) -> None:
        book = book_of("a", members="ab")
        chain = [
            written("promote", Note(), version=12, author="d"),
            written("member/d", member("d"), version=11, author="c"),
            written("member/c", member("c"), version=10, author="b"),
        ]
        self.assertEqual([], book.take(chain))
        self.assertEqual([], book_of("a", members="ab").take(reversed(chain)))


ENTRY = st.builds(
    written,
    st.sampled_from(["k1", "k2", "siege/a"]),
    st.sampled_from([b"", b"\x80", b"\x81\xa4text\xa1x"]),
    version=st.integers(4, 12),
    author=st.sampled_from("abc"),
)


class Merging(SynchronousTestCase):
    """Whoever hears what, in whatever order."""

    @given(st.lists(ENTRY, max_size=12), st.lists(ENTRY, max_size=12), st.lists(ENTRY, max_size=12))
    @settings(max_examples=100)
    def test_commutative_associative_idempotent(self, one: list[Entry], two: list[Entry], three: list[Entry]) -> None:
        def merged(*lists: list[Entry]) -> bytes:
            return Entries(entry for entries in lists for entry in entries).digest()

        self.assertEqual(merged(one, two), merged(two, one))
        self.assertEqual(merged(list(Entries(one + two)), three), merged(one, list(Entries(two + three))))
        self.assertEqual(merged(one), merged(one, one))

    @given(st.lists(ENTRY, max_size=12), st.randoms(use_true_random=False), st.booleans())
    @settings(max_examples=60, deadline=None)
    def test_copies_become_one(self, entries: list[Entry], rng: object, removal: bool) -> None:
        if removal:
            entries = [
                *entries,
                written("removed/c", Removed(keys=(member("c").key,), before=8), version=9, author="a"),
            ]
        books = [book_of(name) for name in "abc"]
        for book in books:
            shuffled = list(entries)
            rng.shuffle(shuffled)  # type: ignore[attr-defined]
            for entry in shuffled[: len(shuffled) * 2 // 3]:
                book.take([entry])
        # what all three miss nobody has; the rest goes round
        for _round in range(3):
            for book in books:
                for other in books:
                    book.take(list(other.entries))
        self.assertEqual(1, len({book.digest() for book in books}))
