"""Whole nodes in simulated time: `BalanceService` and its rooms, joined as a process joins them, over one clock.

    world = World(clock)
    a, b = world.start("a"), world.start("b")
    world.pass_s(8); a.create("main"); world.kill("a"); world.stop("b"); world.hub.partition(["a"], ["b"])

Real: cluster, conductor, records, publishing, vault, views, the operators' desk. In memory: the mesh (`hub.py`), heads
that say what a test has them say, and directories that all nodes share. Descriptors are real, and read as clients do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from ron.crypto.hpke import PrivateKey, Suite
from ron.kernel import HealthState, Metrics
from ron.proto.balanceviews import InvitationAnswer, RemoveAnswer, TokenAnswer
from ron.proto.errors import RonError
from ron.services.balance.canaries import Canaries
from ron.services.balance.cluster import Cluster, Standing, Timing
from ron.services.balance.conductor import Conductor, to_prepare
from ron.services.balance.config import BalanceConfig, BalancedService
from ron.services.balance.operations import OperatorsDesk
from ron.services.balance.publishing.outside import Figures
from ron.services.balance.publishing.room import Publishing
from ron.services.balance.records import Records
from ron.services.balance.service import BalanceService
from ron.services.balance.telemetry import Telemetry
from ron.services.balance.vault.service import KeyVault
from ron.services.balance.views import Outlook
from tests.services.balance.hub import CLUSTER, Hub, HubNode
from tests.services.balance.publishing.samples import NOW_S, Inline
from tests.services.balance.scripted import Net, NodeTor, ScriptedHead

T = TypeVar("T")
MAIN = "main"
STEP_S = 0.05
# Until fresh nodes have listened, have the key, and one of them leads.
SETTLED_S = 9.0
# A killed node's links break at once; others give it so long, and hear of it at a beat.
DETECTED_S = 1.5


def config(name: str, **more: Any) -> BalanceConfig:
    named = more.pop("services", (BalancedService(name=MAIN, ports=("80:127.0.0.1:8080",)),))
    return BalanceConfig(node=name, approval="token", services=named, **more)


class FakeGate:
    """`operations.Gate` over the hub."""

    def __init__(self, world: World, name: str) -> None:
        self._world = world
        self._name = name
        self.refuses: RonError | None = None

    async def remove(self, name: str) -> RemoveAnswer:
        if self.refuses is not None:
            raise self.refuses
        self._world.nodes[self._name].mesh.book.remove(name)
        self._world.hub.removed.add(name)
        return RemoveAnswer(name=name)

    async def rotate_token(self) -> TokenAnswer:
        return TokenAnswer(version=2, told=())

    async def invite(self, name: str, addresses: tuple[str, ...]) -> InvitationAnswer:
        return InvitationAnswer(name=name, bundle="a bundle")


class Node:
    """One node, in one run. offset_s: its clock is ahead by so much."""

    def __init__(self, world: World, name: str, *, offset_s: float = 0.0, **more: Any) -> None:
        self.name = name
        self.world = world
        clock = world.clock
        self.config = config(name, **more)
        seal = PrivateKey.generate(Suite.PQ)
        self.mesh: HubNode = world.hub.node(name, seal_key=seal.public.raw)
        self.health, self.metrics = HealthState(), Metrics()
        self.head, self.tor = ScriptedHead(name), NodeTor(world.net)
        self.gate = FakeGate(world, name)
        self.left = 0
        self.standings: list[Standing] = []
        self.now_s: Callable[[], float] = lambda: NOW_S + clock.seconds() + offset_s

        def now_ms() -> int:
            return int(1000 * self.now_s())

        self.vault = KeyVault(
            clock,
            self.mesh,
            seal=seal,
            cluster=CLUSTER,
            approval="token",
            periods=lambda: tuple(due.period for due in world.net.ring.time.due()),
            health=self.health,
            metrics=self.metrics,
            now=self.now_s,
            allow_unlocked=True,
        )
        self.records = Records(self.mesh.book, lambda: self.config, self.vault)
        self.cluster = Cluster(name, Timing.of(self.config), now_s=clock.seconds(), unix_ms=now_ms())
        self.room = Publishing(
            clock,
            testing=True,
            tie=self.mesh.me.number % 1000,
            signer=self.vault.signer,
            holds=lambda: to_prepare(self.vault, self.records, leads=self.conductor.leads),
            ask=lambda service, why: self.asked(str(why)),
            every_s=lambda: float(self.config.publish_every_s),
            figures=Figures(self.metrics),
            on_heads=lambda name: self.service.shelf_changed(name),
            on_ring=lambda ring: self.service.ring_changed(ring),
            threads=Inline(),
            now_s=self.now_s,
        )
        self.conductor = Conductor(
            clock,
            cluster=self.cluster,
            vault=self.vault,
            records=self.records,
            room=self.room,
            told=lambda: self.service.tell(),
        )
        self.visits: dict[str, str] = {}
        self.service = BalanceService(
            clock,
            lambda: self.config,
            mesh=self.mesh,
            vault=self.vault,
            head=self.head,
            cluster=self.cluster,
            conductor=self.conductor,
            records=self.records,
            room=self.room,
            visits=self,
            health=self.health,
            now_ms=now_ms,
            masters_changed=self.head.masters.append,
            stands=self._stands,
        )
        self.canaries = Canaries(lambda service, onion: None)  # type: ignore[arg-type,return-value]
        self.outlook = Outlook(
            self.service,
            cluster=CLUSTER.hex(),
            vault=self.vault,
            holding=self.room.holding,
            reachable=self.canaries.reachable,
            pace_s=lambda: float(self.config.publish_every_s),
            now_s=self.now_s,
        )
        self.telemetry = Telemetry(self.metrics)
        self.desk = OperatorsDesk(
            clock,
            self.service,
            self.outlook,
            self.vault,
            self.gate,
            lambda: self.config,
            now_ms,
            leave=self._left,
        )

    # What it does

    def start(self) -> None:
        self.room.start()
        self.vault.startService()
        self.service.startService()
        Deferred.fromCoroutine(self.room.attach(self.tor))

    def end(self) -> None:
        """In the order of a process that is told to."""
        self.service.stopService()
        self.room.stop()
        self.vault.stopService()

    def lose_tor(self) -> None:
        self.tor.silent = True
        self.room.detach()

    def get_tor(self) -> None:
        self.tor.silent = False
        Deferred.fromCoroutine(self.room.attach(self.tor))

    def follow(self, services: dict[str, str]) -> None:
        """`Watched`."""
        self.visits = services

    def asked(self, why: str) -> str:
        return self.service.ask_to_publish(why)

    @property
    def leads(self) -> bool:
        return self.service.running and self.cluster.standing.duties.lead

    def _stands(self, standing: Standing) -> None:
        self.standings.append(standing)
        self.telemetry.stands(self.outlook.view(standing))

    def _left(self) -> None:
        self.left += 1
        self.end()


class World:
    """Nodes a to e over one hub, one set of directories and one clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.hub = Hub(clock, seed=7)
        self.net = Net(clock)
        self.nodes: dict[str, Node] = {}

    def start(self, names: str, **more: Any) -> list[Node]:
        """A moment apart: the first is the eldest."""
        made = []
        for name in names:
            node = self.nodes[name] = Node(self, name, **more)
            made.append(node)
            node.start()
            self.pass_s(STEP_S)
        return made

    def settled(self, names: str, **more: Any) -> list[Node]:
        """Nodes that serve one address."""
        made = self.start(names, **more)
        self.pass_s(4.0)
        self.done(made[0].desk.create(MAIN, "shared", 0, 0, (), None))
        self.pass_s(SETTLED_S)
        return made

    def kill(self, name: str) -> None:
        """Without a word, in the middle of whatever it does."""
        self.hub.kill(name)
        self.nodes[name].tor.silent = True
        self.nodes[name].end()

    def stop(self, name: str) -> None:
        """As SIGTERM does."""
        self.nodes[name].end()
        self.pass_s(STEP_S)
        self.hub.kill(name)

    def end(self) -> None:
        for node in self.nodes.values():
            if node.service.running:
                node.end()

    def pass_s(self, seconds: float, step_s: float = STEP_S) -> None:
        self.clock.pump(itertools.repeat(step_s, round(seconds / step_s)))

    def until_s(self, condition: Callable[[], Any], most_s: float) -> float:
        """How long it takes until `condition()` holds; at most so long."""
        began_s = self.clock.seconds()
        while not condition():
            if self.clock.seconds() - began_s > most_s:
                raise AssertionError(f"it did not happen within {most_s} s")
            self.clock.advance(STEP_S)
        return float(self.clock.seconds() - began_s)

    def done(self, asked: Coroutine[Any, Any, T], seconds: float = 2.0) -> T:
        """What comes of an order."""
        outcome: list[Any] = []
        Deferred.fromCoroutine(asked).addBoth(outcome.append)
        if not outcome:
            self.pass_s(seconds)
        if not outcome:
            raise AssertionError(f"nothing came of it within {seconds} s")
        if hasattr(outcome[0], "raiseException"):
            outcome[0].raiseException()
        found: T = outcome[0]
        return found

    # How it stands

    @property
    def onion(self) -> str:
        """Of `MAIN`, as the first running node's vault has it."""
        node = next(node for node in self.nodes.values() if node.service.running)
        return node.records.all()[MAIN].onion

    def leaders(self) -> str:
        return "".join(name for name, node in sorted(self.nodes.items()) if node.leads)

    def listed(self) -> str:
        """What visitors get, when all directories agree; else what each has."""
        found = {"".join(sorted(heads)) for heads in self.net.heads(self.onion)}
        return found.pop() if len(found) == 1 else " | ".join(sorted(found))

    def revisions(self) -> set[int]:
        network = self.net.of(self.onion)
        return {revision for (_, number), (revision, _) in network.kept.items() if number == asked_for(self).number}


def asked_for(world: World) -> Any:
    """The period that clients ask for."""
    return world.net.ring.time.asked_for().period
