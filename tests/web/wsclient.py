"""A WebSocket client on a connection in memory: wsproto's own, against a site."""

from __future__ import annotations

from typing import Any

from twisted.internet.protocol import connectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from wsproto import ConnectionType, WSConnection
from wsproto.events import Event, Request

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


class Wire(StringTransport):
    """A transport whose other end stops reading when told to."""

    aborted = False

    def abortConnection(self) -> None:
        self.aborted = True
        self.disconnecting = True


class Client:
    """wsproto's client on a connection in memory."""

    def __init__(self, site: Any) -> None:
        self.transport = Wire()
        self.channel = site.buildProtocol(None)
        self.channel.makeConnection(self.transport)
        self.ws = WSConnection(ConnectionType.CLIENT)

    def connect(self, token: str | None, path: str = "/echo", headers: dict[str, str] | None = None) -> list[Event]:
        sent = {**({"Authorization": f"Bearer {token}"} if token else {}), **(headers or {})}
        extra = [(name.encode(), value.encode()) for name, value in sent.items()]
        return self.exchange(Request("localhost", path, extra_headers=extra))

    def exchange(self, *events: Event) -> list[Event]:
        """Send all of them in one piece; what has come since."""
        self.channel.dataReceived(b"".join(self.ws.send(event) for event in events))
        return self.events()

    def events(self) -> list[Event]:
        """What has come since."""
        received, _ = self.transport.value(), self.transport.clear()
        if received:
            self.ws.receive_data(received)
        return list(self.ws.events())

    def gone(self) -> None:
        self.channel.connectionLost(Failure(connectionDone.value))
