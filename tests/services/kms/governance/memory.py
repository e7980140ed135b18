"""Governance behind its routes, without a port: a site in memory over the real thing."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import msgspec
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from ron.auth import Authority, Caveat, RootKeys
from ron.kernel import Metrics
from ron.proto.governance import PATH
from ron.services.kms.governance.api import endpoints
from ron.web import Edge, make_site
from tests.services.kms.governance.people import World
from tests.web.wire import request, split_response


class Answer(NamedTuple):
    status: int
    body: Any


class WebWorld(World):
    """`ask` it."""

    def start(self) -> None:
        super().start()
        self.authority = Authority(RootKeys.generate(), audience="ron-kms", now=self.now)
        edge = Edge(authority=self.authority, metrics=Metrics(), reactor=self.clock)
        self.site = make_site(edge, endpoints(self.governance), body_limit=64 * 1024)

    def bearer(self, *caveats: tuple[str, str]) -> str:
        return self.authority.mint(Caveat(*caveat) for caveat in caveats or (("scope", "kms:governance"),))

    def ask(self, method: str, path: str = "", body: Any = None, token: str | None = None) -> Answer:
        """One request. body: a struct, what JSON can say, or the bytes themselves. token: "" sends none."""
        sent = {"Authorization": f"Bearer {token or self.bearer()}"} if token != "" else {}
        raw = body if isinstance(body, bytes) or body is None else msgspec.json.encode(body)
        channel, transport = self.site.buildProtocol(None), StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(request(method, PATH + path, sent, raw))
        whole = split_response(transport.value(), headless=False)
        assert whole is not None, "no answer"
        channel.connectionLost(Failure(connectionDone.value))
        return Answer(whole[0].status, json.loads(whole[0].body) if whole[0].body else None)
