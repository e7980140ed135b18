"""What is told of a set of tors: how far its bring-up has come, and the file that shows how it stands.

In: nothing. Out: `Stage` for who watches a start, `NetworkFacts` for `tornet.json` and whoever reads it.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

FACTS_FILE = "tornet.json"


class Stage(NamedTuple):
    """Progress of a bring-up: which stage, how much of it is done, and what for people to read."""

    name: str
    done: int
    total: int
    detail: str = ""


class TorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One tor as `tornet status` shows it."""

    name: str
    role: str
    pid: int | None
    up: bool
    percent: int
    restarts: int
    control_port: int
    socks_port: int | None = None


class NetworkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The network as written to `tornet.json` and shown by `ronctl tornet status`."""

    directory: str
    supervisor_pid: int
    state: str
    stage: str
    tors: tuple[TorFacts, ...]
