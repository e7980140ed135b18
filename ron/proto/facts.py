"""What a running node tells about itself: `node.json` on disk, `/v1/status` and `/hello.json` on the wire."""

from __future__ import annotations

from typing import Any

import msgspec


class NodeFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`$RON_HOME/node.json`: how to reach the node that runs from this home, and what it runs.

    pids: the node itself under `node`, its tors under their names. device_socks_ports: the two hello devices' own tors.
    """

    gateway_url: str
    mailbox_url: str
    onion: str | None
    socks_port: int
    pids: dict[str, int]
    device_socks_ports: tuple[int, ...] = ()
    gateway_tls_url: str | None = None
    version: str = ""


class PingStep(msgspec.Struct, frozen=True):
    """One leg of an end-to-end ping and the milliseconds it took."""

    name: str
    ms: float


class PingResult(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed message that went to the other device through the mailbox onion and came back.

    sealed_bytes: size of the first envelope. roundtrip_ms: from sealing it to having opened the reply.
    """

    suite: str
    sealed_bytes: int
    roundtrip_ms: float
    steps: tuple[PingStep, ...]


class PingReport(msgspec.Struct, frozen=True, kw_only=True):
    """The page's live ping. state: idle, running, ok or failed; seq counts finished pings."""

    state: str = "idle"
    seq: int = 0
    suite: str = ""
    sealed_bytes: int = 0
    roundtrip_ms: float = 0.0
    finished_at: str | None = None
    error: str | None = None
    steps: tuple[PingStep, ...] = ()


class HelloReport(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/hello.json`, what the Hello Map page shows."""

    onion: str | None
    ready: bool
    network: str
    ping: PingReport


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Body of `/v1/status`. tor, onions, queues and packs are the services' own status structs."""

    facts: NodeFacts
    uptime_s: float
    ready: bool
    missing: tuple[str, ...]
    degraded: tuple[str, ...]
    reasons: dict[str, str]
    tor: Any
    onions: Any
    queues: Any
    packs: Any
    services: Any = ()
    config_version: int = 1
