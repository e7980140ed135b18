"""The pool of tors: up, down, with visitors, with a tor that fails, and what the next process finds of it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from prometheus_client import CollectorRegistry, generate_latest

from ron.kernel.health import Readiness
from ron.proto.errors import ErrorCode, RonError
from ron.proto.onions import BindRequest, DeleteRequest, Port, RotateRequest
from ron.services.oniond import scaling
from ron.services.oniond.config import OnionConfig
from ron.services.oniond.roles import (
    HOST_ROLE,
)
from ron.services.oniond.service import OniondService
from tests.services.oniond.fakes import OnionTor, create, op_id
from tests.web.wire import until

LIMITS = OnionConfig(max_onions=20, max_per_app=16, scale_max=3)


class Case(OnionTor):
    """A host with onions on it, and as many tors as `wished` says; time passes a hundred times as fast."""

    def setUp(self) -> None:
        super().setUp()
        for name, seconds in (
            ("EVERY_S", 3600.0),
            ("POLL_S", 0.005),
            ("MUTE_S", 0.01),
            ("READY_S", 1.0),
            ("UNLISTED_S", 0.02),
            ("DRAIN_DEADLINE_S", 5.0),
            ("EVEN_DEADLINE_S", 5.0),
        ):
            self.patch(scaling, name, seconds)
        self.told_of: list[Readiness] = []
        self.service = self.make(LIMITS)

    async def add(self, name: str) -> None:
        await super().add(name)
        # cleanups begin with the last: the service ends before its tors do
        self.addCleanup(lambda: self.service.stopService() if self.service.running else None)

    async def world(self, onions: int = 3) -> list[str]:
        """Addresses of the config's own and `onions` more."""
        await self.up()
        made = [(await self.service.create(create(n, wait_s=5))).onion for n in range(1, onions + 1)]
        self.health.observe(self.told_of.append)
        self.acts.clear()
        self.commands.clear()
        return [self.service.onion("wiki") or "", *made]

    async def scaled(self, number: int) -> None:
        self.service.scale(number)
        await self.steady()

    async def steady(self) -> None:
        await until(lambda: self.service._scaling._step is None)

    def never_missing(self) -> None:
        """Nobody was told that anything was not there."""
        self.assertEqual([one for one in self.told_of if one.missing or one.degraded], [])

    def at(self, role: str) -> set[str]:
        return {f"{one}.onion" for one in self.by_role.get(role, {})}

    def place(self, onion_id: str) -> str:
        return self.service._hosting.role(self.service.find(onion_id))

    async def visitor(self, role: str, address: str, state: str = "BUILT") -> None:
        """Somebody comes to `address` at `role`, or (CLOSED) goes."""
        bare = address.removesuffix(".onion")
        before = self.service.telemetry.visitors(role)[address]
        self.tell_of(role, f"CIRC 7 {state} $AA~a PURPOSE=HS_SERVICE_REND HS_STATE=HSSR_JOINED REND_QUERY={bare}")
        await until(lambda: self.service.telemetry.visitors(role)[address] != before)

    def settings(self, role_commands: Callable[[str], bool] = lambda _c: True) -> list[str]:
        return [c for c in self.commands if "PublishHidServDescriptors" in c and role_commands(c)]


class Steps(Case):
    async def test_up_some_move_and_none_is_missing_meanwhile(self) -> None:
        addresses = await self.world()
        await self.scaled(2)
        self.assertEqual(self.added, ["onion-2"])
        self.assertEqual((len(self.at("onion")), len(self.at("onion-2"))), (2, 2))
        self.assertEqual(self.at("onion") | self.at("onion-2"), set(addresses))
        self.never_missing()
        # there first, then away from here; and all of it while the old one uploads nothing
        first = self.acts.index(("onion", "DEL_ONION"))
        self.assertEqual(self.acts[:first].count(("onion-2", "ADD_ONION")), 2)
        muted = [c for c in self.commands if "PublishHidServ" in c or c.startswith("ADD_ONION")]
        self.assertLess(muted.index("SETCONF PublishHidServDescriptors=0"), muted.index(self.told("ADD_ONION")[0]))
        self.assertEqual(self.settings()[-1], "SETCONF PublishHidServDescriptors=1")

    async def test_down_all_come_back_and_the_tor_ends(self) -> None:
        addresses = await self.world()
        await self.scaled(3)
        self.acts.clear()
        await self.scaled(1)
        self.assertEqual(self.removed, ["onion-3", "onion-2"])
        self.assertEqual(self.at("onion"), set(addresses))
        self.assertNotIn(("onion", "DEL_ONION"), self.acts)
        self.never_missing()
        self.assertTrue(all(view.ready for view in self.service.list()))

    async def test_one_that_leaves_is_served_on_for_those_who_are_there(self) -> None:
        """DEL_ONION alone would refuse every new stream on a visitor's circuit."""
        await self.world()
        await self.scaled(2)
        (address, *_) = sorted(self.at("onion-2"))
        await self.visitor("onion-2", address)
        self.acts.clear()
        self.service.scale(1)
        await until(lambda: self.acts.count(("onion-2", "ADD_ONION")) == 2)
        self.assertIn(address, self.at("onion-2"))
        self.assertEqual(self.acts[-4:], [("onion-2", "DEL_ONION"), ("onion-2", "ADD_ONION")] * 2)
        self.assertEqual(self.removed, [])
        self.assertEqual(self.service.scale().moving, 1)
        await self.visitor("onion-2", address, "CLOSED")
        await self.steady()
        self.assertEqual((self.removed, self.service.scale_figures.cut), (["onion-2"], 0))

    async def test_a_visitor_who_never_pauses_is_cut_off_at_the_deadline_and_counted(self) -> None:
        await self.world()
        await self.scaled(2)
        (address, *_) = sorted(self.at("onion-2"))
        await self.visitor("onion-2", address)
        self.patch(scaling, "DRAIN_DEADLINE_S", 0.1)
        await self.scaled(1)
        self.assertEqual((self.removed, self.service.scale_figures.cut), (["onion-2"], 1))

    async def test_visitors_are_seen_wherever_they_are(self) -> None:
        await self.world(1)
        view = self.service.list()[0]
        await self.visitor("onion", view.onion)
        self.service.scale(2)
        await until(lambda: self.service._hosting.placement.leaving(view.id) or not self.service._scaling._step)
        self.assertEqual(self.service.view(self.service.find(view.id)).circuits, 1)
        await self.visitor("onion", view.onion, "CLOSED")
        await self.steady()

    async def test_a_tor_where_nothing_can_be_published(self) -> None:
        addresses = await self.world()
        self.patch(scaling, "READY_S", 0.1)
        self.deaf = {"onion-2"}
        await self.scaled(2)
        self.assertEqual(self.service.scale_figures.moves["failed"], 2)
        # some directory may have got the other one's descriptor: published again, and nothing is left over there
        await until(lambda: self.at("onion") == set(addresses) and not self.at("onion-2"))
        await until(lambda: self.acts.count(("onion", "ADD_ONION")) == 2)
        await until(lambda: all(view.ready for view in self.service.list()))
        self.assertEqual(self.settings()[-1], "SETCONF PublishHidServDescriptors=1")

    async def test_a_tor_that_is_not_to_be_had(self) -> None:
        await self.world()

        async def refuse(_name: str) -> None:
            raise RonError(ErrorCode.CONFLICT, "there are 64 client tors")

        self.patch(self, "add", refuse)
        await self.scaled(2)
        self.assertEqual((self.service.scale().tors, self.acts), (1, []))
        self.never_missing()

    async def test_bounds(self) -> None:
        await self.world()
        for number in (0, 4):
            with self.assertRaises(RonError) as caught:
                self.service.scale(number)
            self.assertIs(caught.exception.code, ErrorCode.BAD_REQUEST)
        self.service.scale(2)
        with self.assertRaises(RonError) as caught:
            self.service.scale(1)
        self.assertIs(caught.exception.code, ErrorCode.CONFLICT)
        await self.steady()


class Meanwhile(Case):
    """What happens to an onion while it moves."""

    async def moving(self) -> str:
        """The id of one that is leaving `onion-2`, where a visitor keeps the tor up."""
        await self.world()
        await self.scaled(2)
        (one, *_) = self.service._hosting.placement.on("onion-2")
        address = self.service.find(one).address
        await self.visitor("onion-2", address)
        self.service.scale(1)
        await until(lambda: (there := self.service._hosting.placement.leaving(one)) and not there.listed)
        await until(self.service._hosting.publisher("onion-2").is_unlisted)
        self.acts.clear()
        return one

    async def end(self, address: str) -> None:
        await self.visitor("onion-2", address, "CLOSED")
        await self.steady()
        self.assertEqual(self.removed, ["onion-2"])

    async def test_bound_to_other_ports(self) -> None:
        one = await self.moving()
        view = await self.service.bind(
            one, BindRequest(op_id=op_id(90), ports=(Port(onion_port=81, local="127.0.0.1:8081"),), wait_s=5)
        )
        self.assertTrue(view.ready)
        await until(lambda: view.onion not in self.at("onion-2"))
        self.assertIn("Port=81", self.there[view.onion.removesuffix(".onion")])
        await self.end(view.onion)

    async def test_rotated(self) -> None:
        one = await self.moving()
        old = self.service.find(one).address
        view = await self.service.rotate(one, RotateRequest(op_id=op_id(90), grace_s=60, wait_s=5))
        self.assertLessEqual({view.onion, old}, self.at("onion"))
        self.assertNotIn(view.onion, self.at("onion-2"))
        await self.end(old)

    async def test_deleted(self) -> None:
        one = await self.moving()
        address = self.service.find(one).address
        await self.service.delete(one, DeleteRequest(op_id=op_id(90)))
        await until(lambda: address not in self.at("onion") | self.at("onion-2"))
        await self.end(address)

    async def test_a_new_one(self) -> None:
        one = await self.moving()
        view = await self.service.create(create(80, wait_s=5))
        self.assertEqual(self.place(view.id), HOST_ROLE)
        await self.end(self.service.find(one).address)

    async def test_the_old_tor_uploads_all_the_same(self) -> None:
        one = await self.moving()
        address = self.service.find(one).address
        bare = address.removesuffix(".onion")
        self.tell_of("onion-2", f"HS_DESC UPLOAD {bare} UNKNOWN $AA~a x HSDIR_INDEX=0")
        await until(lambda: self.acts[-2:] == [("onion", "DEL_ONION"), ("onion", "ADD_ONION")])
        await self.end(address)


class Afterwards(Case):
    """What the next process makes of it."""

    async def next_one(self, config: OnionConfig = LIMITS) -> OniondService:
        await self.kill()
        self.acts.clear()
        self.service = await self.up(self.make(config))
        return self.service

    async def test_they_are_where_they_were(self) -> None:
        addresses = await self.world()
        await self.scaled(2)
        before = self.at("onion-2")
        service = await self.next_one()
        await until(lambda: all(view.ready for view in service.list()))
        self.assertEqual((self.acts, self.at("onion-2"), service.scale().tors), ([], before, 2))
        self.assertEqual(self.at("onion") | before, set(addresses))
        self.assertEqual({a for a in addresses if self.place(self.by(a)) == "onion-2"}, before)

    def by(self, address: str) -> str:
        return next(view.id for view in self.service.list() if view.onion == address)

    async def test_killed_in_the_middle_of_a_move(self) -> None:
        addresses = await self.world()
        self.deaf = {"onion-2"}
        self.service.scale(2)
        await until(lambda: len(self.at("onion-2")) == 2)
        self.deaf = False
        service = await self.next_one()
        await until(lambda: self.at("onion") == set(addresses) and not self.at("onion-2"))
        await until(lambda: all(view.ready for view in service.list()))
        # who knows which descriptor the directories have: those two, and no others, are published again
        self.assertEqual(self.acts.count(("onion", "ADD_ONION")), 2)

    async def test_killed_while_visitors_are_waited_for(self) -> None:
        addresses = await self.world()
        await self.scaled(2)
        (address, *_) = sorted(self.at("onion-2"))
        await self.visitor("onion-2", address)
        self.service.scale(1)
        await until(lambda: self.acts.count(("onion-2", "ADD_ONION")) == 4)
        await until(self.service._hosting.publisher("onion-2").is_unlisted)
        await self.next_one(msgspec.structs.replace(LIMITS, scale_max=1))
        # muted for ever it would be of no use; and the pool is as large as it may be
        self.assertIn("SETCONF PublishHidServDescriptors=1", self.commands)
        await self.steady()
        self.assertEqual((self.removed, self.at("onion")), (["onion-2"], set(addresses)))
        self.assertNotIn(("onion", "DEL_ONION"), self.acts)

    async def test_their_tor_has_gone_with_the_network(self) -> None:
        addresses = await self.world()
        await self.scaled(2)
        await self.kill()
        await self.remove("onion-2")
        self.service = await self.up(self.make(LIMITS))
        await until(lambda: self.at("onion") == set(addresses))
        self.assertEqual((self.added, self.service.scale().tors), (["onion-2"], 1))

    async def test_a_tor_of_its_own_that_nobody_owns_ends(self) -> None:
        await self.world(0)
        await self.service.create(create(5, persistence="ephemeral", isolation="process", wait_s=5))
        (own,) = self.added
        await self.next_one()
        self.assertEqual(self.removed, [own])


class Load(Case):
    """The config's limits, live, and the load."""

    async def test_an_operator_changes_the_limits(self) -> None:
        addresses = await self.world()
        self.wished = msgspec.structs.replace(LIMITS, scale_min=2)
        await self.service._upkeep.look()
        await self.steady()
        self.assertEqual((self.service.scale().tors, self.service.scale().reason), (2, "too_few"))
        self.wished = msgspec.structs.replace(LIMITS, scale_max=1)
        await self.service._upkeep.look()
        await self.steady()
        self.assertEqual((self.service.scale().tors, self.service.scale().reason), (1, "too_many"))
        self.assertEqual(self.at("onion"), set(addresses))
        self.never_missing()

    async def test_visitors_bring_another_tor(self) -> None:
        await self.world()
        self.wished = msgspec.convert(
            {"scale_max": 2, "autoscale": {"circuits_p95": 1, "connect_ms_p95": 60_000}}, OnionConfig
        )
        first, second = (view.onion.removesuffix(".onion") for view in self.service.list()[:2])
        rend = "BUILT $AA~a PURPOSE=HS_SERVICE_REND HS_STATE=HSSR_JOINED REND_QUERY="
        self.tell_of("onion", f"CIRC 7 {rend}{first}")
        self.tell_of("onion", f"CIRC 8 {rend}{second}")
        await until(lambda: self.service.telemetry.visitors("onion").total() == 2)
        self.service._scaling.look()
        self.assertEqual(self.service.scale().target, 1, "one sample may be an accident")
        self.service._scaling.look()
        self.assertEqual((self.service.scale().target, self.service.scale().reason), (2, "circuits"))
        for number in (7, 8):
            self.tell_of("onion", f"CIRC {number} CLOSED $AA~a")
        await self.steady()
        self.assertEqual(self.service.scale().tors, 2)

    async def test_what_is_shown(self) -> None:
        await self.world()
        await self.scaled(2)
        registry = CollectorRegistry()
        registry.register(self.service.scale_figures)
        shown = generate_latest(registry).decode()
        for line in (
            'onion_tors{state="serving"} 2.0',
            'onion_tors{state="draining"} 0.0',
            "onion_tors_target 2.0",
            'onion_tors_reason{reason="operator"} 1.0',
            'onion_moves_total{result="done"} 2.0',
            "onion_visitors_cut_total 0.0",
        ):
            self.assertIn(line, shown)
