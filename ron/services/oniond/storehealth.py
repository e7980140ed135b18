"""Whether the onion runtime can remember anything new: a full disk shows in readiness, and room shows again by itself.

In: how each batch of writes went. Out: the readiness key `onions.store`. Only a probe ends the trouble: on a full disk
some writes go through all the time, and health would flutter.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from twisted.logger import Logger

from ron.kernel import HealthState
from ron.proto.errors import RonError
from ron.store import BatchReport

STORE_KEY = "onions.store"
_log = Logger(namespace="ron.oniond")


class StoreHealth:
    """The health of one store. probe: fails with `RonError` while nothing can be written."""

    def __init__(self, health: HealthState, probe: Callable[[], Awaitable[None]]) -> None:
        self._health = health
        self._probe = probe
        self._in_trouble = False

    def observe(self, report: BatchReport) -> None:
        """A batch is done."""
        if report.trouble is None:
            return
        if not self._in_trouble:
            _log.error("the onions' store refused: {why}", event="store_trouble", why=report.trouble.message)
        self._in_trouble = True
        # what is there is served on; only new acts are refused
        self._health.degraded(STORE_KEY, report.trouble.message)

    async def writable(self) -> bool:
        """Can it be written to? Asked of the store itself only when it last refused."""
        if self._in_trouble:
            try:
                await self._probe()
            except RonError:
                return False
            self._in_trouble = False
            self._health.ok(STORE_KEY)
            _log.info("the onions' store takes writes again", event="store_up")
        return True
