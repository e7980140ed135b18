"""A part is one service made ready to be hosted: alone in a child process, or beside the others in a Micronode.

In: the `Host` (what the process shares) and the config. Out: a unit for the supervisor that listens, answers its
commands on the bus and drains; the composition never looks inside. PARTS says where each lives and what it requires.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from twisted.logger import Logger

from ron.kernel.commands import Handlers
from ron.kernel.config import value_at
from ron.kernel.inprocess import ServiceUnit
from ron.nodes.listeners import Listening
from ron.nodes.runtime import Runtime
from ron.proto.addresses import HostPort
from ron.services.configs import NodeConfig
from ron.services.sections import TlsConfig
from ron.web.health import NodeView
from ron.web.site import RonSite

_log = Logger(namespace="ron.node")


class PartSpec(NamedTuple):
    """Where a part's class is, what must be up before it, and whether the node is nothing without it.

    in_node: it lives in the node's own process in either profile. when: the key that has to be true for it to be there
    at all; empty: always.
    """

    module: str
    attribute: str
    requires: tuple[str, ...] = ()
    essential: bool = False
    start_s: float = 30.0
    in_node: bool = False
    when: str = ""


# What the edge of a Macronode listens on, for its gateways.
EDGE_SOCKET = "edge.sock"
# The TLS listener beside a plain one.
TLS_SUFFIX = "-tls"
# Which listeners of the node a part accepts from.
LISTENERS: dict[str, tuple[str, ...]] = {"gateway": ("gateway", "gateway" + TLS_SUFFIX), "mailbox": ("mailbox",)}
# In the order of what they need. Modules are imported only by the process that hosts the part.
PARTS: dict[str, PartSpec] = {
    "edge": PartSpec("ron.nodes.parts.edge", "EdgePart"),
    "mailbox": PartSpec("ron.nodes.parts.mailbox", "MailboxPart"),
    "gateway": PartSpec("ron.nodes.parts.gateway", "GatewayPart", requires=("edge",), essential=True),
    "tornet": PartSpec("ron.nodes.parts.tornet", "TornetPart", essential=True, start_s=620, in_node=True),
    "oniond": PartSpec(
        "ron.nodes.parts.oniond",
        "OniondPart",
        requires=("gateway", "mailbox", "tornet"),
        essential=True,
        start_s=150,
    ),
    "balance": PartSpec(
        "ron.nodes.parts.balance",
        "BalancePart",
        requires=("tornet",),
        start_s=120,
        in_node=True,
        when="balance.enabled",
    ),
    "kms": PartSpec("ron.nodes.parts.kms", "KmsPart", start_s=120, in_node=True, when="kms.enabled"),
    "hello": PartSpec("ron.nodes.parts.hello", "HelloPart", requires=("oniond",)),
}


@dataclass(kw_only=True)
class Host:
    """What a part is given.

    addresses: where the node's listeners are, by name. sockets: what this process accepts from, by name.
    run: the folder for Unix sockets. local: the parts that live in the same process. view: whose health the listeners
    show, where it is not the process's own.
    """

    runtime: Runtime
    config: NodeConfig
    addresses: Mapping[str, HostPort]
    sockets: Mapping[str, int | Path]
    run: Path
    local: dict[str, Part] = field(default_factory=dict)
    view: NodeView | None = None


class Part:
    """One hosted service. Subclasses fill `service`, and override what they have."""

    service: Any

    def __init__(self, host: Host) -> None:
        self.host = host

    async def ready(self) -> None:
        """Return when the service is up; raise `RonError` when it cannot come up."""

    def handlers(self) -> Handlers:
        """Its commands on the bus."""
        return {}

    def sites(self) -> Mapping[str, RonSite]:
        """What it answers, by the name of the listener."""
        return {}

    def where(self, listener: str) -> int | Path:
        """What it accepts from for `listener`."""
        return self.host.sockets[listener]

    def tls(self, _listener: str) -> TlsConfig | None:
        """The certificate files of the listener that speaks TLS beside `_listener`, if there is one."""
        return None


def wanted(config: NodeConfig) -> dict[str, PartSpec]:
    """Those of PARTS that a node with `config` has, in their order."""
    return {name: spec for name, spec in PARTS.items() if not spec.when or value_at(config, spec.when)}


def preload() -> None:
    """Import every part now, so that none has to be when it is needed in a hurry."""
    for spec in (spec for spec in PARTS.values() if not spec.in_node):
        importlib.import_module(spec.module)


def load_part(name: str, host: Host) -> Part:
    """The part called `name`, made for `host`."""
    spec = PARTS[name]
    part: Part = getattr(importlib.import_module(spec.module), spec.attribute)(host)
    host.local[name] = part
    return part


class PartUnit(ServiceUnit):
    """A part under the supervisor: service first, then its listeners and commands; in reverse at the end."""

    def __init__(self, name: str, part: Part) -> None:
        super().__init__(name, part.service, ready=part.ready)
        self._part = part
        self._sites = part.sites()
        self._listening: list[Listening] = []
        self._unserve: Callable[[], None] = _nothing

    async def start(self, crashed: Callable[[str], None]) -> None:
        """Up, listening and answering."""
        await super().start(crashed)
        host = self._part.host
        for listener, site in self._sites.items():
            self._listening.append(host.runtime.listen(self._part.where(listener), site))
            tls = self._part.tls(listener)
            if tls is not None:
                where = host.sockets[listener + TLS_SUFFIX]
                self._listening.append(host.runtime.listen_tls(where, site, listener, tls))
        handlers = self._part.handlers()
        if handlers:
            # queries answer at once; a command that waits on the network must not hold up the others
            self._unserve = host.runtime.bus.serve(self.name, handlers, concurrency=16)

    async def stop(self) -> None:
        """Accept no more, finish, drain."""
        listening, self._listening = self._listening, []
        for one in listening:
            await one.stop_accepting()
        await super().stop()
        runtime = self._part.host.runtime
        for site in self._sites.values():
            runtime.count_cut_off(await site.drain(runtime.drain_s))
        self._end_serving()

    def abort(self) -> None:
        """Crash-only: hang up, stop the service without waiting."""
        listening, self._listening = self._listening, []
        for one in listening:
            one.abort()
        self._end_serving()
        super().abort()

    def _end_serving(self) -> None:
        unserve, self._unserve = self._unserve, _nothing
        unserve()


def _nothing() -> None:
    pass
