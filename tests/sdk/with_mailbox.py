"""A real mailbox in memory behind a real site on loopback, and devices that talk through it."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor

from ron.e2e import KeyPair, Suite
from ron.kernel import HealthState
from ron.sdk import Api, Mailbox
from ron.sdk.ping import Device
from ron.services.mailbox.api import BODY_LIMIT_BYTES, endpoints
from ron.services.mailbox.config import MailboxConfig
from ron.services.mailbox.service import MailboxService
from tests.web.wire import OnTheWire


class WithMailbox(OnTheWire):
    """`self.mailbox` is the service; `device()` makes an end of a ping with capabilities for its own part only."""

    async def setUp(self) -> None:
        super().setUp()
        self.mailbox = MailboxService(
            MailboxConfig(), path=None, reactor=reactor, health=HealthState(), metrics=self.metrics
        )
        self.mailbox.startService()
        self.addCleanup(self.mailbox.stopService)
        self.serve(endpoints(self.mailbox), body_limit=BODY_LIMIT_BYTES)
        await self.mailbox.opened()

    def client(self, *caveats: tuple[str, str], **settings: Any) -> Mailbox:
        """A mailbox client with a capability narrowed by `caveats`."""
        token = self.bearer(*caveats)["Authorization"].removeprefix("Bearer ")
        return Mailbox(Api(reactor, self.http(), f"http://127.0.0.1:{self.port}", token, **settings))

    def device(self, topic: str, suite: Suite = Suite.PQ) -> Device:
        """One end: it may receive on `topic` and send anywhere."""
        return Device(
            keys=KeyPair.generate(suite),
            inbox=self.client(("scope", "mailbox:recv,mailbox:ack"), ("topic", topic)),
            outbox=self.client(("scope", "mailbox:send")),
            topic=topic,
        )
