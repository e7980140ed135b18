"""What a child process is told by the node that starts it, besides the config they share.

In: a part, addresses, listening descriptors. Out: the same on the other end of a socket pair, descriptors and all
(unix(7) SCM_RIGHTS), so that neither the command line nor the environment shows the bus's password, and a process can
be started before anybody knows which part it will host.
"""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import msgspec

from ron.proto.addresses import HostPort, parse_host_port
from ron.proto.errors import RonError, bad_request
from ron.services.configs import NodeConfig

# The child's end of the pair.
DESCRIPTOR = 3
# Set for children only: a person who starts one gets a clear word instead of a process that waits.
VARIABLE = "RON_PROCESS_CHILD"
_SPARE = "spare"
_LENGTH = struct.Struct(">I")
_MAX_BYTES = 1024 * 1024
_MAX_DESCRIPTORS = 16


class Wiring(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """process: our name on the bus. part: which service we host. bus: the hub's socket. word: its password. run: the
    folder of Unix sockets. config: what the node runs on. ram: under amnesia, the node's folder in memory. listeners:
    what we accept from. addresses: where the node's listeners are.
    """

    process: str
    part: str
    bus: str
    word: str
    run: str
    config: NodeConfig
    ram: str = ""
    listeners: tuple[str, ...] = ()
    addresses: dict[str, str] = {}

    def host_ports(self) -> dict[str, HostPort]:
        """`addresses`, parsed."""
        return {name: parse_host_port(text) for name, text in self.addresses.items()}

    @property
    def bus_path(self) -> Path:
        """The hub's socket."""
        return Path(self.bus)


def environment(*, spare: bool) -> dict[str, str]:
    """For a child's environment. spare: it has time to get ready before it is told what it is."""
    return {VARIABLE: _SPARE if spare else "1"}


def is_spare() -> bool:
    """True in a process that was started before anybody needed it."""
    return os.environ.get(VARIABLE) == _SPARE


def give(end: socket.socket, wiring: Wiring, descriptors: list[int]) -> None:
    """Tell the child at the other end of `end` what it is; one descriptor for each of `wiring.listeners`."""
    raw = msgspec.json.encode(wiring)
    # all of it must fit the kernel's buffer, for the child may be busy importing
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_BYTES)
    socket.send_fds(end, [_LENGTH.pack(len(raw))], descriptors)
    end.sendall(raw)


def take() -> tuple[Wiring, dict[str, int]]:
    """What we are, and our listening descriptors by name. Blocks until we are told; SystemExit when the node has gone.

    Raises `RonError` when a person started us.
    """
    if not os.environ.get(VARIABLE):
        raise _not_a_child()
    try:
        with socket.socket(fileno=DESCRIPTOR) as end:
            end.setblocking(True)
            head, descriptors, _flags, _address = socket.recv_fds(end, _LENGTH.size, _MAX_DESCRIPTORS)
            raw = _receive(end, head)
    except OSError:
        raise _not_a_child() from None
    if not raw:
        raise SystemExit(0)
    try:
        wiring = msgspec.json.decode(raw, type=Wiring)
        return wiring, dict(zip(wiring.listeners, descriptors, strict=True))
    except (msgspec.MsgspecError, ValueError) as error:
        raise bad_request(f"the node's word to us is damaged: {error}") from None


def _receive(end: socket.socket, head: bytes) -> bytes:
    """The message that `head` announces; nothing when the node went away."""
    left = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else 0
    chunks: list[bytes] = []
    while 0 < left <= _MAX_BYTES and (chunk := end.recv(left)):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks) if left == 0 else b""


def _not_a_child() -> RonError:
    return bad_request(
        "this is one service of a node, started by the node itself",
        hint="run: twistd -n ron-node --config etc/macronode.toml",
    )
