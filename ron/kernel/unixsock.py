"""A Unix socket that others find by its path, and go on finding should somebody remove the file.

In: a path, a factory. Out: a listener (0600 in a 0700 folder) that can be mended and that always ends well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.defer import maybeDeferred

from ron.kernel.files import private_dir, socket_path


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
