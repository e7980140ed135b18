"""Notices that a file changed, by its inode, time and size; never opens it.

In: a path. Out: a call for every change, and one more an interval later: two writes within one tick of the file
system's clock look the same, so whoever is called must compare contents.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.task import LoopingCall
from twisted.logger import Logger

_log = Logger(namespace="ron.config")
_Signature = tuple[int, ...]


class FileWatch:
    """Calls `changed()` after the file at `path` changed, vanished or became something else."""

    def __init__(self, path: Path, changed: Callable[[], None]) -> None:
        self._path = path
        self._changed = changed
        self._signature = self._look()
        # at first too: the file may have changed between the reading and this
        self._look_again = True
        self._loop: LoopingCall | None = None

    def start(self, reactor: Any, interval_s: float) -> None:
        """Look every `interval_s` seconds on `reactor`'s clock."""
        self._loop = LoopingCall(self.look)
        self._loop.clock = reactor
        self._loop.start(interval_s, now=False)

    def stop(self) -> None:
        """No more looking."""
        if self._loop is not None and self._loop.running:
            self._loop.stop()

    def look(self) -> None:
        """Look once."""
        signature = self._look()
        if signature == self._signature and not self._look_again:
            return
        self._look_again = signature != self._signature
        self._signature = signature
        try:
            self._changed()
        except Exception:  # noqa: BLE001 - the watch must outlive whatever its listener does
            _log.failure("the config's change could not be handled", event="config_watch_failed")

    def _look(self) -> _Signature:
        try:
            found = os.stat(self._path)  # noqa: PTH116 - symbolic links are followed, as when it is read
        except (OSError, ValueError) as error:
            return (getattr(error, "errno", None) or 0,)
        return (found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode, found.st_dev)
