"""The bus across processes: a hub on a Unix socket (0600), a link in each child.

In: a `Bus` on either side. Out: what one process publishes the others hear, and commands reach the process that serves
them. Frames are MessagePack behind a 32-bit big-endian length, at most 1 MiB. Who may connect: uids by `SO_PEERCRED`,
of those whoever `admit` takes by the word in its first frame. A slow or dead peer loses its own events and stalls
nobody else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, cast

import msgspec
from twisted.application.internet import ClientService
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.protocol import Factory, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from ron.kernel.backoff import Backoff
from ron.kernel.bus import Bus, Message
from ron.kernel.events import KernelEvent
from ron.kernel.ipc_frames import VERSION, Frame, Hello, Serve, Welcome, decode_frame, encode_frame
from ron.kernel.ipc_wire import Wire, event_bytes
from ron.kernel.unixsock import UnixListener, peer_credentials
from ron.proto.errors import bad_request

__all__ = ["HELLO_S", "VERSION", "BusHub", "BusLink", "Hello", "decode_frame", "encode_frame"]

# A peer must say who it is within this time (DESIGN: handshake 2 s).
HELLO_S = 2.0
# What is still to be sent when a connection is to end has this long.
HANG_UP_S = 1.0
_log = Logger(namespace="ron.bus")


class _HubPeer(Wire):
    """A child's connection, seen from the hub."""

    def __init__(self, hub: BusHub) -> None:
        super().__init__(hub.bus, hub.reactor)
        self.hub = hub
        self.over: Deferred[None] = Deferred()
        self._deadline: Any = None

    def connectionMade(self) -> None:
        """Whose process is it? The kernel knows, whatever the peer says."""
        super().connectionMade()
        transport = cast(Any, self.transport)
        _pid, uid, _gid = peer_credentials(transport.socket)
        if uid not in self.hub.uids or len(self.hub.peers) >= self.hub.max_peers:
            self.refuse(f"uid {uid} may not connect" if uid not in self.hub.uids else "too many peers")
            return
        self.hub.peers.add(self)
        self._deadline = self.reactor.callLater(HELLO_S, self.refuse, "no greeting in time")

    def frame_received(self, frame: Frame) -> None:
        """The first frame must be a greeting that `admit` takes."""
        if self.ready:
            super().frame_received(frame)
        elif isinstance(frame, Hello) and frame.v == VERSION and 0 < len(frame.name) <= 64:
            self.hub.admit(frame)
            self._deadline.cancel()
            self.peer, self.ready = frame.name, True
            self.send(Welcome(VERSION))
        else:
            raise bad_request("no greeting")

    def services_received(self, services: tuple[str, ...]) -> None:
        """What the peer may serve; one that claims more is not what it says it is."""
        for service in services:
            if not self.hub.may_serve(self.peer, service):
                raise bad_request(f"it claims to serve {service[:64]}")
        super().services_received(services)

    def pass_on(self, message: Message) -> None:
        """To everybody but the one it came from. Its own shutdown is its own affair, and must not be taken for ours."""
        if isinstance(message.body, KernelEvent.Shutdown):
            return
        self.hub.relay(msgspec.structs.replace(message, origin=self.peer), self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The child is gone, or lost its link for a moment."""
        if self._deadline is not None and self._deadline.active():
            self._deadline.cancel()
        self.hub.peers.discard(self)
        self.bus.detach(self)
        super().connectionLost(reason)
        self.over.callback(None)


class BusHub(Factory):
    """Listens at `path` and joins the peers' buses with ours.

    uids: who may connect, by default our own user. admit: looks at a peer's greeting; raises `RonError` to refuse it.
    may_serve: may the peer of that name serve that service?
    """

    noisy = False

    def __init__(
        self,
        reactor: Any,
        bus: Bus,
        path: Path,
        *,
        admit: Callable[[Hello], None],
        may_serve: Callable[[str, str], bool] = lambda _peer, _service: True,
        uids: Collection[int] | None = None,
        max_peers: int = 256,
    ) -> None:
        self.reactor = reactor
        self.bus = bus
        self.path = path
        self.admit = admit
        self.may_serve = may_serve
        self.uids = frozenset(uids if uids is not None else (os.getuid(),))
        self.max_peers = max_peers
        self.peers: set[_HubPeer] = set()
        self._listener = UnixListener(reactor, path, self, backlog=64)
        self._untap: Callable[[], None] | None = None

    def buildProtocol(self, addr: object) -> _HubPeer:
        """A peer has connected."""
        return _HubPeer(self)

    def listen(self) -> None:
        """Accept links. A socket that an earlier process left behind is replaced.

        Raises `RonError` (Unsupported) on a path that is too long for a socket.
        """
        self._listener.listen()
        self._untap = self.bus.tap(lambda message: self._send_all(message, None))

    async def mend(self) -> None:
        """Have the socket's file there again should somebody have removed it: new peers find us by it."""
        if await self._listener.mend():
            _log.warn("{path} was gone and is there again", event="bus_socket_mended", path=str(self.path))

    async def close(self) -> None:
        """Hang up on everybody; what was said before still goes out to whoever reads."""
        await self._listener.stop()
        if self._untap is not None:
            self._untap()
            self._untap = None
        peers = list(self.peers)
        for peer in peers:
            cast(Any, peer.transport).loseConnection()
        killers = [self.reactor.callLater(HANG_UP_S, peer.abort) for peer in peers]
        await DeferredList([peer.over for peer in peers])
        for killer in killers:
            if killer.active():
                killer.cancel()

    def relay(self, message: Message, source: _HubPeer) -> None:
        """`message` from one peer to our bus and to all others."""
        self.bus.inject(message)
        self._send_all(message, source)

    def _send_all(self, message: Message, source: _HubPeer | None) -> None:
        others = [peer for peer in self.peers if peer is not source]
        raw = event_bytes(message) if others else None
        if raw is not None:
            for peer in others:
                peer.send_event(raw)


class _LinkWire(Wire):
    """The child's end."""

    def __init__(self, link: BusLink) -> None:
        super().__init__(link.bus, link.reactor)
        self.link = link
        self.peer = "hub"
        self._deadline: Any = None

    def connectionMade(self) -> None:
        """Say who we are."""
        super().connectionMade()
        self._deadline = self.reactor.callLater(HELLO_S, self.refuse, "no welcome in time")
        self.link.wire = self
        self.send(Hello(VERSION, self.link.name, self.link.word()))

    def frame_received(self, frame: Frame) -> None:
        """The hub's welcome comes first."""
        if self.ready:
            super().frame_received(frame)
        elif isinstance(frame, Welcome) and frame.v == VERSION:
            self._deadline.cancel()
            self.ready = True
            self.link.joined(self)
        else:
            raise bad_request("no welcome")

    def services_received(self, services: tuple[str, ...]) -> None:
        """Everything we do not serve ourselves goes to the hub anyway."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Try again soon."""
        if self._deadline.active():
            self._deadline.cancel()
        super().connectionLost(reason)
        self.link.left(self)


class BusLink:
    """Joins this process's bus to the hub at `path`, again and again with back-off.

    name: what others see as `origin`. word: gives the greeting's proof anew for each try.
    """

    def __init__(self, reactor: Any, bus: Bus, path: Path, *, name: str, word: Callable[[], str]) -> None:
        self.reactor = reactor
        self.bus = bus
        self.name = name
        self.word = word
        self.first_joined: Deferred[None] = Deferred()
        # the connection, also one that is not welcome yet
        self.wire: _LinkWire | None = None
        backoff = Backoff(base_s=0.05, ceiling_s=2.0)
        self._backoff = backoff
        factory = Factory.forProtocol(lambda: _LinkWire(self))
        factory.noisy = False
        self._client = ClientService(
            UNIXClientEndpoint(reactor, str(path), timeout=HELLO_S),
            factory,
            retryPolicy=lambda _failures: backoff.next_delay_s(),
            clock=reactor,
        )
        self._undo: list[Callable[[], None]] = []

    def start(self) -> None:
        """Connect, and keep connected."""
        self._undo = [self.bus.tap(self._published), self.bus.on_services(self._services_changed)]
        self._client.startService()

    async def stop(self) -> None:
        """Hang up; what was said before still goes out when the hub reads."""
        if not self._undo:
            return  # it is not started, or stopping already
        for undo in self._undo:
            undo()
        self._undo = []
        killer = self.reactor.callLater(HANG_UP_S, self._abort)
        try:
            await self._client.stopService()
        finally:
            if killer.active():
                killer.cancel()

    def _abort(self) -> None:
        if self.wire is not None:
            self.wire.abort()

    @property
    def connected(self) -> bool:
        """True while the hub hears us."""
        return self.wire is not None and self.wire.ready

    def joined(self, wire: _LinkWire) -> None:
        """The hub has welcomed us."""
        self._backoff.reset()
        self.bus.uplink = wire
        wire.send(Serve(tuple(sorted(self.bus.served))))
        if not self.first_joined.called:
            self.first_joined.callback(None)

    def left(self, wire: _LinkWire) -> None:
        """The connection is lost."""
        if self.wire is wire:
            self.wire, self.bus.uplink = None, None

    def _published(self, message: Message) -> None:
        if self.wire is not None and self.wire.ready:
            raw = event_bytes(message)
            if raw is not None:
                self.wire.send_event(raw)

    def _services_changed(self, services: frozenset[str]) -> None:
        if self.wire is not None and self.wire.ready:
            self.wire.send(Serve(tuple(sorted(services))))
