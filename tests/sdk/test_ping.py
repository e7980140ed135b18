"""The end-to-end ping through a real mailbox: there and back, and past what earlier pings left behind."""

from __future__ import annotations

import os

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred

from ron.e2e import Suite, open, seal
from ron.proto.errors import ErrorCode, RonError
from ron.proto.facts import PingResult, PingStep
from ron.sdk import Mailbox
from ron.sdk import ping as ping_module
from ron.sdk.ping import Device, ping
from tests.sdk.with_mailbox import WithMailbox
from tests.web.wire import until

AAD = b"ron-hello/1"
STEPS = [
    "seal",
    "send over the onion",
    "receive and open",
    "reply over the onion",
    "receive and open the reply",
]


class TwoDevices(WithMailbox):
    """Alice and Bob, for a test of their own each."""

    async def setUp(self) -> None:
        await super().setUp()
        self.alice, self.bob = self.device("hello/alice"), self.device("hello/bob")

    async def ping(self) -> PingResult:
        return await ping(reactor, self.alice, self.bob)


class Pings(TwoDevices):
    async def test_there_and_back(self) -> None:
        seen: list[PingStep] = []
        result = await ping(reactor, self.alice, self.bob, seen.append)
        self.assertEqual([step.name for step in result.steps], STEPS)
        self.assertEqual(tuple(seen), result.steps)
        self.assertEqual(result.suite, "ML-KEM-768+X25519")
        self.assertGreater(result.sealed_bytes, 1100)
        self.assertAlmostEqual(result.roundtrip_ms, sum(step.ms for step in result.steps), places=0)
        self.assertEqual(self.mailbox.stats().total, 0)

    async def test_the_classical_suite(self) -> None:
        self.alice = self.device("hello/alice", Suite.CLASSICAL)
        self.bob = self.device("hello/bob", Suite.CLASSICAL)
        self.assertEqual((await self.ping()).suite, "X25519")

    async def test_again_and_again(self) -> None:
        for _ in range(3):
            await self.ping()
        self.assertEqual(self.mailbox.stats().total, 0)

    async def test_the_mailbox_sees_nothing_but_ciphertext(self) -> None:
        carried: list[bytes] = []
        send = self.mailbox.send

        async def watched(topic: str, payload: bytes, **more: str) -> object:
            carried.append(payload)
            return await send(topic, payload, **more)

        self.patch(self.mailbox, "send", watched)
        await self.ping()
        to_bob, to_alice = carried
        self.assertTrue(open(self.bob.keys, to_bob, AAD).startswith(b"ping "))
        self.assertTrue(open(self.alice.keys, to_alice, AAD).startswith(b"pong "))
        for envelope in carried:
            self.assertNotIn(b"ping ", envelope)
            self.assertNotIn(b"pong ", envelope)


class Leftovers(TwoDevices):
    """What earlier pings that broke off left on the topics must not break the next ones."""

    async def left(self, device: Device, plaintext: bytes) -> None:
        await self.alice.outbox.send(device.topic, seal([device.keys.public], plaintext, AAD))

    async def test_an_older_ping(self) -> None:
        await self.left(self.bob, b"ping " + os.urandom(32))
        await self.left(self.bob, b"ping " + os.urandom(32))
        await self.ping()
        await self.ping()
        self.assertEqual(self.mailbox.stats().total, 0)

    async def test_an_older_reply(self) -> None:
        await self.left(self.alice, b"pong " + os.urandom(32))
        await self.ping()
        self.assertEqual(self.mailbox.stats().total, 0)

    async def test_messages_nobody_can_open(self) -> None:
        for junk in (b"hello", seal([self.alice.keys.public], b"ping " + os.urandom(32), AAD)):
            await self.alice.outbox.send(self.bob.topic, junk)
        await self.left(self.bob, b"something else")
        await self.ping()
        self.assertEqual(self.mailbox.stats().total, 0)

    async def test_a_ping_that_was_called_off_after_it_was_sent(self) -> None:
        def call_off(step: PingStep) -> None:
            if step.name == STEPS[1]:
                reactor.callLater(0, pinging.cancel)

        pinging = Deferred.fromCoroutine(ping(reactor, self.alice, self.bob, call_off))
        with self.assertRaises(CancelledError):
            await pinging
        await self.ping()


class Forger(Mailbox):
    """The outbox of a device that answers every ping with a nonce of its own choice."""

    def __init__(self, honest: Mailbox, victim: Device) -> None:
        self._honest = honest
        self._victim = victim

    async def send(self, topic: str, _payload: bytes, **_more: str | None) -> str:
        return await self._honest.send(topic, seal([self._victim.keys.public], b"pong " + os.urandom(32), AAD))


class Loser(Mailbox):
    """An outbox that loses everything."""

    def __init__(self) -> None:
        pass

    async def send(self, _topic: str, _payload: bytes, **_more: str | None) -> str:
        return "lost"


class Failures(TwoDevices):
    async def setUp(self) -> None:
        await super().setUp()
        self.patch(ping_module, "WAIT_S", 0.3)

    async def fails(self, alice: Device, bob: Device) -> RonError:
        with self.assertRaises(RonError) as caught:
            await ping(reactor, alice, bob)
        await until(lambda: not self.mailbox.stats().waiting)
        return caught.exception

    async def test_a_reply_with_another_nonce_is_no_reply(self) -> None:
        forging = Device(self.bob.keys, self.bob.inbox, Forger(self.bob.outbox, self.alice), self.bob.topic)
        error = await self.fails(self.alice, forging)
        self.assertIs(error.code, ErrorCode.TIMEOUT)
        self.assertIn("1 of other pings did", error.message)

    async def test_a_ping_that_got_lost(self) -> None:
        losing = Device(self.alice.keys, self.alice.inbox, Loser(), self.alice.topic)
        error = await self.fails(losing, self.bob)
        self.assertIs(error.code, ErrorCode.TIMEOUT)
        self.assertNotIn("other pings", error.message)

    async def test_no_way_to_send(self) -> None:
        """The end that listens is called off, so that nothing waits on."""
        self.patch(ping_module, "WAIT_S", 20.0)
        mute = Device(self.alice.keys, self.alice.inbox, self.client(("scope", "node:read")), self.alice.topic)
        self.assertIs((await self.fails(mute, self.bob)).code, ErrorCode.NO_CAPABILITY)

    async def test_no_way_to_receive(self) -> None:
        deaf = Device(self.bob.keys, self.client(("scope", "node:read")), self.bob.outbox, self.bob.topic)
        self.assertIs((await self.fails(self.alice, deaf)).code, ErrorCode.NO_CAPABILITY)
