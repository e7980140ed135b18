"""What the service remembers of its keys: acts once, versions in order, changes that count; and the index of it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg, Kid
from ron.services.kms.index import KeyIndex
from ron.services.kms.once import KEPT_S
from ron.services.kms.ports import Half
from ron.services.kms.store import HEADS_KEPT, NOTHING, Act, KeyRecord, KmsStore, VersionRecord
from tests.services.kms.world import op_id

KID = Kid("core", "audit", "hybrid", "00000000-0000-4000-8000-000000000001")
HALVES = (Half(Alg.ED25519, b"\x01" * 32), Half(Alg.ML_DSA, b"\x02" * 1952))
KEY = KeyRecord(KID.key, {"rotate_days": 30}, 1000.5)


def version(n: int = 1, state: Any = "live", kid: Kid = KID) -> VersionRecord:
    return VersionRecord(kid.at(n), state, HALVES, "software-file", 1000.5)


class Store(TestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "kms.sqlite3"
        self.store = KmsStore(self.path, reactor=reactor)
        return self.store.start()  # type: ignore[return-value]

    def tearDown(self) -> Deferred[None]:
        return self.store.stop()

    async def again(self) -> None:
        await self.store.stop()
        self.store = KmsStore(self.path, reactor=reactor)
        await self.store.start()

    async def refused(self, call: Deferred[Any]) -> RonError:
        error: RonError = await self.assertFailure(call, RonError)
        return error

    async def test_everything_is_there_again(self) -> None:
        act = Act("core", op_id(1), b"d" * 32, str(KID.at(1)), None, 1.0)
        begun = await self.store.begin(KEY, KID.at(1), act)
        self.assertEqual((begun.mark and begun.mark.counter, begun.act), (1, None))
        mark = await self.store.finish(version(), act._replace(answer=b"{}"))
        await self.again()
        found = await self.store.load()
        self.assertEqual((found.keys, found.versions, found.mark), ((KEY,), (version(),), mark))
        self.assertEqual(await self.store.known("core", op_id(1)), act._replace(answer=b"{}"))
        self.assertIsNone(await self.store.known("acme", op_id(1)))
        self.assertEqual(self.path.stat().st_mode & 0o077, 0)

    async def test_an_act_is_begun_once(self) -> None:
        act = Act("core", op_id(1), b"d" * 32, str(KID.at(1)), None, 1.0)
        await self.store.begin(KEY, KID.at(1), act)
        again = await self.store.begin(KEY, KID.at(2), act)
        self.assertEqual((again.mark, again.act), (None, act))
        self.assertEqual(len((await self.store.load()).versions), 1)

    async def test_versions_come_in_their_order(self) -> None:
        for wrong in (0, 2):
            self.assertEqual((await self.refused(self.store.begin(KEY, KID.at(wrong), None))).code, ErrorCode.CONFLICT)
        await self.store.begin(KEY, KID.at(1), None)
        self.assertEqual((await self.refused(self.store.begin(KEY, KID.at(1), None))).code, ErrorCode.CONFLICT)
        await self.store.begin(KEY, KID.at(2), None)

    async def test_what_came_to_nothing(self) -> None:
        act = Act("core", op_id(1), b"d" * 32, str(KID.at(1)), None, 1.0)
        await self.store.begin(KEY, KID.at(1), act)
        await self.store.abandon(KID.at(1), act)
        found = await self.store.load()
        self.assertEqual((found.keys, found.versions, found.mark.counter), ((), (), 2))
        self.assertIsNone(await self.store.known("core", op_id(1)))
        await self.store.begin(KEY, KID.at(1), act)
        await self.store.abandon(KID.at(1), None)
        self.assertIsNone(await self.store.known("core", op_id(1)))

    async def test_what_is_live_is_not_abandoned(self) -> None:
        await self.store.begin(KEY, KID.at(1), None)
        await self.store.finish(version(), None)
        await self.store.abandon(KID.at(1), None)
        self.assertEqual((await self.store.load()).versions, (version(),))

    async def test_a_version_that_is_not_there(self) -> None:
        self.assertEqual((await self.refused(self.store.finish(version(), None))).code, ErrorCode.STORE_UNAVAILABLE)

    async def test_every_change_counts_and_chains(self) -> None:
        self.assertEqual((await self.store.load()).mark, NOTHING)
        await self.store.begin(KEY, KID.at(1), None)
        marks = [await self.store.change([version(1, state)], None) for state in ("live", "destroying", "destroyed")]
        self.assertEqual([mark.counter for mark in marks], [2, 3, 4])
        self.assertEqual(len({mark.head for mark in marks}), 3)
        self.assertEqual(await self.store.head_at(3), marks[1].head)
        self.assertIsNone(await self.store.head_at(5))
        self.assertGreater(HEADS_KEPT, 1000)

    async def test_old_acts_are_forgotten_and_unanswered_ones_are_not(self) -> None:
        done = Act("core", op_id(1), b"d" * 32, "x", b"{}", 1.0)
        await self.store.begin(KEY, KID.at(1), done)
        open_act = Act("core", op_id(2), b"d" * 32, "y", None, 1.0)
        await self.store.begin(KEY, KID.at(2), open_act)
        await self.store.forget_acts(2.0)
        self.assertIsNone(await self.store.known("core", op_id(1)))
        self.assertEqual(await self.store.known("core", op_id(2)), open_act)
        await self.store.probe()

    async def test_an_op_id_of_long_ago_is_free_again(self) -> None:
        """Also where nobody has swept since: a daemon may run for months."""
        act = Act("core", op_id(1), b"d" * 32, str(KID.at(1)), b"{}", 1.0)
        await self.store.begin(KEY, KID.at(1), act)
        another = act._replace(digest=b"e" * 32, answer=None, at_s=1.0 + KEPT_S)
        self.assertEqual((await self.store.begin(KEY, KID.at(2), another)).act, act)
        another = another._replace(at_s=1.5 + KEPT_S)
        self.assertIsNone((await self.store.begin(KEY, KID.at(2), another)).act)
        self.assertEqual(await self.store.known("core", op_id(1)), another)
        # one that was never answered is not given up, however old it is
        third = another._replace(at_s=another.at_s + 2 * KEPT_S)
        self.assertEqual((await self.store.begin(KEY, KID.at(3), third)).act, another)

    async def test_a_damaged_row(self) -> None:
        await self.store.begin(KEY, KID.at(1), None)
        await self.store.stop()
        with sqlite3.connect(self.path) as connection:
            connection.execute("UPDATE version SET halves = x'00'")
        connection.close()
        self.store = KmsStore(self.path, reactor=reactor)
        await self.store.start()
        self.assertIn("damaged", (await self.refused(self.store.load())).message)


class Index(SynchronousTestCase):
    def setUp(self) -> None:
        self.index = KeyIndex()
        self.index.load([KEY], [version(1, "destroyed"), version(2), version(3), version(4, "pending")])

    def missing(self, call: Any, *args: Any) -> None:
        self.assertEqual(self.assertRaises(RonError, call, *args).code, ErrorCode.NOT_FOUND)

    def test_which_version_is_meant(self) -> None:
        self.assertEqual(self.index.version(KID).kid.version, 3)
        self.assertEqual(self.index.signing(KID).kid.version, 3)
        self.assertEqual(self.index.version(KID.at(1)).kid.version, 1)
        self.missing(self.index.signing, KID.at(1))
        self.missing(self.index.version, KID.at(4))
        self.missing(self.index.version, KID._replace(tenant="acme"))
        self.assertEqual([one.kid.version for one in self.index.entry(KID).verifiable()], [1, 2, 3])
        self.assertEqual([one.kid.version for one in self.index.unsettled()], [4])

    def test_without_a_version_that_was_made(self) -> None:
        other = KID._replace(uuid="00000000-0000-4000-8000-000000000002")
        self.index.add(KeyRecord(other.key, {}, 1.0))
        self.index.put(version(1, "pending", other))
        self.missing(self.index.entry, other)
        self.assertEqual(len(list(self.index)), 1)
        self.index.drop(other.at(1))
        self.index.drop(other.at(1))
        self.assertEqual(len(self.index), 1)

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(["a", "a-b", "a.b", "ab", "b"]), st.integers(0, 5)), unique=True))
    def test_each_tenants_keys_and_no_others(self, made: list[tuple[str, int]]) -> None:
        index = KeyIndex()
        for tenant, number in made:
            kid = Kid(tenant, "audit", "hybrid", op_id(number))
            index.add(KeyRecord(kid.key, {}, 1.0))
            index.put(version(1, "live", kid))
        for tenant in ("a", "a-b", "a.b", "ab", "b", "c"):
            wanted = sorted(Kid(t, "audit", "hybrid", op_id(n)).key for t, n in made if t == tenant)
            self.assertEqual([entry.kid.key for entry in index.of_tenant(tenant)], wanted)
            if wanted:
                self.assertEqual([e.kid.key for e in index.of_tenant(tenant, wanted[0])], wanted[1:])
        self.assertEqual(len(list(index.everything())), len(made))
