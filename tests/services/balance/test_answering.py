"""A cluster of whole nodes with two addresses, of which one's target dies: what visitors get, and who is told."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.balance import Failing
from ron.services.balance.config import BalancedService
from ron.services.balance.readiness import TARGETS
from tests.services.balance.joined import MAIN, Node, World

SHOP = "shop"
SERVICES = (
    BalancedService(name=MAIN, ports=("80:127.0.0.1:8080",)),
    BalancedService(name=SHOP, ports=("81:127.0.0.1:8081",)),
)
WHY = "port 80: 127.0.0.1:8080 does not answer"


class Two(SynchronousTestCase):
    def setUp(self) -> None:
        self.world = World(Clock())
        self.addCleanup(self.world.end)
        self.nodes = self.world.settled("abc", services=SERVICES)
        self.world.done(self.nodes[0].desk.create(SHOP, "shared", 0, 0, (), None))
        self.world.until_s(lambda: self.heads(SHOP) == "abc", 20.0)

    def heads(self, service: str) -> str:
        """What visitors get."""
        onion = self.nodes[0].records.all()[service].onion
        found = {"".join(sorted(heads)) for heads in self.world.net.heads(onion)}
        return found.pop() if len(found) == 1 else "not the same"

    def fails(self, node: Node, *services: str) -> None:
        failing = tuple(Failing(service=name, target=WHY) for name in services)
        node.head.say(healthy=not services, failing=failing)

    def view(self, name: str = "a") -> Any:
        return self.world.done(self.world.nodes[name].desk.status())

    def test_at_one_node(self) -> None:
        a, b, _c = self.nodes
        self.fails(b, MAIN)
        self.world.until_s(lambda: self.heads(MAIN) == "ac", 3.0)
        self.world.pass_s(2.0)
        self.assertEqual(self.heads(SHOP), "abc")
        view = self.view()
        self.assertEqual(view.warnings, (f"main: b is left out of it: {WHY}",))
        shown = {member.name: (member.published_in, member.planned_in) for member in view.members}
        self.assertEqual(shown["b"], ((SHOP,), (SHOP,)))
        main, shop = view.services
        self.assertEqual([(one.node, one.why) for one in main.failing], [("b", WHY)])
        self.assertEqual((main.answering, main.refusing, shop.answering), (2, False, 3))
        self.assertEqual(b.head.served[-1:], [True])
        self.assertNotIn(TARGETS, a.health.snapshot().degraded)
        self.fails(b)
        self.world.until_s(lambda: self.heads(MAIN) == "abc", 6.0)
        self.assertEqual(self.view("c").warnings, ())

    def test_at_all_nodes(self) -> None:
        """A refusal at once is clearer than an address that is not found; and everybody is told."""
        for node in self.nodes:
            self.fails(node, MAIN)
        self.world.pass_s(4.0)
        self.assertEqual((self.heads(MAIN), self.heads(SHOP)), ("abc", "abc"))
        # it stays published, however long that lasts
        self.world.pass_s(700.0, 0.5)
        self.assertEqual(self.heads(MAIN), "abc")
        for node in self.nodes:
            said = node.health.snapshot().reasons[TARGETS]
            self.assertIn(f"main: no head's target answers, visitors are refused (a: {WHY}", said)
            self.assertIn(said, self.view(node.name).warnings)
            shown = node.metrics.render().decode()
            self.assertIn('balance_heads_answering{service="main"} 0.0', shown)
            self.assertIn('balance_heads_failing{service="main"} 3.0', shown)
            self.assertIn('balance_heads_answering{service="shop"} 3.0', shown)
        self.assertTrue(self.view().services[0].refusing)
        self.fails(self.nodes[1])
        self.world.until_s(lambda: self.heads(MAIN) == "b", 6.0)
        self.world.pass_s(1.0)
        self.assertNotIn(TARGETS, self.nodes[0].health.snapshot().degraded)

    def test_a_node_whose_config_does_not_know_the_address(self) -> None:
        """Its head has no port for it: visitors are not sent there."""
        b = self.nodes[1]
        b.config = type(b.config)(**{**_fields(b.config), "services": SERVICES[:1]})
        self.world.until_s(lambda: self.heads(SHOP) == "ac", 6.0)
        self.assertEqual(self.heads(MAIN), "abc")
        self.assertIn("config has no service", self.view().services[1].failing[0].why)

    def test_what_is_shown_is_what_is_published(self) -> None:
        """A head that is to leave is visited until the next descriptor is out; and says so."""
        a, b, _c = self.nodes
        for node in self.nodes:
            node.lose_tor()
        b.head.say(under_siege=True)
        self.world.pass_s(2.0)
        member = self.view().members[1]
        self.assertEqual(
            (member.in_descriptor, member.published_in, member.planned_in, member.out),
            (True, (MAIN, SHOP), (), "under siege"),
        )
        for node in self.nodes:
            node.get_tor()
        self.world.until_s(lambda: self.heads(MAIN) == "ac", 60.0)
        self.world.pass_s(1.0)
        self.assertEqual((self.view().members[1].in_descriptor, self.view().members[1].published_in), (False, ()))
        (ghost,) = self.world.done(a.desk.ghosts())
        self.assertGreater(ghost.since_s, 1.0)


def _fields(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__struct_fields__}
