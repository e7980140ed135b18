"""A node of a RustBalance cluster hosted: its rooms (`balancerooms`), run after run, and the operators' socket.

In: `[balance]`, the node's files, tors that somebody else runs. Out: the service for the supervisor and the site of the
control API. One code path: `twistd -n ron-balance` and a ron-node with `balance.enabled` both host this.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.crypto.secrets import harden_process
from ron.kernel.aio import cancellable
from ron.kernel.files import socket_path
from ron.nodes.parts import Host, Part
from ron.nodes.parts.balancerooms import HEAD_ROLE, OUTSIDE_ROLE, BalanceRooms
from ron.nodes.runtime import Runtime
from ron.proto.errors import RonError
from ron.services.balance import api
from ron.services.balance.config import BalanceConfig
from ron.services.balance.desk import Desk
from ron.web.site import RonSite

__all__ = ["HEAD_ROLE", "OUTSIDE_ROLE", "BalancePart", "HostedBalance", "control_socket"]

CONTROL_SOCKET = "run/balance.sock"
# The consensus is there as soon as the tor is up; without one there is nothing to be ready for.
READY_POLL_S = 0.2
READY_S = 60.0
_log = Logger(namespace="ron.balance")


class HostedBalance:
    """One process's node of a cluster. where: the operators' socket. rooms: of the present run, or of the one to come.
    ended: called when this node may not go on: it has left (None), was removed, or is a copy of another one that runs.

    Raises `RonError` for files that are not there or damaged, and for an address that cannot be.
    """

    def __init__(self, runtime: Runtime, ended: Callable[[RonError | None], None]) -> None:
        config: BalanceConfig = runtime.config.current.balance
        harden_process()
        self.where = control_socket(runtime, config)
        self._runtime = runtime
        self._ended = ended
        self.rooms = BalanceRooms(runtime, ended)
        self.service = _Runs(self)

    async def ready(self) -> None:
        """The Tor network is known: from now on this node can serve and publish. Raises what starting it raised.

        Without a network it is there all the same after a minute, and says what it lacks: it has its place in the mesh.
        """
        await self.service.started()
        reactor = self._runtime.reactor
        give_up_s = reactor.seconds() + READY_S
        while self.rooms.room.network.ring is None and reactor.seconds() < give_up_s:
            await deferLater(reactor, READY_POLL_S)

    def site(self) -> RonSite:
        """What the operators' socket answers, whichever run is the present one."""
        desk = cast(Desk, _PresentDesk(self))
        endpoints = [*api.endpoints(desk, self._runtime.reactor), *self._runtime.admin_endpoints()]
        return self._runtime.site(endpoints, body_limit=api.BODY_LIMIT_BYTES, name="balance")

    async def start(self) -> None:
        """A run begins; after another one with rooms of its own, by the config and the files as they are now. A key or
        share that the last run held is gone with it."""
        if self.rooms.used:
            self.rooms = BalanceRooms(self._runtime, self._ended)
        await self.rooms.start()

    async def stop(self) -> None:
        """The run ends."""
        await self.rooms.stop()


class _PresentDesk:
    """The desk of the present run."""

    def __init__(self, hosted: HostedBalance) -> None:
        self._hosted = hosted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hosted.rooms.desk, name)


class _Runs(Service):
    """The life of all of it, for the supervisor: it may be started again after it was stopped."""

    def __init__(self, hosted: HostedBalance) -> None:
        self._hosted = hosted
        self._start: Deferred[None] | None = None
        self._end: Deferred[None] = succeed(None)

    def startService(self) -> None:
        """Begin, once the run before has ended."""
        super().startService()
        self._start = Deferred.fromCoroutine(self._begin())
        self._start.addErrback(_not_started)

    async def _begin(self) -> None:
        ended: Deferred[None] = Deferred()
        self._end.addBoth(_passed_on, ended)
        await cancellable(ended)
        await self._hosted.start()

    async def started(self) -> None:
        """Return once it has begun. Raises what beginning raised."""
        if self._start is not None:
            await cancellable(self._start)

    def stopService(self) -> Deferred[None]:
        """End; fires when nothing of it is left."""
        if not self.running:
            return succeed(None)
        super().stopService()
        if self._start is not None:
            # it must not go on behind our back
            self._start.addErrback(lambda _failure: None)
            self._start.cancel()
        ending = Deferred.fromCoroutine(self._hosted.stop())
        self._end = Deferred()
        ending.addBoth(_passed_on, self._end)
        return ending


def _passed_on(outcome: Any, waiting: Deferred[None]) -> Any:
    """However it ended, `waiting` may go on; whoever ended it hears of it."""
    waiting.callback(None)
    return outcome


def _not_started(failure: Failure) -> Failure:
    if not failure.check(RonError, CancelledError):
        _log.failure("this node did not start", failure, event="balance_not_started")
    return failure


class BalancePart(Part):
    """In a ron-node."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._hosted = HostedBalance(host.runtime, self._ended)
        self.service: Any = self._hosted.service

    async def ready(self) -> None:
        """As `HostedBalance.ready`."""
        await self._hosted.ready()

    def sites(self) -> dict[str, RonSite]:
        """The operators' socket."""
        return {"balance": self._hosted.site()}

    def where(self, _listener: str) -> Path:
        """A Unix socket of its own."""
        return self._hosted.where

    def _ended(self, error: RonError | None) -> None:
        """The rest of the node goes on; readiness has the reason."""
        _log.warn(
            "this node is in its cluster no more: {why}",
            event="balance_ended",
            why=error.one_line() if error is not None else "it has left",
        )
        self._hosted.service.stopService().addErrback(
            lambda failure: _log.failure("leaving the cluster broke", failure, event="balance_end_failed")
        )


def control_socket(runtime: Runtime, config: BalanceConfig) -> Path:
    """Where the operators' API listens."""
    if config.control.startswith("/"):
        return socket_path(Path(config.control))
    return socket_path(runtime.home / (config.control or CONTROL_SOCKET))
