"""What an operator can see and order of a running node: the port between `api.py` and whoever runs the cluster.

In: checked requests of `ron.proto.balanceviews`. Out: views. `service.py` implements it; tests keep one in memory.
"""

from __future__ import annotations

from typing import Protocol

from ron.proto.balance import Mode, NodeName, ServiceName, Where
from ron.proto.balanceviews import (
    BalanceView,
    GhostView,
    InvitationAnswer,
    LeaderView,
    MemberView,
    PublishAnswer,
    RemoveAnswer,
    RouletteAnswer,
    ServiceView,
    TokenAnswer,
)


class Desk(Protocol):
    """Every call ends within its own deadline and raises `RonError`: NotFound for a node or service nobody knows,
    Conflict for what contradicts how things stand, StoreUnavailable when too few nodes take part.

    A caller that hangs up does not end what it began. What a call is given as a secret, it must not keep or log.
    """

    async def status(self) -> BalanceView:
        """The cluster as this node sees it now."""

    async def ghosts(self) -> tuple[GhostView, ...]:
        """Heads that are out of the descriptor and still there."""

    async def promote(self, node: NodeName | None, for_s: int | None) -> LeaderView:
        """`node` leads if it can, for so long; None ends the order. The leader as it is after the order is written."""

    async def siege(self, node: NodeName, on: bool, for_s: int | None) -> MemberView:
        """The head of `node` is taken for attacked, or is not, whatever it measures."""

    async def roulette(self, on: bool, for_s: int | None) -> RouletteAnswer:
        """Rotate heads, for so long (None: as the config says)."""

    async def refresh(self, service: ServiceName) -> ServiceView:
        """New shares of the same key; Conflict in mode `shared`."""

    async def reshare(
        self,
        service: ServiceName,
        threshold: int | None,
        add: tuple[NodeName, ...],
        remove: tuple[NodeName, ...],
    ) -> ServiceView:
        """The same address, shared among others or with another threshold; Conflict in mode `shared`."""

    async def leave(self) -> NodeName:
        """This node says goodbye, forgets key and shares, and does not come back. Its name."""

    async def approve(self, name: NodeName) -> MemberView:
        """`name` may have keys or shares, in the run that it is in now."""

    async def remove(self, name: NodeName) -> RemoveAnswer:
        """`name` is cut off everywhere, and the cluster token rotates; once so many members have asked for it as have
        to."""

    async def rotate_token(self) -> TokenAnswer:
        """A new token for joins; the old one is void."""

    async def invite(self, name: NodeName, addresses: tuple[Where, ...]) -> InvitationAnswer:
        """A bundle with which `name` can join. Unsupported where this node has no CA key to sign with."""

    async def create(
        self,
        name: ServiceName,
        mode: Mode,
        threshold: int,
        members: int,
        among: tuple[NodeName, ...],
        key: bytearray | None,
    ) -> ServiceView:
        """A master address: a new one, or that of `key` (64 bytes), which is wiped when the call returns.

        threshold, members: 0 in mode `shared`. Conflict when the name is taken by another address."""

    async def publish(self, service: ServiceName | None) -> PublishAnswer:
        """Have the leader publish now; None is every service."""
