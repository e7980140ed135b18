"""The bus's events: lossy for who is slow, never in the publisher's way, counted and told when something is lost."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.bus import Bus, Message, Subscription
from ron.kernel.events import KernelEvent
from ron.kernel.metrics import Metrics

CAPACITY = 4


def told(metrics: Metrics, name: str, **labels: str) -> float:
    """The value of a counter, 0 when it was never touched."""
    return metrics.registry.get_sample_value(name, labels) or 0.0


def bodies(subscription: Subscription) -> list[Any]:
    """Take everything that waits for `subscription`."""
    found: list[Any] = []
    while len(subscription):
        subscription.receive().addCallback(lambda message: found.append(message.body))
    return found


class BusCase(SynchronousTestCase):
    """A bus whose subscriptions hold four messages, and a clock that moves when told."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.wall = 1000.0
        self.bus = Bus(self.clock, self.metrics, capacity=CAPACITY, history=8, now=lambda: self.wall)
        self.kernel = self.bus.subscribe("kernel", name="kernel-watcher", capacity=64)

    def publish(self, *numbers: int, topic: str = "t") -> None:
        """Publish plain numbers."""
        for number in numbers:
            self.bus.publish(number, topic=topic)


class BadInput(BusCase):
    def test_kernel_events_and_nothing_else_on_their_topic(self) -> None:
        for body, topic in ((1, "kernel"), (KernelEvent.Shutdown(), "t"), (None, "kernel"), (KernelEvent(), "kernel")):
            with self.assertRaises(ValueError):
                self.bus.publish(body, topic=topic)
        self.assertEqual((self.bus.seq, len(self.kernel)), (0, 0))

    def test_two_receivers_of_one_subscription(self) -> None:
        subscription = self.bus.subscribe("t", name="one")
        subscription.receive()
        with self.assertRaises(RuntimeError):
            subscription.receive()

    def test_receiving_from_what_is_closed(self) -> None:
        subscription = self.bus.subscribe("t", name="one")
        self.publish(1)
        subscription.close()
        subscription.close()
        self.publish(2)
        self.failureResultOf(subscription.receive(), CancelledError)
        self.failureResultOf(subscription.receive(), CancelledError)

    def test_who_waits_is_told_when_it_is_closed(self) -> None:
        subscription = self.bus.subscribe("t", name="one")
        waiting = subscription.receive()
        subscription.close()
        self.failureResultOf(waiting, CancelledError)

    def test_topics_without_number_cost_a_bounded_number_of_series(self) -> None:
        """Topics come from other processes too."""
        for number in range(3000):
            self.bus.inject(Message(0, 0.0, f"f{number}.x", "child", "c", None))
        series = [s for m in self.metrics.registry.collect() for s in m.samples if s.name == "bus_published_total"]
        self.assertLess(len(series), 1100)
        self.assertEqual(sum(s.value for s in series), 3000)
        kept = [value for value in vars(self.bus).values() if isinstance(value, dict | list | deque)]
        self.assertLess(max(map(len, kept)), 1100)


class Overflow(BusCase):
    def test_the_oldest_go_and_are_counted(self) -> None:
        slow = self.bus.subscribe("t", name="slow")
        fast = self.bus.subscribe("t", name="fast", capacity=100)
        self.publish(*range(10))
        self.assertEqual(bodies(slow), [6, 7, 8, 9])
        self.assertEqual(bodies(fast), list(range(10)))
        self.assertEqual((slow.dropped, fast.dropped), (6, 0))
        self.assertEqual(told(self.metrics, "bus_overflow_dropped_total"), 6)
        self.assertEqual(told(self.metrics, "bus_lagged_total", subscriber="slow"), 6)
        self.assertEqual(told(self.metrics, "bus_lagged_total", subscriber="fast"), 0)

    def test_it_is_told_as_a_crash_of_bus_overflow(self) -> None:
        self.bus.subscribe("t", name="slow")
        self.publish(*range(10))
        self.assertEqual(len(self.kernel), 0)  # the publisher is not held up by the telling
        self.clock.advance(0)
        self.assertEqual(bodies(self.kernel), [KernelEvent.ServiceCrashed("bus-overflow", "slow lost 6")])

    def test_at_most_once_a_second(self) -> None:
        self.bus.subscribe("t", name="slow")
        for _ in range(25):
            self.publish(*range(10))
            self.clock.advance(0.125)
        words = [event.reason for event in bodies(self.kernel)]
        self.assertEqual(words, ["slow lost 6", "slow lost 80", "slow lost 80", "slow lost 80"])

    def test_a_full_kernel_watcher_does_not_keep_the_telling_going(self) -> None:
        """The word about the loss is lost there as well, and that must not be told for ever."""
        deaf = self.bus.subscribe("kernel", name="deaf", capacity=1)
        for _ in range(3):
            self.bus.publish(KernelEvent.Shutdown())
        for _ in range(100):
            self.clock.advance(1)
        self.assertEqual(len(self.clock.getDelayedCalls()), 0)
        self.assertLess(deaf.dropped, 5)

    @given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.integers(1, 8))
    def test_the_words_of_any_second_are_at_most_one(self, bursts: list[int], tenths: int) -> None:
        self.setUp()
        self.bus.subscribe("t", name="slow")
        told_at: list[float] = []
        self.bus.observe(lambda _message: told_at.append(self.clock.seconds()), "kernel", name="kernel-times")
        for burst in bursts:
            self.publish(*range(burst))
            for _ in range(3):
                self.clock.advance(0)
            self.clock.advance(tenths / 10)
        self.assertTrue(all(b - a >= 1 - 1e-9 for a, b in pairwise(told_at)))


class Delivery(BusCase):
    def test_the_publisher_never_runs_a_subscribers_code(self) -> None:
        ran: list[Any] = []
        self.bus.subscribe("t", name="waiter").receive().addCallback(ran.append)
        self.bus.observe(ran.append, "t", name="observer")
        self.publish(1, 2)
        self.assertEqual(ran, [])
        self.clock.advance(0)
        self.assertEqual(sorted(message.body for message in ran), [1, 1, 2])

    def test_an_observers_exception_is_logged_and_it_goes_on(self) -> None:
        seen: list[int] = []

        def fussy(message: Message) -> None:
            if message.body % 2:
                raise ZeroDivisionError
            seen.append(message.body)

        calm: list[int] = []
        self.bus.observe(fussy, "t", name="fussy")
        self.bus.observe(lambda message: calm.append(message.body), "t", name="calm")
        self.publish(1, 2, 3, 4)
        self.clock.advance(0)
        self.assertEqual((seen, calm), ([2, 4], [1, 2, 3, 4]))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 2)

    def test_an_observer_may_end_itself_and_publish(self) -> None:
        seen: list[int] = []

        def once(message: Message) -> None:
            seen.append(message.body)
            subscription.close()
            self.publish(message.body + 1)

        subscription = self.bus.observe(once, "t", name="once")
        self.publish(1, 5)
        for _ in range(5):
            self.clock.advance(0)
        self.assertEqual(seen, [1])

    def test_an_observer_with_much_to_do_lets_others_have_their_turn(self) -> None:
        seen: list[int] = []
        bus = Bus(self.clock, self.metrics)
        bus.observe(lambda message: seen.append(message.body), "t", name="busy")
        for number in range(1000):
            bus.publish(number, topic="t")
        others: list[int] = []
        self.clock.callLater(0, lambda: others.append(len(seen)))
        self.clock.advance(0)
        self.assertLess(others[0], 300)
        self.assertEqual(seen, list(range(1000)))

    def test_a_cancelled_wait_loses_nothing(self) -> None:
        subscription = self.bus.subscribe("t", name="one")
        waiting = subscription.receive()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.publish(1)
        self.clock.advance(0)
        self.assertEqual(self.successResultOf(subscription.receive()).body, 1)

    def test_a_wait_cancelled_by_another_subscribers_code(self) -> None:
        """Between publishing and delivery."""
        second = self.bus.subscribe("t", name="second")
        waiting = second.receive()
        waiting.addErrback(lambda failure: failure.trap(CancelledError))
        self.publish(1)
        waiting.cancel()
        self.clock.advance(0)
        self.assertEqual(bodies(second), [1])

    def test_what_a_message_says(self) -> None:
        subscription = self.bus.subscribe("t", name="one")
        self.bus.publish("a", topic="t", corr_id="c-1")
        self.wall = 1001.5
        self.bus.publish("b", topic="t")
        first, second = (self.successResultOf(subscription.receive()) for _ in range(2))
        self.assertEqual((first.seq, first.ts, first.origin, first.corr_id), (1, 1000.0, "node", "c-1"))
        self.assertEqual((second.seq, second.ts), (2, 1001.5))
        self.assertNotEqual(second.corr_id, first.corr_id)


class Topics(BusCase):
    def test_exact_family_and_all(self) -> None:
        patterns = {"exact": ("log.edge",), "family": ("log.*",), "all": ("*",), "both": ("log.edge", "kernel")}
        subscriptions = {name: self.bus.subscribe(*p, name=name, capacity=99) for name, p in patterns.items()}
        for topic in ("log.edge", "log.edge.deep", "log", "logs.edge", "kernel.x"):
            self.bus.publish(topic, topic=topic)
        self.bus.publish(KernelEvent.Shutdown())
        got = {name: bodies(subscription) for name, subscription in subscriptions.items()}
        self.assertEqual(got["exact"], ["log.edge"])
        self.assertEqual(got["family"], ["log.edge", "log.edge.deep"])
        self.assertEqual(len(got["all"]), 6)
        self.assertEqual(got["both"], ["log.edge", KernelEvent.Shutdown()])

    def test_no_pattern_means_the_kernels_events(self) -> None:
        subscription = self.bus.subscribe(name="plain")
        self.publish(1)
        self.bus.publish(KernelEvent.Shutdown())
        self.assertEqual(bodies(subscription), [KernelEvent.Shutdown()])

    def test_who_comes_later_is_heard_too(self) -> None:
        """The routes of a topic are remembered, and forgotten when somebody comes or goes."""
        self.publish(1)
        late = self.bus.subscribe("t", name="late")
        self.publish(2)
        self.assertEqual(bodies(late), [2])


class History(BusCase):
    def test_since_a_time_and_after_a_number(self) -> None:
        for number in range(4):
            self.wall = 1000.0 + number
            self.publish(number)
        self.assertEqual([m.body for m in self.bus.since(1002.0)], [2, 3])
        self.assertEqual([m.body for m in self.bus.since(0, "t", after_seq=3)], [3])
        self.assertEqual(self.bus.since(0, "other"), [])

    def test_the_oldest_are_forgotten(self) -> None:
        self.publish(*range(20))
        self.assertEqual([m.body for m in self.bus.since(0)], list(range(12, 20)))

    def test_what_others_published_is_numbered_here(self) -> None:
        self.publish(1)
        self.bus.inject(Message(77, 900.0, "t", "child", "c", 2))
        self.publish(3)
        self.assertEqual([(m.seq, m.origin) for m in self.bus.since(0)], [(1, "node"), (2, "child"), (3, "node")])


class Carriers(BusCase):
    def test_a_tap_hears_what_is_published_here_and_not_what_was_carried_in(self) -> None:
        heard: list[Any] = []
        undo = self.bus.tap(lambda message: heard.append(message.body))
        self.publish(1)
        self.bus.inject(Message(0, 0.0, "t", "child", "c", 2))
        undo()
        self.publish(3)
        self.assertEqual(heard, [1])


class EventsModel(RuleBasedStateMachine):
    """Three subscribers against three deques: each has the newest `capacity` of what it did not take."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.metrics = Metrics()
        self.bus = Bus(self.clock, self.metrics, capacity=CAPACITY)
        self.number = 0
        self.patterns = {"exact": ("a.x",), "family": ("a.*",), "all": ("a.*", "b")}
        self.real = {name: self.bus.subscribe(*p, name=name) for name, p in self.patterns.items()}
        self.model: dict[str, deque[int]] = {name: deque(maxlen=CAPACITY) for name in self.real}
        self.dropped = dict.fromkeys(self.real, 0)
        self.waiting: dict[str, Deferred[Message]] = {}
        self.received: dict[str, list[int]] = {name: [] for name in self.real}
        self.expected: dict[str, list[int]] = {name: [] for name in self.real}

    @rule(topic=st.sampled_from(["a.x", "a.y", "b"]), count=st.integers(1, 2 * CAPACITY))
    def publish(self, topic: str, count: int) -> None:
        """A burst."""
        for _ in range(count):
            self.number += 1
            self.bus.publish(self.number, topic=topic)
            for name, queue in self.model.items():
                if name == "all" or (topic == "a.x") or (name == "family" and topic == "a.y"):
                    self.dropped[name] += len(queue) == CAPACITY
                    queue.append(self.number)

    @rule(name=st.sampled_from(["exact", "family", "all"]))
    def take(self, name: str) -> None:
        """The next message, now or when there is one."""
        if name in self.waiting:
            return
        wait = self.real[name].receive()
        if self.model[name]:
            self.expected[name].append(self.model[name].popleft())
            wait.addCallback(lambda message: self.received[name].append(message.body))
        else:
            self.waiting[name] = wait
            wait.addCallback(lambda message: self.received[name].append(message.body))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up_waiting(self, data: st.DataObject) -> None:
        """A cancelled wait takes nothing away."""
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.pop(name).addErrback(lambda failure: failure.trap(CancelledError)).cancel()

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0]))
    def turn(self, seconds: float) -> None:
        """The reactor's turn: who waits gets its oldest."""
        for name in list(self.waiting):
            if self.model[name]:
                del self.waiting[name]
                self.expected[name].append(self.model[name].popleft())
        self.clock.advance(seconds)

    @invariant()
    def both_agree(self) -> None:
        """Everything received, everything still there, everything lost."""
        for name, subscription in self.real.items():
            assert self.received[name] == self.expected[name], name
            assert len(subscription) == len(self.model[name]), name
            assert subscription.dropped == self.dropped[name], name
        assert told(self.metrics, "bus_overflow_dropped_total") == sum(self.dropped.values())
        for name, count in self.dropped.items():
            assert told(self.metrics, "bus_lagged_total", subscriber=name) == count


class Model(SynchronousTestCase):
    def test_events(self) -> None:
        bounds = settings(max_examples=60, stateful_step_count=30, deadline=None)
        run_state_machine_as_test(EventsModel, settings=bounds)
