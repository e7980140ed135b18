"""One memory of operations for all processes of a node: an `op_id` that one worker took, no other takes.

In: the node's own `ReplayGuard`, served on the bus as `replay`. Out: `SharedReplay`, which asks it from any process.
When the node does not answer, nothing is claimed: it fails closed.
"""

from __future__ import annotations

import msgspec

from ron.auth import ReplayGuard
from ron.kernel import Bus
from ron.kernel.commands import Command

SERVICE = "replay"


class Operation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Body of both commands."""

    cap_id: str
    op_id: str


def serve_replay(bus: Bus, guard: ReplayGuard) -> None:
    """Answer for `guard` on `bus`."""

    def of(command: Command) -> tuple[str, str]:
        body = msgspec.convert(msgspec.to_builtins(command.body), Operation)
        return body.cap_id, body.op_id

    bus.serve(
        SERVICE,
        {
            "claim": lambda command: guard.claim(*of(command)),
            "release": lambda command: guard.release(*of(command)),
        },
    )


class SharedReplay:
    """The node's guard, as `ron.web.caps` asks for it."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def claim(self, cap_id: str, op_id: str) -> None:
        """Raises `RonError` as `ReplayGuard.claim` does, StoreUnavailable when the node does not answer."""
        await self._bus.call(SERVICE, "claim", Operation(cap_id, op_id))

    async def release(self, cap_id: str, op_id: str) -> None:
        """It did not happen: it may be tried again."""
        await self._bus.call(SERVICE, "release", Operation(cap_id, op_id))
