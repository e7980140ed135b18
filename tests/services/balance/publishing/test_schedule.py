"""What a directory's answer means, and when another publication is due."""

from __future__ import annotations

from itertools import islice

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.publishing.publisher import Publication
from ron.services.balance.publishing.schedule import (
    CALM_S,
    EMERGENCY_AGE_S,
    PAUSES_S,
    RIVAL_CEILING_S,
    RIVAL_S,
    STEADY_S,
    Asked,
    Found,
    Rivalry,
    another_due,
    judge,
    pauses_s,
    probed,
)
from ron.tor.descriptor.hashring import Ring
from ron.tor.descriptor.periods import RUN_ROUNDS
from tests.services.balance.publishing.samples import INTERVAL_S, TIME, backend, ring_with
from tests.services.balance.publishing.test_publisher import World

RING = ring_with(count=40)


def publication() -> Publication:
    world = World(RING)
    done = world.publishing({"a": backend("a")})
    world.pass_s(0.2)
    made: list[Publication] = []
    done.addCallback(made.append)
    return made[0]


PUBLICATION = publication()


def later(seconds: int) -> Ring:
    moved = TIME.valid_after_s + seconds
    time = msgspec.structs.replace(TIME, valid_after_s=moved)
    # the value of one run is the previous one of the next
    if time.run_start_s != TIME.run_start_s:
        srv_current, srv_previous = TIME.due()[1].srv, TIME.due()[0].srv
        time = msgspec.structs.replace(time, srv_current=b"\x07" * 32, srv_previous=srv_current or srv_previous)
    return msgspec.structs.replace(RING, time=time)


class Judging(SynchronousTestCase):
    def setUp(self) -> None:
        self.placed = PUBLICATION.placed[0]
        self.fingerprint, self.text = next(iter(self.placed.texts.items()))

    def judge(self, text: str | None, revision: int | None = None) -> Found:
        return judge(self.placed, self.fingerprint, text, revision)

    def test_each(self) -> None:
        ours = self.placed.revision
        self.assertIs(self.judge(None), Found.MISSING)
        self.assertIs(self.judge("not of the address", None), Found.BROKEN)
        self.assertIs(self.judge("older", ours - 1), Found.OLDER)
        self.assertIs(self.judge("another of the same counter", ours), Found.ABOVE)
        self.assertIs(self.judge("above", ours + 1), Found.ABOVE)
        self.assertIs(self.judge(self.text.rstrip("\n"), None), Found.HELD)


class Due(SynchronousTestCase):
    def due(self, ring: Ring = RING, age_s: float = 0, every_s: float = 600) -> Asked | None:
        return another_due(PUBLICATION, ring, age_s, every_s)

    def test_not_yet(self) -> None:
        self.assertIsNone(self.due())
        self.assertIsNone(self.due(age_s=599))
        self.assertIsNone(self.due(later(INTERVAL_S)))

    def test_too_old(self) -> None:
        self.assertIs(self.due(age_s=600), Asked.TOO_OLD)
        self.assertIsNone(self.due(age_s=EMERGENCY_AGE_S - 1, every_s=1e9))
        self.assertIs(self.due(age_s=EMERGENCY_AGE_S, every_s=1e9), Asked.TOO_OLD)

    def test_new_periods(self) -> None:
        run_s = RUN_ROUNDS * INTERVAL_S
        self.assertIs(self.due(later(run_s)), Asked.NEW_PERIOD)
        self.assertIs(self.due(later(5 * run_s)), Asked.NEW_PERIOD)

    def test_one_of_two(self) -> None:
        half = msgspec.structs.replace(PUBLICATION, placed=PUBLICATION.placed[:1])
        self.assertIs(another_due(half, RING, 0, 600), Asked.INCOMPLETE)

    def test_directories(self) -> None:
        ours = PUBLICATION.placed[0].texts
        fewer = [node for node in RING.directories if node.fingerprint != next(iter(ours))]
        self.assertIs(self.due(msgspec.structs.replace(RING, directories=tuple(fewer))), Asked.NEW_DIRECTORIES)
        everywhere = set(ours) | set(PUBLICATION.placed[1].texts)
        only_ours = [node for node in RING.directories if node.fingerprint in everywhere]
        unneeded = next(node for node in RING.directories if node.fingerprint not in everywhere)
        without = tuple(node for node in RING.directories if node is not unneeded)
        self.assertIsNone(self.due(msgspec.structs.replace(RING, directories=without)))
        self.assertGreater(len(only_ours), 0)

    def test_no_directories_at_all(self) -> None:
        """Nowhere new to publish to."""
        self.assertIsNone(self.due(msgspec.structs.replace(RING, directories=())))


class Pace(SynchronousTestCase):
    def test_pauses(self) -> None:
        self.assertEqual(list(islice(pauses_s(refused=False), 6)), [*PAUSES_S, STEADY_S, STEADY_S])
        self.assertEqual(list(islice(pauses_s(refused=True), 2)), [0.0, PAUSES_S[0]])

    def test_probes(self) -> None:
        self.assertEqual([number for number in range(16) if probed(number)], [2, 8, 14])

    def test_rivals(self) -> None:
        rivalry = Rivalry()
        delays = [rivalry.delay_s() for _ in range(12)]
        self.assertEqual(delays[:4], [0.0, RIVAL_S, 2 * RIVAL_S, 4 * RIVAL_S])
        self.assertEqual(delays[-1], RIVAL_CEILING_S)
        rivalry.stood(CALM_S - 1)
        self.assertEqual(rivalry.delay_s(), RIVAL_CEILING_S)
        rivalry.stood(CALM_S)
        self.assertEqual(rivalry.delay_s(), 0.0)
