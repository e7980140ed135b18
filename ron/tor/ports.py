"""Free loopback ports, chosen once and remembered, so that a network keeps its addresses from start to start.

In: the names that need a port. Out: name → port; a remembered port that someone else has taken since is replaced.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ron.kernel.files import write_private
from ron.proto.errors import unavailable

# Below the kernel's ephemeral range (32768 up), so that an outgoing connection never takes a port we have chosen.
FIRST_PORT, LAST_PORT = 20000, 31999
_TRIES = 2000


def is_free(port: int) -> bool:
    """True when `port` can be bound on 127.0.0.1 right now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def remembered_ports(path: Path, names: Sequence[str], rng: random.Random | None = None) -> dict[str, int]:
    """A free port for each of `names`: the ones `path` remembers where still free, new ones otherwise; saved."""
    rng = rng if rng is not None else random.SystemRandom()
    old = _load(path)
    chosen: dict[str, int] = {}
    for name in names:
        port = old.get(name, 0)
        if FIRST_PORT <= port <= LAST_PORT and port not in chosen.values() and is_free(port):
            chosen[name] = port
    for name in names:
        if name not in chosen:
            chosen[name] = _pick(rng, set(chosen.values()))
    if chosen != old:
        write_private(path, msgspec.json.encode(chosen))
    return chosen


def _load(path: Path) -> dict[str, int]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, int])
    except (FileNotFoundError, UnicodeDecodeError, msgspec.MsgspecError):
        return {}


def _pick(rng: random.Random, taken: set[int]) -> int:
    for _ in range(_TRIES):
        port = rng.randint(FIRST_PORT, LAST_PORT)
        if port not in taken and is_free(port):
            return port
    raise unavailable(f"no free port between {FIRST_PORT} and {LAST_PORT}", hint="stop what holds them: ss -ltnp")
