"""The four endpoints every process serves: `/healthz`, `/readyz`, `/metrics`, `/version` (DESIGN §4 Health)."""

from __future__ import annotations

import platform
from collections.abc import Awaitable
from typing import Protocol

import msgspec
from twisted._version import __version__ as twisted_version

import ron
from ron.kernel import HealthState, Metrics
from ron.kernel.health import Readiness
from ron.web.content import Raw
from ron.web.endpoint import Call, Endpoint


class Version(msgspec.Struct, frozen=True):
    """Body of `/version`."""

    name: str
    version: str
    python: str
    twisted: str


class NodeView(Protocol):
    """Whose health and metrics are shown: the process's own, or those of the node it belongs to."""

    def readiness(self) -> Readiness | Awaitable[Readiness]:
        """Body of `/readyz`."""
        ...

    def exposition(self) -> bytes | Awaitable[bytes]:
        """Body of `/metrics`."""
        ...


class OwnHealth:
    """The process's own."""

    def __init__(self, health: HealthState, metrics: Metrics) -> None:
        self._health = health
        self._metrics = metrics

    def readiness(self) -> Readiness:
        """What its services report."""
        return self._health.snapshot()

    def exposition(self) -> bytes:
        """What they count."""
        return self._metrics.render()


def health_endpoints(view: NodeView, *, name: str) -> list[Endpoint]:
    """The public health endpoints of the process called `name`, and `/metrics` behind scope `metrics:read`."""
    version = Version(name, ron.__version__, platform.python_version(), twisted_version.public())

    def healthz(_call: Call) -> dict[str, str]:
        return {"status": "ok"}

    def readyz(_call: Call) -> Raw | Awaitable[Raw]:
        found = view.readiness()
        return _ready_answer(found) if isinstance(found, Readiness) else _ready_later(found)

    def metrics_text(_call: Call) -> Raw | Awaitable[Raw]:
        found = view.exposition()
        return Raw(found, Metrics.content_type) if isinstance(found, bytes) else _metrics_later(found)

    return [
        Endpoint(method="GET", path="/healthz", handler=healthz, scope=None, hot=True, vital=True),
        Endpoint(method="GET", path="/readyz", handler=readyz, scope=None, hot=True, vital=True),
        Endpoint(method="GET", path="/metrics", handler=metrics_text, scope="metrics:read", hot=True, vital=True),
        Endpoint(method="GET", path="/version", handler=lambda _call: version, scope=None, hot=True, vital=True),
    ]


def _ready_answer(snapshot: Readiness) -> Raw:
    headers = {} if snapshot.ready else {"Retry-After": str(snapshot.retry_after or 1)}
    return Raw(msgspec.json.encode(snapshot), "application/json", 200 if snapshot.ready else 503, headers)


async def _ready_later(snapshot: Awaitable[Readiness]) -> Raw:
    return _ready_answer(await snapshot)


async def _metrics_later(exposition: Awaitable[bytes]) -> Raw:
    return Raw(await exposition, Metrics.content_type)
