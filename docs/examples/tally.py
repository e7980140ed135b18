"""tally: counts by name. In: POST /v1/tally/<name>, or `add` on the bus. Out: the new count; gone with the process.

Copy this file to ron/nodes/parts/, add a line to PARTS and a listener, and the node supervises it in either profile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import msgspec
from prometheus_client import Gauge
from twisted.application.service import Service

from ron.kernel import HealthState, Metrics
from ron.kernel.commands import Handlers
from ron.nodes.parts import Host, Part
from ron.proto.errors import backpressure
from ron.web import Call, Endpoint
from ron.web.site import RonSite

MAX_NAMES = 1000


class Tally(msgspec.Struct, frozen=True):
    """One name and how often it was added."""

    name: str
    count: int


class TallyService(Service):
    """At most `MAX_NAMES` names; a restart forgets them."""

    def __init__(self, health: HealthState, metrics: Metrics) -> None:
        self._health = health
        self._counts: Counter[str] = Counter()
        Gauge("tally_names", "Names counted", registry=metrics.registry).set_function(lambda: len(self._counts))

    def startService(self) -> None:
        super().startService()
        self._counts.clear()
        self._health.ok("tally")

    def add(self, name: str) -> Tally:
        """Count `name` once more. Raises `RonError` Backpressure for a new name when there are too many."""
        if name not in self._counts and len(self._counts) >= MAX_NAMES:
            raise backpressure(f"there are {MAX_NAMES} names already")
        self._counts[name] += 1
        return Tally(name, self._counts[name])


class TallyPart(Part):
    """The service hosted: its commands on the bus and its routes."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.service: TallyService = TallyService(host.runtime.health, host.runtime.metrics)

    def handlers(self) -> Handlers:
        return {"add": lambda command: self.service.add(msgspec.convert(command.body, str))}

    def sites(self) -> Mapping[str, RonSite]:
        def add(_call: Call, name: str) -> Tally:
            return self.service.add(name)

        route = Endpoint(method="POST", path="/v1/tally/<name>", handler=add, scope="tally:add", writes=True)
        return {"tally": self.host.runtime.site([route])}
