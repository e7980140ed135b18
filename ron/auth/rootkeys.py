"""The root keys capabilities are minted from, by epoch, in a 0600 file or only in memory (amnesia).

In: the file's path, or none. Out: the newest key to mint with, any known key to verify with.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

import msgspec

from ron.kernel.files import read_private, write_private
from ron.proto.errors import RonError, unavailable

KEY_BYTES = 32


class _Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kid: int
    key_b64: str


class _KeyFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    epochs: tuple[_Epoch, ...]


class RootKeys:
    """Keys by epoch number (`kid`). `current` is the one new capabilities are minted from."""

    def __init__(self, keys: dict[int, bytes]) -> None:
        self._keys = dict(keys)

    @classmethod
    def generate(cls) -> RootKeys:
        """One fresh epoch, in memory only."""
        return cls({1: os.urandom(KEY_BYTES)})

    @classmethod
    def open(cls, path: Path) -> RootKeys:
        """The keys in `path`; made once, 0600, when there is no such file. Raises `RonError` when it is damaged."""
        if not path.exists():
            keys = cls.generate()
            write_private(path, keys._encode())
            return keys
        return cls._decode(read_private(path), path)

    @property
    def current(self) -> tuple[int, bytes]:
        """(kid, key) of the newest epoch."""
        kid = max(self._keys)
        return kid, self._keys[kid]

    def get(self, kid: int) -> bytes | None:
        """The key of epoch `kid`, or None when it is unknown or retired."""
        return self._keys.get(kid)

    def __repr__(self) -> str:
        return f"<RootKeys epochs={sorted(self._keys)}>"

    def _encode(self) -> bytes:
        epochs = tuple(_Epoch(kid, base64.b64encode(key).decode()) for kid, key in sorted(self._keys.items()))
        return msgspec.json.encode(_KeyFile(1, epochs))

    @classmethod
    def _decode(cls, raw: bytes, path: Path) -> RootKeys:
        try:
            file = msgspec.json.decode(raw, type=_KeyFile)
            keys = {epoch.kid: base64.b64decode(epoch.key_b64, validate=True) for epoch in file.epochs}
        except (msgspec.MsgspecError, ValueError):
            raise _damaged(path) from None
        distinct = len(keys) == len(file.epochs) > 0
        if file.v != 1 or not distinct or min(keys) < 0 or any(len(key) != KEY_BYTES for key in keys.values()):
            raise _damaged(path)
        return cls(keys)


def _damaged(path: Path) -> RonError:
    return unavailable(
        f"{path.name}: the capability root keys are damaged",
        hint=f"restore {path} from a backup; or remove it, which voids every capability",
    )
