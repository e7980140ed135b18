"""Calling the others until there is a link to each, and again when one ends: back-off with jitter, 100 ms to 5 s.

In: who the members are and where, seeds. Out: connections, over TCP, or through tor's SOCKS port to an onion.
Seeds are dialled only while no link stands at all: from one of them on the roster says who there is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IAddress, IDelayedCall, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from txtorcon.socks import TorSocksEndpoint

from ron.kernel.backoff import Backoff
from ron.kernel.tls import ClientTls
from ron.proto.addresses import HostPort
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.services.balance.mesh.link import Link
from ron.services.balance.mesh.wire import Refused

CONNECT_S = 5.0
# Through tor: a circuit has to be built, the onion's descriptor fetched.
ONION_CONNECT_S = 45.0
BASE_S, CEILING_S = 0.1, 5.0
# A link that is there already (a seed's, say): look again.
THERE_S = 1.0
_log = Logger(namespace="ron.balance.mesh")


class Ourselves(Refused):
    """The address is our own."""

    def __init__(self) -> None:
        super().__init__("stranger", "it is this node", fatal=True)


class LinkFactory(Factory):
    """Links at either end. make: a new one, or None to take no connection."""

    noisy = False

    def __init__(self, make: Callable[[], Link | None]) -> None:
        self._make = make

    def buildProtocol(self, addr: IAddress | None) -> Link | None:
        """One link."""
        return self._make()


class Caller:
    """Keeps one link. addresses: tried in turn. wanted: false while there is no need."""

    def __init__(
        self, dialler: Dialler, expected: str | None, addresses: tuple[str, ...], wanted: Callable[[], bool]
    ) -> None:
        self._dialler = dialler
        self._expected = expected
        self.addresses = addresses
        self._wanted = wanted
        self._backoff = Backoff(base_s=BASE_S, ceiling_s=CEILING_S, rng=dialler.rng)
        self._turn = 0
        self._timer: IDelayedCall | None = None
        self._connecting: Deferred[Any] | None = None
        self._link: Link | None = None
        self._stopped = False

    def start(self) -> None:
        """Try now, and go on."""
        self._try()

    def stop(self) -> None:
        """Try no more; the link is closed by who closes links."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._connecting is not None:
            self._connecting.cancel()
        if self._link is not None and not self._link.stands:
            self._link.close()

    def _try(self) -> None:
        self._timer = None
        if self._stopped:
            return
        if not self._wanted() or not self.addresses:
            self._later(THERE_S)
            return
        address = self.addresses[self._turn % len(self.addresses)]
        self._turn += 1
        factory = LinkFactory(lambda: self._dialler.make_link(self._expected))
        try:
            endpoint, patience_s = self._dialler.endpoint(address)
        except RonError as error:
            _log.warn("{address}: {problem}", event="mesh_bad_address", address=address, problem=error.one_line())
            self._later(CEILING_S)
            return
        connecting: Deferred[Any] = endpoint.connect(factory)
        self._connecting = connecting
        connecting.addTimeout(patience_s, self._dialler.reactor)
        connecting.addCallbacks(self._connected, self._not_connected)

    def _connected(self, link: Any) -> None:
        self._connecting = None
        self._link = link
        if self._stopped:
            link.close()
        link.ended.addBoth(self._ended, link)

    def _not_connected(self, failure: Failure) -> None:
        self._connecting = None
        if not failure.check(CancelledError):
            _log.debug("not connected: {problem}", event="mesh_not_connected", problem=str(failure.value)[:200])
        self._later(self._backoff.next_delay_s())

    def _ended(self, problem: object, link: Link) -> None:
        self._link = None
        if isinstance(problem, Ourselves):
            self._stopped = True
        if link.stood:
            self._backoff.reset()
        self._later(self._backoff.next_delay_s())

    def _later(self, delay_s: float) -> None:
        if not self._stopped:
            self._timer = self._dialler.reactor.callLater(delay_s, self._try)


class Dialler:
    """All callers of a node. make_link: a link to the node that is expected, or to any. socks: tor's port, for onions.

    is_linked: whether we have dialled this node already; whether any link stands, for None.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        tls: ClientTls,
        make_link: Callable[[str | None], Link],
        is_linked: Callable[[str | None], bool],
        socks: HostPort | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.reactor = reactor
        self.make_link = make_link
        self.rng = rng
        self._tls = tls
        self._is_linked = is_linked
        self._socks = socks
        self._members: dict[str, Caller] = {}
        self._seeds: list[Caller] = []

    def seeds(self, addresses: tuple[str, ...]) -> None:
        """Call these while no link stands."""
        for address in dict.fromkeys(addresses):
            caller = Caller(self, None, (address,), lambda: not self._is_linked(None))
            self._seeds.append(caller)
            caller.start()

    def members(self, addresses: Mapping[str, tuple[str, ...]]) -> None:
        """Call these, and nobody else any more."""
        for name in [name for name in self._members if name not in addresses]:
            self._members.pop(name).stop()
        for name, where in addresses.items():
            if name in self._members:
                self._members[name].addresses = where
            else:
                self._members[name] = Caller(self, name, where, lambda name=name: not self._is_linked(name))  # type: ignore[misc]
                self._members[name].start()

    def stop(self) -> None:
        """Call nobody any more."""
        for caller in (*self._members.values(), *self._seeds):
            caller.stop()
        self._members.clear()
        self._seeds.clear()

    def endpoint(self, address: str) -> tuple[IStreamClientEndpoint, float]:
        """How to get there, and how long that may take. Raises `RonError` for an address that is none, or an onion
        without a SOCKS port."""
        host, port = split_address(address)
        if not host.endswith(".onion"):
            bare = HostnameEndpoint(self.reactor, host, port, timeout=CONNECT_S)
            return wrapClientTLS(self._tls, bare), CONNECT_S
        if self._socks is None:
            raise RonError(
                ErrorCode.UNSUPPORTED, "an onion needs a tor to reach it", hint="set balance.socks to its SOCKS port"
            )
        tor = TCP4ClientEndpoint(self.reactor, self._socks.host, self._socks.port, timeout=CONNECT_S)
        return wrapClientTLS(self._tls, TorSocksEndpoint(tor, host, port)), ONION_CONNECT_S


def split_address(address: str) -> tuple[str, int]:
    """`10.0.0.1:9470`, `[fd00::1]:9470`, `name:9470`, `<onion>:9470`. Raises `RonError` (BadRequest)."""
    host, _, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise bad_request(f"{address!r} is no address", hint="write host:port, an IPv6 address in brackets")
    return host, int(port)
