"""What the owner says of keys, freezes, troubles and config, in force in a worker.

In: `Keys` and `Standing` frames, in order. Out: index, backend, guard and quorum as the owner has them; each frame is
in force when the call returns, and the worker may then say so (`Applied`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import parse_kid
from ron.services.kms.backends.sealedkeys import SealedKey
from ron.services.kms.governance.actions import GLOBAL, TENANT
from ron.services.kms.index import KeyIndex
from ron.services.kms.ports import Half, Held
from ron.services.kms.readiness import Guard, Key
from ron.services.kms.store import KeyRecord, VersionRecord
from ron.services.kms.workers.frames import Keys, KeyWord, Standing
from ron.services.kms.workers.lent import LentKeys

# What a guard finds by itself, from how long ago the owner confirmed what is known.
_OWN: frozenset[str] = frozenset({"verify_cache_ok"})


class SaidQuorum:
    """`Quorum`, as far as the owner has said."""

    def __init__(self) -> None:
        self._freezes: Mapping[str, str] = {}
        self._modes: Mapping[str, str] = {}

    def take(self, freezes: Mapping[str, str], modes: Mapping[str, str]) -> None:
        """From now on."""
        self._freezes, self._modes = freezes, modes

    def require(self, action: str, scope: str, change: Mapping[str, str], proposal: str | None) -> None:
        """Raises `RonError` (403): what takes a quorum is the owner's to do."""
        raise RonError(ErrorCode.NO_CAPABILITY, "a worker has no quorum")

    def frozen(self, tenant: str) -> str | None:
        """As the port has it."""
        if not self._freezes:
            return None
        return self._freezes.get(GLOBAL) or self._freezes.get(TENANT + tenant)

    def pq_mode(self, tenant: str) -> str | None:
        """As the port has it."""
        return self._modes.get(TENANT + tenant) or self._modes.get(GLOBAL)


class Mirror:
    """adopt: takes another config into use, as JSON."""

    def __init__(
        self, index: KeyIndex, backend: LentKeys, guard: Guard, quorum: SaidQuorum, adopt: Callable[[bytes], None]
    ) -> None:
        self._index = index
        self._backend = backend
        self._guard = guard
        self._quorum = quorum
        self._adopt = adopt

    def keys(self, frame: Keys) -> None:
        """These are so from now on."""
        for word in frame.keys:
            self._key(word)

    def _key(self, word: KeyWord) -> None:
        kid = parse_kid(word.kid)
        halves = tuple(Half(alg, public) for alg, public in word.halves)
        self._index.add(KeyRecord(kid.key, {}, 0.0))
        self._index.put(VersionRecord(kid, word.state, halves, word.attestation, 0.0))
        if word.blob:
            self._backend.take(SealedKey(Held(kid, halves, word.attestation), word.made, word.blob))
        else:
            self._backend.drop(kid)

    def standing(self, frame: Standing) -> None:
        """So things stand from now on. What stops signing comes before what might allow it."""
        self._quorum.take(frame.freezes, frame.modes)
        for key in get_args(Key):
            if key in frame.troubles:
                self._guard.trouble(key, frame.troubles[key])
        if frame.config is not None:
            self._adopt(frame.config)
        for key in get_args(Key):
            if key not in frame.troubles and key not in _OWN:
                self._guard.ok(key)
        if frame.fresh:
            self._guard.confirmed()
        else:
            self._guard.outdated()
