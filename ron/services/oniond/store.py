"""What the onion runtime remembers: each app's key, and which services its tor was seen to publish.

In a 0600 file each; or only in this process's memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import msgspec

from ron.kernel.files import private_dir, read_private, write_private
from ron.tor.onionkeys import OnionKey, parse_key

APPLIED_FILE = "applied.json"


class OnionStore(Protocol):
    """Keys by app name; digests of `OnionSpec` by address."""

    def load(self, app: str) -> OnionKey | None:
        """The key of `app`, or None when it has none yet. Raises `RonError` on a damaged or exposed one."""
        ...

    def save(self, app: str, key: OnionKey) -> None:
        """Remember `key`; durable on return where the store is."""
        ...

    def applied(self) -> dict[str, str]:
        """What tor was last seen to publish. Empty when that is not known."""
        ...

    def save_applied(self, applied: dict[str, str]) -> None:
        """Remember that, for whoever comes after us."""
        ...


class FileOnionStore:
    """`<directory>/<app>.key` and `<directory>/applied.json`, 0600 in a 0700 directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, app: str) -> OnionKey | None:
        path = self._path(app)
        return parse_key(read_private(path).decode("ascii", "replace").strip()) if path.exists() else None

    def save(self, app: str, key: OnionKey) -> None:
        self._write(self._path(app), f"{key.blob}\n".encode())

    def applied(self) -> dict[str, str]:
        try:
            return msgspec.json.decode(read_private(self._directory / APPLIED_FILE), type=dict[str, str])
        except (OSError, msgspec.MsgspecError):
            return {}  # then every service is published anew, which is never wrong

    def save_applied(self, applied: dict[str, str]) -> None:
        self._write(self._directory / APPLIED_FILE, msgspec.json.encode(applied))

    def _write(self, path: Path, content: bytes) -> None:
        private_dir(self._directory)
        write_private(path, content)

    def _path(self, app: str) -> Path:
        return self._directory / f"{app}.key"


class MemoryOnionStore:
    """Amnesia: gone with the process."""

    def __init__(self) -> None:
        self._keys: dict[str, OnionKey] = {}
        self._applied: dict[str, str] = {}

    def load(self, app: str) -> OnionKey | None:
        return self._keys.get(app)

    def save(self, app: str, key: OnionKey) -> None:
        self._keys[app] = key

    def applied(self) -> dict[str, str]:
        return dict(self._applied)

    def save_applied(self, applied: dict[str, str]) -> None:
        self._applied = dict(applied)
