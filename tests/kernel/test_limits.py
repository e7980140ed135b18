"""Rates, connections, streams, concurrency and pace: bounds that hold whatever is asked, and in whatever order."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.limits import Concurrency, Pace, Peer, PeerTable, Refused, TokenBucket, peer_name, too_many
from ron.kernel.limits_config import LimitsConfig
from ron.proto.errors import ErrorCode

TIGHT = LimitsConfig(
    connections=5,
    connections_per_peer=3,
    streams_per_peer=2,
    requests_per_second_per_peer=4,
    bytes_per_second_per_peer=1024,
)


class Buckets(SynchronousTestCase):
    def test_a_bucket_that_lets_nothing_through_is_refused(self) -> None:
        for rate, burst in ((0, 1), (1, 0), (-1, 1), (1, -1)):
            self.assertRaises(ValueError, TokenBucket, rate, burst, 0.0)

    def test_a_burst_and_then_the_rate(self) -> None:
        bucket = TokenBucket(2.0, 3.0, 100.0)
        self.assertEqual([bucket.take(1, 100.0) for _ in range(4)], [0.0, 0.0, 0.0, 0.5])
        self.assertAlmostEqual(bucket.take(1, 100.4), 0.1)
        self.assertEqual(bucket.take(1, 100.5), 0.0)
        self.assertEqual(bucket.take(1, 100.5), 0.5)

    def test_debt_is_paid_by_waiting(self) -> None:
        bucket = TokenBucket(10.0, 10.0, 0.0)
        bucket.spend(110)
        self.assertEqual(bucket.wait_s(0.0, 0.0), 10.0)
        self.assertAlmostEqual(bucket.wait_s(1.0, 4.0), 6.1)
        self.assertEqual(bucket.take(1.0, 10.1), 0.0)

    def test_more_than_the_burst_counts_as_the_burst(self) -> None:
        """Otherwise it would never be there."""
        bucket = TokenBucket(1.0, 5.0, 0.0)
        self.assertEqual(bucket.take(50.0, 0.0), 0.0)
        self.assertEqual(bucket.wait_s(5.0, 0.0), 50.0)

    def test_a_clock_that_is_set_back_neither_gives_nor_takes(self) -> None:
        bucket = TokenBucket(1.0, 2.0, 1000.0)
        bucket.take(2, 1000.0)
        self.assertEqual(bucket.take(1, 10.0), 1.0)
        self.assertEqual(bucket.take(1, 11.0), 0.0)

    @given(
        st.floats(0.1, 1000), st.floats(1, 1000), st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 50)), max_size=60)
    )
    def test_never_more_than_the_burst_and_the_rate(
        self, rate: float, burst: float, asked: list[tuple[float, float]]
    ) -> None:
        bucket, now_s, taken = TokenBucket(rate, burst, 0.0), 0.0, 0.0
        for pause_s, tokens in asked:
            now_s += pause_s
            tokens = min(tokens, burst)
            wait_s = bucket.take(tokens, now_s)
            taken += tokens if wait_s == 0.0 else 0.0
            self.assertGreaterEqual(wait_s, 0.0)
            self.assertLessEqual(taken, (burst + rate * now_s) * (1 + 1e-9) + 1e-6)

    @given(st.floats(0.1, 100), st.floats(1, 100), st.floats(0, 500))
    def test_the_wait_it_tells_is_the_wait_it_takes(self, rate: float, burst: float, debt: float) -> None:
        bucket = TokenBucket(rate, burst, 0.0)
        bucket.spend(debt)
        wait_s = bucket.wait_s(1.0, 0.0)
        if wait_s > 1e-6:
            self.assertGreater(bucket.wait_s(1.0, wait_s * 0.99), 0.0)
        self.assertLess(bucket.wait_s(1.0, wait_s * 1.01 + 1e-6), 1e-6)


class Paces(SynchronousTestCase):
    def test_a_byte_now_and_then_does_not_buy_time_for_ever(self) -> None:
        pace, now_s = Pace(15.0, 1024.0, 0.0), 0.0
        while now_s <= pace.due_s():
            now_s += 5.0
            pace.moved(1, now_s)
        self.assertEqual(now_s, 20.0)

    def test_silence_ends_it_however_much_came_before(self) -> None:
        pace = Pace(15.0, 1024.0, 0.0)
        pace.moved(10_000_000, 1.0)
        self.assertEqual(pace.due_s(), 16.0)

    def test_a_steady_sender_is_waited_for(self) -> None:
        pace = Pace(15.0, 1024.0, 0.0)
        for second in range(1, 1000):
            pace.moved(1100, second)
            self.assertGreater(pace.due_s(), second)


class Peers(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.table = PeerTable(TIGHT, self.clock.seconds)

    def refused(self, reason: str, status: int, function: object, *arguments: object) -> Refused:
        error: Refused = self.assertRaises(Refused, function, *arguments)
        self.assertEqual((error.reason, error.status), (reason, status))
        self.assertTrue(error.retryable)
        return error

    def test_connections_of_one_peer_and_of_all(self) -> None:
        for _ in range(3):
            self.table.connect("a")
        self.refused("connections_per_peer", 503, self.table.connect, "a")
        self.table.connect("b")
        self.table.connect("c")
        self.refused("connections", 503, self.table.connect, "d")
        self.table.disconnect("a")
        self.table.connect("d")

    def test_streams_of_one_peer_over_all_its_connections(self) -> None:
        one, same = self.table.connect("a"), self.table.connect("a")
        self.assertIs(one, same)
        one.open_stream(0.0)
        same.open_stream(0.0)
        self.refused("streams", 429, one.open_stream, 0.0)
        same.close_stream()
        one.open_stream(0.0)

    def test_requests_a_second(self) -> None:
        peer = self.table.connect("a")
        for _ in range(4):
            peer.open_stream(0.0)
            peer.close_stream()
        self.refused("rate", 429, peer.open_stream, 0.0)
        self.assertEqual(peer.streams, 0)
        peer.open_stream(0.25)

    def test_bytes_a_second_are_paid_by_the_next_request(self) -> None:
        peer = self.table.connect("a")
        peer.charge_bytes(1024 * 20)
        error = self.refused("bytes", 429, peer.open_stream, 0.0)
        self.assertEqual(error.retry_after_s, 20)
        self.refused("bytes", 429, peer.check_bytes, 18.9)
        peer.open_stream(19.1)

    def test_a_short_wait_is_left_to_the_edges_random_retry_after(self) -> None:
        self.assertIs(too_many("rate", "x", wait_s=4.9).retry_after_s, None)
        self.assertEqual(too_many("rate", "x", wait_s=5.1).retry_after_s, 6)

    def test_hanging_up_wins_nothing(self) -> None:
        self.table.connect("a").charge_bytes(10_000)
        self.table.disconnect("a")
        self.refused("bytes", 429, self.table.connect("a").open_stream, 0.0)

    def test_who_owes_nothing_is_forgotten_at_once(self) -> None:
        self.table.connect("a")
        self.table.disconnect("a")
        self.assertEqual(len(self.table), 0)

    def test_many_peers_that_come_and_go_take_no_more_than_is_remembered(self) -> None:
        table = PeerTable(TIGHT, self.clock.seconds, remembered=50)
        for n in range(500):
            table.connect(str(n)).charge_bytes(10_000_000)
            table.disconnect(str(n))
            self.assertLessEqual(len(table), 50)
        self.refused("bytes", 429, table.connect("499").open_stream, 0.0)
        self.clock.advance(1e6)
        for n in range(30):
            table.connect(str(n)).charge_bytes(5000)
            table.disconnect(str(n))
        self.assertLessEqual(len(table), 31, "those who have paid go as others come")

    def test_new_limits_hold_for_those_who_are_there(self) -> None:
        peer = self.table.connect("a")
        self.table.apply(msgspec.structs.replace(TIGHT, streams_per_peer=1, connections_per_peer=1))
        self.refused("connections_per_peer", 503, self.table.connect, "a")
        peer.open_stream(0.0)
        self.refused("streams", 429, peer.open_stream, 0.0)
        self.table.disconnect("a")
        self.assertEqual(self.table.connections, 0)

    def test_concurrency_turns_the_next_one_away(self) -> None:
        work = Concurrency(2)
        work.enter()
        work.enter()
        error = self.refused("concurrency", 503, work.enter)
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        work.leave()
        work.enter()
        self.assertEqual(work.busy, 2)


class Names(SynchronousTestCase):
    def test_who_is_one_peer(self) -> None:
        for host, name in (
            ("127.0.0.1", "127.0.0.1"),
            ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
            ("2001:db8:1:2:bbbb::2", "2001:db8:1:2::/64"),
            ("fe80::1%eth0", "fe80::/64"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("::1", "::/64"),
            (None, "local"),
            ("", "local"),
            ("no:address", "no:address"),
        ):
            self.assertEqual(peer_name(host), name)


class Comings(RuleBasedStateMachine):
    """Peers that connect, ask, are answered and leave in any order: no cap is passed, and nothing is left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.table = PeerTable(TIGHT, self.clock.seconds, remembered=2)
        self.open: list[tuple[str, Peer]] = []
        self.asking: list[Peer] = []

    @rule(name=st.sampled_from("abcd"))
    def connect(self, name: str) -> None:
        of_name = sum(1 for other, _ in self.open if other == name)
        room = len(self.open) < 5 and of_name < 3
        try:
            self.open.append((name, self.table.connect(name)))
        except Refused:
            assert not room
        else:
            assert room

    @precondition(lambda self: self.open)
    @rule(pick=st.randoms(use_true_random=False))
    def disconnect(self, pick: object) -> None:
        name, _ = self.open.pop(pick.randrange(len(self.open)))  # type: ignore[attr-defined]
        self.table.disconnect(name)

    @precondition(lambda self: self.open)
    @rule(pick=st.randoms(use_true_random=False), size=st.integers(0, 3000))
    def ask(self, pick: object, size: int) -> None:
        _, peer = pick.choice(self.open)  # type: ignore[attr-defined]
        peer.charge_bytes(size)
        try:
            peer.open_stream(self.clock.seconds())
        except Refused:
            return
        self.asking.append(peer)

    @precondition(lambda self: self.asking)
    @rule()
    def answer(self) -> None:
        self.asking.pop().close_stream()

    @rule(seconds=st.floats(0, 10))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def the_counts_are_right(self) -> None:
        assert self.table.connections == len(self.open)
        assert len(self.table) <= len({name for name, _ in self.open}) + 2
        for _, peer in self.open:
            assert peer.streams == sum(1 for other in self.asking if other is peer) <= 2


class ComingsAndGoings(SynchronousTestCase):
    def test_in_any_order(self) -> None:
        run_state_machine_as_test(Comings)
