"""One publication: what cannot be published first, then who gets what, and how soon others are told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import Metrics
from ron.proto.balance import MAX_NODES, Published
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.services.balance.publishing.counters import Counters
from ron.services.balance.publishing.keys import Keys
from ron.services.balance.publishing.outside import Figures
from ron.services.balance.publishing.publisher import Master, Publication, Publisher
from ron.tor.clientauth import generate
from ron.tor.descriptor.blinding import Signer, blind, identity_of
from ron.tor.descriptor.hashring import Ring
from ron.tor.descriptor.intropoints import MAX_DESCRIPTOR_BYTES, Backend, read_backend
from ron.tor.descriptor.refused import Refused
from tests.services.balance.publishing.samples import (
    NEWER,
    NOW_S,
    OLDER,
    ONION,
    TIME,
    FakeNetwork,
    Inline,
    backend,
    ring_with,
)
from tests.services.balance.publishing.test_keys import Signing

ASKED_FOR = TIME.asked_for().period
MANY = {f"head{number:02}": backend(f"head{number:02}") for number in range(50)}
SHOP = Master(name="shop", onion=ONION)


class World:
    """A publisher with everything around it."""

    def __init__(self, ring: Ring) -> None:
        self.clock = Clock()
        self.ring: Ring | None = ring
        self.tor = FakeNetwork(self.clock, ring)
        self.signing: Any = Signing(self.clock)
        self.metrics = Metrics()
        self.figures = Figures(self.metrics)
        self.counters = Counters(tie=1, now_s=self.now_s)
        self.keys = Keys(self.clock, signer=self.signer, now_s=self.now_s, figures=self.figures)
        self.publisher = Publisher(
            self.clock,
            ring=self.known,
            directories=lambda: self.tor,
            keys=self.keys,
            counters=self.counters,
            threads=Inline(),
            figures=self.figures,
        )
        self.first: list[Publication] = []

    def now_s(self) -> float:
        return NOW_S + self.clock.seconds()

    def signer(self, service: str) -> Signer:
        return self.signing  # type: ignore[no-any-return]

    def known(self) -> Ring:
        if self.ring is None:
            raise unavailable("no consensus")
        return self.ring

    def publishing(self, heads: Mapping[str, Backend], turn: int = 0, master: Master = SHOP) -> Deferred[Publication]:
        return Deferred.fromCoroutine(self.publisher.publish(master, heads, turn, self.first.append))

    def pass_s(self, seconds: float) -> None:
        self.clock.pump([0.05] * round(seconds * 20))

    def heads_at(self, period: Any) -> dict[str, set[str]]:
        """Whose points a visitor finds at each directory."""
        owners = {point.auth_key: name for name, head in MANY.items() for point in head.points}
        return {
            name: {owners[point.auth_key] for point in read_backend(text, ONION, [period], NOW_S).points}
            for name, text in self.tor.holding(period).items()
        }

    def figure(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


class Publishing(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(ring_with())
        self.heads = dict(list(MANY.items())[:2])

    def published(self, turn: int = 0) -> Publication:
        done = self.world.publishing(self.heads, turn)
        self.world.pass_s(0.5)
        return self.successResultOf(done)

    def failing(self, done: Deferred[Any]) -> RonError:
        error = self.failureResultOf(done).value
        assert isinstance(error, RonError)
        return error

    # what cannot be

    def test_nothing_to_publish(self) -> None:
        """An empty descriptor would end what the last one still does."""
        self.published()
        for heads in ({}, {"a": backend("a", 0)}):
            error = self.failing(self.world.publishing(heads))
            self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(len(self.world.tor.posts), 2)
        self.assertEqual(self.world.figure("balance_publications_total", service="shop", result="failed"), 2)
        self.assertFalse(self.world.publisher.busy("shop"))

    def test_without_consensus_tor_or_directories(self) -> None:
        self.world.ring = None
        self.failing(self.world.publishing(self.heads))
        self.world.ring = ring_with(count=0)
        self.failing(self.world.publishing(self.heads))
        self.world.ring = ring_with()
        self.world.tor.silent = True
        self.assertEqual(self.failing(self.world.publishing(self.heads)).message, "tor does not answer")
        self.assertFalse(self.world.publisher.busy("shop"))

    def test_without_a_signer(self) -> None:
        self.world.signing.gone = True
        self.failing(self.world.publishing(self.heads))
        self.world.signing.gone, self.world.signing.wrong = False, True
        self.assertIsInstance(self.failing(self.world.publishing(self.heads)), Refused)
        self.assertEqual(self.world.tor.posts, [])

    def test_one_period_without_a_key_does_not_hold_up_the_other(self) -> None:
        self.published()
        self.world.keys.keep_only((ASKED_FOR,))
        self.world.signing.gone = True
        publication = self.published()
        self.assertEqual([placed.due.period for placed in publication.placed], [ASKED_FOR])
        self.assertEqual(len(self.world.first), 2)

    # what is

    def test_both_periods(self) -> None:
        publication = self.published()
        self.assertEqual([placed.due.period for placed in publication.placed], [OLDER, NEWER])
        self.assertEqual(OLDER, ASKED_FOR)
        for period in (OLDER, NEWER):
            self.assertEqual(self.world.heads_at(period), {key: set(self.heads) for key in self.directories()})

    def directories(self) -> list[str]:
        assert self.world.ring is not None
        return [node.fingerprint for node in self.world.ring.directories]

    def test_what_is_told(self) -> None:
        publication = self.published()
        told = publication.told(self.world.clock.seconds())
        revisions = [placed.revision for placed in publication.placed]
        self.assertEqual(
            told,
            tuple(
                Published(
                    service="shop",
                    period=period.number,
                    revision=revision,
                    heads=("head00", "head01"),
                    taken=5,
                    directories=5,
                    ago_ms=500,
                )
                for period, revision in zip((OLDER, NEWER), revisions, strict=True)
            ),
        )
        self.assertEqual((publication.first_s, publication.whole_s), (0.1, 0.1))

    def test_a_silent_directory_holds_up_only_the_report(self) -> None:
        self.world.tor.down = {self.directories()[0]}
        done = self.world.publishing(self.heads)
        self.world.pass_s(0.2)
        (first,) = self.world.first
        self.assertEqual((first.told(0.1)[0].taken, first.first_s), (1, 0.1))
        self.assertNoResult(done)
        self.assertTrue(self.world.publisher.busy("shop"))
        # a siege meanwhile: the next descriptor does not wait either
        del self.heads["head00"]
        again = self.world.publishing(self.heads, 1)
        self.world.pass_s(0.2)
        held = self.world.heads_at(ASKED_FOR)
        self.assertEqual(held, {key: {"head01"} for key in self.directories()[1:]})
        self.assertEqual(len(self.world.first), 2)
        self.world.pass_s(31)
        self.assertEqual(self.successResultOf(again).placed[0].posted.silent, {self.directories()[0]})
        self.assertEqual(len(self.successResultOf(done).placed[0].posted.taken), 4)

    def test_the_other_period_is_not_what_clients_ask_for(self) -> None:
        """All directories of what they do ask for keep silent: nobody is told that it is published."""
        ring = ring_with(count=40)
        self.world = World(ring)
        key = blind(identity_of(ONION), ASKED_FOR)
        self.world.tor.down = {node.fingerprint for node in ring.to_store(key, ring.time.asked_for())}
        done = self.world.publishing(self.heads)
        self.world.pass_s(31)
        publication = self.successResultOf(done)
        self.assertGreater(len(publication.placed[1].posted.taken), 0)
        self.assertEqual((self.world.first, publication.first_s), ([], None))

    def test_each_is_above_the_one_before_and_above_what_peers_told(self) -> None:
        first = self.published()
        self.world.counters.heard(Published(service="shop", period=OLDER.number, revision=10**14))
        second = self.published()
        self.assertEqual(second.placed[0].revision, 10**14 + 1)
        self.assertGreater(second.placed[1].revision, first.placed[1].revision)
        self.assertEqual(len(second.placed[0].posted.taken), 5)

    def test_the_signer_is_asked_once_a_period(self) -> None:
        for turn in range(3):
            self.published(turn)
        self.assertEqual(self.world.signing.asked, 2)

    def test_again_to_some(self) -> None:
        publication = self.published()
        lost = self.directories()[1]
        del self.world.tor.kept[lost, OLDER.number]
        done = Deferred.fromCoroutine(self.world.publisher.give_again(SHOP, publication.placed[0], {lost, "F" * 40}))
        self.world.pass_s(0.2)
        self.assertEqual(self.successResultOf(done).taken, {lost})
        self.assertEqual(len(self.world.tor.holding(OLDER)), 5)
        none = Deferred.fromCoroutine(self.world.publisher.give_again(SHOP, publication.placed[0], ()))
        self.assertEqual(self.successResultOf(none).taken, frozenset())

    def test_for_clients_only(self) -> None:
        client = generate()
        master = Master(name="shop", onion=ONION, clients=(client.public,))
        done = self.world.publishing(self.heads, master=master)
        self.world.pass_s(0.5)
        self.successResultOf(done)
        for text in self.world.tor.holding(ASKED_FOR).values():
            error = self.assertRaises(Refused, read_backend, text, ONION, [ASKED_FOR], NOW_S)
            self.assertEqual(error.reason, "sealed")


class ManyHeads(SynchronousTestCase):
    def test_fifty_heads_of_three_points_all_at_once(self) -> None:
        world = World(ring_with(count=40))
        done = world.publishing(MANY, 3)
        world.pass_s(0.5)
        publication = self.successResultOf(done)
        for placed in publication.placed:
            self.assertEqual(placed.heads, tuple(sorted(MANY)))
            self.assertEqual((len(placed.dealt), len(placed.texts)), (3, 8))
            self.assertTrue(all(len(text) < MAX_DESCRIPTOR_BYTES for text, _ in placed.dealt))
            found = world.heads_at(placed.due.period)
            self.assertEqual(set.union(*found.values()), set(MANY))
            self.assertEqual({len(heads) for heads in found.values()}, {20})

    @settings(max_examples=12, deadline=None)
    @given(st.integers(1, 50), st.integers(1, 9), st.sampled_from([0, 16, 200]), st.integers(0, 1000))
    def test_every_head_has_its_turn_soon(self, count: int, directories: int, clients: int, turn: int) -> None:
        """However few the directories and however little the room: within as many turns as it takes them in a row."""
        heads = dict(list(MANY.items())[:count])
        world = World(ring_with(count=directories))
        master = Master(name="shop", onion=ONION, clients=CLIENTS[:clients])
        seen: set[str] = set()
        least = 11 * min(directories, 5)
        for later in range(-(-count // least) + 1):
            done = world.publishing(heads, turn + later, master)
            world.pass_s(0.2)
            publication = self.successResultOf(done)
            seen |= set(publication.placed[0].heads)
            self.assertTrue(all(len(t) < MAX_DESCRIPTOR_BYTES for p in publication.placed for t, _ in p.dealt))
        self.assertEqual(seen, set(heads))
        self.assertLessEqual(len(publication.told(0)[0].heads), MAX_NODES)


CLIENTS = tuple(generate().public for _ in range(200))
