"""Ways for onions to leave a tor: it uploads nothing more, and serves on for whoever is there already (SETCONF of
PublishHidServDescriptors; control-spec §3.27, §3.28). And guards that a tor is to prefer (EntryNodes).

In: a control connection, what is to be. Out: nothing; `TorSilent` when tor does not answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.defer import TimeoutError as DeadlineError
from txtorcon import TorControlProtocol
from txtorcon.torcontrolprotocol import TorProtocolError

from ron.kernel.aio import within
from ron.proto.errors import ErrorCode, RonError
from ron.tor.control import ANSWER_TIMEOUT_S, TorSilent, answered, ask, connect_control
from ron.tor.onions import OnionSpec

_FINGERPRINT = re.compile(r"[0-9A-F]{40}\Z")


async def mute(reactor: Any, control: TorControlProtocol, *, muted: bool) -> None:
    """A muted tor uploads no descriptor of any of its onions; a tor that was started anew is not muted."""
    await _told(reactor, control.queue_command(f"SETCONF PublishHidServDescriptors={0 if muted else 1}"))


async def unlist(reactor: Any, port: int, specs: Sequence[OnionSpec]) -> None:
    """On a muted tor: end the introduction points of `specs`, and serve on those who have been introduced.

    DEL_ONION alone would refuse every new stream on a circuit that is there. So each service is added again at once,
    with introduction points that no descriptor names; the circuits find it by its key. Whoever comes in between is
    refused: both commands are written in one go, for tor takes all that has come before it looks at anything else.
    """
    lines = [
        line for spec in specs for line in (f"DEL_ONION {_bare(spec)}", f"ADD_ONION {spec.key.blob} {spec.arguments()}")
    ]
    control = await connect_control(reactor, port)
    try:
        answers: list[tuple[bool, Any]] = await within(reactor, ANSWER_TIMEOUT_S, _in_one_go(control, lines))
    except DeadlineError:
        raise TorSilent from None
    finally:
        control.transport.abortConnection()
    for added, failure in answers[1::2]:  # one that was gone already is what was wanted
        if not added and not failure.check(TorProtocolError):
            raise TorSilent
        if not added:
            # tor's text may quote the line it refuses, and with it a key
            raise RonError(ErrorCode.INTERNAL, f"tor refused the onion: error {failure.value.code}")


def _in_one_go(control: TorControlProtocol, lines: Sequence[str]) -> Any:
    """Whether each of `lines` was taken, and why not; the connection is of no use afterwards.

    txtorcon sends a command when the one before is answered. These go out as one, and what is queued behind it is
    there to be given the answers; the answers to that never come, for we have hung up by then.
    """
    answers = [
        control.queue_command("\r\n".join(lines)),
        *(control.queue_command("GETINFO version") for _ in lines[1:]),
    ]
    answers[-1].addBoth(_hang_up, control)
    return DeferredList(answers, consumeErrors=True)


def _hang_up(answer: Any, control: TorControlProtocol) -> Any:
    control.transport.abortConnection()
    return answer


def _bare(spec: OnionSpec) -> str:
    return spec.address.removesuffix(".onion")


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


async def _told(reactor: Any, answer: Deferred[Any]) -> None:
    try:
        await answered(reactor, answer)
    except TorProtocolError as error:
        # tor's text may quote the line it refuses, and with it a key
        raise RonError(ErrorCode.INTERNAL, f"tor refused: error {error.code}") from None
