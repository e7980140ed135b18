"""A node that does as it likes: real TLS and a good hello, then whatever the test wants on the wire."""

from __future__ import annotations

import time
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS
from twisted.internet.interfaces import IHandshakeListener
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from ron.services.balance.mesh.codec import decode
from ron.services.balance.mesh.files import NodeFiles
from ron.services.balance.mesh.handshake import BINDING_BYTES, BINDING_LABEL, Dialling, Own, Said
from ron.services.balance.mesh.tls import dialler_tls
from ron.services.balance.mesh.voice import Voice
from ron.services.balance.mesh.wire import Frames, framed


@implementer(IHandshakeListener)
class Hostile(Protocol):
    """stands: fires when it was let in, or with what it was told. gone: fires when it was cut off."""

    transport: Any

    def __init__(self, files: NodeFiles, *, run: int | None = None, reads: bool = True) -> None:
        self.files = files
        run = run if run is not None else files.next_run(int(time.time() * 1000))
        self.voice = Voice(cluster=files.cluster, name=files.name, signing=files.signing, run=run, now=time.time)
        self.stands: Deferred[Said] = Deferred()
        self.gone: Deferred[None] = Deferred()
        self.received = 0
        self._reads = reads
        self._frames = Frames()
        self._talk: Dialling | None = None
        self._replied = False

    def handshakeCompleted(self) -> None:
        binding = self.transport.getHandle().export_keying_material(BINDING_LABEL, BINDING_BYTES)
        own = Own(self.voice.cluster, self.voice.claim(), self.voice.signing, self.files.token, binding)
        self._talk = Dialling(own)
        self.say(self._talk.opened())

    def dataReceived(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            if self.stands.called:
                self.received += 1
            elif self._replied or decode(frame, Said).refusal is not None:
                if not self._reads:
                    self.transport.pauseProducing()
                self.stands.callback(decode(frame, Said))
            else:
                self._replied = True
                self.say(self._talk.greeted(frame)[0])

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self.stands.called:
            self.stands.errback(reason)
        self.gone.callback(None)

    def say(self, payload: bytes) -> None:
        """A frame."""
        self.transport.write(framed(payload))

    def tell(self, to: str, kind: str, body: bytes, corr: int = 0) -> None:
        """A message, as good as anybody's."""
        self.say(self.voice.seal(to, kind, corr, body))


async def connect(hostile: Hostile, port: int) -> Hostile:
    """Connect it; it says hello by itself."""

    class Once(Factory):
        noisy = False

        def buildProtocol(self, addr: object) -> Hostile:
            return hostile

    bare = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    await wrapClientTLS(dialler_tls(hostile.files, time.time), bare).connect(Once())
    return hostile
