"""The onion runtime as a program uses it, against the real service."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from ron.proto.errors import ErrorCode, RonError
from ron.proto.onions import Client, Hints, OnionView, Port, Pow
from ron.sdk import Api, direct_http
from ron.sdk.onions import Onions, checked_port, new_op_id, oniond_at
from ron.sdk.transport import connection_pool
from ron.services.oniond.api import endpoints
from ron.tor.clientauth import generate
from tests.sdk.with_oniond import SOCKS_PORT, WEB, WithOniond
from tests.web.wire import until

ELSEWHERE = Port(onion_port=81, local="unix:/run/app.sock")


def client(name: str) -> Client:
    return Client(name=name, public_key=generate().public.base32)


class OnionCalls(WithOniond):
    """Every route."""

    async def fails(self, code: ErrorCode, call: Any) -> RonError:
        with self.assertRaises(RonError) as caught:
            await call
        self.assertIs(caught.exception.code, code, str(caught.exception))
        return caught.exception

    async def test_what_cannot_be_is_refused_before_anybody_is_asked(self) -> None:
        onions = Onions(oniond_at(reactor, self.home / "nobody.sock", None))
        one = new_op_id()
        for call in (
            onions.create("", [WEB]),
            onions.create("Wiki", [WEB]),
            onions.create("wiki", []),
            onions.create("wiki", [Port(onion_port=0, local="127.0.0.1:1")]),
            onions.create("wiki", [Port(onion_port=1, local="10.0.0.1:1")]),
            onions.create("wiki", [WEB], wait_s=61),
            onions.create("wiki", [WEB], clients=[Client(name="a", public_key="short")]),
            onions.create("wiki", [WEB], pow=Pow(queue_rate=0)),
            onions.create("wiki", [WEB], hints=Hints(regions=("E U",))),
            onions.create("wiki", [WEB], op_id="1"),
            onions.rotate(one, grace_s=8 * 24 * 3600),
            onions.drain(one, deadline_s=-1),
            onions.get(""),
            onions.delete(".."),
            onions.remove_client(one, ""),
        ):
            await self.fails(ErrorCode.BAD_REQUEST, call)
        self.assertRaises(RonError, checked_port, 80, "unix:relative")
        self.assertEqual(checked_port(80, "127.0.0.1:8080"), WEB)

    async def test_what_the_service_refuses_comes_through(self) -> None:
        onions = self.onions()
        await self.fails(ErrorCode.BAD_REQUEST, onions.create("wiki", [WEB, WEB]))
        await self.fails(ErrorCode.BAD_REQUEST, onions.create("wiki", [WEB], pow=Pow(queue_rate=9, queue_burst=1)))
        await self.fails(ErrorCode.NOT_FOUND, onions.get("no/../such?onion"))
        await self.fails(ErrorCode.NOT_FOUND, onions.bind(new_op_id(), [WEB]))
        self.assertEqual(await onions.list(), ())

    async def test_the_life_of_an_onion(self) -> None:
        onions = self.onions()
        made = await onions.create("wiki", [WEB], persistence="ephemeral", wait_s=5)
        self.assertTrue(made.ready)
        self.assertEqual((made.app, made.ports, made.persistence, made.clients), ("wiki", (WEB,), "ephemeral", ()))
        self.assertEqual([view.id for view in await onions.list()], [made.id])
        got = await onions.get(made.id)
        self.assertEqual((got.onion, got.socks and got.socks.port), (made.onion, SOCKS_PORT))
        bound = await onions.bind(made.id, [ELSEWHERE], wait_s=5)
        self.assertEqual((bound.ports, bound.ready), ((ELSEWHERE,), True))
        self.assertIn("Port=81,unix:/run/app.sock", self.told("ADD_ONION")[-1])
        exported = await onions.export(made.id)
        self.assertEqual((exported.id, exported.onion), (made.id, made.onion))
        self.assertEqual([record.event for record in self.audit.kept.recent()], ["onion_exported"])
        drained = await onions.drain(made.id, deadline_s=0)
        self.assertIn(drained.state, {"draining", "drained"})
        await onions.delete(made.id)
        await self.fails(ErrorCode.NOT_FOUND, onions.get(made.id))
        self.assertEqual(await onions.list(), ())

    async def test_all_that_can_be_asked_of_a_new_one(self) -> None:
        bob, pow_, hints = client("bob"), Pow(queue_rate=5, queue_burst=50), Hints(regions=("eu",))
        onions = self.onions()
        made = await onions.create("wiki", [WEB], isolation="process", clients=[bob], pow=pow_, hints=hints, wait_s=5)
        self.assertEqual((made.isolation, made.clients, made.pow, made.hints), ("process", (bob,), pow_, hints))
        command = self.told("ADD_ONION")[-1]
        for words in (f"ClientAuthV3={bob.public_key}", "Flags=Detach,V3Auth", "PoWQueueRate=5 PoWQueueBurst=50"):
            self.assertIn(words, command)

    async def test_rotation_shows_both(self) -> None:
        onions = self.onions()
        made = await onions.create("wiki", [WEB])
        rotated = await onions.rotate(made.id, grace_s=3600, wait_s=5)
        assert rotated.previous is not None
        self.assertEqual((rotated.id, rotated.previous.onion), (made.id, made.onion))
        self.assertNotEqual(rotated.onion, made.onion)

    async def test_clients(self) -> None:
        onions, bob, eve = self.onions(), client("bob"), client("eve")
        made = await onions.create("wiki", [WEB])
        await onions.add_client(made.id, bob)
        self.assertEqual((await onions.add_client(made.id, eve)).clients, (bob, eve))
        self.assertEqual((await onions.remove_client(made.id, "bob")).clients, (eve,))
        await self.fails(ErrorCode.CONFLICT, onions.remove_client(made.id, "eve"))
        await self.fails(ErrorCode.NOT_FOUND, onions.remove_client(made.id, "mal/../lory"))

    async def test_an_op_id_is_one_act(self) -> None:
        onions, one = self.onions(), new_op_id()
        made = await onions.create("wiki", [WEB], op_id=one)
        self.assertEqual((await onions.create("wiki", [WEB], op_id=one, wait_s=5)).id, made.id)
        await self.fails(ErrorCode.CONFLICT, onions.create("wiki", [ELSEWHERE], op_id=one))
        self.assertNotEqual((await onions.create("wiki", [WEB])).id, made.id)
        end = new_op_id()
        await onions.delete(made.id, op_id=end)
        await onions.delete(made.id, op_id=end)
        await self.fails(ErrorCode.NOT_FOUND, onions.delete(made.id))

    async def test_who_waits_for_tor_does_not_count_as_slow(self) -> None:
        """Or a few onions in a row would shed everybody's writes."""
        waiting = {(e.method, e.path) for e in endpoints(self.oniond) if e.waits}
        may_wait = {
            (e.method, e.path) for e in endpoints(self.oniond) if e.body and "wait_s" in e.body.__struct_fields__
        }
        self.assertEqual(len(may_wait), 3)
        self.assertLessEqual(may_wait, waiting)

    async def test_an_app_sees_its_own(self) -> None:
        mine = await self.onions().create("wiki", [WEB])
        theirs = await self.onions().create("chat", [WEB])
        narrowed = self.onions(("scope", "onion:*"), ("app", "wiki"))
        self.assertEqual([view.id for view in await narrowed.list()], [mine.id])
        await self.fails(ErrorCode.NOT_FOUND, narrowed.get(theirs.id))
        await self.fails(ErrorCode.NO_CAPABILITY, narrowed.create("chat", [WEB]))
        await self.fails(ErrorCode.NO_CAPABILITY, self.onions(("scope", "onion:read")).export(mine.id))


class Lossy(Protocol):
    """Passes requests on, and loses the first answer: the act was done, and its caller does not know."""

    def __init__(self, test: LostAnswers) -> None:
        self.test = test
        self.onward = test.onward(self)

    def dataReceived(self, data: bytes) -> None:
        self.test.requests.append(data)
        self.onward.addCallback(lambda wire: wire.send(data))

    def answered(self, data: bytes) -> None:
        assert self.transport is not None
        if len(self.test.requests) == 1:
            self.transport.abortConnection()  # type: ignore[attr-defined]
        else:
            self.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.onward.addCallback(lambda wire: wire.transport.abortConnection())


class Onward(Protocol):
    """The connection to the real runtime."""

    def __init__(self, caller: Lossy) -> None:
        self.caller = caller

    def send(self, data: bytes) -> Onward:
        assert self.transport is not None
        self.transport.write(data)
        return self

    def dataReceived(self, data: bytes) -> None:
        self.caller.answered(data)


class LostAnswers(WithOniond):
    """Over TCP, through somebody who loses answers."""

    async def setUp(self) -> None:
        await super().setUp()
        self.requests: list[bytes] = []
        listening = reactor.listenTCP(0, Factory.forProtocol(lambda: Lossy(self)), interface="127.0.0.1")
        self.addCleanup(listening.stopListening)
        pool = connection_pool(reactor)
        self.addCleanup(until, lambda: not self.site.channels)
        self.addCleanup(pool.closeCachedConnections)
        url = f"http://127.0.0.1:{listening.getHost().port}"
        self.lossy = Onions(Api(reactor, direct_http(reactor, pool), url, self.capability()))

    def onward(self, caller: Lossy) -> Any:
        endpoint = UNIXClientEndpoint(reactor, str(self.socket))
        return endpoint.connect(Factory.forProtocol(lambda: Onward(caller)))

    async def test_a_repeated_try_is_the_same_act(self) -> None:
        made: OnionView = await self.lossy.create("wiki", [WEB])
        self.assertEqual(len(self.requests), 2)
        self.assertEqual([view.id for view in await self.onions().list()], [made.id])

    async def test_deleting_too(self) -> None:
        made = await self.onions().create("wiki", [WEB])
        await self.lossy.delete(made.id)
        self.assertEqual(len(self.requests), 2)
        self.assertEqual(await self.onions().list(), ())
