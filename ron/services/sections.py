"""Sections of the config that belong to no single room.

In: tables of a daemon's file. Out: strict structs; a key that takes effect without a restart carries `reload`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

LIVE = {"reload": True}
# a path may be relative to the home; no NUL, no line break
PathText = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00-\x1f]*\Z")]
Peer = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x20]+\Z")]
Region = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9.:/-]{0,31}\Z")]
Share = Annotated[float, Meta(ge=0, le=1)]
Bits = Annotated[int, Meta(ge=1, le=32)]


class NodeSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """profile: `micronode` runs everything in one process, `macronode` every service in a process of its own."""

    profile: Literal["micronode", "macronode"] = "micronode"


class LogSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """level: the least that is logged. to: `file` is `$RON_HOME/log/`, rotated; `memory` keeps a ring only."""

    level: Annotated[Literal["debug", "info", "warn", "error"], Meta(extra=LIVE)] = "info"
    to: Literal["file", "stderr", "memory"] = "file"


class E2ESection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """pq_hybrid: seal with ML-KEM-768+X25519 (suite 1); false falls back to X25519 alone (suite 0)."""

    pq_hybrid: bool = True


Identity = Annotated[str, Meta(pattern=r"^ron://[^\x00-\x20]{1,200}\Z")]


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A TLS 1.3 listener beside the plain one on loopback. bind: any address, for TLS makes it safe.

    certificate, key: files (PEM), relative to the home. client_ca: who must have signed a client's certificate; empty
    asks for none. clients: the identities (`ron://node/NAME`) that may connect; empty lets in all that it has signed.
    """

    bind: str = "127.0.0.1:9443"
    certificate: PathText = ""
    key: PathText = ""
    client_ca: PathText = ""
    clients: Annotated[tuple[Identity, ...], Meta(max_length=1024)] = ()


class AdminSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """bind: where a process without a gateway serves its health endpoints."""

    bind: str = "127.0.0.1:9909"
    tls: TlsConfig | None = None


class ObservabilityConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """otel_endpoint: where spans go (OTLP over HTTP), empty is nowhere.

    sampling: the share of requests that are traced; incident_sampling: the share while something is wrong.
    """

    otel_endpoint: Annotated[str, Meta(max_length=2048, pattern=r"^(https?://[^\s/]\S*)?\Z")] = ""
    sampling: Share = 0.001
    incident_sampling: Share = 0.05


class DosConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """proof_of_work: hot endpoints may ask for work before they answer.

    pow_auto_tune: the difficulty follows the load, so that a client spends about `pow_target_ms` of CPU and never more
    than `pow_upper_bound` bits; without it the difficulty is `pow_difficulty` bits.
    """

    proof_of_work: bool = False
    pow_auto_tune: bool = True
    pow_target_ms: Annotated[int, Meta(ge=1, le=10_000, extra={"unit": "ms"})] = 3
    pow_upper_bound: Bits = 28
    pow_difficulty: Bits = 12


class FederationPeer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to reach one peer. socks: the SOCKS port, on loopback, of a client tor of the peer's network."""

    onion: Peer
    socks: Annotated[str, Meta(pattern=r"^127\.0\.0\.1:[0-9]{1,5}\Z")]


class FederationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """enabled: federate with other nodes, through an onion of its own. zk_handshake: federation needs it.

    allow: the onions that may. min_holders: a peer's list of holder keys must have so many, to hide ours among them.
    peer: those that are on another network than ours. regions: labels of ours that peers are told.
    """

    enabled: bool = False
    zk_handshake: bool = True
    allow: Annotated[tuple[Peer, ...], Meta(max_length=1024, extra=LIVE)] = ()
    min_holders: Annotated[int, Meta(ge=1, le=1024)] = 1
    peer: Annotated[tuple[FederationPeer, ...], Meta(max_length=1024, extra=LIVE)] = ()
    regions: Annotated[tuple[Region, ...], Meta(max_length=16, extra=LIVE)] = ()


class ApiConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """grpc_addr: where the control endpoint listens, `127.0.0.1:9095` by habit; empty is nowhere."""

    grpc_addr: str = ""


class ShutdownConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """drain_s: how long calls under way may take once the process was told to stop; what is left is aborted."""

    drain_s: Annotated[int, Meta(ge=0, le=300, extra={"unit": "s", **LIVE})] = 5


class ProfilingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """enabled: `ronctl profile` may look into the process; left out, it may unless the node has amnesia."""

    enabled: bool | None = None

    def allowed(self, *, amnesia: bool) -> bool:
        """May the process be profiled?"""
        return not amnesia if self.enabled is None else self.enabled


class AutoscaleConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When onions get another tor: circuits and milliseconds to connect, both at the 95th percentile.

    queue_depth: visitors who still wait for their rendezvous; left out, it is not looked at.
    """

    circuits_p95: Annotated[int, Meta(ge=1, le=1_000_000, extra=LIVE)]
    connect_ms_p95: Annotated[int, Meta(ge=1, le=600_000, extra={"unit": "ms", **LIVE})]
    queue_depth: Annotated[int, Meta(ge=1, le=1_000_000, extra=LIVE)] | None = None


class OniondSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The onion runtime an Omnigate uses. addr: its control socket. scale_min, scale_max: backends of an onion."""

    addr: Annotated[str, Meta(max_length=4096, pattern=r"^(unix:///[^\x00-\x20]+|\S+:\d{1,5})\Z")] = (
        "unix:///run/ron/oniond.sock"
    )
    scale_min: Annotated[int, Meta(ge=1, le=64)] = 1
    scale_max: Annotated[int, Meta(ge=1, le=64)] = 1
    autoscale: AutoscaleConfig | None = None


class TenancySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tenants and apps. No key yet: what a tenant may do stands in its capabilities."""


class SecuritySection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """attestation: keys only in a trusted execution environment that proves itself."""

    attestation: bool = False
