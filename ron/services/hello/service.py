"""The demonstration's life: makes the devices once the onion is there, pings while somebody looks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from ron.proto.clock import now_rfc3339
from ron.proto.errors import ErrorCode, RonError
from ron.proto.facts import PingReport, PingStep
from ron.sdk.ping import Device, ping

EVERY_S = 5.0
_log = Logger(namespace="ron.hello")


class HelloService(Service):
    """`make_devices` gives the two ends, or None while there is no onion to send over. quiet: true while
    nothing should be sent that nobody asked for."""

    def __init__(
        self,
        reactor: Any,
        *,
        make_devices: Callable[[], Awaitable[tuple[Device, Device] | None]],
        quiet: Callable[[], bool] = lambda: False,
    ) -> None:
        self._reactor = reactor
        self._make_devices = make_devices
        self._quiet = quiet
        self._devices: tuple[Device, Device] | None = None
        self._report = PingReport()
        self._running: Deferred[None] | None = None
        self._steps: list[PingStep] = []
        self._last_end = float("-inf")

    def report(self) -> PingReport:
        """The latest ping; looking at it starts the next one when it is due."""
        due = self._running is None and self._reactor.seconds() - self._last_end >= EVERY_S
        if self.running and due and not self._quiet():
            self._start()
        if self._running is not None:
            return msgspec.structs.replace(self._report, state="running", steps=tuple(self._steps))
        return self._report

    def stopService(self) -> None:
        """Give up a ping under way."""
        super().stopService()
        if self._running is not None:
            self._running.cancel()

    def _start(self) -> None:
        self._steps = []
        # a ping can be over before this returns: `_running` is for one that is not
        running = Deferred.fromCoroutine(self._find_devices_and_ping())
        self._running = None if running.called else running

    async def _find_devices_and_ping(self) -> None:
        try:
            self._devices = self._devices or await self._make_devices()
        except CancelledError:
            return
        except RonError as error:
            self._failed(self._report.seq, error.message)
        if self._devices is None:
            self._running = None
            return
        await self._ping(*self._devices)

    async def _ping(self, alice: Device, bob: Device) -> None:
        seq = self._report.seq + 1
        try:
            result = await ping(self._reactor, alice, bob, self._steps.append)
            self._report = PingReport(
                state="ok",
                seq=seq,
                suite=result.suite,
                sealed_bytes=result.sealed_bytes,
                roundtrip_ms=result.roundtrip_ms,
                finished_at=now_rfc3339(),
                steps=result.steps,
            )
        except CancelledError:
            pass
        except RonError as error:
            if error.code is ErrorCode.NO_CAPABILITY:
                self._devices = None  # their capabilities have been revoked or outlived: make new ones
            self._failed(seq, error.message)
        except Exception:  # noqa: BLE001 - the page says that it failed, the log says why
            _log.failure("the hello ping broke", event="hello_ping_broke")
            self._failed(seq, "internal error; see the node's log")
        finally:
            self._last_end = self._reactor.seconds()
            self._running = None

    def _failed(self, seq: int, reason: str) -> None:
        _log.warn("hello ping failed: {reason}", event="hello_ping_failed", reason=reason)
        self._report = PingReport(
            state="failed", seq=seq, error=reason, finished_at=now_rfc3339(), steps=tuple(self._steps)
        )
