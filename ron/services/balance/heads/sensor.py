"""How many introductions come: by tor's own counters when its MetricsPort can be read, else by events of circuits.

In: a tor, the visits that were seen. Out: introductions since the last reading. On its MetricsPort tor counts those too
that it refuses (wrongly encrypted, replayed, for an address it does not know): they cost it as much as others, and make
no circuit. What a relay holds back (its own defence against floods) is seen by neither.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from twisted.internet.defer import CancelledError
from twisted.internet.threads import deferToThread
from twisted.logger import Logger
from twisted.web.client import Agent, HTTPConnectionPool, readBody
from txtorcon import TorControlProtocol

from ron.kernel.aio import within
from ron.proto.errors import RonError
from ron.services.balance.heads.siege import Meter
from ron.services.balance.heads.visits import Visits
from ron.tor.backendonion import metrics_address
from ron.tor.backends import parse_metrics

READ_TIMEOUT_S = 2.0
_log = Logger(namespace="ron.balance")


class Sensor:
    """Of one tor. `open` with each new connection to it."""

    def __init__(self, reactor: Any, visits: Visits) -> None:
        self._reactor = reactor
        self._visits = visits
        self._pool = HTTPConnectionPool(reactor, persistent=True)
        self._agent = Agent(reactor, connectTimeout=READ_TIMEOUT_S, pool=self._pool)
        self._address: str | None = None
        self._meter = Meter()
        self._seen = 0

    async def open(self, control: TorControlProtocol) -> None:
        """Have a MetricsPort; without one it goes by circuits. Raises `TorSilent`."""
        try:
            self._address = await metrics_address(self._reactor, control)
        except RonError as error:
            self._address = None
            _log.info("introductions are counted by circuits: {reason}", reason=error.message)
        self._meter = Meter()
        self._seen = self._visits.introductions

    async def close(self) -> None:
        """No connection is left."""
        self._address = None
        await self._pool.closeCachedConnections()

    async def new(self, onions: Collection[str]) -> int:
        """How many came for `onions` since the last time."""
        by_circuits, self._seen = self._visits.introductions - self._seen, self._visits.introductions
        if self._address is None:
            return by_circuits
        try:
            return self._meter.read(await within(self._reactor, READ_TIMEOUT_S, self._read(onions)))
        except CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - tor has gone, or is too busy: the circuits tell enough
            _log.debug("tor's metrics were not read: {error}", error=str(error))
            return by_circuits

    async def _read(self, onions: Collection[str]) -> dict[str, int]:
        answer = await self._agent.request(b"GET", f"http://{self._address}/metrics".encode())
        text = (await readBody(answer)).decode("ascii", "replace")
        figures = await deferToThread(parse_metrics, text)
        return {
            onion: found.introductions + found.introductions_rejected
            for onion, found in figures.items()
            if onion in onions
        }
