"""The real gateway or mailbox without tor, for the benchmarks: `python -m bench.serve tiles|mailbox PORT FOLDER`.

The same sites, services and stores as in the Micronode, alone in a process that can be pinned to a core. Prints the
capability to use on the first line.
"""

from __future__ import annotations

import gc
import sys
import time
from pathlib import Path

from twisted.internet import reactor

from ron.auth import Authority, Caveat, RootKeys
from ron.kernel import HealthState, Metrics
from ron.proto.facts import HelloReport, NodeStatus, PingReport
from ron.services.edge.config import EdgeConfig
from ron.services.edge.service import EdgeService
from ron.services.gateway.api import GatewayApi
from ron.services.mailbox import api as mailbox_api
from ron.services.mailbox.config import MailboxConfig
from ron.services.mailbox.service import MailboxService
from ron.web import Edge, make_site
from ron.web.site import RonSite


def main() -> None:
    """Serve until killed."""
    what, port, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    health, metrics = HealthState(), Metrics()
    authority = Authority(RootKeys.generate(), audience="ron-node", now=time.time)
    edge = Edge(authority=authority, metrics=metrics, reactor=reactor)
    shared = {"reactor": reactor, "health": health, "metrics": metrics}
    site = _tiles(edge, folder, shared) if what == "tiles" else _mailbox(edge, folder, shared)
    reactor.listenTCP(port, site, interface="127.0.0.1", backlog=1024)
    print(authority.mint([Caveat("scope", "*")]), flush=True)
    gc.collect()
    gc.freeze()
    reactor.run()


def _tiles(edge: Edge, folder: Path, shared: dict[str, object]) -> RonSite:
    service = EdgeService(EdgeConfig(packs=("world.pmtiles",)), home=folder, **shared)
    service.startService()

    def hello() -> HelloReport:
        return HelloReport(onion=None, ready=True, network="private", ping=PingReport())

    def status() -> NodeStatus:
        raise NotImplementedError("the benchmark serves tiles only")

    return make_site(edge, GatewayApi(edge=service, hello=hello, status=status).endpoints())


def _mailbox(edge: Edge, folder: Path, shared: dict[str, object]) -> RonSite:
    service = MailboxService(MailboxConfig(), path=folder / "mailbox.sqlite3", **shared)
    service.startService()
    return make_site(edge, mailbox_api.endpoints(service), body_limit=mailbox_api.BODY_LIMIT_BYTES)


if __name__ == "__main__":
    main()
