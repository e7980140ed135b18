"""A Unix socket that others find by its path, and go on finding should somebody remove the file.

In: a path, a factory. Out: a listener (0600 in a 0700 folder) that can be mended and that always ends well, and who is
at the other end of a connection.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import maybeDeferred
from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory

from ron.kernel.files import private_dir, socket_path

_log = Logger(namespace="ron.unix")


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """(pid, uid, gid) of the other end, from the operating system (unix(7) `SO_PEERCRED`)."""
    size = struct.calcsize("3i")
    return cast(tuple[int, int, int], struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)))


class _KnownPeer(ProtocolWrapper):
    """Hangs up before a byte is read unless the other end is one of `factory.uids`."""

    def makeConnection(self, transport: Any) -> None:
        """The kernel knows whose process it is, whatever the peer says."""
        pid, uid, _gid = peer_credentials(transport.socket)
        if uid not in cast(PeerCheck, self.factory).uids:
            _log.warn("uid {uid} may not connect", event="peer_refused", uid=uid, peer_pid=pid)
            transport.abortConnection()
            return
        super().makeConnection(transport)


class PeerCheck(WrappingFactory):
    """`factory` for the users `uids` only: a second lock behind the socket's mode."""

    noisy = False
    protocol = _KnownPeer

    def __init__(self, factory: IProtocolFactory, uids: Collection[int]) -> None:
        super().__init__(factory)
        self.uids = frozenset(uids)


class UnixListener:
    """Listens at `path` between `listen` and `stop`. Connections that were accepted are nobody's business here."""

    def __init__(self, reactor: Any, path: Path, factory: Any, *, backlog: int) -> None:
        self.path = path
        self._reactor = reactor
        self._factory = factory
        self._backlog = backlog
        self._port: Any = None
        self._inode: int | None = None
        self._wanted = False

    def listen(self) -> None:
        """Accept. A socket that an earlier process left behind is replaced.

        Raises `RonError` (Unsupported) on a path that is too long for a socket.
        """
        self._wanted = True
        private_dir(socket_path(self.path).parent)
        self.path.unlink(missing_ok=True)
        self._port = self._reactor.listenUNIX(str(self.path), self._factory, mode=0o600, backlog=self._backlog)
        self._inode = self._inode_there()

    @property
    def lost(self) -> bool:
        """True when it listens and nobody can find it."""
        return self._port is not None and self._inode_there() != self._inode

    async def mend(self) -> bool:
        """Have the file there again. True when it was not."""
        if not self.lost:
            return False
        await self._close()
        if self._wanted:  # nobody has stopped it meanwhile
            self.listen()
        return True

    async def stop(self) -> None:
        """Accept no more. Does nothing when it does not listen."""
        self._wanted = False
        await self._close()

    async def _close(self) -> None:
        port, self._port = self._port, None
        if port is None:
            return
        if self._inode_there() is None:
            # Twisted removes the file first, and without one would never come to closing the socket
            private_dir(self.path.parent)
            self.path.touch(mode=0o600)
        await maybeDeferred(port.stopListening)

    def _inode_there(self) -> int | None:
        try:
            return os.lstat(self.path).st_ino
        except OSError:
            return None
