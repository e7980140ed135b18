"""The four endpoints every process serves: `/healthz`, `/readyz`, `/metrics`, `/version` (DESIGN §4 Health)."""

from __future__ import annotations

import platform

import msgspec
from twisted._version import __version__ as twisted_version

import ron
from ron.kernel import HealthState, Metrics
from ron.web.content import Raw
from ron.web.endpoint import Call, Endpoint


class Version(msgspec.Struct, frozen=True):
    """Body of `/version`."""

    name: str
    version: str
    python: str
    twisted: str


def health_endpoints(health: HealthState, metrics: Metrics, *, name: str) -> list[Endpoint]:
    """The public health endpoints of the process called `name`, and `/metrics` behind scope `metrics:read`."""
    version = Version(name, ron.__version__, platform.python_version(), twisted_version.public())

    def healthz(_call: Call) -> dict[str, str]:
        return {"status": "ok"}

    def readyz(_call: Call) -> Raw:
        snapshot = health.snapshot()
        headers = {} if snapshot.ready else {"Retry-After": str(snapshot.retry_after)}
        body = msgspec.json.encode(snapshot)
        return Raw(body, "application/json", 200 if snapshot.ready else 503, headers)

    def metrics_text(_call: Call) -> Raw:
        return Raw(metrics.render(), metrics.content_type)

    return [
        Endpoint(method="GET", path="/healthz", handler=healthz, scope=None, hot=True),
        Endpoint(method="GET", path="/readyz", handler=readyz, scope=None, hot=True),
        Endpoint(method="GET", path="/metrics", handler=metrics_text, scope="metrics:read", hot=True),
        Endpoint(method="GET", path="/version", handler=lambda _call: version, scope=None, hot=True),
    ]
