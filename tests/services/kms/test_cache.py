"""What is remembered: public halves and their age, and acts by their op_id."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as some
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import CreateKeyRequest
from ron.services.kms.cache import PublicCache
from ron.services.kms.once import Remembered, Step, act_digest, judge

few = settings(deadline=None, max_examples=100)
OP_ID = "00000000-0000-4000-8000-000000000001"


class Cache(SynchronousTestCase):
    def setUp(self) -> None:
        self.cache: PublicCache[str, bytes] = PublicCache(size=3, soft_ttl_ms=1000, hard_ttl_ms=5000)

    def test_limits_that_make_no_sense(self) -> None:
        for size, soft, hard in ((0, 1, 1), (1, 0, 1), (1, 2, 1)):
            self.assertRaises(ValueError, PublicCache, size=size, soft_ttl_ms=soft, hard_ttl_ms=hard)

    def test_ages(self) -> None:
        self.assertIsNone(self.cache.get("a", 0.0))
        self.cache.put("a", b"A", 10.0)
        self.assertEqual(self.cache.get("a", 10.25), (b"A", 250, False))
        self.assertEqual(self.cache.get("a", 11.0), (b"A", 1000, False))
        self.assertEqual(self.cache.get("a", 11.5), (b"A", 1500, True))
        self.assertEqual(self.cache.get("a", 15.0), (b"A", 5000, True))
        self.assertIsNone(self.cache.get("a", 15.5))
        self.assertIsNone(self.cache.get("a", 10.0), "gone is gone")
        counts = self.cache.counts
        self.assertEqual((counts.hits, counts.misses, counts.stale, counts.overdue), (4, 3, 2, 1))

    def test_the_store_makes_it_young_again(self) -> None:
        self.cache.put("a", b"A", 0.0)
        self.cache.put("a", b"B", 4.0)
        self.assertEqual(self.cache.get("a", 4.5), (b"B", 500, False))
        self.assertEqual(len(self.cache), 1)

    def test_a_clock_that_goes_back(self) -> None:
        self.cache.put("a", b"A", 100.0)
        self.assertEqual(self.cache.get("a", 50.0), (b"A", 0, False))

    def test_the_one_nobody_asked_for_goes(self) -> None:
        for key in "abc":
            self.cache.put(key, b"x", 0.0)
        self.cache.get("a", 0.0)
        self.cache.put("d", b"x", 0.0)
        self.assertEqual([self.cache.get(key, 0.0) is not None for key in "abcd"], [True, False, True, True])
        self.assertEqual(self.cache.counts.evicted, 1)

    def test_forgetting(self) -> None:
        for key in "abc":
            self.cache.put(key, b"x", 0.0)
        self.cache.drop("a")
        self.cache.drop("a")
        self.assertIsNone(self.cache.get("a", 0.0))
        self.cache.clear()
        self.assertEqual(len(self.cache), 0)

    @few
    @given(some.lists(some.tuples(some.sampled_from("abcdef"), some.booleans(), some.floats(0, 3))))
    def test_as_a_plain_dict_with_dates(self, acts: list[tuple[str, bool, float]]) -> None:
        """It gives what was last put and nothing older than the hard limit, and is never over its size."""
        cache: PublicCache[str, int] = PublicCache(size=3, soft_ttl_ms=1000, hard_ttl_ms=5000)
        truth: dict[str, tuple[int, float]] = {}
        now_s = 0.0
        for number, (key, is_put, wait_s) in enumerate(acts):
            now_s += wait_s
            if is_put:
                cache.put(key, number, now_s)
                truth[key] = (number, now_s)
            elif (got := cache.get(key, now_s)) is not None:
                self.assertEqual(got.value, truth[key][0])
                self.assertLessEqual(got.age_ms, 5000)
                self.assertEqual(got.stale, got.age_ms > 1000)
            self.assertLessEqual(len(cache), 3)


class Acts(SynchronousTestCase):
    body = CreateKeyRequest(tenant="acme", purpose="sign", alg="ed25519", op_id=OP_ID)
    what = act_digest("cap", "create", body)

    def test_another_act_with_the_same_op_id(self) -> None:
        others = (
            act_digest("other", "create", self.body),
            act_digest("cap", "rotate", self.body),
            act_digest("cap", "create", replace(self.body, alg="ml-dsa")),
        )
        for other in others:
            for answer in (None, b"{}"):
                error = self.assertRaises(RonError, judge, Remembered(self.what, 0.0, answer), other, 1.0)
                self.assertIs(error.code, ErrorCode.CONFLICT)

    def test_one_that_is_under_way(self) -> None:
        error = self.assertRaises(RonError, judge, Remembered(self.what, 0.0), self.what, 1.0)
        self.assertTrue(error.retryable)

    def test_the_same_act(self) -> None:
        self.assertEqual(self.what, act_digest("cap", "create", replace(self.body, op_id=None)))
        self.assertIs(judge(None, self.what, 0.0), Step.DO)
        known = Remembered(self.what, 1000.0, b"{}")
        for now_s in (0.0, 1000.0, 1000.0 + 86_400):
            self.assertIs(judge(known, self.what, now_s), Step.ANSWER)
        self.assertIs(judge(known, self.what, 1001.0 + 86_400), Step.DO)

    def test_fields_in_another_order_are_the_same_act(self) -> None:
        one = replace(self.body, policy_hints={"a": 1, "b": {"x": 1, "y": 2}})
        other = replace(self.body, policy_hints={"b": {"y": 2, "x": 1}, "a": 1})
        self.assertEqual(act_digest("cap", "create", one), act_digest("cap", "create", other))
