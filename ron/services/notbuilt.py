"""Keys that are known and checked, and do nothing yet: said aloud, because silence would look like a promise.

In: a daemon's config. Out: (key, sentence) for each such key that is set.
"""

from __future__ import annotations

from ron.kernel.config import has_key, value_at
from ron.services.schemas import BalancedConfig, KmsDaemonConfig, NodeConfig, OmnigateConfig, OniondConfig

# key → the value that means what is built, and what happens instead of any other
_KEYS: dict[str, tuple[object, str]] = {
    "mailbox.ack_deadline_ms": (None, "not built yet: a message comes again after visibility_timeout_ms"),
    "mailbox.dead_letter_dir": ("", "dead letters are not built yet: nothing is written there"),
    "mailbox.priority_levels": (3, "not built yet: there are three, low, normal and high"),
    "mailbox.ws_listen": ("", "WebSocket subscriptions are not built yet: nothing listens there"),
    "edge.mode": ("offline", "fetching is not built yet: the edge serves its packs only"),
    "edge.allow": ((), "fetching is not built yet: no domain is asked"),
    "edge.cache_dir": ("", "fetching is not built yet: nothing is kept there"),
    "edge.cache_ttl_default": (None, "fetching is not built yet: nothing is kept"),
    "edge.integrity_sri": (False, "fetching is not built yet: there is nothing to compare"),
    "edge.integrity_checks": (False, "fetching is not built yet: there is nothing to compare"),
    "edge.adaptive_cache": (False, "fetching is not built yet: nothing is kept"),
    "edge.prefetch": ((), "fetching is not built yet: nothing is fetched ahead"),
    "edge.rate_limit_rps": (None, "fetching is not built yet: there is nothing to limit"),
    "edge.rate_limit_burst": (None, "fetching is not built yet: there is nothing to limit"),
    "idle_timeout": (60_000, "not built yet: read_timeout ends idle connections"),
    "kms.idle_timeout": (60_000, "not built yet: read_timeout ends idle connections"),
    "limits.verify_cache_max": (262_144, "not built yet: all public halves are remembered"),
    "kms.limits.verify_cache_max": (262_144, "not built yet: all public halves are remembered"),
    "observability.correlation_id_mode": ("uuidv7", "not built yet: ids that we make are UUIDv7"),
    "kms.observability.correlation_id_mode": ("uuidv7", "not built yet: ids that we make are UUIDv7"),
    "oniond.autoscale": (None, "not built yet: the number of backends does not follow the load"),
}


def not_built(
    config: NodeConfig | OniondConfig | BalancedConfig | KmsDaemonConfig | OmnigateConfig,
) -> tuple[tuple[str, str], ...]:
    """Keys of `config` that are set to something that is not built, each with what happens instead."""
    found = [
        (key, sentence)
        for key, (built, sentence) in _KEYS.items()
        if has_key(type(config), key) and value_at(config, key) != built
    ]
    if isinstance(config, NodeConfig | OniondConfig | OmnigateConfig):
        found += _idle_federation(config)
    if isinstance(config, OmnigateConfig):
        found.insert(0, ("oniond", "an Omnigate is not built yet: its config is checked, and no daemon runs it"))
    elif value_at(config, "onion.amnesia") and value_at(config, "observability.otel_endpoint"):
        found.append(("observability.otel_endpoint", "amnesia keeps its traces to itself: nothing is exported"))
    return tuple(found)


def _idle_federation(config: NodeConfig | OniondConfig | OmnigateConfig) -> list[tuple[str, str]]:
    """Peers that are named while federation is off."""
    if config.federation.enabled:
        return []
    named = {"federation.allow": config.federation.allow, "federation.peer": config.federation.peer}
    if not isinstance(config, OmnigateConfig):
        named["onion.federate_peers"] = config.onion.federate_peers
    return [
        (key, "federation.enabled is false: no peer is let in or contacted") for key, peers in named.items() if peers
    ]
