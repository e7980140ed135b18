"""Ways for onions to leave a tor: it uploads nothing more, and serves on for whoever is there already (SETCONF of
PublishHidServDescriptors; control-spec §3.27, §3.28). And guards that a tor is to prefer (EntryNodes).

In: a control connection, what is to be. Out: nothing; `TorSilent` when tor does not answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from txtorcon import TorControlProtocol
from txtorcon.torcontrolprotocol import TorDisconnectError, TorProtocolError

from ron.kernel.aio import within
from ron.proto.errors import ErrorCode, RonError
from ron.tor.control import ANSWER_TIMEOUT_S, TorSilent, ask, connect_control
from ron.tor.onions import OnionSpec

_FINGERPRINT = re.compile(r"[0-9A-F]{40}\Z")


async def mute(reactor: Any, control: TorControlProtocol, *, muted: bool) -> None:
    """A muted tor uploads no descriptor of any of its onions; a tor that was started anew is not muted."""
    await _told(reactor, control.queue_command(f"SETCONF PublishHidServDescriptors={0 if muted else 1}"))


async def unlist(reactor: Any, port: int, specs: Sequence[OnionSpec]) -> None:
    """On a muted tor: end the introduction points of `specs`, and serve on those who have been introduced.

    DEL_ONION alone would refuse every new stream on a circuit that is there. So each service is added again at once,
    with introduction points that no descriptor names; the circuits find it by its key. Whoever comes in between is
    refused, and one connection answers a command before it takes the next: two are made, and both commands are on
    their way before either is answered.
    """
    first, second = [await connect_control(reactor, port) for _ in range(2)]
    try:
        for spec in specs:
            await _swap(reactor, first, second, spec)
    finally:
        for control in (first, second):
            control.transport.abortConnection()


async def _swap(reactor: Any, first: TorControlProtocol, second: TorControlProtocol, spec: OnionSpec) -> None:
    gone = first.queue_command(f"DEL_ONION {spec.address.removesuffix('.onion')}")
    back = second.queue_command(f"ADD_ONION {spec.key.blob} {spec.arguments()}")
    # the reactor would write later, and in any order
    for control in (first, second):
        control.transport.doWrite()
    # whichever fails, the other must not be left alone with its failure; a repetition finds the first one done
    _deleted, trouble = [await _outcome(reactor, answer) for answer in (gone, back)]
    if trouble is not None:  # they came in the other order, and it was there still
        await _told(reactor, second.queue_command(f"ADD_ONION {spec.key.blob} {spec.arguments()}"))


async def prefer_guards(reactor: Any, control: TorControlProtocol, fingerprints: Sequence[str]) -> tuple[str, ...]:
    """Enter the network by those of `fingerprints` that run at present; by any when none of them does. Those chosen."""
    running = [one for one in fingerprints if _FINGERPRINT.match(one) and await _runs(reactor, control, one)]
    wanted = f'SETCONF EntryNodes="{",".join(f"${one}" for one in running)}" StrictNodes=0'
    await _told(reactor, control.queue_command(wanted if running else "RESETCONF EntryNodes StrictNodes"))
    return tuple(running)


async def _runs(reactor: Any, control: TorControlProtocol, fingerprint: str) -> bool:
    try:
        status = await ask(reactor, control, f"ns/id/{fingerprint}")
    except TorProtocolError:
        return False  # tor knows no such relay
    return any(line.startswith("s ") and "Running" in line.split() for line in status.splitlines())


async def _outcome(reactor: Any, answer: Deferred[Any]) -> RonError | None:
    try:
        await _told(reactor, answer)
    except RonError as error:
        return error
    return None


async def _told(reactor: Any, answer: Deferred[Any]) -> None:
    try:
        await within(reactor, ANSWER_TIMEOUT_S, answer)
    except (DeadlineError, TorDisconnectError):
        raise TorSilent from None
    except TorProtocolError as error:
        # tor's text may quote the line it refuses, and with it a key
        raise RonError(ErrorCode.INTERNAL, f"tor refused: error {error.code}") from None
