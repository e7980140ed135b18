"""Which capabilities are void before their time: by `cap_id`, so that what was made of one by attenuation goes with it.

In: cap_ids to revoke; a file shared with other processes, or none (amnesia). Out: `ids`, looked into on every call;
`fault`, while which nobody may be admitted.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec
from twisted.logger import Logger

from ron.auth.rootkeys import RootKeys
from ron.auth.sharedfile import SharedFile, SharedLock, signature
from ron.proto.errors import ErrorCode, RonError, unavailable

MAX_REVOKED = 100_000
# A clock may be ahead when the list is cleared of what is over, and be set right later: what has expired by it would
# count again for as long.
KEPT_AFTER_S = 24 * 3600.0
_FILE_LIMIT_BYTES = 16 * 1024 * 1024
_log = Logger(namespace="ron.auth")
_CAP_ID = re.compile(r"[0-9a-f]{32}")


class Revocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One void capability.

    kid: no token with this cap_id stands on a newer epoch. until: Unix s when every token with this cap_id has expired;
    None when that is not known. It is forgotten a day after `until`, or once epoch `kid` has retired.
    """

    cap_id: str
    kid: int
    until: float | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """sha256: of the bytes of `revoked`, so that a flipped digit does not quietly let somebody in."""

    v: int
    sha256: str
    revoked: msgspec.Raw


class Revocations:
    """The list. Without a path it lives in memory. `ids` is replaced, never changed, so any thread may look.

    fault: why the list cannot be read at present; until it can, every capability must be refused.
    """

    def __init__(self, keys: RootKeys, path: Path | None = None, *, lock: SharedLock | None = None) -> None:
        self.ids: Mapping[str, Revocation] = {}
        self.fault: RonError | None = None
        self._keys = keys
        self._lock = lock or SharedLock(path.parent if path is not None else None)
        self._file = SharedFile(path, self._adopt, limit_bytes=_FILE_LIMIT_BYTES) if path is not None else None
        self.refresh()

    def revoke(self, entries: Iterable[Revocation], now_s: float) -> None:
        """Add `entries`; on disk before this returns. Repeating one is harmless; the longer `until` counts.

        Raises `RonError`: StoreUnavailable while the list is damaged or cannot be written, BadRequest on a malformed
        cap_id, TooLarge over `MAX_REVOKED`.
        """
        with self._lock.held():
            if self._file is not None:
                self._file.load()
            ids = {entry.cap_id: entry for entry in self.ids.values() if not self._over(entry, now_s)}
            for entry in entries:
                ids[entry.cap_id] = _later(entry, ids.get(entry.cap_id))
            _check(ids)
            if self._file is not None:
                self._file.write(_encode(ids))
            self.ids = ids
            self.fault = None

    def refresh(self) -> bool:
        """Take over what another process wrote. True when the list or its `fault` changed."""
        if self._file is None:
            return False
        before = (self.ids, self.fault)
        with self._lock.idle() as free:
            if free:
                self._file.refresh()
                if self.ids and self._file.missing:
                    self._put_back(self._file)
                self.fault = self._file.fault
        return before[0] is not self.ids or before[1] is not self.fault

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, cap_id: object) -> bool:
        return cap_id in self.ids

    def _over(self, entry: Revocation, now_s: float) -> bool:
        """True when no token with this cap_id could be admitted even if it were not on the list."""
        if entry.until is not None and now_s >= entry.until + KEPT_AFTER_S:
            return True
        epoch = self._keys.epoch(entry.kid)
        if epoch is not None:
            return epoch.retired(now_s)
        # an unknown epoch older than the newest has retired; a newer one is one we have not read of yet
        return entry.kid < self._keys.current.kid

    def _adopt(self, path: Path, content: bytes | None) -> None:
        if content is not None:
            self.ids = _decode(content, path)

    def _put_back(self, file: SharedFile) -> None:
        """The file was removed while we know of revocations: removing it must not let anybody in again."""
        try:
            with self._lock.held(wait_s=0):
                if signature(file.path) is None:
                    file.write(_encode(self.ids))
        except RonError as error:
            # tried again at the next refresh; in this process they stay revoked all the same
            _log.warn("{path} is gone: {reason}", event="auth_list_lost", path=str(file.path), reason=error.one_line())


def _later(entry: Revocation, known: Revocation | None) -> Revocation:
    if known is None:
        return entry
    until = None if entry.until is None or known.until is None else max(entry.until, known.until)
    return Revocation(cap_id=entry.cap_id, kid=max(entry.kid, known.kid), until=until)


def _check(ids: Mapping[str, Revocation]) -> None:
    if len(ids) > MAX_REVOKED:
        raise RonError(
            ErrorCode.TOO_LARGE,
            f"the list of revoked capabilities is full ({MAX_REVOKED})",
            hint="rotate the root key, which voids what it minted: ronctl cap rotate --grace 0s",
        )
    for cap_id in ids:
        if not _CAP_ID.fullmatch(cap_id):
            raise RonError(ErrorCode.BAD_REQUEST, "a cap_id is 32 hex digits", hint="see it with: ronctl cap inspect")


def _encode(ids: Mapping[str, Revocation]) -> bytes:
    revoked = msgspec.json.encode(tuple(ids.values()))
    return msgspec.json.encode(_File(1, hashlib.sha256(revoked).hexdigest(), msgspec.Raw(revoked)))


def _decode(raw: bytes, path: Path) -> dict[str, Revocation]:
    try:
        file = msgspec.json.decode(raw, type=_File)
        entries = msgspec.json.decode(file.revoked, type=tuple[Revocation, ...])
        ids = {entry.cap_id: entry for entry in entries}
        whole = hashlib.sha256(file.revoked).hexdigest() == file.sha256 and len(ids) == len(entries) <= MAX_REVOKED
        finite = all(entry.until is None or math.isfinite(entry.until) for entry in entries)
        if file.v == 1 and whole and finite and all(_CAP_ID.fullmatch(cap_id) for cap_id in ids):
            return ids
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    raise unavailable(
        f"{path.name}: the list of revoked capabilities is damaged",
        hint=f"restore {path} from a backup; or void everything (ronctl cap rotate --grace 0s) and remove it",
    )
