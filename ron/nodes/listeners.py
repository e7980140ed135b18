"""Sockets that listen: bound once by the process that owns the node, handed to whoever serves them.

In: addresses from the config. Out: listening descriptors. A killed worker leaves its socket open, so that callers
wait in the backlog while it is started again, and any number of workers can accept from one.
"""

from __future__ import annotations

import os
import resource
import socket
from pathlib import Path
from typing import Any

from twisted.internet import tcp
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from ron.kernel.unixsock import PeerCheck, UnixListener
from ron.proto.addresses import HostPort
from ron.proto.errors import unavailable
from ron.web.site import RonSite

BACKLOG = 1024
# How soon a Unix socket whose file was removed can be found again.
MEND_S = 1.0
_log = Logger(namespace="ron.node")


class BoundSocket:
    """A listening TCP socket that nobody accepts from yet. address: where it really is (port 0 was a wish)."""

    def __init__(self, address: HostPort, key: str) -> None:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind(tuple(address))
            self._socket.listen(BACKLOG)
        except OSError as error:
            self._socket.close()
            raise unavailable(
                f"{key}: cannot listen on {address}: {error.strerror}",
                hint=f"stop what holds it (ss -ltnp 'sport = :{address.port}'), or change {key}",
            ) from None
        self._socket.setblocking(False)
        self.address = HostPort(address.host, self._socket.getsockname()[1])

    def fileno(self) -> int:
        """The descriptor, for a child or for `accept_from`."""
        return self._socket.fileno()

    def close(self) -> None:
        """Nobody may connect any more, once all who accept from it have stopped."""
        self._socket.close()


class GivenSocket:
    """The same, bound by another process of ours and inherited as `descriptor`. address: where it really is."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        host, port = self._socket.getsockname()[:2]
        self.address = HostPort(host, port)

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    def close(self) -> None:
        """We accept no more; whoever has bound it may."""
        self._socket.close()


class Listening:
    """A site that answers: on a descriptor that listens already, which others may go on accepting from when this ends;
    or on a Unix socket of its own (0600 in a private folder), for our own user and root."""

    def __init__(self, reactor: Any, where: int | Path, site: RonSite, factory: IProtocolFactory | None = None) -> None:
        self.site = site
        self._port: Any = None
        self._unix: UnixListener | None = None
        self._mending = LoopingCall(self._mend)
        self._mending.clock = reactor
        if isinstance(where, Path):
            known = PeerCheck(factory or site, {0, os.getuid()})
            self._unix = UnixListener(reactor, where, known, backlog=BACKLOG)
            self._unix.listen()
            self._mending.start(MEND_S, now=False)
        else:
            # adoptStreamPort duplicates the descriptor, so ours stays for the next process
            self._port = reactor.adoptStreamPort(where, _family(where), factory or site)

    def one_by_one(self) -> None:
        """Take one connection in each turn of the reactor; see `accept_one_by_one`."""
        accept_one_by_one(self._port)

    async def stop_accepting(self) -> None:
        """No new connections here."""
        if self._mending.running:
            self._mending.stop()
        if self._unix is not None:
            await self._unix.stop()
        else:
            await maybeDeferred(self._port.stopListening)

    def abort(self) -> None:
        """Hang up on everybody."""
        stopping = Deferred.fromCoroutine(self.stop_accepting())
        stopping.addErrback(lambda failure: _log.failure("hanging up", failure, event="abort_failed"))
        for channel in list(self.site.channels):
            channel.forceAbortClient()

    def _mend(self) -> Deferred[None]:
        """Somebody may have removed the socket's file: others find us by it."""
        return Deferred.fromCoroutine(self._mended()).addErrback(
            lambda failure: _log.failure("a socket could not be mended", failure, event="mend_failed")
        )

    async def _mended(self) -> None:
        if self._unix is not None and await self._unix.mend():
            _log.warn("{path} was gone and is there again", event="socket_mended", path=str(self._unix.path))


class _OneByOne(tcp.Port):
    numberAccepts = property(lambda _self: 1, lambda _self, _count: None)


def accept_one_by_one(port: Any) -> None:
    """Have `port` take one connection in each turn of the reactor. Twisted takes up to a hundred, and of several
    processes that share a socket whichever woke first would have them all."""
    if type(port) is tcp.Port:
        port.__class__ = _OneByOne


def _family(descriptor: int) -> socket.AddressFamily:
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        return socket.AddressFamily(duplicate.family)


def allow_descriptors(wanted: int) -> int:
    """Raise the soft limit on open files to `wanted`, as far as the hard one lets us; the limit as it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reachable = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < reachable:
        resource.setrlimit(resource.RLIMIT_NOFILE, (reachable, hard))
        soft = reachable
    return soft
