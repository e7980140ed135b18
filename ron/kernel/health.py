"""What is ready and what is not, one registry per process.

In: each service reports its readiness keys (`edge.pack:world.pmtiles`, `tor`, `mailbox.store`) as they change.
Out: the structured answer of `/readyz` (DESIGN §4, ron-kms OBSERVABILITY §2).
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/readyz`.

    ready: every key is satisfied. missing: keys that are not. degraded: keys that work in a lesser way.
    reasons: one redacted sentence for each key in `missing` or `degraded`. retry_after: seconds, when not ready.
    """

    ready: bool
    missing: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    reasons: dict[str, str] = {}
    retry_after: int | None = None


class HealthState:
    """Readiness by key. Reads are a snapshot; observers hear of every change of `ready`."""

    RETRY_AFTER_S = 2

    def __init__(self) -> None:
        self._missing: dict[str, str] = {}
        self._degraded: dict[str, str] = {}
        self._known: set[str] = set()
        self._absorbed: dict[str, Readiness] = {}
        self._observers: list[Callable[[Readiness], None]] = []

    def ok(self, key: str) -> None:
        """`key` is satisfied."""
        self._missing.pop(key, None)
        self._degraded.pop(key, None)
        self._report(key)

    def missing(self, key: str, reason: str) -> None:
        """`key` is not satisfied: the node is not ready. `reason` is one sentence without secrets."""
        self._degraded.pop(key, None)
        self._missing[key] = reason
        self._report(key)

    def degraded(self, key: str, reason: str) -> None:
        """`key` works in a lesser way: the node stays ready and says so."""
        self._missing.pop(key, None)
        self._degraded[key] = reason
        self._report(key)

    def forget(self, key: str) -> None:
        """`key` is nobody's any more."""
        self._missing.pop(key, None)
        self._degraded.pop(key, None)
        self._known.discard(key)
        self._tell()

    def absorb(self, source: str, theirs: Readiness) -> None:
        """What another process reports, in place of what it reported before; an empty one forgets it.

        A key that we, or a third process, report too is as bad as the worst of them says.
        """
        if theirs.missing or theirs.degraded:
            self._absorbed[source] = theirs
        else:
            self._absorbed.pop(source, None)
        self._tell()

    def is_ok(self, key: str) -> bool:
        """True when `key` was reported here and is not missing here."""
        return key in self._known and key not in self._missing

    def snapshot(self) -> Readiness:
        """The current answer of `/readyz`. A process in which nothing has reported yet is not ready."""
        missing, degraded = self._worst()
        ready = bool(self._known or self._absorbed) and not missing
        return Readiness(
            ready=ready,
            missing=tuple(sorted(missing)),
            degraded=tuple(sorted(degraded)),
            reasons={**degraded, **missing},
            retry_after=None if ready else self.RETRY_AFTER_S,
        )

    def _worst(self) -> tuple[dict[str, str], dict[str, str]]:
        """What is missing and what is degraded, ours and absorbed; our own reason goes first."""
        missing = {key: r.reasons.get(key, "") for r in self._absorbed.values() for key in r.missing} | self._missing
        degraded = {key: r.reasons.get(key, "") for r in self._absorbed.values() for key in r.degraded} | self._degraded
        return missing, {key: reason for key, reason in degraded.items() if key not in missing}

    def observe(self, observer: Callable[[Readiness], None]) -> None:
        """Call `observer` with a snapshot after each report."""
        self._observers.append(observer)

    def _report(self, key: str) -> None:
        self._known.add(key)
        self._tell()

    def _tell(self) -> None:
        snapshot = self.snapshot()
        for observer in self._observers:
            observer(snapshot)
