"""The bus across processes, on real Unix sockets and with real children: who may join, what is carried, who loses."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.task import deferLater
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.kernel import ipc, ipc_wire
from ron.kernel.bus import Bus
from ron.kernel.commands import Command
from ron.kernel.events import KernelEvent
from ron.kernel.ipc import BusHub, BusLink, Hello, decode_frame, encode_frame
from ron.kernel.ipc_frames import Event, Frame, Order, Reply, Serve, Welcome
from ron.kernel.metrics import Metrics
from ron.kernel.processes import Child, gone, spawn
from ron.proto.errors import ErrorCode, RonError, conflict

ROOT = Path(__file__).resolve().parents[2]
WORD = "open sesame"
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=20) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A struct with what JSON has no words for."""

    public: bytes
    made_at: datetime
    uses: tuple[str, ...] = ()


class Raw(Int32StringReceiver):
    """A peer that says what it likes."""

    MAX_LENGTH = 2**31 - 1

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.over = False

    def stringReceived(self, string: bytes) -> None:
        """Keep what it is told."""
        self.frames.append(decode_frame(string))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """It was hung up on."""
        self.over = True

    def say(self, *frames: Frame) -> None:
        """Some frames in one piece."""
        raw = [encode_frame(frame) for frame in frames]
        self.write(b"".join(len(each).to_bytes(4, "big") + each for each in raw))

    def write(self, raw: bytes) -> None:
        """Some bytes."""
        cast(Any, self.transport).write(raw)

    def pause(self) -> None:
        """Read no more."""
        cast(Any, self.transport).pauseProducing()

    def resume(self) -> None:
        """Read on."""
        cast(Any, self.transport).resumeProducing()


class IpcCase(TestCase):
    """A hub in a folder of its own, and what connects to it; all of it is gone after the test."""

    timeout = 60

    def setUp(self) -> None:
        # not `mktemp`: the path of a Unix socket has at most 107 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="ron-ipc-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.path = self.folder / "run" / "bus.sock"
        self.bus = Bus(reactor, Metrics(), origin="hub")
        self.hub = self.make_hub()
        self.raws: list[Raw] = []
        self.addCleanup(self._close)

    async def _close(self) -> None:
        await self.hub.close()
        for raw in self.raws:
            cast(Any, raw.transport).abortConnection()
        await self.until(lambda: all(raw.over for raw in self.raws))

    def make_hub(self, **options: Any) -> BusHub:
        """One that takes whoever knows the word."""

        def admit(hello: Hello) -> None:
            if hello.word != WORD:
                raise RonError(ErrorCode.NO_CAPABILITY, "a wrong word")

        hub = BusHub(reactor, self.bus, self.path, **{"admit": admit, **options})
        hub.listen()
        return hub

    async def make_link(self, name: str, *, joined: bool = True, word: str = WORD) -> tuple[Bus, BusLink]:
        """Another process's bus, in this one."""
        bus = Bus(reactor, Metrics(), origin=name)
        link = BusLink(reactor, bus, self.path, name=name, word=lambda: word)
        link.start()
        self.addCleanup(link.stop)
        if joined:
            await link.first_joined
        return bus, link

    async def make_raw(self, *frames: Frame) -> Raw:
        """A peer that begins with `frames`."""
        raw: Raw = await UNIXClientEndpoint(reactor, str(self.path)).connect(Factory.forProtocol(Raw))
        self.raws.append(raw)
        raw.say(*frames)
        return raw

    async def make_welcome(self, name: str = "raw", *services: str) -> Raw:
        """A peer that has been welcomed."""
        raw = await self.make_raw(Hello(1, name, WORD), Serve(services))
        await self.until(lambda: raw.frames)
        return raw

    async def until(self, true: Callable[[], object]) -> None:
        """Return once `true()`; the test's own timeout is the deadline."""
        while not true():
            await deferLater(reactor, 0.005)

    async def turns(self, count: int = 10) -> None:
        """Let everybody do what there is to do."""
        for _ in range(count):
            await deferLater(reactor, 0.002)

    def echo(self, bus: Bus, service: str = "echo") -> Callable[[], None]:
        """`service` says what it was told."""
        return bus.serve(service, {"say": lambda command: command.body}, concurrency=4)

    async def refused(self, call: Any, code: ErrorCode) -> RonError:
        """The error of a call that fails."""
        with self.assertRaises(RonError) as caught:
            await call
        self.assertIs(caught.exception.code, code)
        return caught.exception


class WhoMayJoin(IpcCase):
    async def test_only_our_user_reaches_the_socket(self) -> None:
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o700)

    async def test_a_folder_that_was_open_is_narrowed(self) -> None:
        await self.hub.close()
        self.path.parent.chmod(0o755)
        self.hub = self.make_hub()
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o700)

    async def test_a_socket_left_behind_is_replaced_and_ours_is_removed(self) -> None:
        await self.hub.close()
        self.assertFalse(self.path.exists())
        self.path.touch()
        self.hub = self.make_hub()
        await self.make_link("edge")

    async def test_a_user_that_is_not_listed(self) -> None:
        """The kernel says who it is, whatever word it knows."""
        await self.hub.close()
        self.hub = self.make_hub(uids={os.getuid() + 1})
        raw = await self.make_raw(Hello(1, "edge", WORD))
        await self.until(lambda: raw.over)
        self.assertEqual((raw.frames, self.hub.peers), ([], set()))

    async def test_a_real_other_user(self) -> None:
        """Even where somebody has opened folder and socket to all."""
        if os.getuid() != 0:
            return  # another user cannot be tried; the test before this one tries the same check
        self.folder.chmod(0o755)
        script = (
            "import os, socket, sys\nos.setgid(65534); os.setuid(65534)\ns = socket.socket(socket.AF_UNIX)\n"
            "s.settimeout(10)\n"
            "try:\n s.connect(sys.argv[1])\nexcept PermissionError:\n print('no way in'); raise SystemExit\n"
            "try:\n s.sendall(bytes.fromhex(sys.argv[2]))\n print('told', s.recv(100))\n"
            "except ConnectionError:\n print('told', b'')\n"
        )
        hello = encode_frame(Hello(1, "edge", WORD))
        arguments = [str(self.path), (len(hello).to_bytes(4, "big") + hello).hex()]
        for opened, answer in ((False, "no way in"), (True, "told b''")):
            if opened:
                self.path.parent.chmod(0o755)
                self.path.chmod(0o666)
            child = spawn(reactor, Child(), ["/usr/bin/python3", "-c", script, *arguments])
            await gone(child)
            self.assertEqual(list(child.lines), [answer])

    async def test_no_greeting_or_a_wrong_one(self) -> None:
        message = Event(1.0, "t", "raw", "c", body=1)
        for frames in (
            [Hello(1, "edge", "wrong")],
            [Hello(2, "edge", WORD)],
            [Hello(1, "", WORD)],
            [Hello(1, "x" * 65, WORD)],
            [Welcome(1)],
            [message],
            [Serve(("kms",))],
            [Order(1, "echo", "say", None, "c", 1000)],
            [Reply(1)],
            [message, Hello(1, "edge", WORD), message],
            [Hello(1, "edge", "wrong"), Hello(1, "edge", WORD), message],
        ):
            raw = await self.make_raw(*frames)
            await self.until(lambda raw=raw: raw.over)  # type: ignore[misc]
            self.assertEqual(raw.frames, [], frames)
        self.assertEqual((self.bus.seq, self.hub.peers), (0, set()))

    async def test_one_that_says_nothing(self) -> None:
        self.patch(ipc, "HELLO_S", 0.1)
        silent, slow = await self.make_raw(), await self.make_raw()
        slow.write(b"\0\0\0\x20half a gree")
        await self.until(lambda: silent.over and slow.over)
        self.assertEqual(self.hub.peers, set())

    async def test_a_hub_that_says_nothing(self) -> None:
        """The link hangs up and tries again: the next one may be a hub."""
        self.patch(ipc, "HELLO_S", 0.1)
        await self.hub.close()
        connections: list[Raw] = []
        factory = Factory.forProtocol(lambda: connections.append(Raw()) or connections[-1])
        port = reactor.listenUNIX(str(self.path), factory)
        _bus, link = await self.make_link("edge", joined=False)
        await self.until(lambda: len(connections) >= 2 and connections[0].over)
        self.assertFalse(link.connected)
        await port.stopListening()
        await link.stop()
        await self.until(lambda: all(raw.over for raw in connections))

    async def test_too_many(self) -> None:
        await self.hub.close()
        self.hub = self.make_hub(max_peers=2)
        for name in ("a", "b"):
            await self.make_link(name)
        raw = await self.make_raw(Hello(1, "c", WORD))
        await self.until(lambda: raw.over)
        self.assertEqual(raw.frames, [])

    async def test_a_link_with_a_wrong_word_does_not_spin(self) -> None:
        """It tries again, with growing pauses."""
        words: list[str] = []
        bus = Bus(reactor, Metrics(), origin="edge")
        link = BusLink(reactor, bus, self.path, name="edge", word=lambda: words.append("wrong") or "wrong")
        link.start()
        await deferLater(reactor, 0.5)
        await link.stop()
        self.assertFalse(link.connected)
        self.assertTrue(1 <= len(words) <= 10, len(words))


class BadFrames(IpcCase):
    async def test_they_end_the_connection_and_what_comes_behind_them_counts_for_nothing(self) -> None:
        seen = self.bus.seq
        good = encode_frame(Event(1.0, "t", "raw", "c", body=1))
        behind = len(good).to_bytes(4, "big") + good
        for bad in (
            b"\0\0\0\0",
            b"\0\0\0\x04null",
            b"\x7f\xff\xff\xff",
            (2**20 + 1).to_bytes(4, "big"),
            _framed(b"\xdd\xff\xff\xff\xff"),
            _framed(b"\x81" * 100),
            _framed(msgspec.msgpack.encode({"type": "event", "ts": 1.0, "topic": "t"})),
            _framed(msgspec.msgpack.encode({"type": "serve", "services": ["x"], "more": 1})),
            _framed(encode_frame(Hello(1, "again", WORD))),
            _framed(encode_frame(Event(1.0, "kernel", "raw", "c", body={"event": "Shutdown"}))),
            _framed(encode_frame(Event(1.0, "t", "raw", "c", kernel=KernelEvent.Shutdown()))),
        ):
            raw = await self.make_welcome()
            raw.write(bad + behind)
            await self.until(lambda raw=raw: raw.over)  # type: ignore[misc]
            self.assertEqual(self.bus.seq, seen, bad)
        self.assertEqual(self.hub.peers, set())

    async def test_others_do_not_notice(self) -> None:
        bus, _link = await self.make_link("edge")
        self.echo(bus)
        raw = await self.make_welcome()
        raw.write(b"\xff" * 100)
        await self.until(lambda: raw.over)
        self.assertEqual(await self.bus.call("echo", "say", "still here"), "still here")

    async def test_replies_that_nobody_waits_for(self) -> None:
        raw = await self.make_welcome("raw", "kms")
        raw.say(Reply(1, "x"), Reply(77, code=ErrorCode.INTERNAL), Event(1.0, "t", "raw", "c", body=1))
        await self.until(lambda: self.bus.seq)
        self.assertFalse(raw.over)

    async def test_deadlines_beyond_all_measure(self) -> None:
        self.echo(self.bus)
        raw = await self.make_welcome()
        for number, deadline_ms in enumerate((2**63 - 1, -5, 0)):
            raw.say(Order(number, "echo", "say", number, "c", deadline_ms))
        await self.until(lambda: len(raw.frames) == 4)
        self.assertEqual(raw.frames[1:], [Reply(number, number) for number in range(3)])


class Frames(SynchronousTestCase):
    @given(st.binary(max_size=200))
    @example(b"\x91" * 200_000)
    @example(b"\xdf\xff\xff\xff\xff")
    @example(b"\xa2\xff\xff")
    def test_garbage_is_refused_as_such(self, raw: bytes) -> None:
        try:
            frame = decode_frame(raw)
        except RonError as error:
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)
        else:
            self.assertEqual(decode_frame(encode_frame(frame)), frame)

    @given(plain)
    def test_plain_bodies_there_and_back(self, body: Any) -> None:
        order = Order(1, "kms", "sign", body, "c", 5)
        self.assertEqual(decode_frame(encode_frame(order)), order)

    def test_what_has_no_form(self) -> None:
        circle: list[Any] = []
        circle.append(circle)
        for body in (object(), 2**64, -(2**63) - 1, "\ud800", circle, {object(): 1}, lambda: None):
            with self.assertRaises(RonError) as caught:
                encode_frame(Reply(1, body))
            self.assertIs(caught.exception.code, ErrorCode.BAD_REQUEST)
        with self.assertRaises(RonError) as caught:
            encode_frame(Reply(1, bytes(2**20)))
        self.assertIs(caught.exception.code, ErrorCode.TOO_LARGE)


class Events(IpcCase):
    async def test_to_everyone_but_where_it_came_from(self) -> None:
        buses = {name: (await self.make_link(name))[0] for name in ("edge", "mailbox", "kms")}
        buses["hub"] = self.bus
        for origin, bus in buses.items():
            bus.publish(f"from {origin}", topic="t", corr_id="c-1")
        for name, bus in buses.items():
            await self.until(lambda bus=bus: len(bus.since(0, "t")) >= 4)  # type: ignore[misc]
            await self.turns()
            heard = bus.since(0, "t")
            self.assertEqual(sorted((m.origin, m.body) for m in heard), sorted((o, f"from {o}") for o in buses), name)
            self.assertEqual([m.seq for m in heard], [1, 2, 3, 4])
            self.assertEqual({m.corr_id for m in heard}, {"c-1"})

    async def test_kernel_events_are_themselves_again(self) -> None:
        bus, _link = await self.make_link("edge")
        sent = [KernelEvent.Health("edge", True), KernelEvent.ServiceCrashed("edge", "disk full")]
        for event in sent:
            bus.publish(event)
        await self.until(lambda: len(self.bus.since(0, "kernel")) == 2)
        self.assertEqual([(m.body, m.origin) for m in self.bus.since(0)], [(event, "edge") for event in sent])

    async def test_the_shutdown_of_the_hub_is_everyones_but_that_of_a_child_its_own(self) -> None:
        """Else one service that is started anew would take the whole node down."""
        child, _link = await self.make_link("edge")
        other, _link = await self.make_link("kms")
        child.publish(KernelEvent.Shutdown())
        child.publish(KernelEvent.Health("edge", False))
        await self.until(lambda: other.since(0))
        self.assertEqual([m.body for m in other.since(0)], [KernelEvent.Health("edge", False)])
        self.assertEqual([m.body for m in self.bus.since(0)], [KernelEvent.Health("edge", False)])
        self.bus.publish(KernelEvent.Shutdown())
        await self.until(lambda: len(other.since(0)) == 2)

    async def test_nobody_can_speak_for_another(self) -> None:
        raw = await self.make_welcome("edge")
        raw.say(Event(1.0, "t", "hub", "c", body=1))
        await self.until(lambda: self.bus.seq)
        self.assertEqual(self.bus.since(0)[0].origin, "edge")

    async def test_what_cannot_be_sent_stays_here_and_the_publisher_does_not_mind(self) -> None:
        bus, _link = await self.make_link("edge")
        for body in (object(), 2**70, "\ud800", bytes(2**20), {1: {2, object()}}):
            self.bus.publish(body, topic="t")
            bus.publish(body, topic="t")
        self.bus.publish("fine", topic="t")
        await self.until(lambda: any(m.body == "fine" for m in bus.since(0)))
        self.assertEqual((self.bus.seq, bus.seq), (6, 6))

    async def test_structs_and_bytes(self) -> None:
        bus, _link = await self.make_link("edge")
        key = Key(public=b"\0\xff", made_at=datetime.now(tz=UTC), uses=("sign",))
        self.bus.publish(key, topic="t")
        await self.until(lambda: bus.seq)
        self.assertEqual(msgspec.convert(bus.since(0)[0].body, Key), key)


class SlowPeers(IpcCase):
    """Who does not read loses its own, and nobody else notices."""

    async def test_others_keep_receiving_and_its_oldest_go(self) -> None:
        self.patch(ipc_wire, "OUTBOX_EVENTS", 100)
        slow = await self.make_welcome("slow")
        bus, _link = await self.make_link("fast")
        slow.pause()
        for number in range(2000):
            self.bus.publish([number, "x" * 500], topic="t")
            if number % 100 == 99:
                await self.until(lambda number=number: bus.seq == number + 1)  # type: ignore[misc]
        self.assertEqual([m.body[0] for m in bus.since(0)], list(range(2000)))
        peer = next(peer for peer in self.hub.peers if peer.peer == "slow")
        self.assertGreater(peer.dropped, 500)
        slow.resume()
        await self.until(lambda: isinstance(slow.frames[-1], Event) and slow.frames[-1].body[0] == 1999)
        numbers = [frame.body[0] for frame in slow.frames if isinstance(frame, Event)]
        self.assertEqual(numbers, sorted(numbers))
        self.assertEqual(numbers[-100:], list(range(1900, 2000)))
        self.assertEqual(len(numbers) + peer.dropped, 2000)
        self.assertFalse(slow.over)

    async def test_large_events_for_it_are_bounded_in_bytes_too(self) -> None:
        self.patch(ipc_wire, "OUTBOX_BYTES", 1_000_000)
        slow = await self.make_welcome("slow")
        slow.pause()
        for _ in range(200):
            self.bus.publish(bytes(50_000), topic="t")
            await self.turns(1)
        peer = next(iter(self.hub.peers))
        self.assertLessEqual(sum(map(len, peer._outbox)), 1_000_000)
        self.assertGreater(peer.dropped, 80)

    async def test_one_that_asks_and_does_not_read_the_answers_is_hung_up_on(self) -> None:
        self.patch(ipc_wire, "STALLED_BYTES", 2_000_000)
        self.bus.serve("big", {"get": lambda _command: bytes(100_000)})
        slow = await self.make_welcome("slow")
        slow.pause()
        for number in range(200):
            if not self.hub.peers:
                break
            slow.say(Order(number, "big", "get", None, "c", 1000))
            await self.turns(1)
        await self.until(lambda: not self.hub.peers)

    async def test_a_hub_that_is_closed_waits_for_nobody(self) -> None:
        self.patch(ipc, "HANG_UP_S", 0.1)
        slow = await self.make_welcome("slow")
        slow.pause()
        for _ in range(20):
            self.bus.publish(bytes(500_000), topic="t")
        await self.hub.close()
        self.assertEqual(self.hub.peers, set())

    async def test_the_last_words_of_a_hub_still_go_out(self) -> None:
        bus, _link = await self.make_link("edge")
        self.bus.publish(KernelEvent.Shutdown())
        await self.hub.close()
        await self.until(lambda: bus.seq)

    async def test_a_link_stops_though_the_hub_hangs(self) -> None:
        self.patch(ipc, "HANG_UP_S", 0.1)
        bus, link = await self.make_link("edge")
        peer = next(iter(self.hub.peers))
        cast(Any, peer.transport).pauseProducing()
        for _ in range(20):
            bus.publish(bytes(500_000), topic="t")
        await link.stop()
        self.assertFalse(link.connected)
        cast(Any, peer.transport).abortConnection()

    async def test_no_more_than_a_number_of_calls_from_one_peer(self) -> None:
        self.patch(ipc_wire, "MAX_CALLS", 5)
        self.bus.serve("slow", {"do": lambda _command: Deferred()}, concurrency=1, capacity=100)
        raw = await self.make_welcome()
        raw.say(*[Order(number, "slow", "do", None, "c", 60_000) for number in range(8)])
        await self.until(lambda: len(raw.frames) == 4)
        replies = [frame for frame in raw.frames if isinstance(frame, Reply)]
        self.assertEqual({reply.code for reply in replies}, {ErrorCode.BACKPRESSURE})
        bus, _link = await self.make_link("other")
        self.echo(self.bus)
        self.assertEqual(await bus.call("echo", "say", 1), 1)
        await self.end_calls()

    async def end_calls(self) -> None:
        """Nothing may be left on the clock."""
        for queue in list(self.bus._services.values()):
            queue.close()


class Commands(IpcCase):
    async def test_child_to_hub_hub_to_child_child_to_child(self) -> None:
        edge, _link = await self.make_link("edge")
        kms, _link = await self.make_link("kms")
        self.echo(self.bus, "node")
        self.echo(kms, "kms")
        await self.until(lambda: self.bus.reachable("kms"))
        self.assertEqual(await edge.call("node", "say", 1), 1)
        self.assertEqual(await self.bus.call("kms", "say", 2), 2)
        self.assertEqual(await edge.call("kms", "say", 3), 3)

    async def test_bytes_and_structs(self) -> None:
        bus, _link = await self.make_link("kms")
        key = Key(public=b"\0\xff", made_at=datetime.now(tz=UTC), uses=("sign",))
        seen: list[Any] = []

        def make(command: Command) -> Key:
            seen.append(msgspec.convert(command.body, Key))
            return key

        bus.serve("kms", {"make": make, "raw": lambda command: bytearray(command.body)})
        await self.until(lambda: self.bus.reachable("kms"))
        self.assertEqual(await self.bus.call("kms", "make", key, answer=Key), key)
        self.assertEqual(seen, [key])
        self.assertEqual(await self.bus.call("kms", "raw", b"\0\xff"), b"\0\xff")
        self.assertEqual((await self.bus.call("kms", "make", key, answer=dict[str, Any]))["public"], key.public)
        await self.refused(self.bus.call("kms", "raw", b"x", answer=Key), ErrorCode.STORE_UNAVAILABLE)

    async def test_the_correlation_id_and_the_deadline_go_along(self) -> None:
        bus, _link = await self.make_link("kms")
        seen: list[Command] = []
        bus.serve("kms", {"sign": seen.append})
        await self.until(lambda: self.bus.reachable("kms"))
        await self.bus.call("kms", "sign", None, corr_id="c-9", deadline_s=2.5)
        self.assertEqual((seen[0].corr_id, seen[0].deadline_s), ("c-9", 2.5))

    async def test_errors_are_what_they_were(self) -> None:
        bus, _link = await self.make_link("kms")
        own = RonError(ErrorCode.BACKPRESSURE, "slowly", hint="later", status=503, retry_after_s=4)

        def refuse(_command: Command) -> None:
            raise own

        def broken(_command: Command) -> None:
            raise ValueError("secret")

        bus.serve("kms", {"refuse": refuse, "broken": broken})
        await self.until(lambda: self.bus.reachable("kms"))
        error = await self.refused(self.bus.call("kms", "refuse"), ErrorCode.BACKPRESSURE)
        self.assertEqual((error.message, error.hint, error.status, error.retry_after_s), ("slowly", "later", 503, 4))
        error = await self.refused(self.bus.call("kms", "broken"), ErrorCode.INTERNAL)
        self.assertNotIn("secret", error.message)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        await self.refused(self.bus.call("kms", "unknown"), ErrorCode.NOT_FOUND)
        await self.refused(bus.call("nobody", "x"), ErrorCode.STORE_UNAVAILABLE)

    async def test_orders_and_replies_that_cannot_be_sent(self) -> None:
        bus, _link = await self.make_link("kms")
        odd = {"big": bytes(2**20), "object": object(), "long": 2**70, "half": "\ud800"}
        bus.serve("kms", {"give": lambda command: odd[command.body], "take": lambda _command: "taken"})
        await self.until(lambda: self.bus.reachable("kms"))
        for name, body in odd.items():
            error = await self.refused(self.bus.call("kms", "give", name), ErrorCode.INTERNAL)
            self.assertIn("cannot be sent", error.message)
            code = ErrorCode.TOO_LARGE if name == "big" else ErrorCode.BAD_REQUEST
            await self.refused(self.bus.call("kms", "take", body), code)
        self.assertEqual(await self.bus.call("kms", "take"), "taken")

    async def test_an_error_whose_words_do_not_fit(self) -> None:
        bus, _link = await self.make_link("kms")

        def refuse(command: Command) -> None:
            raise conflict("x" * 2**21 if command.body else "\ud800")

        bus.serve("kms", {"refuse": refuse})
        await self.until(lambda: self.bus.reachable("kms"))
        for body in (True, False):
            await self.refused(self.bus.call("kms", "refuse", body), ErrorCode.INTERNAL)

    async def test_the_deadline_holds_here_whatever_happens_there(self) -> None:
        raw = await self.make_welcome("deaf", "kms")
        await self.until(lambda: self.bus.reachable("kms"))
        await self.refused(self.bus.call("kms", "sign", deadline_s=0.05), ErrorCode.TIMEOUT)
        order = next(frame for frame in raw.frames if isinstance(frame, Order))
        raw.say(Reply(order.id, "too late"), Event(1.0, "t", "raw", "c", body=1))
        await self.until(lambda: self.bus.seq)
        self.assertFalse(raw.over)

    async def test_a_full_queue_over_there_is_busy_here(self) -> None:
        bus, _link = await self.make_link("kms")
        gates: list[Deferred[str]] = [Deferred(), Deferred()]
        works = iter(gates)
        bus.serve("kms", {"sign": lambda _command: next(works)}, capacity=1)
        await self.until(lambda: self.bus.reachable("kms"))
        calls = [Deferred.fromCoroutine(self.bus.call("kms", "sign")) for _ in range(2)]
        await self.refused(self.bus.call("kms", "sign"), ErrorCode.BACKPRESSURE)
        for number, gate in enumerate(gates):
            gate.callback(f"signed {number}")
        self.assertEqual(await gatherResults(calls), ["signed 0", "signed 1"])

    async def test_services_come_and_go(self) -> None:
        bus, link = await self.make_link("kms")
        end = self.echo(bus)
        await self.until(lambda: self.bus.reachable("echo"))
        end()
        await self.until(lambda: not self.bus.reachable("echo"))
        await self.refused(self.bus.call("echo", "say"), ErrorCode.STORE_UNAVAILABLE)
        self.echo(bus)
        await self.until(lambda: self.bus.reachable("echo"))
        await link.stop()
        await self.until(lambda: not self.bus.reachable("echo"))

    async def test_a_hub_that_comes_back_finds_everything_again(self) -> None:
        edge, link = await self.make_link("edge")
        self.echo(edge, "edge")
        await self.until(lambda: self.bus.reachable("edge"))
        await self.hub.close()
        await self.until(lambda: not link.connected)
        await self.refused(edge.call("node", "say"), ErrorCode.STORE_UNAVAILABLE)
        self.echo(edge, "more")
        edge.publish("nobody hears", topic="t")
        self.hub = self.make_hub()
        await self.until(lambda: self.bus.reachable("edge") and self.bus.reachable("more"))
        self.assertEqual(await self.bus.call("more", "say", 1), 1)
        self.assertTrue(link.connected)

    async def test_the_same_service_from_the_next_process(self) -> None:
        """It is there before the old one's end is noticed; that end must not take it away."""
        old, old_link = await self.make_link("kms")
        old.serve("kms", {"who": lambda _command: "old"})
        await self.until(lambda: self.bus.reachable("kms"))
        new, _link = await self.make_link("kms")
        new.serve("kms", {"who": lambda _command: "new"})
        await self.until(lambda: new.served)
        await self.turns()
        await old_link.stop()
        await self.turns()
        self.assertEqual(await self.bus.call("kms", "who"), "new")


# Serves `kms`: `hang` answers never, `say` at once; begins with a word on the bus.
CHILD = """
import sys
from pathlib import Path
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from ron.kernel.bus import Bus
from ron.kernel.ipc import BusLink
from ron.kernel.metrics import Metrics

bus = Bus(reactor, Metrics(), origin="kms")
bus.serve("kms", {"hang": lambda _command: Deferred(), "say": lambda command: command.body}, concurrency=4)
link = BusLink(reactor, bus, Path(sys.argv[1]), name="kms", word=lambda: "open sesame")
reactor.callWhenRunning(link.start)
reactor.run()
"""


class Killed(IpcCase):
    """A real child, ended as only the kernel can."""

    def start_child(self) -> Child:
        """It joins by itself."""
        command = [sys.executable, "-c", CHILD, str(self.path)]
        child = spawn(reactor, Child(), command, environment={"PYTHONPATH": str(ROOT)})
        self.addCleanup(gone, child)
        self.addCleanup(child.signal, "KILL")
        return child

    async def test_its_callers_are_told_at_once_and_the_next_one_serves(self) -> None:
        edge, _link = await self.make_link("edge")
        child = self.start_child()
        await self.until(lambda: self.bus.reachable("kms"))
        self.assertEqual(await edge.call("kms", "say", b"x"), b"x")
        # with deadlines far beyond the test's own: it is the end that is noticed
        calls = [Deferred.fromCoroutine(bus.call("kms", "hang", deadline_s=600)) for bus in (self.bus, edge)]
        await self.turns(20)
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        for call in calls:
            await self.refused(call, ErrorCode.STORE_UNAVAILABLE)
        self.assertFalse(self.bus.reachable("kms"))
        self.start_child()
        await self.until(lambda: self.bus.reachable("kms"))
        self.assertEqual(await edge.call("kms", "say", 2), 2)

    async def test_one_that_is_stopped_in_its_tracks_stalls_nobody(self) -> None:
        child = self.start_child()
        await self.until(lambda: self.bus.reachable("kms"))
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)
        edge, _link = await self.make_link("edge")
        self.echo(self.bus)
        for number in range(300):
            self.bus.publish(bytes(10_000), topic="t")
            if number % 20 == 0:
                self.assertEqual(await edge.call("echo", "say", number), number)
        await self.until(lambda: edge.seq == 300)
        await self.refused(edge.call("kms", "say", deadline_s=0.05), ErrorCode.TIMEOUT)
        os.kill(child.pid, signal.SIGCONT)
        self.assertEqual(await edge.call("kms", "say", "awake"), "awake")


def _framed(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "big") + raw
