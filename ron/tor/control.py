"""The ControlPort, through txtorcon: connect with the cookie, ask how far tor has come.

In: a port. Out: an authenticated `TorControlProtocol`; bootstrap progress; how whole the consensus is.
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.interfaces import IReactorTCP, IReactorTime
from txtorcon import TorControlProtocol, TorProtocolFactory
from txtorcon.torcontrolprotocol import TorDisconnectError

from ron.kernel.aio import within
from ron.proto.errors import ErrorCode, RonError

CONNECT_TIMEOUT_S = 5
ANSWER_TIMEOUT_S = 10
T = TypeVar("T")
_PHASE = re.compile(r'PROGRESS=(?P<percent>\d+) TAG=(?P<tag>\S+) SUMMARY="(?P<summary>[^"]*)"')


class TorSilent(RonError):
    """Unavailable: tor did not answer, or the connection to it has gone. It may only be busy with other things of ours.

    The error it stands for would quote the command, and with it a key.
    """

    def __init__(self) -> None:
        super().__init__(ErrorCode.STORE_UNAVAILABLE, "tor does not answer on its control port")


class Bootstrap(NamedTuple):
    """How far a tor has come: percent 0–100, tor's tag and its summary for people."""

    percent: int
    tag: str
    summary: str


async def connect_control(reactor: IReactorTCP, port: int) -> TorControlProtocol:
    """An authenticated control connection (cookie, SAFECOOKIE). Raises when tor is not there or refuses."""
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port, timeout=CONNECT_TIMEOUT_S)
    protocol = cast(TorControlProtocol, await endpoint.connect(TorProtocolFactory()))
    try:
        await within(reactor, ANSWER_TIMEOUT_S, protocol.post_bootstrap)
    except BaseException:
        protocol.transport.abortConnection()
        raise
    return protocol


async def answered(reactor: IReactorTime, answer: Deferred[T]) -> T:
    """What tor says to a command, within 10 s. Raises `TorSilent`, and `TorProtocolError` when it refuses: its text may
    quote the command, and is for nobody's eyes."""
    try:
        return await within(reactor, ANSWER_TIMEOUT_S, answer)
    except (DeadlineError, TorDisconnectError):
        raise TorSilent from None


async def ask(reactor: IReactorTCP, control: TorControlProtocol, key: str) -> str:
    """`GETINFO key`, as text, within 10 s."""
    answer: Deferred[dict[str, str]] = control.get_info(key)
    return str((await within(reactor, ANSWER_TIMEOUT_S, answer))[key])


async def bootstrap(reactor: IReactorTCP, control: TorControlProtocol) -> Bootstrap:
    """tor's bootstrap phase now."""
    match = _PHASE.search(await ask(reactor, control, "status/bootstrap-phase"))
    return Bootstrap(int(match["percent"]), match["tag"], match["summary"]) if match else Bootstrap(0, "?", "starting")


async def count_hsdirs(reactor: IReactorTCP, control: TorControlProtocol) -> int:
    """How many running onion directories (HSDir) this tor's consensus lists."""
    return count_flagged(await ask(reactor, control, "ns/all"), {"Running", "HSDir", "Guard"})


def count_flagged(ns_all: str, flags: set[str]) -> int:
    """Routers in a `ns/all` text that carry all of `flags` (control-spec §3.9, dir-spec §3.4.1)."""
    return sum(1 for line in ns_all.splitlines() if line.startswith("s ") and flags <= set(line.split()[1:]))
