"""The onions of a host from the first act to the last, against a peer that speaks the control protocol."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import msgspec

from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.proto.onions import (
    AddClientRequest,
    BindRequest,
    Client,
    DeleteRequest,
    DrainRequest,
    ExportRequest,
    OnionView,
    Port,
    Pow,
    RemoveClientRequest,
    RotateRequest,
)
from ron.services.oniond.config import OnionConfig
from ron.tor import clientauth
from ron.tor import onions as onions_module
from ron.tor.backends import BackendReport, Capability, Gap
from ron.tor.onionkeys import OnionKey, address_of, new_key
from tests.services.oniond.fakes import WIKI, OnionTor, create, op_id
from tests.web.wire import until

OTHER = (Port(onion_port=81, local="127.0.0.1:8081"),)


class Case(OnionTor):
    async def fails(self, code: ErrorCode, call: Awaitable[Any]) -> RonError:
        with self.assertRaises(RonError) as caught:
            await call
        self.assertIs(caught.exception.code, code)
        return caught.exception

    async def made(self, number: int = 1, app: str = "chat", **more: Any) -> OnionView:
        return await self.service.create(create(number, app, wait_s=5.0, **more))

    async def tick(self, seconds: float = 1.0) -> None:
        self.now += seconds
        await self.service._upkeep.look()


class ConfigsOwn(Case):
    """Those that the config names: there from the start, the same after every one."""

    async def test_published_and_kept(self) -> None:
        self.assertFalse(self.health.snapshot().ready)
        await self.up()
        (status,) = self.service.status()
        self.assertEqual((status.onion, status.ports, status.published), (self.service.onion("wiki"), (80,), True))
        self.assertIsNotNone(status.bringup_ms)
        self.assertTrue(self.health.snapshot().ready)

    async def test_a_key_of_an_earlier_version_stays(self) -> None:
        key = new_key()
        assert self.directory is not None
        self.directory.mkdir(mode=0o700)
        (self.directory / "wiki.key").write_text(key.blob + "\n")
        (self.directory / "wiki.key").chmod(0o600)
        await self.up()
        self.assertEqual(self.service.onion("wiki"), address_of(key))

    async def test_its_key_is_kept_before_tor_hears_of_it(self) -> None:
        self.refuses = True
        self.answers["ADD_ONION"] = ["512 no"]
        self.service.startService()
        await until(lambda: self.told("ADD_ONION"))
        await self.kill()
        self.refuses = False
        service = await self.up(self.make())
        self.assertEqual([f"{one}.onion" for one in self.there], [service.onion("wiki")])

    async def test_the_next_process_leaves_it_as_it_is(self) -> None:
        onion = (await self.up()).onion("wiki")
        await self.kill()
        service = await self.up(self.make())
        self.assertEqual((self.onion_commands(), service.onion("wiki")), ([], onion))
        self.assertTrue(self.health.snapshot().ready)

    async def test_other_ports_are_published_anew_under_the_same_address(self) -> None:
        onion = (await self.up()).onion("wiki")
        await self.kill()
        service = await self.up(self.make(wiki=OTHER))
        self.assertEqual((self.onion_commands(), service.onion("wiki")), (["DEL_ONION", "ADD_ONION"], onion))

    async def test_one_that_was_never_seen_published_is_published_anew(self) -> None:
        """Killed between ADD_ONION and the first upload: whether any directory has it is not known."""
        self.deaf = True
        self.service.startService()
        await until(lambda: self.there)
        await self.kill()
        self.deaf = False
        await self.up(self.make())
        self.assertEqual(self.onion_commands(), ["DEL_ONION", "ADD_ONION"])

    async def test_what_nobody_wants_any_more_goes(self) -> None:
        stray = address_of(new_key()).removesuffix(".onion")
        self.there[stray] = ""
        await self.up()
        self.assertEqual(self.told("DEL_ONION"), [f"DEL_ONION {stray}"])

    async def test_one_that_the_config_names_no_more_rests_and_comes_back(self) -> None:
        onion = (await self.up()).onion("wiki")
        await self.kill()
        service = await self.up(self.make(news=WIKI))
        self.assertIsNone(service.onion("wiki"))
        self.assertEqual([f"{one}.onion" for one in self.there], [service.onion("news")])
        await self.kill(service)
        self.assertEqual((await self.up(self.make())).onion("wiki"), onion)

    async def test_a_fresh_tor_gets_them_back(self) -> None:
        onion = (await self.up()).onion("wiki")
        self.hidden.add("onion")
        self.there.clear()
        self._hang_up()
        await until(lambda: not self.health.snapshot().ready)
        self.assertEqual(self.service.onion("wiki"), onion, "the address is known all the same")
        self.hidden.clear()
        await until(lambda: self.health.snapshot().ready)
        self.assertEqual([f"{one}.onion" for one in self.there], [onion])

    async def test_stopped_in_order_it_takes_them_down(self) -> None:
        await self.up()
        await self.service.stopService()
        self.assertEqual(self.there, {})

    async def test_stopped_before_there_is_a_tor(self) -> None:
        self.hidden.add("onion")
        self.service.startService()
        await self.service.stopService()

    async def test_stopped_and_started_again(self) -> None:
        onion = (await self.up()).onion("wiki")
        await self.service.stopService()
        self.assertEqual((await self.up()).onion("wiki"), onion)

    async def test_no_directory_takes_it(self) -> None:
        self.patch(onions_module, "UPLOAD_TIMEOUT_S", 0.05)
        self.deaf = True
        told: list[str] = []
        self.health.observe(lambda readiness: told.append(readiness.reasons.get("onion.wiki", "")))
        self.service.startService()
        await until(lambda: self.there)
        self.tell_of("onion", f"HS_DESC UPLOAD {next(iter(self.there))} UNKNOWN $A~A")
        await until(lambda: self.restarted)
        self.assertTrue([reason for reason in told if "no onion directory" in reason], told)
        await self.service.stopService()
        self.assertGreaterEqual(len(self.flushLoggedErrors(RonError)), 1)

    async def test_a_damaged_store_is_no_reason_for_new_keys(self) -> None:
        await self.up()
        await self.service.stopService()
        assert self.directory is not None
        (self.directory / "oniond.sqlite3").write_bytes(b"garbage" * 1000)
        service = self.make()
        await self.fails(ErrorCode.STORE_UNAVAILABLE, self.up(service))
        self.assertIn("could not be read", self.health.snapshot().reasons["onion.wiki"])
        self.assertEqual(self.there, {})


class Making(Case):
    async def test_made_once_for_each_op_id(self) -> None:
        await self.up()
        first = await self.made()
        self.assertEqual((first.app, first.state, first.ready, first.ports), ("chat", "active", True, WIKI))
        again = await self.made()
        self.assertEqual((again.id, again.onion), (first.id, first.onion))
        self.assertNotEqual((await self.made(2)).onion, first.onion)
        self.assertEqual(len(self.there), 3)

    async def test_another_request_under_the_same_op_id(self) -> None:
        await self.up()
        await self.made()
        await self.fails(ErrorCode.CONFLICT, self.made(pow=None, isolation="process"))
        # how long one is ready to wait is no part of it
        await self.service.create(create(1))

    async def test_what_this_hosts_tor_cannot_do(self) -> None:
        able = frozenset(Capability) - {Capability.ONION_POW}
        gap = Gap(capability=Capability.ONION_POW, why="tor is too old for it")
        report = BackendReport(
            name="binary-tor", available=True, path=None, version="0.4.8.1", capabilities=able, gaps=(gap,)
        )
        self.service._backend = report
        await self.up()
        error = await self.fails(ErrorCode.UNSUPPORTED, self.made(pow=Pow()))
        self.assertIn("too old", str(error.hint))
        await self.made()

    async def test_another_apps_op_id_says_nothing(self) -> None:
        await self.up()
        self.assertNotEqual((await self.made(1, "chat")).id, (await self.made(1, "news")).id)

    async def test_no_op_id(self) -> None:
        await self.up()
        await self.fails(ErrorCode.BAD_REQUEST, self.service.create(msgspec.structs.replace(create(1), op_id="x" * 36)))

    async def test_ports_that_are_none(self) -> None:
        await self.up()
        for ports in (
            (*WIKI, *WIKI),
            (Port(onion_port=80, local="127.0.0.1:0"),),
            (Port(onion_port=80, local="127.0.0.1:65536"),),
            (Port(onion_port=80, local="unix:/run/../etc/x"),),
        ):
            request = msgspec.structs.replace(create(1), ports=ports)
            await self.fails(ErrorCode.BAD_REQUEST, self.service.create(request))
        self.assertEqual(len(self.there), 1)

    async def test_as_many_as_there_may_be(self) -> None:
        self.service = self.make(OnionConfig(max_onions=3, max_per_app=2))
        await self.up()
        for number in (1, 2):
            await self.made(number)
        self.assertIn("app", (await self.fails(ErrorCode.CONFLICT, self.made(3))).message)
        await self.made(4, "news")
        await self.fails(ErrorCode.CONFLICT, self.made(5, "blog"))
        await self.made(1)

    async def test_it_answers_before_it_is_published_when_nobody_waits(self) -> None:
        await self.up()
        self.deaf = True
        view = await self.service.create(create(1))
        self.assertEqual((view.ready, view.reason), (False, "its descriptor is not published yet"))
        self.assertEqual(self.health.snapshot().degraded, ("onions",))
        self.assertNotIn("chat", str(self.health.snapshot()))

    async def test_kept_and_ephemeral(self) -> None:
        await self.up()
        kept, gone = await self.made(1), await self.made(2, persistence="ephemeral")
        await self.kill()
        self.service = await self.up(self.make())
        self.assertEqual(self.service.find(kept.id).address, kept.onion)
        await self.fails(ErrorCode.NOT_FOUND, self.shown(gone.id))
        await until(lambda: gone.onion.removesuffix(".onion") not in self.there)
        self.assertEqual((await self.made(1)).id, kept.id, "the op_id is remembered too")

    async def test_nothing_is_written_in_memory_only(self) -> None:
        directory, self.directory = self.directory, None
        self.service = self.make()
        await self.up()
        await self.made()
        assert directory is not None
        self.assertFalse(directory.exists())

    async def test_one_on_a_tor_of_its_own(self) -> None:
        await self.up()
        view = await self.made(isolation="process")
        (role,) = self.added
        shown = self.service.view(self.service.find(view.id))
        assert shown.socks is not None
        self.assertEqual(shown.socks.port, await self.socks_port(role))
        self.assertNotIn(view.id[:8], role)
        await self.service.delete(view.id, DeleteRequest(op_id=op_id(9)))
        self.assertEqual(self.removed, [role])

    async def test_one_that_tor_refuses_troubles_no_other(self) -> None:
        await self.up()
        self.refuses = True
        self.answers["ADD_ONION"] = ["512 bad"]
        view = await self.service.create(create(1))
        await until(lambda: "refused" in (self.service.view(self.service.find(view.id)).reason or ""))
        self.refuses = False
        self.assertTrue((await self.made(2)).ready)
        self.assertEqual(self.restarted, [])
        self.assertTrue(self.health.is_ok("onion.wiki"))

    async def shown(self, onion_id: str, may: str | None = None) -> OnionView:
        return self.service.view(self.service.find(onion_id, may))


class Changing(Case):
    async def setUp(self) -> None:
        super().setUp()
        await self.up()
        self.view = await self.made()
        self.commands.clear()

    def shown(self) -> OnionView:
        return self.service.view(self.service.find(self.view.id))

    async def test_bound_to_other_ports(self) -> None:
        view = await self.service.bind(self.view.id, BindRequest(op_id=op_id(2), ports=OTHER, wait_s=5))
        self.assertEqual((view.onion, view.ports, view.ready), (self.view.onion, OTHER, True))
        self.assertEqual(self.onion_commands(), ["DEL_ONION", "ADD_ONION"])

    async def test_bound_to_the_same_nothing_happens(self) -> None:
        await self.service.bind(self.view.id, BindRequest(op_id=op_id(2), ports=WIKI, wait_s=5))
        self.assertEqual(self.onion_commands(), [])

    async def test_rotated_both_addresses_are_served_for_a_while(self) -> None:
        request = RotateRequest(op_id=op_id(2), grace_s=60, wait_s=5)
        view = await self.service.rotate(self.view.id, request)
        assert view.previous is not None
        self.assertEqual((view.previous.onion, view.previous.ready, view.ready), (self.view.onion, True, True))
        self.assertNotEqual(view.onion, self.view.onion)
        self.assertEqual(self.onion_commands(), ["ADD_ONION"])
        again = await self.service.rotate(self.view.id, request)
        self.assertEqual(again.onion, view.onion, "the same act")
        other = RotateRequest(op_id=op_id(3), grace_s=60)
        await self.fails(ErrorCode.CONFLICT, self.service.rotate(self.view.id, other))
        await self.tick(61)
        await until(lambda: self.view.onion.removesuffix(".onion") not in self.there)
        self.assertIsNone(self.shown().previous)
        self.assertTrue(self.shown().ready)

    async def test_a_grace_period_goes_on_after_a_kill(self) -> None:
        await self.service.rotate(self.view.id, RotateRequest(op_id=op_id(2), grace_s=60, wait_s=5))
        await self.kill()
        self.service = await self.up(self.make())
        self.assertEqual(self.onion_commands(), [])
        self.assertEqual(len(self.there), 3)

    async def test_drained(self) -> None:
        view = await self.service.drain(self.view.id, DrainRequest(op_id=op_id(2), deadline_s=60))
        self.assertEqual((view.state, view.ready), ("draining", False))
        await until(lambda: self.view.onion.removesuffix(".onion") not in self.there)
        await self.fails(ErrorCode.CONFLICT, self.service.rotate(self.view.id, RotateRequest(op_id=op_id(3))))
        await self.tick()
        self.assertEqual(self.shown().state, "drained")
        bound = await self.service.bind(self.view.id, BindRequest(op_id=op_id(4), ports=WIKI, wait_s=5))
        self.assertEqual((bound.state, bound.ready, bound.onion), ("active", True, self.view.onion))

    async def test_a_drain_waits_for_visitors_and_not_for_ever(self) -> None:
        bare = self.view.onion.removesuffix(".onion")
        rend = f"PURPOSE=HS_SERVICE_REND HS_STATE=HSSR_JOINED REND_QUERY={bare}"
        self.tell(f"CIRC 7 BUILT $AA~a {rend}")
        await until(lambda: self.shown().circuits == 1)
        await self.service.drain(self.view.id, DrainRequest(op_id=op_id(2), deadline_s=60))
        await self.tick()
        self.assertEqual(self.shown().state, "draining")
        await self.tick(60)
        self.assertEqual(self.shown().state, "drained")

    async def test_deleted(self) -> None:
        request = DeleteRequest(op_id=op_id(2))
        await self.service.delete(self.view.id, request)
        await until(lambda: self.view.onion.removesuffix(".onion") not in self.there)
        await self.service.delete(self.view.id, request)
        await self.fails(ErrorCode.NOT_FOUND, self.service.delete(self.view.id, DeleteRequest(op_id=op_id(3))))
        await self.fails(ErrorCode.NOT_FOUND, self.made())

    async def test_a_deleted_key_is_overwritten(self) -> None:
        key = (await self.service.export(self.view.id, ExportRequest(op_id=op_id(2)), "me")).key
        await self.service.delete(self.view.id, DeleteRequest(op_id=op_id(3)))
        await self.service.stopService()
        assert self.directory is not None
        for path in self.directory.iterdir():
            self.assertNotIn(key.encode(), path.read_bytes(), path.name)

    async def test_exported_when_it_is_written_down(self) -> None:
        request = ExportRequest(op_id=op_id(2))
        answer = await self.service.export(self.view.id, request, "cap")
        self.assertEqual(address_of(OnionKey(answer.key)), self.view.onion)
        (event, fields), *_ = self.audit.records
        self.assertEqual((event, fields["app"], fields["cap_id"]), ("onion_exported", "chat", "cap"))
        self.assertNotIn(answer.key, str(self.audit.records))
        self.audit.trouble = unavailable("disk full")
        await self.fails(ErrorCode.STORE_UNAVAILABLE, self.service.export(self.view.id, request, "cap"))

    async def test_rotated_and_deleted_stand_in_the_audit_log_once(self) -> None:
        request = RotateRequest(op_id=op_id(2), grace_s=0)
        for _ in range(2):
            view = await self.service.rotate(self.view.id, request)
        for _ in range(2):
            await self.service.delete(self.view.id, DeleteRequest(op_id=op_id(3)))
        (rotated, addresses), (deleted, last) = self.audit.records
        self.assertEqual((rotated, deleted), ("onion_rotated", "onion_deleted"))
        self.assertEqual((addresses["old_onion"], addresses["new_onion"]), (self.view.onion, view.onion))
        self.assertEqual(last["onion"], view.onion)

    async def test_no_audit_no_deletion(self) -> None:
        self.audit.trouble = unavailable("disk full")
        request = DeleteRequest(op_id=op_id(2))
        await self.fails(ErrorCode.STORE_UNAVAILABLE, self.service.delete(self.view.id, request))
        self.assertTrue(self.shown().ready)

    async def test_the_effort_is_a_figure_by_app(self) -> None:
        await self.service.create(create(5, "news", pow=Pow(), wait_s=5))
        await self.service._upkeep._measure_effort()
        self.assertEqual(self.service.telemetry.efforts, {}, "this tor knows no descriptors")
        self.service.telemetry.efforts = {"news": 7, "gone": 9}
        (effort,) = [family for family in self.service.telemetry.collect() if family.name == "onion_pow_effort"]
        self.assertEqual({(s.labels["app"], s.value) for s in effort.samples}, {("news", 7), ("_other", 9)})

    async def test_clients(self) -> None:
        ann, bob = (Client(name=name, public_key=clientauth.generate().public.base32) for name in ("ann", "bob"))
        request = AddClientRequest(op_id=op_id(2), client=ann)
        view = await self.service.add_client(self.view.id, request)
        self.assertEqual(view.clients, (ann,))
        await until(lambda: f"ClientAuthV3={ann.public_key}" in self.there.get(view.onion.removesuffix(".onion"), ""))
        self.assertIn("Flags=Detach,V3Auth", self.there[view.onion.removesuffix(".onion")])
        self.assertEqual((await self.service.add_client(self.view.id, request)).clients, (ann,))
        for number, client in ((3, ann), (4, Client(name="ann", public_key=bob.public_key))):
            twice = AddClientRequest(op_id=op_id(number), client=client)
            await self.fails(ErrorCode.CONFLICT, self.service.add_client(self.view.id, twice))
        await self.service.add_client(self.view.id, AddClientRequest(op_id=op_id(5), client=bob))
        view = await self.service.remove_client(self.view.id, "ann", RemoveClientRequest(op_id=op_id(6)))
        self.assertEqual(view.clients, (bob,))
        last = self.service.remove_client(self.view.id, "bob", RemoveClientRequest(op_id=op_id(7)))
        self.assertIn("everybody", (await self.fails(ErrorCode.CONFLICT, last)).message)
        none = self.service.remove_client(self.view.id, "eve", RemoveClientRequest(op_id=op_id(8)))
        await self.fails(ErrorCode.NOT_FOUND, none)

    async def test_a_client_key_that_keeps_nobody_out(self) -> None:
        weak = Client(name="eve", public_key="A" * 52)
        await self.fails(
            ErrorCode.BAD_REQUEST,
            self.service.add_client(self.view.id, AddClientRequest(op_id=op_id(2), client=weak)),
        )

    async def test_another_apps_is_not_there(self) -> None:
        for call in (
            self.service.bind(self.view.id, BindRequest(op_id=op_id(2), ports=OTHER), "news"),
            self.service.rotate(self.view.id, RotateRequest(op_id=op_id(3)), "news"),
            self.service.drain(self.view.id, DrainRequest(op_id=op_id(4)), "news"),
            self.service.delete(self.view.id, DeleteRequest(op_id=op_id(5)), "news"),
            self.service.export(self.view.id, ExportRequest(op_id=op_id(6)), "x", "news"),
        ):
            error = await self.fails(ErrorCode.NOT_FOUND, call)
            self.assertEqual(error.message, f"there is no onion {self.view.id}")
        self.assertEqual(self.service.list("news"), ())
        self.assertEqual([one.id for one in self.service.list("chat")], [self.view.id])

    async def test_old_acts_are_forgotten(self) -> None:
        await self.service.bind(self.view.id, BindRequest(op_id=op_id(2), ports=OTHER))
        self.now += 25 * 3600
        await self.service._registry.forget_old_acts()
        other = BindRequest(op_id=op_id(2), ports=WIKI)
        self.assertEqual((await self.service.bind(self.view.id, other)).ports, WIKI)
