"""The whole config of each daemon: one strict struct, its sections from the rooms they belong to.

In: nothing. Out: types only; the rules across their keys are in `ron.services.rules`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from ron.kernel.limits_config import LimitsConfig
from ron.kernel.slo_config import SloConfig
from ron.proto.onions import AppName
from ron.services.balance.config import BalanceConfig
from ron.services.edge.config import EdgeConfig
from ron.services.gateway.config import Expose, GatewayConfig
from ron.services.kms.config import EmbeddedKms, KmsConfig, KmsLimits
from ron.services.mailbox.config import MailboxConfig
from ron.services.oniond.config import OnionConfig
from ron.services.sections import (
    LIVE,
    AdminSection,
    ApiConfig,
    DosConfig,
    E2ESection,
    FederationConfig,
    LogSection,
    NodeSection,
    ObservabilityConfig,
    OniondSection,
    ProfilingConfig,
    SecuritySection,
    ShutdownConfig,
    TenancySection,
)

_Timeout = Annotated[int, msgspec.Meta(ge=10, le=600_000, extra={"unit": "ms", **LIVE})]


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`twistd -n ron-node --config FILE`."""

    node: NodeSection = NodeSection()
    onion: OnionConfig = OnionConfig()
    balance: BalanceConfig = BalanceConfig()
    kms: EmbeddedKms = EmbeddedKms()
    mailbox: MailboxConfig = MailboxConfig()
    e2e: E2ESection = E2ESection()
    edge: EdgeConfig = EdgeConfig()
    gateway: GatewayConfig = GatewayConfig()
    api: ApiConfig = ApiConfig()
    dos: DosConfig = DosConfig()
    federation: FederationConfig = FederationConfig()
    security: SecuritySection = SecuritySection()
    limits: LimitsConfig = LimitsConfig()
    slo: SloConfig = SloConfig()
    observability: ObservabilityConfig = ObservabilityConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    log: LogSection = LogSection()


class AppSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One app's onion and the ports it exposes."""

    name: AppName
    expose: Annotated[tuple[Expose, ...], msgspec.Meta(min_length=1, max_length=16)]


class OniondConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`twistd -n ron-oniond --config FILE`."""

    apps: Annotated[tuple[AppSection, ...], msgspec.Meta(max_length=64)] = ()
    onion: OnionConfig = OnionConfig()
    admin: AdminSection = AdminSection()
    limits: LimitsConfig = LimitsConfig()
    slo: SloConfig = SloConfig()
    observability: ObservabilityConfig = ObservabilityConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    dos: DosConfig = DosConfig()
    federation: FederationConfig = FederationConfig()
    log: LogSection = LogSection()


class BalancedConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`twistd -n ron-balance --config FILE`."""

    balance: BalanceConfig = BalanceConfig()
    onion: OnionConfig = OnionConfig()
    admin: AdminSection = AdminSection()
    limits: LimitsConfig = LimitsConfig()
    slo: SloConfig = SloConfig()
    observability: ObservabilityConfig = ObservabilityConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    dos: DosConfig = DosConfig()
    log: LogSection = LogSection()


class KmsDaemonLimits(KmsLimits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """decompress_ratio_cap: how many times its size a body may inflate to."""

    decompress_ratio_cap: Annotated[int, msgspec.Meta(ge=1, le=1000, extra=LIVE)] = 10


class KmsDaemonConfig(KmsConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`twistd -n ron-kms --config FILE`: the keys of `[kms]` at the top, and what a node has for all of its services.

    metrics_addr: where health, metrics and administration are; loopback. max_conns: connections at a time.
    read_timeout: a request's head, and the silence within its body. write_timeout: a client that does not read.
    tracing: where spans go.
    """

    metrics_addr: Annotated[str, msgspec.Meta(max_length=64)] = "127.0.0.1:0"
    max_conns: Annotated[int, msgspec.Meta(ge=1, le=1_000_000, extra=LIVE)] = 1024
    read_timeout: _Timeout = 5000
    write_timeout: _Timeout = 5000
    idle_timeout: _Timeout = 60_000
    limits: KmsDaemonLimits = KmsDaemonLimits()
    tracing: ObservabilityConfig = ObservabilityConfig()
    slo: SloConfig = SloConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    log: LogSection = LogSection()


class OmnigateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The multi-tenant front of a cluster, on an onion runtime of its own process. Checked; no daemon runs it yet."""

    oniond: OniondSection = OniondSection()
    tenancy: TenancySection = TenancySection()
    mailbox: MailboxConfig = MailboxConfig()
    e2e: E2ESection = E2ESection()
    edge: EdgeConfig = EdgeConfig()
    gateway: GatewayConfig = GatewayConfig()
    admin: AdminSection = AdminSection()
    api: ApiConfig = ApiConfig()
    dos: DosConfig = DosConfig()
    federation: FederationConfig = FederationConfig()
    security: SecuritySection = SecuritySection()
    limits: LimitsConfig = LimitsConfig()
    slo: SloConfig = SloConfig()
    observability: ObservabilityConfig = ObservabilityConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    shutdown: ShutdownConfig = ShutdownConfig()
    log: LogSection = LogSection()
