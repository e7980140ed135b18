"""The Micronode: every part in one process, each under the supervisor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ron.kernel import Config
from ron.kernel.supervisor import Unit
from ron.nodes.listeners import BoundSocket
from ron.nodes.node import Node
from ron.nodes.parts import Host, PartUnit, load_part, wanted
from ron.nodes.runtime import Runtime
from ron.services.configs import NodeConfig

if TYPE_CHECKING:
    from ron.nodes.control import ControlServer


class Micronode(Node):
    """All parts share one `Runtime`; the gateway calls the edge directly."""

    def __init__(
        self,
        runtime: Runtime,
        config: Config[NodeConfig],
        sockets: dict[str, BoundSocket],
        control: ControlServer | None,
    ) -> None:
        super().__init__(runtime, config, sockets, control)
        self._host = Host(
            runtime=runtime,
            config=config.current,
            addresses=self.addresses,
            sockets={name: socket.fileno() for name, socket in sockets.items()},
            run=self.run,
        )
        self._parts = {name: load_part(name, self._host) for name in wanted(config.current)}

    def units(self) -> Iterator[tuple[str, Unit]]:
        """One of each part."""
        for name, part in self._parts.items():
            yield name, PartUnit(name, part)
