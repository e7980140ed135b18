"""Federation hosted: an onion of its own with a listener of its own that serves `/federate/` and nothing else.

In: `[federation]`, the onion runtime beside it. Out: the app whose onion it is, the listener's site, the operator's
endpoints. There is none while `federation.enabled` is false.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from ron.auth.register import Minted
from ron.kernel.files import socket_path
from ron.kernel.threads import BoundedPool
from ron.kernel.units import KIB, MIB
from ron.nodes.parts.tornet import ONION_ROLE, BusTorHost
from ron.nodes.runtime import Runtime
from ron.proto.errors import unavailable
from ron.proto.onions import Port
from ron.services.oniond.audit import Auditor
from ron.services.oniond.config import FEDERATION_APP
from ron.services.oniond.federation.desk import FederationDesk, Wishes
from ron.services.oniond.federation.messages import MAX_BODY_BYTES
from ron.services.oniond.federation.peers import OnionPeers
from ron.services.oniond.federation.routes import operator_endpoints, peer_endpoints
from ron.services.oniond.federation.shelf import Shelf
from ron.web import Edge, Endpoint, make_site
from ron.web.site import RonSite

LISTENER = "federation"
SOCKET = "run/federation.sock"
FOLDER = "federation"
PORT = 80
# So many proofs may wait that none waits as long as a call may take, be the lists as long as they may be.
PROOFS_WAITING = 16
# All that comes through the onion is one peer. A handshake is three requests; a challenge costs 0.7 ms.
REQUESTS_PER_S = 50
CONNECTIONS = 512
BYTES_PER_S = 4 * MIB
HEADERS_BYTES = 16 * KIB
_PLAIN = re.compile(r"[A-Za-z0-9_./-]{1,100}")


class HostedFederation:
    """One process's federation. onion: the address of an app of ours, once it has one."""

    def __init__(self, runtime: Runtime, onion: Callable[[str], str | None], audit: Auditor) -> None:
        # where tor takes the onion's visitors
        self.where = socket_path(runtime.home / SOCKET)
        self._runtime = runtime
        self._tors = BusTorHost(runtime.bus)
        self.desk = FederationDesk(
            runtime.reactor,
            wishes=self._wishes,
            onion=lambda: onion(FEDERATION_APP),
            minted=self._minted,
            shelf=Shelf(runtime.home / FOLDER),
            peers=OnionPeers(runtime.reactor, self._socks),
            files=self._pool("federation-files", 4),
            proofs=self._pool("federation-proofs", PROOFS_WAITING),
            audit=audit,
            health=runtime.health,
            busy=lambda: runtime.reduced_fan_out,
        )

    def start(self) -> None:
        """From now on until the process ends; nothing when it goes on already."""
        if not self.desk.running:
            self.desk.startService()
            self._runtime.at_exit(self.desk.stopService)

    def apps(self) -> dict[str, tuple[Port, ...]]:
        """The app whose onion peers call. Raises `RonError` on a home that tor cannot be told of."""
        if not _PLAIN.fullmatch(str(self.where)):
            hint = "a RON_HOME of plain letters and digits"
            raise unavailable(f"tor cannot be told of the socket {self.where}", hint)
        return {FEDERATION_APP: (Port(onion_port=PORT, local=f"unix:{self.where}"),)}

    def site(self) -> RonSite:
        """For peers."""
        return make_site(
            federation_edge(self._runtime.edge), peer_endpoints(self.desk), body_limit=MAX_BODY_BYTES, name=LISTENER
        )

    def endpoints(self) -> list[Endpoint]:
        """For the operator."""
        return operator_endpoints(self.desk)

    def _pool(self, name: str, queue_limit: int) -> BoundedPool:
        pool = BoundedPool(self._runtime.reactor, name=name, threads=1, queue_limit=queue_limit)
        pool.start()
        self._runtime.at_exit(pool.stop)
        return pool

    def _wishes(self) -> Wishes:
        config: Any = self._runtime.config.current
        return Wishes(
            allow=frozenset(config.federation.allow),
            keep=config.onion.federate_peers,
            min_holders=config.federation.min_holders,
            regions=config.federation.regions,
        )

    def _minted(self) -> Iterable[tuple[Minted, bool]]:
        auth = self._runtime.auth
        if auth.revocations.fault is not None:
            raise auth.revocations.fault
        return auth.listed()

    async def _socks(self, onion: str) -> int:
        """The tor of the peer's network that the config names; else ours."""
        for peer in self._runtime.config.current.federation.peer:
            if peer.onion == onion:
                return int(peer.socks.rpartition(":")[2])
        return await self._tors.socks_port(ONION_ROLE)


def federation_edge(edge: Edge) -> Edge:
    """`edge` for strangers who come through tor: less of everything, no traces, and their refusals, which take their
    time on purpose, are no part of the node's promise."""
    limits = msgspec.structs.replace(
        edge.limits,
        headers_bytes=min(HEADERS_BYTES, edge.limits.headers_bytes),
        connections=CONNECTIONS,
        connections_per_peer=CONNECTIONS,
        streams_per_peer=CONNECTIONS,
        requests_per_second_per_peer=REQUESTS_PER_S,
        bytes_per_second_per_peer=BYTES_PER_S,
        concurrency=CONNECTIONS,
    )
    strangers = Edge(authority=edge.authority, metrics=edge.metrics, reactor=edge.reactor, limits=limits)
    strangers.traffic = edge.traffic
    return strangers
