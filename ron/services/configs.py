"""The whole config of each daemon: one strict struct, its sections from the rooms they belong to, rules across keys.

In: a file's tables. Out: the struct its daemon is composed from. `ronctl validate` and the daemons judge alike.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from ron.kernel.config import ConfigError
from ron.proto.addresses import HostPort, parse_host_port
from ron.services.edge.config import EdgeConfig
from ron.services.gateway.config import Expose, GatewayConfig
from ron.services.mailbox.config import MailboxConfig
from ron.services.oniond.config import AppName, OnionConfig


class NodeSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """profile: micronode runs everything in one process."""

    profile: Literal["micronode"] = "micronode"


class LogSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """level: the least that is logged. to: `file` is `$RON_HOME/log/`, rotated; `memory` keeps a ring only."""

    level: Literal["debug", "info", "warn", "error"] = "info"
    to: Literal["file", "stderr", "memory"] = "file"


class E2ESection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """pq_hybrid: seal with ML-KEM-768+X25519 (suite 1); false falls back to X25519 alone (suite 0)."""

    pq_hybrid: bool = True


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`twistd -n ron-node --config FILE`."""

    node: NodeSection = NodeSection()
    onion: OnionConfig = OnionConfig()
    mailbox: MailboxConfig = MailboxConfig()
    e2e: E2ESection = E2ESection()
    edge: EdgeConfig = EdgeConfig()
    gateway: GatewayConfig = GatewayConfig()
    log: LogSection = LogSection()


class AppSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One app's onion and the ports it exposes."""

    name: AppName
    expose: Annotated[tuple[Expose, ...], msgspec.Meta(min_length=1, max_length=16)]


class AdminSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """bind: where a process without a gateway serves its health endpoints."""

    bind: str = "127.0.0.1:9909"


class OniondConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`twistd -n ron-oniond --config FILE`."""

    apps: Annotated[tuple[AppSection, ...], msgspec.Meta(min_length=1, max_length=64)]
    onion: OnionConfig = OnionConfig()
    admin: AdminSection = AdminSection()
    log: LogSection = LogSection()


def home_directory() -> Path:
    """Where state lives: `RON_HOME`, by default `var` in the working directory. Absolute."""
    return Path(os.environ.get("RON_HOME") or "var").absolute()


def loopback(text: str, key: str) -> HostPort:
    """`text` as a loopback address. Raises `ConfigError` naming `key`: nothing else is safe without TLS."""
    try:
        address = parse_host_port(text)
    except ValueError as error:
        raise ConfigError(str(error), key=key, hint="write an address like 127.0.0.1:9080") from None
    if not address.is_loopback:
        raise ConfigError(
            f"{text} is not a loopback address", key=key, hint="use 127.0.0.1; others reach the node through its onion"
        )
    return address


def check_node(config: NodeConfig) -> None:
    """Rules across keys. Raises `ConfigError`."""
    gateway = loopback(config.gateway.bind, "gateway.bind")
    mailbox = loopback(config.mailbox.listen, "mailbox.listen")
    if gateway == mailbox and gateway.port:
        raise ConfigError("is the same address as gateway.bind", key="mailbox.listen", hint="choose another port")
    check_expose(config.gateway.expose, "gateway.expose")
    check_onion(config.onion, config.log)
    if not config.onion.embedded:
        raise ConfigError("a micronode embeds its onion runtime", key="onion.embedded", hint="set it to true")


def check_oniond(config: OniondConfig) -> None:
    """Rules across keys. Raises `ConfigError`."""
    loopback(config.admin.bind, "admin.bind")
    names = [app.name for app in config.apps]
    for index, app in enumerate(config.apps):
        if app.name in names[:index]:
            raise ConfigError(f"{app.name!r} is there twice", key=f"apps[{index}].name", hint="one section per app")
        check_expose(app.expose, f"apps[{index}].expose")
    check_onion(config.onion, config.log)


def check_onion(onion: OnionConfig, log: LogSection) -> None:
    """Amnesia means that nothing is written. Raises `ConfigError`."""
    if onion.amnesia and log.to == "file":
        raise ConfigError("amnesia writes no log file", key="log.to", hint='set it to "memory" or "stderr"')


def check_expose(expose: tuple[Expose, ...], key: str) -> None:
    """Every onion port once, and something to answer it. Raises `ConfigError`."""
    ports = [e.onion_port for e in expose]
    for index, port in enumerate(ports):
        if port in ports[:index]:
            raise ConfigError(f"{port} is exposed twice", key=f"{key}[{index}].onion_port", hint="remove one of them")
        if loopback(expose[index].local, f"{key}[{index}].local").port == 0:
            raise ConfigError("nothing listens on port 0", key=f"{key}[{index}].local", hint="name the service's port")


SCHEMAS: dict[str, tuple[type[Any], Callable[[Any], None]]] = {
    "ron-node": (NodeConfig, check_node),
    "ron-oniond": (OniondConfig, check_oniond),
}


def daemon_of(tables: dict[str, Any]) -> str:
    """Whose config this is: a file with `[[apps]]` or `[admin]` is ron-oniond's, any other ron-node's."""
    return "ron-oniond" if "apps" in tables or "admin" in tables else "ron-node"
