"""What no single key of a config can know: combinations that are unsafe or cannot work.

In: a daemon's whole struct. Out: nothing, or `ConfigError` with the key and the fix. Pure: no file is looked at.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import PurePosixPath

from ron.kernel.config import ConfigError
from ron.proto.addresses import HostPort, parse_host_port
from ron.proto.errors import RonError
from ron.services.balance.config import BalanceConfig, BalancedService
from ron.services.balance.heads.targets import Target, read_target
from ron.services.edge.config import EdgeConfig
from ron.services.gateway.config import Expose
from ron.services.kms.rules import check_kms
from ron.services.mailbox.config import MailboxConfig
from ron.services.oniond.config import FEDERATION_APP, OnionConfig
from ron.services.schemas import BalancedConfig, KmsDaemonConfig, NodeConfig, OmnigateConfig, OniondConfig
from ron.services.sections import (
    DosConfig,
    FederationConfig,
    LogSection,
    OniondSection,
    ProfilingConfig,
    SecuritySection,
    TlsConfig,
)

# folders in memory on Linux, by contract of systemd and of the file system hierarchy
MEMORY_FOLDERS = (PurePosixPath("/dev/shm"), PurePosixPath("/run/user"))  # noqa: S108 - compared with, not written to


def check_node(config: NodeConfig) -> None:
    """Rules across keys. Raises `ConfigError`."""
    check_front(config)
    if config.node.profile == "micronode" and config.gateway.workers > 1:
        raise ConfigError(
            "a micronode is one process", key="gateway.workers", hint='set it to 1, or node.profile = "macronode"'
        )
    check_onion(config.onion, config.log, config.profiling)
    if config.onion.amnesia:
        check_memory_only(config.mailbox, config.edge)
    check_trust(config.dos, config.federation, config.security)
    check_federated_onion(config.federation, config.onion, [config.onion.app])
    if config.balance.enabled:
        check_balance(config.balance, config.onion)
    if config.kms.enabled:
        check_kms(config.kms, "kms.")
        if config.onion.amnesia and not config.kms.service.amnesia:
            raise ConfigError(
                "the node keeps nothing, and its keys would stay", key="kms.service.amnesia", hint="set it to true"
            )
    if config.node.profile == "micronode" and not config.onion.embedded:
        raise ConfigError("a micronode embeds its onion runtime", key="onion.embedded", hint="set it to true")


def check_oniond(config: OniondConfig) -> None:
    """Rules across keys. Raises `ConfigError`."""
    check_addresses([("admin.bind", config.admin.bind)])
    names = [app.name for app in config.apps]
    for index, app in enumerate(config.apps):
        if app.name in names[:index]:
            raise ConfigError(f"{app.name!r} is there twice", key=f"apps[{index}].name", hint="one section per app")
        check_expose(app.expose, f"apps[{index}].expose")
    check_tls(config.admin.tls, "admin.tls")
    check_dos(config.dos)
    check_onion(config.onion, config.log, config.profiling)
    check_federation(config.federation)
    check_federated_onion(config.federation, config.onion, names)


def check_balanced(config: BalancedConfig) -> None:
    """Rules across keys. Raises `ConfigError`."""
    check_addresses([("admin.bind", config.admin.bind)])
    check_tls(config.admin.tls, "admin.tls")
    check_dos(config.dos)
    check_onion(config.onion, config.log, config.profiling)
    check_balance(config.balance, config.onion)


def check_kms_daemon(config: KmsDaemonConfig) -> None:
    """Rules across keys. Raises `ConfigError`."""
    check_kms(config)
    check_addresses([("metrics_addr", config.metrics_addr)])
    if config.metrics_addr == config.bind_addr and not config.metrics_addr.endswith(":0"):
        raise ConfigError("is the same address as bind_addr", key="metrics_addr", hint="choose another port")
    if config.service.amnesia:
        check_forgetful(config.log, config.profiling)


def check_omnigate(config: OmnigateConfig) -> None:
    """Rules across keys. Raises `ConfigError`."""
    check_front(config, ("admin.bind", config.admin.bind))
    check_tls(config.admin.tls, "admin.tls")
    check_scale(config.oniond, "oniond")
    check_trust(config.dos, config.federation, config.security)


def check_front(config: NodeConfig | OmnigateConfig, *more: tuple[str, str]) -> None:
    """What a node and an Omnigate offer alike: gateway, mailbox and control. more: (key, address) of other listeners.

    Raises `ConfigError`.
    """
    gateway, mailbox = config.gateway, config.mailbox
    check_addresses(
        [
            ("gateway.bind", gateway.bind),
            ("mailbox.listen", mailbox.listen),
            ("mailbox.ws_listen", mailbox.ws_listen),
            ("api.grpc_addr", config.api.grpc_addr),
            *more,
        ]
    )
    check_expose(gateway.expose, "gateway.expose")
    check_tls(gateway.tls, "gateway.tls")


def loopback(text: str, key: str) -> HostPort:
    """`text` as a loopback address. Raises `ConfigError` naming `key`: others reach a node through its onion."""
    try:
        address = parse_host_port(text)
    except ValueError as error:
        raise ConfigError(str(error), key=key, hint="write an address like 127.0.0.1:9080") from None
    if not address.is_loopback:
        raise ConfigError(
            f"{text} is not a loopback address", key=key, hint="use 127.0.0.1; others reach the node through its onion"
        )
    return address


def check_addresses(listeners: Sequence[tuple[str, str]]) -> None:
    """Every (key, address) on loopback, none twice; port 0 is the system's choice. Raises `ConfigError`.

    An empty text is a listener that is off, where its key allows that.
    """
    taken: dict[HostPort, str] = {}
    for key, text in listeners:
        if not text and key in {"mailbox.ws_listen", "api.grpc_addr"}:
            continue
        address = loopback(text, key)
        if address in taken and address.port:
            raise ConfigError(f"is the same address as {taken[address]}", key=key, hint="choose another port")
        taken[address] = key


def check_onion(onion: OnionConfig, log: LogSection, profiling: ProfilingConfig) -> None:
    """Amnesia means that nothing is written and nobody looks into the memory. Raises `ConfigError`."""
    if (onion.network == "joined") != bool(onion.client_torrc):
        raise ConfigError(
            "a joined network needs its operator's lines, and no other network has any",
            key="onion.client_torrc",
            hint='name snippet.torrc of a client bundle, and set onion.network = "joined"',
        )
    check_scale(onion, "onion")
    if onion.relay_labels and onion.network == "public":
        raise ConfigError(
            "on the public network tor alone chooses its guards",
            key="onion.relay_labels",
            hint="leave it out: labels are for relays of our own",
        )
    if onion.amnesia:
        check_forgetful(log, profiling)


def check_forgetful(log: LogSection, profiling: ProfilingConfig) -> None:
    """What amnesia forbids every daemon. Raises `ConfigError`."""
    if log.to == "file":
        raise ConfigError("amnesia writes no log file", key="log.to", hint='set it to "memory" or "stderr"')
    if profiling.enabled:
        raise ConfigError(
            "a profile shows what amnesia is to forget",
            key="profiling.enabled",
            hint="leave it out, or set it to false",
        )


def check_memory_only(mailbox: MailboxConfig, edge: EdgeConfig) -> None:
    """Under amnesia no folder may outlive the machine. Raises `ConfigError`."""
    for key, folder in (("mailbox.dead_letter_dir", mailbox.dead_letter_dir), ("edge.cache_dir", edge.cache_dir)):
        if folder and not _in_memory(folder):
            places = " or ".join(str(m) for m in MEMORY_FOLDERS)
            raise ConfigError(
                "amnesia keeps nothing in a folder that persists",
                key=key,
                hint=f"leave it out, or name one below {places}",
            )


def check_trust(dos: DosConfig, federation: FederationConfig, security: SecuritySection) -> None:
    """Protection that would not be there must not look as if it were. Raises `ConfigError`."""
    check_federation(federation)
    if security.attestation:
        raise ConfigError("attestation is not built yet", key="security.attestation", hint="set it to false")
    check_dos(dos)


def check_federation(federation: FederationConfig) -> None:
    """Peers are onions, each with one way to it, and prove themselves. Raises `ConfigError`."""
    if not federation.enabled:
        return
    if not federation.zk_handshake:
        raise ConfigError("federation needs it", key="federation.zk_handshake", hint="set it to true")
    _check_peers(federation.allow, "federation.allow[{}]")
    _check_peers([peer.onion for peer in federation.peer], "federation.peer[{}].onion")
    for index, peer in enumerate(federation.peer):
        if not 0 < int(peer.socks.rpartition(":")[2]) < 65536:
            raise ConfigError(f"{peer.socks} is no port", key=f"federation.peer[{index}].socks", hint="1 to 65535")


def _check_peers(onions: Sequence[str], key: str) -> None:
    # what only a node that federates needs is loaded by none other
    from ron.services.oniond.federation.messages import check_onion

    for index, onion in enumerate(onions):
        try:
            check_onion(onion)
        except RonError as error:
            raise ConfigError(f"{onion[:80]}: {error.message}", key=key.format(index), hint=error.hint) from None
        if onion in onions[:index]:
            raise ConfigError("is there twice", key=key.format(index), hint="remove one of them")


def check_federated_onion(federation: FederationConfig, onion: OnionConfig, apps: Sequence[str]) -> None:
    """Peers know a node by an address that stays, and no app has the name of that onion. Raises `ConfigError`."""
    if not federation.enabled:
        return
    if onion.amnesia:
        raise ConfigError(
            "amnesia gives the node another onion at each start, and no peer could have it on its list",
            key="federation.enabled",
            hint="set it to false, or onion.amnesia to false",
        )
    if FEDERATION_APP in apps:
        raise ConfigError(f"an app is called {FEDERATION_APP!r}", key="federation.enabled", hint="rename the app")
    _check_peers(onion.federate_peers, "onion.federate_peers[{}]")
    for index, peer in enumerate(onion.federate_peers):
        if peer not in federation.allow:
            hint = "add it to federation.allow"
            raise ConfigError("this peer is not allowed", key=f"onion.federate_peers[{index}]", hint=hint)


def check_balance(balance: BalanceConfig, onion: OnionConfig) -> None:
    """Nodes that can find one another, on one Tor network, with something to publish. Raises `ConfigError`."""
    if not balance.services:
        raise ConfigError("there is nothing to balance", key="balance.services", hint="add [[balance.services]]")
    for index, service in enumerate(balance.services):
        _check_balanced_service(service, [other.name for other in balance.services[:index]], index)
    _check_one_target_a_port(balance.services)
    if balance.suspect_ms < 3 * balance.beat_ms:
        hint = f"{3 * balance.beat_ms} or more"
        raise ConfigError("one lost beat must not be a dead node", key="balance.suspect_ms", hint=hint)
    if onion.network == "private" and balance.seeds:
        raise ConfigError(
            "a private network of this host alone has no room for other nodes",
            key="onion.network",
            hint='nodes of one cluster share a network: "joined" with onion.client_torrc, or "public"',
        )
    onions = [
        address for address in (balance.advertise, *balance.seeds) if address.partition(":")[0].endswith(".onion")
    ]
    if onions and not balance.socks:
        raise ConfigError(
            "an onion is reached through a tor only", key="balance.socks", hint="name its SOCKS port, 127.0.0.1:9050"
        )
    if onion.amnesia and not _in_memory(balance.directory):
        places = " or ".join(str(m) for m in MEMORY_FOLDERS)
        raise ConfigError(
            "amnesia keeps nothing in a folder that persists", key="balance.directory", hint=f"name one below {places}"
        )


def _check_balanced_service(service: BalancedService, others: Sequence[str], index: int) -> None:
    key = f"balance.services[{index}]"
    if service.name in others:
        raise ConfigError(f"{service.name!r} is there twice", key=f"{key}.name", hint="one section per service")
    if service.threshold > service.members:
        raise ConfigError(
            f"{service.threshold} of {service.members} can never sign",
            key=f"{key}.threshold",
            hint="lower it, or raise members",
        )
    seen: set[int] = set()
    for number, port in enumerate(service.ports):
        where = f"{key}.ports[{number}]"
        try:
            onion_port = read_target(port).onion_port
        except RonError as error:
            raise ConfigError(error.message, key=where, hint=error.hint or "write 80:127.0.0.1:8080") from None
        if onion_port in seen:
            raise ConfigError(f"{onion_port} is there twice", key=where, hint="remove one of them")
        seen.add(onion_port)
    if service.clients:
        _check_clients(service.clients, key)


def _check_one_target_a_port(services: Sequence[BalancedService]) -> None:
    """A node has one head for all its addresses, and a port of it leads to one place. Raises `ConfigError`."""
    taken: dict[int, tuple[Target, str]] = {}
    for index, service in enumerate(services):
        for number, port in enumerate(service.ports):
            target, key = read_target(port), f"balance.services[{index}].ports[{number}]"
            known, where = taken.setdefault(target.onion_port, (target, key))
            if known != target:
                raise ConfigError(
                    f"port {target.onion_port} leads to {target} here and to {known} in {where}",
                    key=key,
                    hint="a node has one head for all its services: give them different ports, or one target",
                )


def _check_clients(clients: Sequence[str], key: str) -> None:
    # it brings tor's protocols along, which most who read a config do not need
    from ron.tor.clientauth import parse_public

    for number, client in enumerate(clients):
        try:
            parse_public(client)
        except RonError as error:
            raise ConfigError(
                error.message, key=f"{key}.clients[{number}]", hint=error.hint or "make a new client key"
            ) from None
        if client in clients[:number]:
            raise ConfigError("it is there twice", key=f"{key}.clients[{number}]", hint="remove one of them")


def _in_memory(folder: str) -> bool:
    # normpath: `/dev/shm/../../var` is not in memory
    return any(memory in PurePosixPath(posixpath.normpath(folder)).parents for memory in MEMORY_FOLDERS)


def check_dos(dos: DosConfig) -> None:
    """Raises `ConfigError` when the difficulty is beyond its own bound."""
    if dos.pow_difficulty > dos.pow_upper_bound:
        raise ConfigError(
            f"{dos.pow_difficulty} is over dos.pow_upper_bound ({dos.pow_upper_bound})",
            key="dos.pow_difficulty",
            hint="lower it, or raise the bound",
        )


def check_scale(section: OniondSection | OnionConfig, name: str) -> None:
    """Raises `ConfigError` when there is no number of tors that fits."""
    if section.scale_min > section.scale_max:
        raise ConfigError(
            f"{section.scale_min} is over {name}.scale_max ({section.scale_max})",
            key=f"{name}.scale_min",
            hint=f"lower it, or raise {name}.scale_max",
        )


def check_tls(tls: TlsConfig | None, key: str) -> None:
    """A certificate and its key, both or the table left out. Raises `ConfigError`."""
    if tls is None:
        return
    for name, path in (("certificate", tls.certificate), ("key", tls.key)):
        if not path:
            raise ConfigError("TLS needs a certificate and its key", key=f"{key}.{name}", hint="name its PEM file")
    if tls.clients and not tls.client_ca:
        raise ConfigError(
            "nobody is asked for a certificate, so none can be told from another",
            key=f"{key}.client_ca",
            hint="name the CA that signs the clients, or leave out clients",
        )


def check_expose(expose: tuple[Expose, ...], key: str) -> None:
    """Every onion port once, and something to answer it. Raises `ConfigError`."""
    ports = [e.onion_port for e in expose]
    for index, port in enumerate(ports):
        if port in ports[:index]:
            raise ConfigError(f"{port} is exposed twice", key=f"{key}[{index}].onion_port", hint="remove one of them")
        if loopback(expose[index].local, f"{key}[{index}].local").port == 0:
            raise ConfigError("nothing listens on port 0", key=f"{key}[{index}].local", hint="name the service's port")
