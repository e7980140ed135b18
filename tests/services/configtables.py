"""Tables of daemon configs: the examples, the specification's sketches, one with every key; and ways to spoil them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ron.kernel.config import convert, parse
from ron.services.configs import SCHEMAS, BalancedConfig, KmsDaemonConfig, NodeConfig, OmnigateConfig, OniondConfig

ETC = Path(__file__).parents[2] / "etc"
EXPOSE = [{"local": "127.0.0.1:9080", "onion_port": 80}, {"local": "127.0.0.1:9410", "onion_port": 9410}]
APPS = [{"name": "wiki", "expose": EXPOSE}, {"name": "chat", "expose": EXPOSE[:1]}]


def full(schema: type[Any], **sections: Any) -> dict[str, Any]:
    """Tables with every key the schema knows."""
    tables: dict[str, Any] = msgspec.to_builtins(convert(sections, schema), str_keys=True)
    return msgspec.json.decode(msgspec.json.encode(tables))  # type: ignore[no-any-return]


TLS = {"certificate": "a.crt", "key": "a.key", "client_ca": "ca.crt", "clients": ["ron://node/desk"]}
AUTOSCALE = {"circuits_p95": 200, "connect_ms_p95": 1200}
SERVICES = [{"name": "main", "ports": ["80:127.0.0.1:8080"]}, {"name": "shop", "ports": ["81:unix:/run/shop.sock"]}]
FULL = {
    "ron-node": full(NodeConfig, gateway={"expose": EXPOSE, "tls": TLS}, balance={"services": SERVICES}),
    "ron-oniond": full(OniondConfig, apps=APPS, admin={"tls": TLS}),
    "ron-balance": full(BalancedConfig, balance={"services": SERVICES}, admin={"tls": TLS}),
    "ron-kms": full(KmsDaemonConfig, service={"multi_backends": ["file", "inmem"]}),
    "omnigate": full(
        OmnigateConfig, oniond={"autoscale": AUTOSCALE}, gateway={"expose": EXPOSE, "tls": TLS}, admin={"tls": TLS}
    ),
}


def keys_of_tables(tables: Any, path: str = "") -> Iterator[tuple[str, list[str | int]]]:
    """Every key at every depth: its dotted path, and the steps that lead to it."""
    if isinstance(tables, dict):
        for key, value in tables.items():
            here = f"{path}.{key}".lstrip(".")
            yield here, [key]
            for below, steps in keys_of_tables(value, here):
                yield below, [key, *steps]
    elif isinstance(tables, list):
        for index, item in enumerate(tables):
            for below, steps in keys_of_tables(item, f"{path}[{index}]"):
                yield below, [index, *steps]


def at(tables: Any, steps: list[Any]) -> Any:
    for step in steps:
        tables = tables[step]
    return tables


def misspelt(tables: dict[str, Any], steps: list[Any], wrong: str) -> dict[str, Any]:
    """A copy of `tables` in which the key at the end of `steps` is written `wrong`, in its old place."""
    changed = copy.deepcopy(tables)
    holder = at(changed, steps[:-1])
    renamed = {wrong if key == steps[-1] else key: value for key, value in holder.items()}
    holder.clear()
    holder.update(renamed)
    return changed


def check(daemon: str, tables: dict[str, Any]) -> None:
    """What `ronctl validate` and the daemons do."""
    schema, rules = SCHEMAS[daemon]
    rules(convert(tables, schema))


def examples() -> dict[str, dict[str, Any]]:
    return {path.name: parse(path) for path in sorted(ETC.glob("*.toml"))}


def daemon_by_name(name: str) -> str:
    daemons = {"oniond.toml": "ron-oniond", "omnigate.toml": "omnigate", "balance.toml": "ron-balance"}
    daemons["ron-kms.toml"] = "ron-kms"
    return daemons.get(name, "ron-node")


# every key of the specification's sketches, in both of their versions, with other words around them
SKETCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "micronode, first": (
        "ron-node",
        {
            "onion": {"backend": "binary-tor", "embedded": True, "amnesia": True, "federate_peers": []},
            "mailbox": {
                "listen": "127.0.0.1:9410",
                "max_inflight": 128,
                "visibility_timeout_ms": 30000,
                "ack_deadline_ms": 15000,
                "dead_letter_dir": "/var/lib/ron/dlq",
            },
            "e2e": {"pq_hybrid": True},
            "edge": {
                "mode": "live",
                "allow": ["tile.example.com", "api.maptiler.com"],
                "cache_dir": "/var/lib/ron/edge-cache",
                "integrity_sri": True,
                "adaptive_cache": True,
                "packs": ["/data/tiles/region.pmtiles"],
                "prefetch": ["tiles/region/us"],
            },
            "gateway": {"bind": "127.0.0.1:9080", "expose": EXPOSE},
            "observability": {"otel_endpoint": ""},
            "dos": {"proof_of_work": False},
        },
    ),
    "micronode, second": (
        "ron-node",
        {
            "e2e": {"pq_hybrid": True},
            "mailbox": {"priority_levels": 3, "qos_default": "normal", "ws_listen": "127.0.0.1:9420"},
            "dos": {"proof_of_work": True, "pow_auto_tune": True, "pow_target_ms": 3, "pow_upper_bound": 28},
            "federation": {"enabled": False, "zk_handshake": True, "allow": []},
            "api": {"grpc_addr": "127.0.0.1:9095"},
        },
    ),
    "omnigate, first": (
        "omnigate",
        {
            "oniond": {
                "addr": "unix:///run/ron/oniond.sock",
                "scale_min": 1,
                "scale_max": 10,
                "autoscale": {"circuits_p95": 200, "connect_ms_p95": 1200},
            },
            "tenancy": {},
            "edge": {
                "allow": ["*.your-org-tiles.com", "fonts.gstatic.com"],
                "integrity_checks": True,
                "rate_limit_rps": 50,
                "rate_limit_burst": 100,
                "cache_ttl_default": "24h",
            },
            "observability": {"otel_endpoint": ""},
            "dos": {"proof_of_work": True, "pow_difficulty": 20},
            "security": {"attestation": False},
        },
    ),
    "omnigate, second": (
        "omnigate",
        {
            "dos": {"proof_of_work": True, "pow_auto_tune": True, "pow_target_ms": 5, "pow_upper_bound": 30},
            "mailbox": {"priority_levels": 3, "qos_default": "normal", "ws_listen": "127.0.0.1:9420"},
            "federation": {"enabled": False, "zk_handshake": True, "allow": []},
            "api": {"grpc_addr": "127.0.0.1:9095"},
        },
    ),
}
