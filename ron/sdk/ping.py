"""An end-to-end ping: one device seals a nonce for the other, the mailbox carries it, the other seals the reply.

In: two devices, each with its key, its topic and its own way to the mailbox. Out: a `PingResult` with each leg's time.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred

from ron.e2e import KeyPair, Suite, open, seal
from ron.proto.errors import ErrorCode, RonError
from ron.proto.facts import PingResult, PingStep
from ron.sdk.mailbox import Mailbox

_AAD = b"ron-hello/1"
WAIT_S = 20.0
_VISIBILITY_S = 60.0
SUITE_NAMES = {Suite.PQ: "ML-KEM-768+X25519", Suite.CLASSICAL: "X25519"}


@dataclass(frozen=True)
class Device:
    """One end. inbox may receive and acknowledge on `topic`; outbox may send to the other device's."""

    keys: KeyPair
    inbox: Mailbox
    outbox: Mailbox
    topic: str = field(default_factory=lambda: f"hello/{secrets.token_hex(8)}")


async def ping(
    reactor: Any, alice: Device, bob: Device, on_step: Callable[[PingStep], None] = lambda step: None
) -> PingResult:
    """There and back again. Raises `RonError` when a leg fails or the reply is not the one expected."""
    clock = _Clock(reactor, on_step)
    nonce = os.urandom(32)
    listening = Deferred.fromCoroutine(_receive(bob, b"ping "))
    envelope = seal([bob.keys.public], b"ping " + nonce, _AAD)
    clock.lap("seal")
    try:
        await alice.outbox.send(bob.topic, envelope)
        clock.lap("send over the onion")
        heard = await listening
    except BaseException:
        listening.addErrback(lambda _failure: None)
        listening.cancel()
        raise
    clock.lap("receive and open")
    await bob.outbox.send(alice.topic, seal([alice.keys.public], b"pong " + heard, _AAD))
    clock.lap("reply over the onion")
    echoed = await _receive(alice, b"pong ")
    clock.lap("receive and open the reply")
    if not secrets.compare_digest(echoed, nonce):
        raise RonError(ErrorCode.INTERNAL, "the reply does not carry the nonce that was sent")
    return PingResult(
        suite=SUITE_NAMES[alice.keys.suite],
        sealed_bytes=len(envelope),
        roundtrip_ms=clock.total_ms(),
        steps=tuple(clock.steps),
    )


async def _receive(device: Device, kind: bytes) -> bytes:
    """The nonce of the next message of `kind` on the device's topic."""
    for message in await device.inbox.recv(device.topic, visibility_timeout_s=_VISIBILITY_S, wait_s=WAIT_S):
        plaintext = open(device.keys, message.payload, _AAD)
        await device.inbox.ack(message)
        if plaintext.startswith(kind):
            return plaintext.removeprefix(kind)
    raise RonError(ErrorCode.TIMEOUT, f"no sealed message arrived within {WAIT_S:.0f} s")


class _Clock:
    """Laps of a ping, in milliseconds to one decimal."""

    def __init__(self, reactor: Any, on_step: Callable[[PingStep], None]) -> None:
        self.steps: list[PingStep] = []
        self._reactor = reactor
        self._on_step = on_step
        self._start = self._last = reactor.seconds()

    def lap(self, name: str) -> None:
        now = self._reactor.seconds()
        step = PingStep(name, round((now - self._last) * 1000, 1))
        self._last = now
        self.steps.append(step)
        self._on_step(step)

    def total_ms(self) -> float:
        return float(round((self._last - self._start) * 1000, 1))
