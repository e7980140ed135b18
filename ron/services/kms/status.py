"""`GET /v1/status` of the key service: what an operator wants to see first, for `ronctl status`.

In: readiness with its snapshot, what the process knows of itself. Out: one struct, behind scope `node:read`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from ron.services.kms.readiness import Snapshot
from ron.web import Endpoint

SERVICE = "ron-kms"
PATH = "/v1/status"


class KmsStatus(msgspec.Struct, frozen=True, kw_only=True):
    """service: tells it from a node's. missing, degraded, reasons: as `/readyz` has them. snapshot: None until the log
    is open. grpc_addr, oap_addr: None for no such door."""

    service: str = SERVICE
    version: str
    uptime_s: float
    config_version: int
    kms_url: str
    ready: bool
    missing: tuple[str, ...] = ()
    degraded: tuple[str, ...] = ()
    reasons: dict[str, str] = {}
    snapshot: Snapshot | None = None
    grpc_addr: str | None = None
    oap_addr: str | None = None


def status_endpoint(tell: Callable[[], KmsStatus]) -> Endpoint:
    """The route, for operators alone."""
    return Endpoint(method="GET", path=PATH, handler=lambda _call: tell(), scope="node:read", vital=True)
