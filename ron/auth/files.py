"""Everything capabilities stand on in one folder: root keys, revocations, the register of what was minted.

In: `$RON_HOME/auth` (or None: memory only, amnesia) and the clock. Out: `refresh`, to be called each second in every
process; and the operations on capabilities, durable before they return, that `ronctl cap` and `ron.web.caps` share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from twisted.logger import Logger

from ron.auth.authority import Authority
from ron.auth.caveats import Caveat
from ron.auth.ceilings import Ceiling
from ron.auth.counts import AuthCounts
from ron.auth.refusals import unauthorized, unreadable
from ron.auth.register import MAX_LABEL_CHARS, Minted, Register
from ron.auth.revocations import Revocation, Revocations
from ron.auth.rootkeys import GRACE_S, Epoch, RootKeys
from ron.auth.sharedfile import SharedLock
from ron.auth.tokens import inspect
from ron.kernel.health import HealthState
from ron.proto.errors import RonError, bad_request

KEYS_READY = "auth.keys"
REVOCATIONS_READY = "auth.revocations"
_log = Logger(namespace="ron.auth")


class Issued(NamedTuple):
    """A token and its entry in the register."""

    token: str
    entry: Minted


class AuthFiles:
    """One process's hold on the folder.

    Writing may wait for another writer (2 s at most) and for the disk: from a reactor call `issue`, `revoke` and
    `rotate` in a thread. `refresh` waits for nobody but the disk; its halves are there for whoever wants that in a
    thread as well: `poll` may run in one, `report` belongs on the reactor.
    """

    def __init__(self, directory: Path | None, now: Callable[[], float], *, health: HealthState | None = None) -> None:
        lock = SharedLock(directory)
        self.now = now
        self._lock = lock
        self._health = health
        self._said: dict[str, RonError | None] = {}
        if directory is None:
            self.keys = RootKeys.generate(now())
        else:
            self.keys = RootKeys.open(directory / "root.json", lock=lock, now_s=now())
        self.revocations = Revocations(self.keys, directory and directory / "revoked.json", lock=lock)
        self.ceiling = Ceiling()
        self.register = Register(directory and directory / "minted.jsonl", lock=lock)
        self.report()

    def authority(self, audience: str, *, counts: AuthCounts | None = None) -> Authority:
        """An authority over these keys and revocations."""
        return Authority(self.keys, audience=audience, now=self.now, revocations=self.revocations, counts=counts)

    def refresh(self) -> bool:
        """`poll`, then `report`. True when the keys changed."""
        changed = self.poll()
        self.report()
        return changed

    def poll(self) -> bool:
        """Take over what other processes wrote, rotate when due, forget what has retired. True when the keys changed.

        Never raises: what goes wrong is logged, and stands in `keys.fault` or `revocations.fault`.
        """
        before = self.keys.generation
        self.keys.refresh()
        self.revocations.refresh()
        try:
            self.keys.maintain(self.now())
            self._complain("maintain", None)
        except RonError as error:
            self._complain("maintain", error)
        return self.keys.generation != before

    def issue(
        self,
        authority: Authority,
        caveats: Iterable[Caveat],
        *,
        label: str = "",
        parent: str | None = None,
        own: bool = False,
    ) -> Issued:
        """Mint, and enter it in the register first. Raises ValueError like `Authority.mint`, `RonError` BadRequest on a
        label, 401 when `parent` was revoked meanwhile, Backpressure on a full register and over a tenant's ceiling,
        StoreUnavailable. own: the process's own, which others must not be able to use up the room of.
        """
        if len(label) > MAX_LABEL_CHARS or not label.isprintable():
            raise bad_request("this label cannot be kept", f"one line of at most {MAX_LABEL_CHARS} characters")
        # revoking takes the same turn, so no child of a revoked capability slips in behind its back
        with self._lock.held():
            self._up_to_date()
            if parent is not None and parent in self.revocations.ids:
                raise unauthorized("revoked", "the capability was revoked", "ask for another")
            given = tuple(caveats)
            if not own and self.ceiling.applies(given):
                alive = [one for one in self.register.entries() if not self._over(one)]
                self.ceiling.check(given, alive, self.now())
            token = authority.mint(given)
            entry = _entry(token, label, parent, self.now())
            self.register.append(entry, self._over)
        return Issued(token, entry)

    def revoke(self, cap_id: str) -> tuple[str, ...]:
        """Void `cap_id`, which goes for all that was attenuated from it, and all that was minted with it.

        Returns the revoked cap_ids. Raises `RonError`: BadRequest on a malformed one, StoreUnavailable.
        """
        with self._lock.held():
            self._up_to_date()
            known = self.register.find(cap_id)
            # Without an entry nobody knows when its longest-lived token expires: an `exp` seen in a token may have been
            # added by its holder. It then stays on the list until today's root key has retired.
            first = _revocation(known) if known else Revocation(cap_id=cap_id, kid=self.keys.current.kid)
            entries = [first, *map(_revocation, self.register.descendants(cap_id))]
            self.revocations.revoke(entries, self.now())
        return tuple(entry.cap_id for entry in entries)

    def rotate(self, *, grace_s: float = GRACE_S) -> Epoch:
        """A new root-key epoch; see `RootKeys.rotate`."""
        return self.keys.rotate(self.now(), grace_s=grace_s)

    def listed(self) -> tuple[tuple[Minted, bool], ...]:
        """What was minted and could still be used, oldest first, each with whether it is revoked."""
        now_s = self.now()
        alive = (entry for entry in self.register.entries() if not self._ended(entry, now_s))
        return tuple((entry, entry.cap_id in self.revocations.ids) for entry in alive)

    def _up_to_date(self) -> None:
        """Under the lock: nothing is decided on an old reading."""
        self.keys.refresh()
        self.revocations.refresh()
        if self.revocations.fault is not None:
            raise unreadable(self.revocations.fault)

    def _over(self, entry: Minted) -> bool:
        """May the register forget `entry`? A revoked one too: its own list remembers it."""
        return entry.cap_id in self.revocations.ids or self._ended(entry, self.now())

    def _ended(self, entry: Minted, now_s: float) -> bool:
        if entry.expires_at is not None and now_s >= entry.expires_at:
            return True
        epoch = self.keys.epoch(entry.kid)
        return epoch.retired(now_s) if epoch is not None else entry.kid < self.keys.current.kid

    def report(self) -> None:
        """Tell the health registry of every change: `auth.keys` is degraded, `auth.revocations` missing, by a fault."""
        for key, fault in ((KEYS_READY, self.keys.fault), (REVOCATIONS_READY, self.revocations.fault)):
            if self._health is None or (key in self._said and self._said[key] is fault):
                continue
            self._said[key] = fault
            if fault is None:
                self._health.ok(key)
            elif key == KEYS_READY:
                self._health.degraded(key, fault.message)
            else:
                self._health.missing(key, fault.message)

    def _complain(self, about: str, error: RonError | None) -> None:
        said = self._said.get(about)
        if error is not None and (said is None or said.message != error.message):
            _log.warn("root keys were not rotated: {reason}", event="auth_rotate_failed", reason=error.one_line())
        self._said[about] = error


def _entry(token: str, label: str, parent: str | None, now_s: float) -> Minted:
    seen = inspect(token)
    return Minted(
        cap_id=seen.cap_id,
        kid=seen.kid,
        caveats=tuple(map(str, seen.caveats)),
        label=label,
        minted_at=now_s,
        expires_at=seen.expires_at_s,
        parent=parent,
    )


def _revocation(entry: Minted) -> Revocation:
    return Revocation(cap_id=entry.cap_id, kid=entry.kid, until=entry.expires_at)
