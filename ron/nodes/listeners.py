"""Sockets that listen: bound once by the process that owns the node, handed to whoever serves them.

In: addresses from the config. Out: listening descriptors. A killed worker leaves its socket open, so that callers
wait in the backlog while it is started again, and any number of workers can accept from one.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IProtocolFactory

from ron.kernel.files import private_dir, socket_path
from ron.proto.addresses import HostPort
from ron.proto.errors import unavailable
from ron.web.site import RonSite

BACKLOG = 1024


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


class Listening:
    """A site that answers: on a descriptor that listens already, which others may go on accepting from when this ends;
    or on a Unix socket of its own (0600 in a private folder)."""

    def __init__(self, reactor: Any, where: int | Path, site: RonSite, factory: IProtocolFactory | None = None) -> None:
        self.site = site
        self._port = _listen(reactor, where, factory or site)

    async def stop_accepting(self) -> None:
        """No new connections here."""
        await maybeDeferred(self._port.stopListening)

    def abort(self) -> None:
        """Hang up on everybody."""
        maybeDeferred(self._port.stopListening)
        for channel in list(self.site.channels):
            channel.forceAbortClient()


def _listen(reactor: Any, where: int | Path, factory: Any) -> Any:
    if isinstance(where, Path):
        private_dir(socket_path(where).parent)
        where.unlink(missing_ok=True)  # of a process that was killed
        return reactor.listenUNIX(str(where), factory, mode=0o600, backlog=BACKLOG)
    # adoptStreamPort duplicates the descriptor, so ours stays for the next process
    return reactor.adoptStreamPort(where, _family(where), factory)


def _family(descriptor: int) -> socket.AddressFamily:
    with socket.socket(fileno=os.dup(descriptor)) as duplicate:
        return socket.AddressFamily(duplicate.family)
