"""What an operator is shown: the truth as far as this node knows it, and always an answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import Beat, HeadReport, Published
from ron.proto.errors import RonError
from ron.services.balance.cluster import NodeView, Plan, Promote, Roulette, Standing, State
from ron.services.balance.mesh.codec import encode
from ron.services.balance.mesh.seconding import strike_key
from ron.services.balance.mesh.vouching import Struck
from ron.services.balance.ports import ServiceRecord
from ron.services.balance.publishing.schedule import PAUSES_S
from tests.services.balance.hub import signing_key
from tests.services.balance.joined import DETECTED_S, MAIN, World, asked_for

HUGE = 2**63 - 1
texts = st.text(max_size=20)
counts = st.integers(0, HUGE)
names = st.sampled_from(["a", "b", "c", "zz", "nobody"])
onions = st.sampled_from(["", "a" * 56 + ".onion"])
reports = st.builds(
    HeadReport,
    mode=st.sampled_from(["starting", "serving", "ghost", "down"]),
    onion=onions,
    descriptor=texts,
    healthy=st.booleans(),
    under_siege=st.booleans(),
    introductions_per_s=st.floats(0, 1e9),
    sessions=counts,
    attacks=counts,
)
published = st.builds(
    Published,
    service=st.sampled_from([MAIN, "other"]),
    period=counts,
    revision=counts,
    heads=st.tuples(names),
    taken=counts,
    directories=counts,
    ago_ms=counts,
)
beats = st.builds(
    Beat,
    born_ms=counts,
    fit=st.booleans(),
    unfit=texts,
    leads=st.booleans(),
    head=reports,
    hears=st.tuples(names),
    published=st.tuples(published, published),
    services=st.sampled_from([(), (MAIN,), ("other", MAIN)]),
)
seen = st.builds(
    NodeView,
    name=names,
    state=st.sampled_from(State),
    why=texts,
    silent_s=st.none() | st.floats(0, 1e12),
    mutual=st.booleans(),
    drift_s=st.none() | st.floats(-1e12, 1e12),
    beat=st.none() | beats,
)
standings = st.builds(
    Standing,
    leader=st.just("") | names,
    why=texts,
    lease_left_s=st.floats(-1e9, 1e9),
    rivals=st.tuples(names),
    fit=st.booleans(),
    unfit=texts,
    nodes=st.dictionaries(names, seen, max_size=4),
    plan=st.builds(Plan, listed=st.tuples(names), left_out=st.dictionaries(names, texts, max_size=3)),
)
small = st.integers(-(2**63), HUGE)
records = st.builds(
    ServiceRecord,
    onion=texts,
    mode=st.sampled_from(["shared", "threshold"]),
    threshold=small,
    group=st.binary(max_size=200),
    epoch=small,
    made_ms=small,
)
keys = st.sampled_from(
    ["promote", "roulette", "siege/a", "siege/zz", "vanguards", f"service/{MAIN}", "service/x", "approved/b", "x/y"]
)
values = (
    st.builds(Promote, node=names, until_ms=counts)
    | st.builds(Roulette, until_ms=counts, from_ms=counts, every_s=st.integers(0, 86_400))
    | records
    | st.none()
)


class Always(SynchronousTestCase):
    """Each example is shown by the same two nodes: what is written stays, as it would in a cluster."""

    def setUp(self) -> None:
        self.world = World(Clock())
        self.addCleanup(self.world.end)
        self.a, self.b = self.world.settled("ab")

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(standings, st.lists(st.tuples(keys, values), max_size=4))
    def test_it_answers(self, standing: Standing, written: list[tuple[str, Any]]) -> None:
        """Whatever members have told and written; as JSON too, for that is how it is shown."""
        for key, value in written:
            self.b.mesh.book.put(key, value)
        self.world.clock.advance(0.01)
        for node in (self.a, self.b):
            view = node.outlook.view(standing)
            json.loads(msgspec.json.encode(view))
            self.assertEqual(view.node, node.name)
            node.outlook.ghosts(standing)
            node.telemetry.stands(view)
            node.metrics.render()
            for name in standing.nodes:
                node.outlook.member(name, standing)

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(beats, min_size=1, max_size=3), st.lists(st.tuples(keys, values), max_size=3))
    def test_a_node_goes_on(self, heard: list[Beat], written: list[tuple[str, Any]]) -> None:
        """The same through the whole of a node: no beat of its own fails."""
        for key, value in written:
            self.b.mesh.book.put(key, value)
        for beat in heard:
            encode(beat)
            self.b.mesh.send("a", "balance/beat", beat)
            self.world.clock.advance(0.1)
        sent = self.a.mesh.sent
        self.world.clock.advance(0.5)
        self.assertGreater(self.a.mesh.sent, sent)
        self.assertEqual([failure.getTraceback() for failure in self.flushLoggedErrors()], [])


class Truth(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Clock())
        self.addCleanup(self.world.end)

    def view(self, name: str) -> Any:
        return self.world.done(self.world.nodes[name].desk.status())

    def test_before_there_is_anything(self) -> None:
        self.world.start("a")
        view = self.view("a")
        self.assertEqual((view.leader.name, view.services, view.leader.lease_left_s), (None, (), None))
        self.assertEqual(view.warnings, ("there is no service yet: ronctl balance service add NAME",))
        (me,) = view.members
        self.assertEqual((me.fit, me.unfit, me.state, me.leads), (False, "listening", "alive", False))

    def test_all_is_well(self) -> None:
        world = self.world
        world.settled("abc")
        world.pass_s(PAUSES_S[0] + 2)
        for name in "abc":
            view = self.view(name)
            self.assertEqual((view.leader.name, view.leader.claims, view.warnings), ("a", ("a",), ()))
            self.assertEqual([member.name for member in view.members], ["a", "b", "c"])
            for member in view.members:
                self.assertEqual((member.state, member.connected, member.in_descriptor), ("alive", True, True))
                self.assertEqual((member.holds, member.leads), ((MAIN,), member.name == "a"))
            (service,) = view.services
            self.assertEqual(
                (service.onion, service.holders, service.heads),
                (
                    world.onion,
                    ("a", "b", "c"),
                )
                + (("a", "b", "c"),),
            )
            self.assertEqual(service.publications[0].period, asked_for(world).number)
            self.assertEqual([(one.by, one.taken, one.missing) for one in service.publications], [("a", 5, ())] * 2)
            self.assertEqual(service.next_publish_s is not None, name == "a")

    def test_what_a_directory_lost(self) -> None:
        """Of the period that can be looked at; nothing is made up of the other."""
        world = self.world
        (a,) = world.settled("a")
        network = world.net.of(world.onion)
        network.lazy = {node.fingerprint for node in world.net.ring.directories}
        network.kept.clear()
        a.asked("a test")
        world.pass_s(PAUSES_S[0] + 1.5)
        first, second = self.view("a").services[0].publications
        self.assertEqual((first.missing, second.missing), ((), ()))
        network.refusing, network.lazy = network.lazy, set()
        world.pass_s(12.0)
        first, second = self.view("a").services[0].publications
        self.assertEqual((set(first.missing), second.missing), (network.refusing, ()))
        self.assertLess(first.checked_s, 12.0)
        self.assertIsNone(second.checked_s)
        # and what the look found is what is counted
        shown = a.metrics.render().decode()
        self.assertIn('balance_directories_missing{service="main"} 5.0', shown)

    def test_a_dead_leader_says_nothing_any_more(self) -> None:
        world = self.world
        world.settled("abc")
        world.kill("a")
        world.until_s(lambda: world.listed() == "bc", DETECTED_S + 1.0)
        world.pass_s(1.0)
        view = self.view("c")
        self.assertEqual((view.leader.name, view.leader.claims), ("b", ("b",)))
        dead = view.members[0]
        self.assertEqual(
            (dead.state, dead.connected, dead.leads, dead.fit, dead.holds), ("dead", False, False, False, ())
        )
        self.assertIn("link broke", dead.why)
        self.assertEqual((dead.head, dead.uptime_s), (None, None))
        self.assertEqual((view.services[0].holders, view.services[0].publications[0].by), (("b", "c"), "b"))
        self.assertEqual(world.done(world.nodes["b"].desk.ghosts()), ())

    def test_a_torn_mesh(self) -> None:
        world = self.world
        world.settled("ab")
        world.hub.partition("a", "b")
        world.until_s(lambda: world.leaders() == "ab", 10.0)
        world.pass_s(2.0)
        for name in "ab":
            view = self.view(name)
            self.assertEqual((view.leader.name, view.leader.claims), (name, (name,)))
            self.assertEqual({m.name: m.state for m in view.members}, {name: "alive", "ab".replace(name, ""): "dead"})

    def test_a_ghost(self) -> None:
        world = self.world
        a, _b = world.settled("ab")
        world.nodes["b"].head.say(under_siege=True, sessions=3, attacks=9, introductions_per_s=80.0)
        world.pass_s(3.0)
        (ghost,) = world.done(a.desk.ghosts())
        self.assertEqual((ghost.node, ghost.why, ghost.sessions, ghost.attacks), ("b", "under siege", 3, 9))
        member = self.view("a").members[1]
        self.assertEqual((member.in_descriptor, member.out, member.head.mode), (False, "under siege", "ghost"))

    def test_a_service_that_the_config_does_not_name(self) -> None:
        world = self.world
        _a, b = world.settled("ab")
        onion = world.onion
        b.mesh.book.put("service/shop", ServiceRecord(onion=onion, mode="shared"))
        world.pass_s(1.0)
        self.assertIn("shop: this node's config has no", " ".join(self.view("a").warnings))

    def test_who_left(self) -> None:
        world = self.world
        world.settled("abc")
        for number in range(100):
            world.nodes["b"].mesh.book.put(f"member/m{number}", None)
        world.done(world.nodes["a"].desk.remove("c"))
        world.pass_s(1.0)
        states = {member.name: member.state for member in self.view("b").members}
        self.assertEqual(states, {"a": "alive", "b": "alive", "c": "removed"})
        self.assertEqual(bytes(signing_key("b").verify_key), world.nodes["b"].mesh.me.key)

    def test_a_removal_that_too_few_have_asked_for(self) -> None:
        world = self.world
        a, b = world.settled("ab")
        struck = Struck(name="b", key=b.mesh.me.key, certificate=b"", proof=b"")
        a.mesh.book.put(strike_key("b", struck.key, "a"), struck)
        said = "b is to be removed, say a; others have to say so too: ronctl balance remove b"
        self.assertEqual(self.view("a").warnings, (said,))
        # of a key that it has no more nothing is said
        old = msgspec.structs.replace(struck, key=bytes(32))
        a.mesh.book.put(strike_key("b", struck.key, "a"), old)
        self.assertEqual(self.view("a").warnings, ())

    def test_a_node_that_is_refused(self) -> None:
        world = self.world
        (a,) = world.settled("a")
        a.outlook._refused, a.outlook._turned = lambda: "removed", lambda: "b has turned this node away: twin"
        self.assertEqual((self.view("a").refused, self.view("a").warnings[-1:]), ("removed", (a.outlook._turned(),)))

    def test_nobody_of_that_name(self) -> None:
        world = self.world
        a, *_ = world.settled("a")
        self.assertRaises(RonError, world.done, a.desk.siege("nobody", True, None))
        self.assertEqual(a.outlook.member("nobody", a.cluster.standing).state, "removed")
