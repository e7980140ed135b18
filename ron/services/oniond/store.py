"""Where onion keys are remembered: a 0600 file per app, or only this process's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ron.kernel.files import private_dir, read_private, write_private
from ron.tor.onions import OnionKey, parse_key


class OnionKeys(Protocol):
    """Keys by app name."""

    def load(self, app: str) -> OnionKey | None:
        """The key of `app`, or None when it has none yet. Raises `RonError` on a damaged or exposed one."""
        ...

    def save(self, app: str, key: OnionKey) -> None:
        """Remember `key`; durable on return where the store is."""
        ...


class FileOnionKeys:
    """`<directory>/<app>.key`, 0600 in a 0700 directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, app: str) -> OnionKey | None:
        path = self._path(app)
        return parse_key(read_private(path).decode("ascii", "replace").strip()) if path.exists() else None

    def save(self, app: str, key: OnionKey) -> None:
        private_dir(self._directory)
        write_private(self._path(app), f"{key.blob}\n".encode())

    def _path(self, app: str) -> Path:
        return self._directory / f"{app}.key"


class MemoryOnionKeys:
    """Amnesia: gone with the process."""

    def __init__(self) -> None:
        self._keys: dict[str, OnionKey] = {}

    def load(self, app: str) -> OnionKey | None:
        return self._keys.get(app)

    def save(self, app: str, key: OnionKey) -> None:
        self._keys[app] = key
