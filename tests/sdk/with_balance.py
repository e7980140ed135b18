"""A RustBalance node behind its control socket; only the cluster beneath is one in memory."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from shutil import rmtree
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import TestCase

from ron.auth import AUDIENCE, Authority, Caveat, RootKeys
from ron.kernel import Metrics
from ron.kernel.unixsock import UnixListener
from ron.sdk.balance import DEADLINE_S, Balance
from ron.sdk.client import Api
from ron.sdk.transport import connection_pool, unix_http
from ron.services.balance.api import BODY_LIMIT_BYTES, endpoints
from ron.web import Edge, make_site
from tests.services.balance.desk import MemoryDesk
from tests.web.wire import until


class WithBalance(TestCase):
    """`self.socket` answers as the daemon's; `balance()` is a client with a capability narrowed by caveats."""

    timeout = 60

    def setUp(self) -> None:
        self.desk = MemoryDesk()
        self.authority = Authority(RootKeys.generate(), audience=AUDIENCE, now=time.time)
        # in a folder of its own, for the path of a socket is short
        self.home = Path(tempfile.mkdtemp(prefix="ron-"))
        self.addCleanup(rmtree, self.home, True)
        self.socket = self.home / "run" / "balance.sock"
        edge = Edge(authority=self.authority, metrics=Metrics(), reactor=reactor)
        self.site = make_site(edge, endpoints(self.desk, reactor), body_limit=BODY_LIMIT_BYTES)
        listener = UnixListener(reactor, self.socket, self.site, backlog=16)
        listener.listen()
        self.addCleanup(until, lambda: not self.site.channels)
        self.addCleanup(listener.stop)

    def capability(self, *caveats: tuple[str, str]) -> str:
        return self.authority.mint([Caveat(*caveat) for caveat in caveats or (("scope", "*"),)])

    def balance(self, *caveats: tuple[str, str], **settings: Any) -> Balance:
        """A client on the socket."""
        pool = connection_pool(reactor)
        self.addCleanup(pool.closeCachedConnections)
        http = unix_http(reactor, self.socket, pool)
        settings = {"deadline_s": DEADLINE_S, **settings}
        return Balance(Api(reactor, http, "http://balance", self.capability(*caveats), **settings))
