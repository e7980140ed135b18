"""A SOCKS port like a tor's client (RFC 1928, no login), whose onions are ports on loopback."""

from __future__ import annotations

import struct
from typing import Any

from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure


class _Onward(Protocol):
    def __init__(self, client: _Client) -> None:
        self.client = client

    def connectionMade(self) -> None:
        self.client.through(self.transport)

    def dataReceived(self, data: bytes) -> None:
        self.client.transport.write(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.client.transport.loseConnection()


class _Client(Protocol):
    transport: Any
    factory: SocksPort

    def __init__(self) -> None:
        self.received = b""
        self.onward: Any = None

    def dataReceived(self, data: bytes) -> None:
        if self.onward is not None:
            self.onward.write(data)
            return
        self.received += data
        if self.received.startswith(b"\x05\x01\x00") and len(self.received) == 3:
            self.received = b""
            self.transport.write(b"\x05\x00")
        elif self.received.startswith(b"\x05\x01\x00\x03"):
            length = self.received[4]
            host = self.received[5 : 5 + length].decode()
            self.factory.asked.append((host, struct.unpack("!H", self.received[5 + length : 7 + length])[0]))
            there = TCP4ClientEndpoint(reactor, "127.0.0.1", self.factory.onions[host]())
            onward = Factory.forProtocol(lambda: _Onward(self))
            onward.noisy = False
            there.connect(onward).addErrback(lambda failure: self.transport.loseConnection())

    def through(self, onward: Any) -> None:
        self.onward = onward
        self.transport.write(b"\x05\x00\x00\x01" + bytes(6))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.onward is not None:
            self.onward.loseConnection()


class SocksPort(Factory):
    """onions: by address, what gives the port on loopback. asked: for whom, as (host, port)."""

    noisy = False
    protocol = _Client

    def __init__(self) -> None:
        self.onions: dict[str, Any] = {}
        self.asked: list[tuple[str, int]] = []
