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

from ron.e2e import E2EError, KeyPair, Suite, open, seal
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
    """There and back again. Raises `RonError` when a leg fails or the reply to this very ping does not come."""
    clock = _Clock(reactor, on_step)
    nonce = os.urandom(32)
    listening = Deferred.fromCoroutine(_receive(reactor, bob, b"ping " + nonce))
    try:
        envelope = seal([bob.keys.public], b"ping " + nonce, _AAD)
        clock.lap("seal")
        await alice.outbox.send(bob.topic, envelope)
        clock.lap("send over the onion")
        await listening
    except BaseException:
        listening.addErrback(lambda _failure: None)
        listening.cancel()
        raise
    clock.lap("receive and open")
    await bob.outbox.send(alice.topic, seal([alice.keys.public], b"pong " + nonce, _AAD))
    clock.lap("reply over the onion")
    await _receive(reactor, alice, b"pong " + nonce)
    clock.lap("receive and open the reply")
    return PingResult(
        suite=SUITE_NAMES[alice.keys.suite],
        sealed_bytes=len(envelope),
        roundtrip_ms=clock.total_ms(),
        steps=tuple(clock.steps),
    )


async def _receive(reactor: Any, device: Device, wanted: bytes) -> None:
    """Wait for the sealed message `wanted`; others on the topic are left over from pings that broke off, and go."""
    passed_over = 0
    end_s = reactor.seconds() + WAIT_S
    while (left_s := end_s - reactor.seconds()) > 0:
        for message in await device.inbox.recv(device.topic, visibility_timeout_s=_VISIBILITY_S, wait_s=left_s):
            await device.inbox.ack(message)
            if _opened(device, message.payload) == wanted:
                return
            passed_over += 1
    others = f" ({passed_over} of other pings did)" if passed_over else ""
    raise RonError(ErrorCode.TIMEOUT, f"no sealed message of this ping arrived within {WAIT_S:.0f} s{others}")


def _opened(device: Device, envelope: bytes) -> bytes | None:
    """The plaintext of `envelope`, or None when it is not one for `device`."""
    try:
        return open(device.keys, envelope, _AAD)
    except E2EError:
        return None


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
