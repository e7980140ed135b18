"""A node of a cluster hosted: real files, a real mesh on loopback, its operators' socket; and no tor at all."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, FirstError

from ron.crypto import x509
from ron.kernel import Config
from ron.kernel.config import Layers
from ron.nodes import balance as daemon
from ron.nodes.balance import BalanceDaemon, Options
from ron.nodes.parts import PARTS, Host, PartUnit, balancerooms, load_part, wanted
from ron.nodes.parts import balance as hosting
from ron.nodes.parts.balance import BalancePart, HostedBalance
from ron.nodes.runtime import Runtime
from ron.proto.balanceviews import (
    BalanceView,
    InvitationAnswer,
    InvitationRequest,
    LeaveAnswer,
    LeaveRequest,
    NewServiceRequest,
    ServiceView,
    TokenAnswer,
    TokenRequest,
)
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.proto.exitcodes import Exit
from ron.sdk import Api
from ron.sdk.transport import connection_pool, unix_http
from ron.services.balance.cluster import Plan, Standing
from ron.services.balance.mesh.files import NodeFiles, accept, found
from ron.services.configs import SCHEMAS
from ron.tor.onionkeys import address_of, new_key
from tests.nodes.with_runtime import WithRuntime
from tests.services.balance.publishing.samples import FakeNetwork, ring_with

CA = x509.init_ca("a test")
OP = "9b2d1c1e-6f0e-4a57-8a3e-1f2b3c4d5e6f"
SERVICES = '[[balance.services]]\nname = "main"\nports = ["80:127.0.0.1:9"]\n'


class Hosted(WithRuntime):
    """In a home that `ronctl balance init` could have made."""

    schema = "ron-balance"
    more = ""

    def make_runtime(self) -> Runtime:
        path = self.home / "node.toml"
        listen = f'[balance]\nnode = "alpha"\nlisten = "127.0.0.1:0"\n{self.more}'
        path.write_text(listen + SERVICES)
        return Runtime(reactor, name="node", config=Config(Layers(*SCHEMAS[self.schema], path=path)))

    def setUp(self) -> None:
        super().setUp()
        self.ended: list[RonError | None] = []
        self.patch(hosting, "READY_S", 0.3)

    def files(self, name: str = "alpha", at: str = "balance") -> NodeFiles:
        return found(self.home / at, name, CA)

    def with_ca(self) -> None:
        folder = self.home / balancerooms.CA_FOLDER
        folder.mkdir(mode=0o700)
        (folder / "ca.pem").write_bytes(x509.certificate_pem(CA.certificate))
        (folder / "ca.key").write_bytes(x509.key_pem(CA.key))
        (folder / "ca.key").chmod(0o600)

    def host(self) -> HostedBalance:
        self.start()
        hosted = HostedBalance(self.runtime, self.ended.append)
        self.addCleanup(lambda: hosted.service.stopService())
        return hosted

    async def up(self) -> HostedBalance:
        hosted = self.host()
        hosted.service.startService()
        await hosted.ready()
        return hosted

    def api(self, hosted: HostedBalance) -> Api:
        site = hosted.site()
        listening = self.runtime.listen(hosted.where, site)

        async def stop() -> None:
            await listening.stop_accepting()
            await site.drain(0)

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        pool = connection_pool(reactor)
        self.addCleanup(pool.closeCachedConnections)
        cap = self.runtime.write_admin_capability().read_text().strip()
        return Api(reactor, unix_http(reactor, hosted.where, pool), "http://balance", cap, tries=1)

    async def refused(self, call: Any) -> RonError:
        error: RonError = await self.assertFailure(Deferred.fromCoroutine(call), RonError)
        return error


def made_up() -> str:
    return address_of(new_key())


class Files(Hosted):
    """Made wrongly it is not made at all."""

    def test_no_files(self) -> None:
        error = self.assertRaises(RonError, HostedBalance, self.runtime, self.ended.append)
        self.assertEqual(error.code, ErrorCode.NOT_FOUND)
        self.assertIn("ronctl balance init", str(error.hint))
        self.start()

    def test_files_of_another_node(self) -> None:
        self.files("beta")
        error = self.assertRaises(RonError, HostedBalance, self.runtime, self.ended.append)
        self.assertIn("are of node beta, not alpha", error.message)
        self.start()

    def test_an_address_that_is_none(self) -> None:
        error = self.assertRaises(RonError, balancerooms._address, "nowhere", "balance.listen")
        self.assertIn("balance.listen", error.message)
        self.start()

    def test_where_operators_find_it(self) -> None:
        self.files()
        self.assertEqual(self.host().where, self.home / "run" / "balance.sock")


class Alone(Hosted):
    async def test_it_has_its_place_in_the_mesh_without_a_tor(self) -> None:
        """And says what it lacks."""
        self.files()
        hosted = await self.up()
        api = self.api(hosted)
        view = await api.call("GET", "/v1/balance", BalanceView)
        self.assertEqual((view.node, view.leader.name, [one.name for one in view.members]), ("alpha", None, ["alpha"]))
        self.assertEqual(view.members[0].unfit or view.leader.why, "listening")
        snapshot = self.runtime.health.snapshot()
        self.assertIn("balance.head", snapshot.missing)
        self.assertIn("balance.leader", snapshot.degraded)
        await self.until(lambda: "balance_leader_known" in self.runtime.metrics.render().decode(), "the figures")

    async def test_an_address_is_made(self) -> None:
        """Its key is in memory, on no disk, and gone with the node."""
        self.files()
        hosted = await self.up()
        body = NewServiceRequest(op_id=OP, name="main")
        made = await self.api(hosted).call("POST", "/v1/balance/services", ServiceView, body)
        self.assertEqual((made.holders, hosted.rooms.vault.holds()), (("alpha",), {"main"}))
        await self.until(lambda: hosted.rooms.head._masters == (made.onion,), "the head to answer for it")
        self.assertIsNone(hosted.rooms.canaries.reachable("main"))
        scalar = hosted.rooms.vault._ring.whole["main"].copy()
        await hosted.service.stopService()
        self.assertEqual(hosted.rooms.vault.holds(), frozenset())
        for path in self.home.rglob("*"):
            if path.is_file():
                self.assertNotIn(bytes(scalar[:32]), path.read_bytes(), path)

    async def test_invitations(self) -> None:
        self.files()
        hosted = await self.up()
        api = self.api(hosted)
        body = InvitationRequest(op_id=OP, name="beta")
        error = await self.refused(api.call("POST", "/v1/balance/invitations", InvitationAnswer, body))
        self.assertEqual(error.code, ErrorCode.UNSUPPORTED)
        self.with_ca()
        answer = await api.call("POST", "/v1/balance/invitations", InvitationAnswer, body)
        self.assertEqual(accept(self.home / "beta", answer.bundle).seeds, (f"127.0.0.1:{hosted.rooms.mesh.port}",))
        again = InvitationRequest(op_id=OP.replace("9b", "9c"), name="alpha")
        error = await self.refused(api.call("POST", "/v1/balance/invitations", InvitationAnswer, again))
        self.assertIn("is a member already", error.message)
        token = await api.call(
            "POST", "/v1/balance/token/rotate", TokenAnswer, TokenRequest(op_id=OP.replace("9b", "9d"))
        )
        self.assertEqual((token.version, token.told), (2, ()))

    async def test_leave(self) -> None:
        """Whoever hosts it hears of it, and ends it."""
        self.files()
        hosted = await self.up()
        api = self.api(hosted)
        answer = await api.call("POST", "/v1/balance/leave", LeaveAnswer, LeaveRequest())
        self.assertEqual(answer.node, "alpha")
        await self.until(lambda: self.ended, "the end")
        self.assertIsNone(self.ended[0])
        await hosted.service.stopService()
        error = await self.refused(api.call("POST", "/v1/balance/leave", LeaveAnswer, LeaveRequest()))
        self.assertEqual(error.code, ErrorCode.STORE_UNAVAILABLE)

    async def test_what_left_does_not_come_back(self) -> None:
        files = self.files()
        hosted = await self.up()
        await hosted.rooms.desk.leave()
        await self.until(lambda: self.ended, "the end")
        await hosted.service.stopService()
        self.runtime.stop()
        self.runtime = self.make_runtime()
        self.assertEqual(files.name, "alpha")
        hosted = self.host()
        hosted.service.startService()
        error = await self.refused(hosted.ready())
        self.assertIn("removed", error.message)
        self.assertFalse(hosted.rooms.node.running or hosted.rooms.vault.running)


class Threshold(Hosted):
    """What the rooms are told of the config and of the network."""

    def make_runtime(self) -> Runtime:
        runtime = super().make_runtime()
        path = self.home / "node.toml"
        path.write_text(path.read_text() + 'mode = "threshold"\nthreshold = 3\nmembers = 5\n')
        runtime.config.reload()
        return runtime

    async def test_what_is_handed_on(self) -> None:
        self.files()
        hosted = await self.up()
        self.assertEqual(
            (hosted.rooms._floor("main"), hosted.rooms._floor("shop"), hosted.rooms._periods()), (3, None, ())
        )
        error = await self.refused(hosted.rooms._relays())
        self.assertIn("tor", error.message)
        await hosted.rooms._forget_onions()
        network: Any = FakeNetwork(reactor, ring_with())  # type: ignore[arg-type]
        network.latency_s = 0.0
        await hosted.rooms.room.attach(network)
        await hosted.ready()
        asked_for = ring_with().time.asked_for().period
        self.assertIn(asked_for, hosted.rooms._periods())
        self.assertEqual(hosted.rooms._canary("main", made_up()).last, None)
        self.assertEqual(hosted.rooms.node.ask_to_publish("a test"), "")

    async def test_no_descriptor_helps_against_a_dead_target(self) -> None:
        self.files()
        hosted = await self.up()
        asked: list[str] = []
        self.patch(hosted.rooms.node, "ask_to_publish", asked.append)
        for refusing in ((), ("main",), ("shop",)):
            hosted.rooms.cluster.standing = Standing(plan=Plan(refusing=refusing))
            hosted.rooms._unreachable("main", f"with {refusing}")
        self.assertEqual(asked, ["main: with ()", "main: with ('shop',)"])


class Ends(Hosted):
    async def test_stopped_twice_and_started_again(self) -> None:
        """As a supervisor does: another run, with rooms of its own, behind the same socket."""
        self.files()
        hosted = await self.up()
        api = self.api(hosted)
        await hosted.rooms.desk.create("main", "shared", 0, 0, (), None)
        first = hosted.rooms
        await hosted.service.stopService()
        await hosted.service.stopService()
        self.assertFalse(first.mesh.running or first.node.running)
        # what was counted is of that run
        self.assertNotIn("balance_mesh_links", self.runtime.metrics.render().decode())
        hosted.service.startService()
        await hosted.ready()
        self.assertIsNot(hosted.rooms, first)
        self.assertTrue(hosted.rooms.mesh.running and hosted.rooms.node.running)
        self.assertIn("balance_mesh_links", self.runtime.metrics.render().decode())
        view = await api.call("GET", "/v1/balance", BalanceView)
        self.assertEqual([one.name for one in view.members], ["alpha"])
        # the book is on disk, and the key was in memory
        self.assertEqual([(one.name, one.holders) for one in view.services], [("main", ())])

    async def test_started_again_while_it_still_ends(self) -> None:
        self.files()
        hosted = await self.up()
        ending = hosted.service.stopService()
        hosted.service.startService()
        await hosted.ready()
        self.assertTrue(ending.called)
        self.assertTrue(hosted.rooms.mesh.running)

    async def test_an_end_that_comes_before_the_next_beginning(self) -> None:
        self.files()
        hosted = await self.up()
        hosted.service.stopService()
        hosted.service.startService()
        await hosted.service.stopService()
        self.assertFalse(hosted.rooms.mesh.running or hosted.rooms.node.running)

    async def test_stopped_before_it_was_up(self) -> None:
        """What was under way does not go on behind our back: the reactor is clean afterwards."""
        self.files()
        hosted = self.host()
        hosted.service.startService()
        waiting = Deferred.fromCoroutine(hosted.ready())
        await hosted.service.stopService()
        with contextlib.suppress(CancelledError):
            await waiting
        self.assertFalse(hosted.rooms.head._looking.running or hosted.rooms.mesh.running or hosted.rooms.node.running)

    async def test_never_started(self) -> None:
        self.files()
        await self.host().service.stopService()

    async def test_a_secret_is_wiped_whatever_else_breaks(self) -> None:
        self.files()
        hosted = await self.up()
        await hosted.rooms.desk.create("main", "shared", 0, 0, (), None)
        close = hosted.rooms.head._door.close

        async def broken() -> None:
            await close()
            raise OSError("a test")

        self.patch(hosted.rooms.head._door, "close", broken)
        await self.assertFailure(hosted.service.stopService(), FirstError)
        self.assertEqual((hosted.rooms.vault.holds(), hosted.rooms.mesh.running), (frozenset(), False))


class Taken(Hosted):
    """Its port is another's."""

    def make_runtime(self) -> Runtime:
        self.taken = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(self.taken.close)
        runtime = super().make_runtime()
        path = self.home / "node.toml"
        path.write_text(path.read_text().replace("127.0.0.1:0", f"127.0.0.1:{self.taken.getsockname()[1]}"))
        runtime.config.reload()
        return runtime

    async def test_it_says_so(self) -> None:
        self.files()
        hosted = self.host()
        hosted.service.startService()
        error = await self.refused(hosted.ready())
        self.assertIn("balance.listen", str(error.hint))
        await hosted.service.stopService()
        self.assertFalse(hosted.rooms.node.running)
        # as long as it is; then it is tried again, and is up
        hosted.service.startService()
        self.assertEqual((await self.refused(hosted.ready())).message, error.message)
        await hosted.service.stopService()
        self.taken.close()
        hosted.service.startService()
        await hosted.ready()
        self.assertTrue(hosted.rooms.node.running)


class InANode(Hosted):
    """A part among others, where the config has it."""

    schema = "ron-node"
    more = "enabled = true\n"

    def part_host(self) -> Host:
        self.start()
        config = self.runtime.config.current
        return Host(runtime=self.runtime, config=config, addresses={}, sockets={}, run=self.home / "run")

    def test_only_where_it_is_wanted(self) -> None:
        self.assertIn("balance", wanted(self.runtime.config.current))
        self.assertNotIn("balance", wanted(Config(Layers(*SCHEMAS["ron-node"])).current))
        self.assertEqual(PARTS["balance"].requires, ("tornet",))
        self.start()

    async def test_it_answers_while_it_is_up(self) -> None:
        self.files()
        part = load_part("balance", self.part_host())
        assert isinstance(part, BalancePart)
        unit = PartUnit("balance", part)
        await unit.start(lambda reason: None)
        self.assertTrue(part.where("balance").is_socket())
        self.assertEqual(list(part.sites()), ["balance"])
        await unit.stop()
        self.assertFalse(part.where("balance").is_socket())

    async def test_drained_and_released(self) -> None:
        """One unit and one socket; each time another run."""
        self.files()
        part = load_part("balance", self.part_host())
        assert isinstance(part, BalancePart)
        unit = PartUnit("balance", part)
        for _ in range(3):
            await unit.start(lambda reason: None)
            self.assertTrue(part._hosted.rooms.node.running and part.where("balance").is_socket())
            await unit.stop()
            self.assertFalse(part._hosted.rooms.node.running or part.where("balance").is_socket())

    async def test_who_left_is_not_let_back_by_a_release(self) -> None:
        self.files()
        part = load_part("balance", self.part_host())
        assert isinstance(part, BalancePart)
        unit = PartUnit("balance", part)
        await unit.start(lambda reason: None)
        await part._hosted.rooms.desk.leave()
        await self.until(lambda: not part.service.running, "the end of the part")
        await unit.stop()
        error = await self.refused(unit.start(lambda reason: None))
        self.assertIn("removed", error.message)
        await unit.stop()

    async def test_its_end_is_not_the_nodes(self) -> None:
        self.files()
        part = load_part("balance", self.part_host())
        assert isinstance(part, BalancePart)
        unit = PartUnit("balance", part)
        await unit.start(lambda reason: None)
        await part._hosted.rooms.desk.leave()
        await self.until(lambda: not part.service.running, "the end of the part")
        self.assertTrue(part.where("balance").is_socket(), "who asks is told, not left without an answer")
        await unit.stop()


class Daemons(Hosted):
    def complaint(self, **flags: str) -> tuple[int, str]:
        said: list[str] = []

        def complain(program: str, error: RonError) -> None:
            said.append(f"{program}: {error.one_line()}")
            raise SystemExit(1)

        self.patch(daemon, "complain", complain)
        options = Options()
        options["config"] = str(self.home / "node.toml")
        options["flags"] = {key.replace("__", "."): value for key, value in flags.items()}
        done = self.assertRaises(SystemExit, daemon.makeService, options)
        return done.code, said[0]

    def test_trouble_is_one_line(self) -> None:
        self.start()
        self.runtime.stop()
        for flags, words in (
            ({"balance__node": "beta", "admin__bind": "127.0.0.1:0"}, "holds no node of a cluster"),
            ({"balance__beat_ms": "1000", "balance__suspect_ms": "1000"}, "balance.suspect_ms"),
            ({"onion__tor_binary": "/nowhere/tor"}, "/nowhere/tor"),
        ):
            code, said = self.complaint(**flags)
            self.assertIn(words, said)
            self.assertEqual((code, len(said.splitlines())), (1, 1))

    def test_the_end_of_the_node_is_the_daemons(self) -> None:
        self.files()
        self.start()
        path = self.home / "node.toml"
        path.write_text(path.read_text() + '[admin]\nbind = "127.0.0.1:0"\n')
        self.runtime.config.reload()
        service = BalanceDaemon(self.runtime)
        self.addCleanup(service._socket.close)
        stopped: list[None] = []
        said: list[str] = []
        self.patch(service, "_stop_reactor", lambda: stopped.append(None))
        self.patch(self.runtime, "say", said.append)
        service._ended(unavailable("a test"))
        service._ended(None)
        self.assertEqual(service._exit, Exit.UNAVAILABLE)
        self.assertEqual(said, ["ron-balance: a test"])
        self.assertTrue(Path(self.home).is_dir())
