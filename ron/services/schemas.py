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
from ron.services.mailbox.config import MailboxConfig
from ron.services.oniond.config import OnionConfig
from ron.services.sections import (
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


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`twistd -n ron-node --config FILE`."""

    node: NodeSection = NodeSection()
    onion: OnionConfig = OnionConfig()
    balance: BalanceConfig = BalanceConfig()
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
