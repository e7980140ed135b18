"""Where receivers wait for a message.

In: topics and times. Out: Deferreds that wake in turn, a bounded number of them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall

from ron.kernel.clock import Clock
from ron.proto.errors import backpressure


class MailboxReactor(Clock, Protocol):
    """What the mailbox needs of a reactor."""

    def callFromThread(self, callable: Callable[..., Any], *args: object, **kwargs: object) -> None: ...


class WaitingRoom:
    """Receivers that wait for a message of their topic, first come first served, a bounded number of them.

    A topic's alarm wakes one of them when a lease is due to end; it goes when the last of them goes.
    """

    def __init__(self, reactor: MailboxReactor, *, limit: int, topic_limit: int) -> None:
        self._reactor = reactor
        self._limit = limit
        self._topic_limit = topic_limit
        self._seats: dict[str, int] = {}
        self._seated = 0
        self._asleep: dict[str, OrderedDict[Deferred[bool], IDelayedCall]] = {}
        self._alarms: dict[str, IDelayedCall] = {}
        # topics with a receiver that got nothing because as many messages are leased as may be
        self.capped: set[str] = set()

    def __len__(self) -> int:
        return self._seated

    def __contains__(self, topic: str) -> bool:
        return topic in self._seats

    @contextmanager
    def seat(self, topic: str) -> Iterator[None]:
        """A place to wait for `topic`. Raises `RonError(Backpressure)` when there is none."""
        taken = self._seats.get(topic, 0)
        if self._seated >= self._limit or taken >= self._topic_limit:
            raise backpressure("too many receivers are waiting")
        self._seats[topic] = taken + 1
        self._seated += 1
        try:
            yield
        finally:
            self._leave(topic)

    def sleep(self, topic: str, seconds: float, *, in_front: bool) -> Deferred[bool]:
        """Fires with True when there may be a message, with False when the time is up or the room closes.

        in_front: it was this receiver's turn already, and somebody else was quicker.
        """
        sleeper: Deferred[bool] = Deferred(lambda sleeper: self._rise(topic, sleeper))
        up = self._reactor.callLater(seconds, self._time_up, topic, sleeper)
        sleepers = self._asleep.setdefault(topic, OrderedDict())
        sleepers[sleeper] = up
        if in_front:
            sleepers.move_to_end(sleeper, last=False)
        return sleeper

    def wake(self, topic: str) -> None:
        """There may be a message of `topic`: wake who waits longest."""
        sleepers = self._asleep.get(topic)
        if sleepers:
            sleeper = next(iter(sleepers))
            self._rise(topic, sleeper)
            sleeper.callback(True)

    def alarm(self, topic: str, delay_s: float) -> None:
        """Wake someone of `topic` in `delay_s`, unless the alarm is set for an earlier time already."""
        at = self._reactor.seconds() + delay_s
        alarm = self._alarms.get(topic)
        if alarm is None:
            self._alarms[topic] = self._reactor.callLater(delay_s, self._ring, topic)
        elif at < alarm.getTime():
            alarm.reset(delay_s)

    def close(self) -> None:
        """Everyone goes home with nothing."""
        for topic, sleepers in list(self._asleep.items()):
            for sleeper in list(sleepers):
                self._rise(topic, sleeper)
                sleeper.callback(False)

    def _ring(self, topic: str) -> None:
        del self._alarms[topic]
        self.wake(topic)

    def _time_up(self, topic: str, sleeper: Deferred[bool]) -> None:
        self._rise(topic, sleeper)
        sleeper.callback(False)

    def _rise(self, topic: str, sleeper: Deferred[bool]) -> None:
        sleepers = self._asleep[topic]
        up = sleepers.pop(sleeper)
        if up.active():
            up.cancel()
        if not sleepers:
            del self._asleep[topic]

    def _leave(self, topic: str) -> None:
        self._seated -= 1
        self._seats[topic] -= 1
        if self._seats[topic] == 0:
            del self._seats[topic]
            self.capped.discard(topic)
            alarm = self._alarms.pop(topic, None)
            if alarm is not None:
                alarm.cancel()
