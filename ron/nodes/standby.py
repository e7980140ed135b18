"""Answers where nobody is left to: 503 on the listeners of services that will not come back by themselves.

In: the supervisor's units, the listening sockets. Out: while every unit of a listener is quarantined or drained,
callers are told at once instead of waiting in the backlog; health goes on, and for the gateway its administration, so
that an operator can still ask why and release the service over the same address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NoReturn

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.kernel.bus import Message, Subscription
from ron.kernel.supervisor import UnitStatus
from ron.nodes.listeners import BoundSocket, Listening
from ron.nodes.parts import LISTENERS, TLS_SUFFIX
from ron.nodes.runtime import Runtime
from ron.proto.errors import RonError, unavailable
from ron.services.sections import TlsConfig
from ron.web import Call, Endpoint
from ron.web.site import RonSite

# Units in these states stay in them until somebody releases them.
GONE = frozenset({"idle", "quarantined"})
LOOK_S = 1.0
# Answers under way when the service is back, its release among them.
HAND_OVER_S = 2.0
_METHODS = ("GET", "POST", "PUT", "DELETE")
_log = Logger(namespace="ron.node")


class Anything(msgspec.Struct):
    """Any JSON object: what was to be done with it cannot be done."""


class Standby:
    """Stands in for parts. units: every unit as it stands. tls: of a listener, as configured."""

    def __init__(
        self,
        runtime: Runtime,
        units: Callable[[], Iterable[UnitStatus]],
        sockets: Mapping[str, BoundSocket],
        tls: Callable[[str], TlsConfig | None],
    ) -> None:
        self._runtime = runtime
        self._units = units
        self._sockets = sockets
        self._tls = tls
        self._standing: dict[str, tuple[RonSite, list[Listening]]] = {}
        self._sites: dict[str, RonSite] = {}
        self._heard: Subscription | None = None
        self._loop = LoopingCall(self.look)
        self._loop.clock = runtime.reactor

    @property
    def parts(self) -> tuple[str, ...]:
        """Those it stands in for at present."""
        return tuple(self._standing)

    def start(self) -> None:
        """From now on; the services are up, or have been tried."""
        self._heard = self._runtime.bus.observe(self._look_soon, name="standby")
        self._loop.start(LOOK_S)

    async def stop(self) -> None:
        """Stand in no more, and hang up."""
        if self._heard is not None:
            self._heard.close()
        if self._loop.running:
            self._loop.stop()
        for part in self.parts:
            await self._step_down(part)

    def look(self) -> None:
        """Stand in where everybody is gone, and nowhere else."""
        states: dict[str, set[str]] = {}
        for unit in self._units():
            states.setdefault(_part_of(unit), set()).add(unit.state)
        for part in LISTENERS:
            gone = part in states and states[part] <= GONE
            if gone and part not in self._standing:
                self._stand_in(part)
            elif not gone and part in self._standing:
                leaving = Deferred.fromCoroutine(self._step_down(part))
                leaving.addErrback(lambda failure: _log.failure("standing in", failure, event="standby_failed"))

    def _look_soon(self, _message: Message) -> None:
        self.look()

    def _stand_in(self, part: str) -> None:
        site = self._sites.get(part)
        if site is None:
            site = self._sites[part] = self._site(part)
        listening: list[Listening] = []
        self._standing[part] = site, listening
        for listener in (name for name in LISTENERS[part] if name in self._sockets):
            try:
                listening.append(self._listen(listener, site))
            except RonError as error:  # a certificate that cannot be used: the plain listener still answers
                _log.error("{reason}", event="standby_failed", reason=error.one_line())
        _log.warn("{part} is gone; its callers are answered with 503", event="standby", part=part)

    def _listen(self, listener: str, site: RonSite) -> Listening:
        where, plain = self._sockets[listener].fileno(), listener.removesuffix(TLS_SUFFIX)
        tls = self._tls(plain) if listener != plain else None
        if tls is None:
            return self._runtime.listen(where, site)
        return self._runtime.listen_tls(where, site, plain, tls)

    async def _step_down(self, part: str) -> None:
        site, listening = self._standing.pop(part)
        for one in listening:
            await one.stop_accepting()
        await site.drain(HAND_OVER_S)

    def _site(self, part: str) -> RonSite:
        def gone(_call: Call, _body: Anything | None = None, **_path: str) -> NoReturn:
            names = " ".join(unit.name for unit in self._units() if _part_of(unit) == part)
            raise unavailable(f"{part} is not running", hint=f"ronctl service release {names}")

        rest = [
            Endpoint(
                method=method,
                path=path,
                handler=gone,
                scope=None,
                body=None if method == "GET" else Anything,
                vital=True,
            )
            for path in ("/", "/<path:rest>")
            for method in _METHODS
        ]
        # the onion's mailbox port never had an administration, and does not get one now
        admin = self._runtime.admin_endpoints() if part == "gateway" else []
        return self._runtime.site([*admin, *rest], name=f"{part}-standby")


def _part_of(unit: UnitStatus) -> str:
    return unit.name.partition(".")[0]
