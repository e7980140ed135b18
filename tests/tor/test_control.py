"""What tor says over its ControlPort, read."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.tor.control import ANSWER_TIMEOUT_S, Bootstrap, ask, bootstrap, count_flagged, count_hsdirs

NS_ALL = """
r auth1 3kKvPkzyR3jLDJUpGtK2Cmvzoak 2026-01-02 03:04:05 127.0.0.1 20001 20002
s Authority Exit Fast Guard HSDir Running Stable V2Dir Valid
w Bandwidth=0 Unmeasured=1
r relay1 5jiaVwOnjY6vQwJ0hTaC2zXqvOE 2026-01-02 03:04:05 127.0.0.1 20003 0
s Fast Guard HSDir Running Stable V2Dir Valid
w Bandwidth=0 Unmeasured=1
r relay2 6jiaVwOnjY6vQwJ0hTaC2zXqvOE 2026-01-02 03:04:05 127.0.0.1 20004 0
s Fast Running Stable V2Dir Valid
r sHSDir 7jiaVwOnjY6vQwJ0hTaC2zXqvOE 2026-01-02 03:04:05 127.0.0.1 20005 0
s
"""
FLAGS = ["Running", "HSDir", "Guard", "Valid", "HSDirX"]


class Talker:
    """The other end of `GETINFO`: a tor in so far as `ask` sees one."""

    def __init__(self, **answers: str | Deferred[Any]) -> None:
        self.answers = answers

    def get_info(self, key: str) -> Deferred[Any]:
        answer = self.answers[key.replace("/", "_").replace("-", "_")]
        return answer if isinstance(answer, Deferred) else succeed({key: answer})


class Counting(SynchronousTestCase):
    def test_routers_with_all_of_the_flags(self) -> None:
        for flags, count in (
            ({"Running"}, 3),
            ({"Running", "HSDir", "Guard"}, 2),
            ({"Authority"}, 1),
            ({"HSDir", "Exit"}, 1),
            ({"BadExit"}, 0),
        ):
            self.assertEqual(count_flagged(NS_ALL, flags), count, flags)

    def test_nothing_yet(self) -> None:
        self.assertEqual(count_flagged("", {"Running"}), 0)

    @given(st.lists(st.sets(st.sampled_from(FLAGS))), st.sets(st.sampled_from(FLAGS)))
    def test_it_counts_supersets(self, routers: list[set[str]], wanted: set[str]) -> None:
        text = "\n".join(f"r x\ns {' '.join(sorted(flags))}" for flags in routers)
        self.assertEqual(count_flagged(text, wanted), sum(flags >= wanted for flags in routers))

    def test_hsdirs_that_run_and_may_be_guards(self) -> None:
        counting = Deferred.fromCoroutine(count_hsdirs(Clock(), Talker(ns_all=NS_ALL)))
        self.assertEqual(self.successResultOf(counting), 2)


class Asking(SynchronousTestCase):
    def test_how_far_tor_has_come(self) -> None:
        for said, meant in (
            (
                'NOTICE BOOTSTRAP PROGRESS=100 TAG=done SUMMARY="Done"',
                Bootstrap(100, "done", "Done"),
            ),
            (
                'WARN BOOTSTRAP PROGRESS=14 TAG=handshake SUMMARY="Handshaking with a relay" WARNING="Connection '
                'refused" REASON=CONNECTREFUSED COUNT=1 RECOMMENDATION=ignore',
                Bootstrap(14, "handshake", "Handshaking with a relay"),
            ),
            ('NOTICE BOOTSTRAP PROGRESS=0 TAG=starting SUMMARY=""', Bootstrap(0, "starting", "")),
            ("", Bootstrap(0, "?", "starting")),
            ("nonsense", Bootstrap(0, "?", "starting")),
        ):
            asking = Deferred.fromCoroutine(bootstrap(Clock(), Talker(status_bootstrap_phase=said)))
            self.assertEqual(self.successResultOf(asking), meant)

    def test_a_tor_that_does_not_answer(self) -> None:
        clock = Clock()
        asking = Deferred.fromCoroutine(ask(clock, Talker(version=Deferred()), "version"))
        clock.advance(ANSWER_TIMEOUT_S - 0.1)
        self.assertNoResult(asking)
        clock.advance(0.1)
        self.failureResultOf(asking, DeadlineError)
