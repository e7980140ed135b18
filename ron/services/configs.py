"""The face of all daemon configs: which there are, whose a file is, and where state lives.

In: a file's tables. Out: the struct its daemon is composed from. `ronctl validate` and the daemons judge alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ron.services.notbuilt import not_built
from ron.services.rules import (
    check_addresses,
    check_balance,
    check_balanced,
    check_expose,
    check_kms_daemon,
    check_node,
    check_omnigate,
    check_onion,
    check_oniond,
    check_tls,
    loopback,
)
from ron.services.schemas import AppSection, BalancedConfig, KmsDaemonConfig, NodeConfig, OmnigateConfig, OniondConfig
from ron.services.sections import AdminSection, E2ESection, LogSection, NodeSection

__all__ = [
    "SCHEMAS",
    "AdminSection",
    "AppSection",
    "BalancedConfig",
    "E2ESection",
    "KmsDaemonConfig",
    "LogSection",
    "NodeConfig",
    "NodeSection",
    "OmnigateConfig",
    "OniondConfig",
    "check_addresses",
    "check_balance",
    "check_balanced",
    "check_expose",
    "check_kms_daemon",
    "check_node",
    "check_omnigate",
    "check_onion",
    "check_oniond",
    "check_tls",
    "daemon_of",
    "home_directory",
    "loopback",
    "not_built",
]

SCHEMAS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "ron-node": (NodeConfig, check_node),
    "ron-oniond": (OniondConfig, check_oniond),
    "ron-balance": (BalancedConfig, check_balanced),
    "ron-kms": (KmsDaemonConfig, check_kms_daemon),
    "omnigate": (OmnigateConfig, check_omnigate),
}


_OF_NODES = frozenset({"node", "gateway", "mailbox", "edge", "e2e", "api", "security", "federation"})
# at the top of no other daemon's file
_OF_KMS = frozenset({"bind_addr", "metrics_addr", "service", "pq", "audit", "backends", "entropy_time", "governance"})


def home_directory() -> Path:
    """Where state lives: `RON_HOME`, by default `var` in the working directory. Absolute."""
    return Path(os.environ.get("RON_HOME") or "var").absolute()


def daemon_of(tables: dict[str, Any]) -> str:
    """Whose config this is: `[oniond]` or `[tenancy]` are omnigate's, `[balance]` without a node's own services
    ron-balance's, `bind_addr`, `[service]` or `[pq]` ron-kms's, `[[apps]]` or `[admin]` ron-oniond's. Any other is
    ron-node's.
    """
    if "oniond" in tables or "tenancy" in tables:
        return "omnigate"
    if _OF_KMS & tables.keys():
        return "ron-kms"
    if "balance" in tables and not _OF_NODES & tables.keys():
        return "ron-balance"
    return "ron-oniond" if "apps" in tables or "admin" in tables else "ron-node"
