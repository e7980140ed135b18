"""The root keys capabilities are minted from, by epoch, in a 0600 file or only in memory (amnesia).

In: the file's path, or none. Out: the newest key to mint with, any known key to verify with. An epoch mints for 30
days; once it is followed by another, what it minted holds for 48 hours more (DESIGN §4).
"""

from __future__ import annotations

import base64
import math
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from ron.auth.sharedfile import LockBusy, SharedFile, SharedLock
from ron.proto.errors import RonError, backpressure, unavailable

KEY_BYTES = 32
DAY_S = 86_400
ROTATE_AFTER_S = 30 * DAY_S
GRACE_S = 2 * DAY_S
MAX_EPOCHS = 64
_FILE_LIMIT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Epoch:
    """One root key: `kid` counts up. Unix times; `retires_at_s` is None for the newest, the one that mints."""

    kid: int
    key: bytes = field(repr=False)
    created_at_s: float
    retires_at_s: float | None = None

    def retired(self, now_s: float) -> bool:
        """True when nothing it minted is admitted any more."""
        return self.retires_at_s is not None and now_s >= self.retires_at_s


class _OldEpoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kid: int
    key_b64: str


class _OldFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="v", tag=1):
    epochs: tuple[_OldEpoch, ...]


class _Epoch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    kid: int
    key_b64: str
    created_at: float
    retires_at: float | None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="v", tag=2):
    epochs: tuple[_Epoch, ...]


class RootKeys:
    """Keys by epoch number (`kid`). `generation` grows whenever an epoch comes, retires or goes."""

    def __init__(self, epochs: Iterable[Epoch], *, lock: SharedLock | None = None) -> None:
        self.generation = 0
        self._epochs = {epoch.kid: epoch for epoch in epochs}
        self._lock = lock or SharedLock(None)
        self._file: SharedFile | None = None
        self._old = False

    @classmethod
    def generate(cls, now_s: float | None = None) -> RootKeys:
        """One fresh epoch, in memory only."""
        return cls([_fresh(1, time.time() if now_s is None else now_s)])

    @classmethod
    def open(cls, path: Path, *, lock: SharedLock | None = None, now_s: float | None = None) -> RootKeys:
        """The keys in `path`; made once, 0600, when there is no such file. Raises `RonError` when it is damaged.

        lock: what the folder's other files are written under; by default one for this file.
        """
        keys = cls([], lock=lock or SharedLock(path.parent))
        file = keys._file = SharedFile(path, keys._adopt, limit_bytes=_FILE_LIMIT_BYTES)
        file.load()
        if keys._epochs and not keys._old:
            return keys
        with keys._lock.held():
            file.load()  # somebody may have been faster
            keys._write(keys._epochs or {1: _fresh(1, time.time() if now_s is None else now_s)})
        return keys

    @property
    def current(self) -> Epoch:
        """The newest epoch: new capabilities are minted from it."""
        return self._epochs[max(self._epochs)]

    @property
    def epochs(self) -> tuple[Epoch, ...]:
        """Every epoch that is still remembered, oldest first."""
        return tuple(epoch for _, epoch in sorted(self._epochs.items()))

    @property
    def fault(self) -> RonError | None:
        """Why the file cannot be read at present; the keys in memory go on."""
        return self._file.fault if self._file is not None else None

    def epoch(self, kid: int) -> Epoch | None:
        """Epoch `kid`, or None when it is unknown. It may have retired: ask it."""
        return self._epochs.get(kid)

    def due(self, now_s: float) -> bool:
        """True once the newest epoch has minted for 30 days."""
        return now_s >= self.current.created_at_s + ROTATE_AFTER_S

    def rotate(self, now_s: float, *, grace_s: float = GRACE_S) -> Epoch:
        """A new epoch, durable before it is returned; the others retire in `grace_s` (at most 48 h) at the latest.

        Raises `RonError`: StoreUnavailable, or Backpressure when `MAX_EPOCHS` are still in their grace.
        """
        with self._lock.held():
            self._reload()
            return self._rotate(now_s, min(grace_s, GRACE_S))

    def maintain(self, now_s: float) -> bool:
        """Rotate when due, forget what has retired. True when something changed. Waits for nobody: another process that
        holds the lock is at it already. Raises `RonError` when the change cannot be made durable."""
        if not self.due(now_s) and not any(epoch.retired(now_s) for epoch in self._epochs.values()):
            return False
        try:
            with self._lock.held(wait_s=0):
                self._reload()
                if self.due(now_s):
                    self._rotate(now_s, GRACE_S)
                else:
                    self._write({e.kid: e for e in self._epochs.values() if not e.retired(now_s)})
        except LockBusy:
            return False
        return True

    def refresh(self) -> bool:
        """Take over what another process wrote. True when the keys changed. A damaged file is logged and `fault`."""
        before = self.generation
        if self._file is not None:
            with self._lock.idle() as free:
                if free:
                    self._file.refresh()
        return self.generation != before

    def __repr__(self) -> str:
        return f"<RootKeys epochs={sorted(self._epochs)}>"

    def _rotate(self, now_s: float, grace_s: float) -> Epoch:
        kept = [epoch for epoch in self._epochs.values() if not epoch.retired(now_s)]
        if len(kept) >= MAX_EPOCHS:
            raise backpressure(f"{MAX_EPOCHS} root-key epochs are in their grace already")
        newest = _fresh(self.current.kid + 1, now_s)
        ends_s = now_s + grace_s
        retiring = [
            Epoch(e.kid, e.key, e.created_at_s, ends_s if e.retires_at_s is None else min(e.retires_at_s, ends_s))
            for e in kept
        ]
        self._write({epoch.kid: epoch for epoch in [*retiring, newest]})
        return newest

    def _reload(self) -> None:
        """Under the lock: what the file says now counts, whoever wrote it."""
        if self._file is not None:
            self._file.load()

    def _write(self, epochs: dict[int, Epoch]) -> None:
        if self._file is not None:
            self._file.write(_encode(epochs.values()))
        self._replace(epochs)

    def _replace(self, epochs: dict[int, Epoch]) -> None:
        # keys first: whoever sees the new generation must see the new keys
        self._epochs = epochs
        self.generation += 1

    def _adopt(self, path: Path, content: bytes | None) -> None:
        if content is not None:
            epochs, self._old = _decode(content, path)
            self._replace(epochs)
        elif self._epochs:
            raise unavailable(f"{path} is gone", hint="restore it; or restart the node, which voids every capability")


def _fresh(kid: int, now_s: float) -> Epoch:
    return Epoch(kid, os.urandom(KEY_BYTES), now_s)


def _encode(epochs: Iterable[Epoch]) -> bytes:
    ordered = sorted(epochs, key=lambda epoch: epoch.kid)
    stored = (_Epoch(e.kid, base64.b64encode(e.key).decode(), e.created_at_s, e.retires_at_s) for e in ordered)
    return msgspec.json.encode(_File(tuple(stored)))


def _decode(raw: bytes, path: Path) -> tuple[dict[int, Epoch], bool]:
    """The epochs, and whether they stand in the first form."""
    try:
        file = msgspec.json.decode(raw, type=_OldFile | _File)
        stored = _upgraded(file, path.stat().st_mtime) if isinstance(file, _OldFile) else file.epochs
        epochs = [Epoch(e.kid, base64.b64decode(e.key_b64, validate=True), e.created_at, e.retires_at) for e in stored]
    except (msgspec.MsgspecError, ValueError, RecursionError, OSError):
        raise _damaged(path) from None
    keys = {epoch.kid: epoch for epoch in epochs}
    if not 0 < len(keys) == len(epochs) <= MAX_EPOCHS or not all(_sound(epoch, max(keys)) for epoch in epochs):
        raise _damaged(path)
    return keys, isinstance(file, _OldFile)


def _sound(epoch: Epoch, newest: int) -> bool:
    instants = [at for at in (epoch.created_at_s, epoch.retires_at_s) if at is not None]
    return (
        epoch.kid >= 0
        and len(epoch.key) == KEY_BYTES
        and all(math.isfinite(at) and at >= 0 for at in instants)
        and (epoch.retires_at_s is None) == (epoch.kid == newest)
    )


def _upgraded(file: _OldFile, written_at_s: float) -> tuple[_Epoch, ...]:
    """The first form knew no times: a key is as old as its file."""
    newest = max((epoch.kid for epoch in file.epochs), default=0)
    return tuple(
        _Epoch(e.kid, e.key_b64, written_at_s, None if e.kid == newest else written_at_s + GRACE_S) for e in file.epochs
    )


def _damaged(path: Path) -> RonError:
    return unavailable(
        f"{path.name}: the capability root keys are damaged",
        hint=f"restore {path} from a backup; or remove it, which voids every capability",
    )
