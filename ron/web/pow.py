"""`/pow/autotune`: how hard the proof of work is now, and whether its difficulty follows the load.

In: this process's gate, the bus. Out: the target as JSON, scope `pow:read`; the switch, scope `pow:tune`. What one
worker of a listener is told, the others hear on the bus. A restart goes by the config again.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from ron.auth.pow import PowGate
from ron.auth.pow.wire import measured_hash_rate
from ron.kernel import Bus
from ron.kernel.bus import Message
from ron.proto.errors import ErrorCode, RonError
from ron.web.caps import Replay
from ron.web.endpoint import Call, Endpoint

PATH = "/pow/autotune"
TOPIC = "pow"


class AutotuneRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Body of `POST /pow/autotune`. op_id: a fresh UUID."""

    op_id: str
    state: Literal["on", "off"]


class AutotuneAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Where the gate stands. Without one, `enabled` is false and the figures are 0.

    auto_tune: the difficulty follows the load. state: `resting`, `raised`, `safe` (docs/pow.rst), null when it does
    not. difficulty, upper_bound: bits. target_ms: CPU of the reference client that the base is made for. measured_ms:
    what the present difficulty costs that client on average, by its speed on this machine.
    """

    enabled: bool
    auto_tune: bool
    state: str | None
    difficulty: int
    upper_bound: int
    target_ms: float
    measured_ms: float


class Switched(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of the message on the topic `pow`: auto-tuning was switched."""

    auto_tune: bool


def pow_endpoints(
    gate: PowGate | None, replay: Replay, bus: Bus, *, hash_rate_per_s: float | None = None
) -> list[Endpoint]:
    """Both calls. gate: None when proof of work is off; then the first says so and the second is refused.

    hash_rate_per_s: tries a second of the reference client; measured here (some 30 ms) when there is a gate and it is
    not given. An operator who looks or switches is never shed: that is done under load.
    """
    autotune = _Autotune(gate, replay, bus, hash_rate_per_s)
    return [
        Endpoint(method="GET", path=PATH, handler=autotune.show, scope="pow:read", vital=True),
        Endpoint(method="POST", path=PATH, handler=autotune.switch, scope="pow:tune", body=AutotuneRequest, vital=True),
    ]


class _Autotune:
    def __init__(self, gate: PowGate | None, replay: Replay, bus: Bus, hash_rate_per_s: float | None) -> None:
        self._gate = gate
        self._replay = replay
        self._bus = bus
        self._hash_rate_per_s = hash_rate_per_s
        if gate is not None:
            self._hash_rate_per_s = hash_rate_per_s or measured_hash_rate()
            bus.observe(self._heard, TOPIC, name="pow")

    def show(self, _call: Call) -> AutotuneAnswer:
        if self._gate is None or self._hash_rate_per_s is None:
            return AutotuneAnswer(
                enabled=False, auto_tune=False, state=None, difficulty=0, upper_bound=0, target_ms=0, measured_ms=0
            )
        target = self._gate.target
        return AutotuneAnswer(
            enabled=True,
            auto_tune=target.auto_tune,
            state=target.state.value if target.state else None,
            difficulty=target.difficulty,
            upper_bound=target.upper_bound,
            target_ms=target.target_ms,
            measured_ms=round(1000 * target.expected_tries / self._hash_rate_per_s, 3),
        )

    async def switch(self, call: Call, body: AutotuneRequest) -> AutotuneAnswer:
        if call.capability is None:
            raise RonError(ErrorCode.NO_CAPABILITY, "no capability", status=401)
        if self._gate is None:
            raise RonError(ErrorCode.UNSUPPORTED, "proof of work is off", hint="set dos.proof_of_work = true")
        await self._replay.claim(call.capability.cap_id, body.op_id)
        self._set(body.state == "on")
        self._bus.publish(Switched(body.state == "on"), topic=TOPIC, corr_id=call.corr_id)
        return self.show(call)

    def _heard(self, message: Message) -> None:
        """Another worker was told."""
        if message.origin != self._bus.origin:
            self._set(msgspec.convert(msgspec.to_builtins(message.body), Switched).auto_tune)

    def _set(self, on: bool) -> None:
        """Said twice it changes nothing: setting it anew would begin at the base, in the middle of a flood."""
        if self._gate is not None and self._gate.target.auto_tune != on:
            self._gate.autotune(on)
