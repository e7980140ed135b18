"""The list that is kept as JSON is always the list that would be made anew, and an app's own costs nothing of others.

Whatever happens to onions, tors and visitors, in whatever order, and whoever asks in between.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.onions import BindRequest, CreateRequest, DeleteRequest, DrainRequest, ListAnswer, Port, RotateRequest
from ron.services.oniond import views
from ron.services.oniond.model import Onion
from ron.services.oniond.standings import Standing
from tests.services.oniond.memory import World

APPS = ["alice", "bob"]
PORTS = (Port(onion_port=80, local="127.0.0.1:8080"),)
OTHER_PORTS = (Port(onion_port=81, local="unix:/run/app.sock"),)
ACTS = ["create", "bind", "rotate", "drain", "delete", "ready", "lost", "visit", "leave", "up", "down", "later", "ask"]
STEPS = st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 5), st.booleans()), max_size=30)


class Life:
    """A host where everything may happen."""

    def __init__(self) -> None:
        self.world = World()
        self.service = self.world.service
        self.world.telemetry.tor_up("onion")

    def do(self, act: str, number: int, choice: bool) -> None:
        onion = self._onion(number)
        if act == "create":
            self._create(APPS[number % 2], choice)
        elif act in ("up", "down"):
            getattr(self.world.telemetry, f"tor_{act}")("onion")
        elif act == "later":
            self.world.now += 100
            self._settle(self.service._upkeep.look())
        elif act == "ask":
            self.service.listed([None, *APPS][number % 3])
        elif onion is not None:
            getattr(self, f"_{act}")(onion, choice)

    def _onion(self, number: int) -> Onion | None:
        there = sorted(self.service._registry, key=lambda onion: onion.id)
        return there[number % len(there)] if there else None

    def _settle(self, coroutine: Any) -> None:
        self.world.settle(Deferred.fromCoroutine(coroutine))

    def _op_id(self) -> str:
        return str(uuid.uuid4())

    def _create(self, app: str, choice: bool) -> None:
        if sum(onion.app == app for onion in self.service._registry) < 4:
            kept: Any = "durable" if choice else "ephemeral"
            self._settle(
                self.service.create(CreateRequest(op_id=self._op_id(), app=app, ports=PORTS, persistence=kept))
            )

    def _bind(self, onion: Onion, choice: bool) -> None:
        ports = PORTS if choice else OTHER_PORTS
        self._settle(self.service.bind(onion.id, BindRequest(op_id=self._op_id(), ports=ports)))

    def _rotate(self, onion: Onion, choice: bool) -> None:
        if onion.state == "active" and onion.previous is None:
            grace_s = 150.0 if choice else 0.0
            self._settle(self.service.rotate(onion.id, RotateRequest(op_id=self._op_id(), grace_s=grace_s)))

    def _drain(self, onion: Onion, _choice: bool) -> None:
        if onion.state == "active":
            self._settle(self.service.drain(onion.id, DrainRequest(op_id=self._op_id(), deadline_s=50)))

    def _delete(self, onion: Onion, _choice: bool) -> None:
        self._settle(self.service.delete(onion.id, DeleteRequest(op_id=self._op_id())))

    def _ready(self, onion: Onion, choice: bool) -> None:
        self._stands(onion, Standing(True, None, 3 + choice, 1200.5))

    def _lost(self, onion: Onion, _choice: bool) -> None:
        self._stands(onion, Standing(False, "it is lost"))

    def _stands(self, onion: Onion, standing: Standing) -> None:
        for address in [onion.address, *([onion.previous.address] if onion.previous else [])]:
            publisher = self.service._hosting.publisher("onion")
            if address in publisher._standings:
                publisher._standings.put(address, standing)

    def _visit(self, onion: Onion, choice: bool) -> None:
        self._circuit("BUILT", onion, choice)

    def _leave(self, onion: Onion, choice: bool) -> None:
        self._circuit("CLOSED", onion, choice)

    def _circuit(self, status: str, onion: Onion, choice: bool) -> None:
        text = f"{int(choice)} {status} PURPOSE=HS_SERVICE_REND REND_QUERY={onion.address.removesuffix('.onion')}"
        self.world.telemetry.heard("onion", "CIRC", text)

    def kept(self, may: str | None) -> Any:
        return json.loads(self.service.listed(may))

    def anew(self, may: str | None) -> Any:
        return json.loads(msgspec.json.encode(ListAnswer(self.service.list(may))))


class Kept(SynchronousTestCase):
    """What is kept, and what would be made."""

    @settings(max_examples=50, deadline=None)
    @given(STEPS)
    def test_it_is_what_would_be_made_anew(self, steps: Iterable[tuple[str, int, bool]]) -> None:
        life = Life()
        try:
            for step in [("create", 0, True), ("create", 1, False), *steps]:
                life.do(*step)
                for may in (None, *APPS, "nobody"):
                    self.assertEqual(life.kept(may), life.anew(may), f"after {step}, for {may}")
                for onion in life.service._registry:
                    shown, view = life.service.shown(onion), life.service.view(onion)
                    self.assertEqual(json.loads(shown), json.loads(msgspec.json.encode(view)), f"after {step}")
        finally:
            life.world.stop()

    def made_for(self, life: Life, may: str | None) -> list[str]:
        """Apps of the onions that are looked at to answer `may`."""
        looked_at: list[str] = []
        view = views._view

        def watched(onion: Onion, *more: Any) -> Any:
            looked_at.append(onion.app)
            return view(onion, *more)

        patch = self.patch(views, "_view", watched)
        life.service.listed(may)
        patch.restore()
        return looked_at

    def test_only_what_changed_is_made_anew(self) -> None:
        life = Life()
        self.addCleanup(life.world.stop)
        for number in range(4):
            life.do("create", number, True)
        self.assertEqual(sorted(self.made_for(life, None)), ["alice", "alice", "bob", "bob"])
        self.assertEqual(self.made_for(life, None), [])
        self.assertEqual(self.made_for(life, "alice"), [])
        bobs = next(onion for onion in life.service._registry if onion.app == "bob")
        life._ready(bobs, True)
        self.assertEqual(self.made_for(life, "alice"), [], "another app's change is none of hers")
        self.assertEqual(self.made_for(life, None), ["bob"])

    def test_names_of_nobody_are_not_kept(self) -> None:
        life = Life()
        self.addCleanup(life.world.stop)
        life.do("create", 0, True)
        for number in range(100):
            self.assertEqual(life.kept(f"nobody-{number}"), {"onions": []})
        self.assertEqual(len(life.service._listing._answers), 0)
