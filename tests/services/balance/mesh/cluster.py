"""A cluster of real nodes on loopback for tests: real TLS, real files, the real reactor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from ron.crypto import x509
from ron.kernel import HealthState, Metrics
from ron.proto.addresses import HostPort
from ron.proto.errors import RonError
from ron.services.balance.mesh.files import NodeFiles, accept, found, invitation
from ron.services.balance.mesh.mesh import MeshService

CA = x509.init_ca("mesh test")
OTHER_CA = x509.init_ca("another")
LOOPBACK = HostPort("127.0.0.1", 0)
PATIENCE_S = 20.0


class Note(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A message of the tests."""

    text: str = ""


class Running:
    """One node that runs. heard: notes, as (sender, text). ended: the error it ended with."""

    def __init__(self, files: NodeFiles, **options: Any) -> None:
        self.health = HealthState()
        self.metrics = Metrics()
        self.heard: list[tuple[str, str]] = []
        self.ended: list[RonError] = []
        self.files = files
        self.mesh = MeshService(
            reactor,
            files=files,
            listen=options.pop("listen", LOOPBACK),
            health=self.health,
            metrics=self.metrics,
            on_end=self.ended.append,
            **{"ping_s": 0.2, "silence_s": 3.0, **options},
        )
        self.mesh.listen("note", Note, lambda sender, note: self.heard.append((sender, note.text)))
        self.mesh.serve("ask", Note, self._answer)

    async def _answer(self, sender: str, note: Note) -> Note:
        return Note(text=f"{note.text} for {sender}")

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.mesh.port}"

    def connected(self) -> set[str]:
        return {name for name, peer in self.mesh.peers().items() if peer.connected}

    def refused(self, reason: str) -> float:
        value = self.metrics.registry.get_sample_value("balance_mesh_refused_total", {"reason": reason})
        return value or 0.0

    def why_not_ready(self) -> str:
        return self.health.snapshot().reasons.get("balance.mesh", "")


class ClusterTest(TestCase):
    """Starts nodes, and stops what is left of them."""

    timeout = 120

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.nodes: dict[str, Running] = {}
        self.addCleanup(self.stop_all)

    def stop_all(self) -> Deferred[Any]:
        return gatherResults([n.mesh.stopService() for n in self.nodes.values() if n.mesh.running])

    async def until(self, check: Callable[[], object], what: str = "") -> None:
        """Return when it is so."""
        waited = 0.0
        while not check():
            if waited > PATIENCE_S:
                stand = {n.mesh.name: (sorted(n.connected()), n.why_not_ready()) for n in self.nodes.values()}
                self.fail(f"not in {PATIENCE_S} s: {what}; {stand}")
            await deferLater(reactor, 0.02)
            waited += 0.02

    def founder(self, name: str = "a", **options: Any) -> Running:
        return self.run_node(found(self.directory / name, name, CA), **options)

    def run_node(self, files: NodeFiles, **options: Any) -> Running:
        node = Running(files, **options)
        node.mesh.startService()
        self.nodes[str(files.directory)] = node
        return node

    def invited(self, by: Running, name: str, *, folder: str = "", seeds: tuple[str, ...] = ()) -> NodeFiles:
        text = invitation(by.files, name, CA, seeds or (by.address,))
        return accept(self.directory / (folder or name), text)

    def join(self, by: Running, name: str, **options: Any) -> Running:
        return self.run_node(self.invited(by, name), **options)

    async def stop(self, node: Running) -> None:
        await node.mesh.stopService()

    async def again(self, node: Running, **options: Any) -> Running:
        """The same node, started anew, at the same port."""
        listen = HostPort("127.0.0.1", node.mesh.port)
        if node.mesh.running:
            await self.stop(node)
        return self.run_node(NodeFiles.open(node.files.directory), **{"listen": listen, **options})

    async def three(self) -> tuple[Running, Running, Running]:
        """A full mesh of a, b and c, from one seed."""
        a = self.founder()
        b, c = self.join(a, "b"), self.join(a, "c")
        await self.until(lambda: self.meshed(a, b, c), "a full mesh")
        return a, b, c

    def meshed(self, *nodes: Running) -> bool:
        names = {node.mesh.name for node in nodes}
        return all(node.connected() == names - {node.mesh.name} for node in nodes)


def raises(awaitable: Awaitable[object]) -> Deferred[RonError]:
    """The `RonError` it ends with."""

    async def run() -> RonError:
        try:
            await awaitable
        except RonError as error:
            return error
        raise AssertionError("no error")

    return Deferred.fromCoroutine(run())
