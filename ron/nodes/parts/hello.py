"""hello hosted: the two devices whose ping the page shows."""

from __future__ import annotations

from ron.auth import Caveat
from ron.e2e import KeyPair, Suite
from ron.kernel.commands import Handlers
from ron.nodes.parts import Host, Part
from ron.nodes.parts.oniond import MAILBOX_PORT
from ron.nodes.parts.tornet import DEVICES
from ron.sdk import Api, Mailbox, onion_http
from ron.sdk.ping import Device
from ron.services.hello.service import HelloService


class HelloPart(Part):
    """`HelloService` with devices behind tors of their own."""

    service: HelloService

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.service = HelloService(
            host.runtime.reactor, make_devices=self._make_devices, quiet=lambda: host.runtime.reduced_fan_out
        )

    def handlers(self) -> Handlers:
        """report: the latest ping; asking starts the next one when it is due."""
        return {"report": lambda _command: self.service.report()}

    async def _make_devices(self) -> tuple[Device, Device] | None:
        """Both ends of the page's ping: own keys, own tor, capabilities for just their topics."""
        bus, config = self.host.runtime.bus, self.host.config
        onion = await bus.call("oniond", "onion", config.onion.app)
        if onion is None:
            return None
        suite = Suite.PQ if config.e2e.pq_hybrid else Suite.CLASSICAL
        keys = [KeyPair.generate(suite) for _ in DEVICES]
        ports = [await bus.call("tornet", "socks", name, answer=int) for name in DEVICES]
        topics = [f"hello/{pair.public.kid.hex()}" for pair in keys]
        boxes = [
            (self._box(onion, port, "mailbox:recv,mailbox:ack", own), self._box(onion, port, "mailbox:send", other))
            for port, own, other in zip(ports, topics, reversed(topics), strict=True)
        ]
        first, second = (
            Device(pair, inbox, outbox, topic) for pair, (inbox, outbox), topic in zip(keys, boxes, topics, strict=True)
        )
        return first, second

    def _box(self, onion: str, socks_port: int, scope: str, topic: str) -> Mailbox:
        runtime = self.host.runtime
        capability = runtime.authority.mint([Caveat("scope", scope), Caveat("topic", topic)])
        http = onion_http(runtime.reactor, socks_port)
        url = f"http://{onion}:{MAILBOX_PORT}"
        return Mailbox(Api(runtime.reactor, http, url, capability, circuits=runtime.circuits))
