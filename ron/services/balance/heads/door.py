"""What stands between a head's onion and its targets: sockets before those that are onions, and a probe for each.

In: the services' ports as in `[balance]`. Out: HiddenServicePort lines, and which services' targets do not answer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IListeningPort, IStreamClientEndpoint
from txtorcon.socks import TorSocksEndpoint

from ron.kernel.files import private_dir, socket_path
from ron.proto.balance import Failing, ServiceName
from ron.proto.errors import bad_request
from ron.services.balance.heads.probe import (
    CONNECT_TIMEOUT_S,
    ONION_EVERY_S,
    ONION_TIMEOUT_S,
    Probe,
    all_healthy,
)
from ron.services.balance.heads.proxy import Proxy
from ron.services.balance.heads.targets import Target, read_targets, socket_name

# As much as a beat has room for.
MAX_SAID = 200


class Door:
    """services: their ports, by name. told: called when a target begins or ceases to answer. refused: when a proxy has
    too many connections.

    Raises `RonError` for ports that cannot be, and for an onion without a SOCKS port to reach it by.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        folder: Path,
        services: Mapping[ServiceName, Sequence[str]],
        socks_port: Callable[[], int] | None,
        told: Callable[[], None],
        refused: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._folder = folder
        self._socks_port = socks_port
        self._refused = refused
        self._listening: list[IListeningPort] = []
        self._proxies: list[Proxy] = []
        targets = read_targets(port for ports in services.values() for port in ports)
        if socks_port is None and any(target.kind == "onion" for target in targets):
            raise bad_request("a target is an onion, and there is no SOCKS port to reach it by", hint="balance.socks")
        self._onions = tuple(target for target in targets if target.kind == "onion")
        self.lines = tuple(self._line(target) for target in targets)
        self._probes = {target: self._probe(target, told) for target in targets}
        self._of = {name: read_targets(ports) for name, ports in services.items()}

    @property
    def healthy(self) -> bool | None:
        """All targets answer; None while that is not known."""
        return all_healthy(list(self._probes.values()))

    def failing(self) -> tuple[Failing, ...]:
        """The services of which a target does not answer, or has not answered yet."""
        said = {name: [self._said(target) for target in targets] for name, targets in self._of.items()}
        return tuple(
            Failing(service=name, target="; ".join(filter(None, words))[:MAX_SAID])
            for name, words in sorted(said.items())
            if any(words)
        )

    def ports(self) -> dict[tuple[ServiceName, int], bool]:
        """Whether each port's target answers, as far as that is known."""
        return {
            (name, target.onion_port): healthy
            for name, targets in self._of.items()
            for target in targets
            if (healthy := self._probes[target].healthy) is not None
        }

    def _said(self, target: Target) -> str:
        healthy = self._probes[target].healthy
        how = "does not answer" if healthy is False else "has not answered yet"
        return "" if healthy else f"port {target.onion_port}: {target} {how}"

    async def open(self) -> None:
        """Listen and probe. Raises `CannotListenError`."""
        private_dir(self._folder)
        for target in self._onions:
            path = self._socket(target)
            path.unlink(missing_ok=True)
            proxy = Proxy(self._reactor, partial(self._endpoint, target), refused=self._refused)
            self._proxies.append(proxy)
            self._listening.append(self._reactor.listenUNIX(str(path), proxy, mode=0o600))
        for probe in self._probes.values():
            probe.start()

    async def close(self) -> None:
        """Neither any more."""
        for probe in self._probes.values():
            probe.stop()
        for port in self._listening:
            with contextlib.suppress(OSError):
                await maybeDeferred(port.stopListening)
        for proxy in self._proxies:
            proxy.close_all()

    def _line(self, target: Target) -> str:
        return f"{target.onion_port} unix:{self._socket(target)}" if target.kind == "onion" else target.line()

    def _socket(self, target: Target) -> Path:
        return socket_path(self._folder / socket_name(target))

    def _endpoint(self, target: Target) -> IStreamClientEndpoint:
        if target.kind == "unix":
            return UNIXClientEndpoint(self._reactor, target.where)
        if target.kind == "onion" and self._socks_port is not None:
            socks = TCP4ClientEndpoint(self._reactor, "127.0.0.1", self._socks_port())
            onion: IStreamClientEndpoint = TorSocksEndpoint(socks, target.where, target.port)
            return onion
        family = TCP6ClientEndpoint if ":" in target.where else TCP4ClientEndpoint
        return family(self._reactor, target.where, target.port)

    def _probe(self, target: Target, told: Callable[[], None]) -> Probe:
        endpoint = partial(self._endpoint, target)
        if target.kind == "onion":
            return Probe(self._reactor, endpoint, told, every_s=ONION_EVERY_S, timeout_s=ONION_TIMEOUT_S)
        return Probe(self._reactor, endpoint, told, timeout_s=CONNECT_TIMEOUT_S)
