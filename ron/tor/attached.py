"""A tor that somebody else runs, as those who use it see it: a control connection, found again whenever it is lost.

In: where the control port is at present. Out: `on_up` with a live connection each time, `on_down` when it has gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure
from txtorcon import TorControlProtocol

from ron.kernel.aio import cancellable, occurred
from ron.kernel.backoff import Backoff
from ron.tor.control import TorSilent, connect_control

# Looking for a tor that is just being started again must not take longer than its start.
CEILING_S = 0.5
_log = Logger(namespace="ron.tor")


class TorHost(Protocol):
    """Whoever runs the tors."""

    async def control_port(self, name: str) -> int:
        """The control port of `name` on loopback. Raises `RonError` while that tor is not up."""
        ...

    async def restart(self, name: str) -> None:
        """Start `name` anew: it runs, and is of no use."""
        ...


class AttachedTor:
    """The connection to `name`. `start` once, `stop` once; `control` is there while it is up.

    on_up: may take its time; it is cancelled when the connection goes. When it fails tor is started anew, unless tor
    did not answer it: then the connection is made anew.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        name: str,
        host: TorHost,
        on_up: Callable[[TorControlProtocol], Awaitable[None]],
        on_down: Callable[[], None],
    ) -> None:
        self.name = name
        self.control: TorControlProtocol | None = None
        self._reactor = reactor
        self._host = host
        self._on_up = on_up
        self._on_down = on_down
        self._backoff = Backoff(ceiling_s=CEILING_S)
        self._loop: Deferred[None] | None = None

    def start(self) -> None:
        """Begin to look for it."""
        self._loop = Deferred.fromCoroutine(self._run())
        self._loop.addErrback(lambda failure: failure.trap(CancelledError))
        self._loop.addErrback(lambda failure: _log.failure("the hold on tor {tor} broke", failure, tor=self.name))

    def stop(self) -> None:
        """Let go of it; it runs on."""
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.cancel()
        self._hang_up()

    async def _run(self) -> None:
        while True:
            control = await self._connected()
            self.control = control
            self._backoff.reset()
            gone: Deferred[Any] = control.when_disconnected()
            gone.addErrback(lambda _failure: None)  # how it ended does not matter
            working = cancellable(Deferred.fromCoroutine(_awaited(self._on_up(control))))
            working.addErrback(self._failed, gone)
            try:
                await occurred(gone)
            finally:
                self._hang_up()
                working.cancel()
            self._on_down()

    async def _connected(self) -> TorControlProtocol:
        while True:
            try:
                return await cancellable(Deferred.fromCoroutine(self._connect()))
            except CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - not up, not listening, another cookie by now: look again
                _log.debug("tor {tor} is not there: {error}", tor=self.name, error=str(error))
            await deferLater(self._reactor, self._backoff.next_delay_s())

    async def _connect(self) -> TorControlProtocol:
        return await connect_control(self._reactor, await self._host.control_port(self.name))

    def _failed(self, failure: Failure, gone: Deferred[Any]) -> Any:
        if failure.check(CancelledError) or gone.called:
            return None
        if failure.check(TorSilent, DeadlineError):
            # too busy to answer: whoever runs it asks it too, and knows better; to us it is worth another connection
            _log.warn("tor {tor} does not answer; connecting anew", event="tor_silent", tor=self.name)
            self._hang_up()
            return None
        _log.failure("tor {tor} is of no use; starting it anew", failure, event="tor_useless", tor=self.name)
        return Deferred.fromCoroutine(self._start_anew())

    async def _start_anew(self) -> None:
        try:
            await self._host.restart(self.name)
        except Exception as error:  # noqa: BLE001 - whoever runs it is being restarted itself: look for it again
            _log.warn("tor {tor} was not restarted: {error}", tor=self.name, error=str(error))
            await deferLater(self._reactor, CEILING_S)
        self._hang_up()

    def _hang_up(self) -> None:
        control, self.control = self.control, None
        if control is not None and control.transport is not None:
            control.transport.abortConnection()


async def _awaited(awaitable: Awaitable[None]) -> None:
    await awaitable
