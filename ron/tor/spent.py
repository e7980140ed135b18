"""Ends a tor's circuits that have done their work.

Each descriptor upload has a circuit of its own, which tor keeps for ten minutes more; and two introduction circuits of
five are left over for each descriptor and stay to spare. Much of what tor does takes longer the more circuits it has,
so that every hundred services made the next hundred slower.

In: CIRC, CIRC_MINOR and STREAM events (control-spec §4.1). Out: CLOSECIRCUIT … IfUnused.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from twisted.internet.interfaces import IReactorTime
from txtorcon import TorControlProtocol
from txtorcon.torcontrolprotocol import TorDisconnectError, TorProtocolError

from ron.tor.control import answered

SPARE = 32
"""Vanguard circuits that are kept for the next visitors."""
_UPLOAD, _SPARE = "PURPOSE=HS_SERVICE_HSDIR", "PURPOSE=HS_VANGUARDS"
_GONE = ("CLOSED", "FAILED")


class SpentBook:
    """Which circuits have done their work. Methods take an event without its name, and tell what to close, or None."""

    def __init__(self) -> None:
        self._uploading: set[str] = set()
        self._spare: set[str] = set()

    def circuit(self, event: str) -> str | None:
        """CIRC `<id> <status> …` and CIRC_MINOR `<id> <what> …`, which tells the purpose that it has now."""
        number, _, rest = event.partition(" ")
        words = rest.split()
        # the first, which tor writes: what follows may have been chosen by an application
        purpose = next((word for word in words if word.startswith("PURPOSE=")), None)
        gone = not words or words[0] in _GONE
        if gone or purpose != _UPLOAD:
            self._uploading.discard(number)
        if gone or purpose != _SPARE:
            self._spare.discard(number)
        if gone:
            return None
        if purpose == _UPLOAD:
            self._uploading.add(number)
        elif purpose == _SPARE and "BUILT" in words[:1] and number not in self._spare:
            if len(self._spare) >= SPARE:
                return number
            self._spare.add(number)
        return None

    def stream(self, event: str) -> str | None:
        """STREAM `<id> <status> <circuit> <target> …`: an upload's ends when the directory has answered."""
        words = event.split(None, 3)
        if len(words) < 4 or words[1] not in _GONE or words[2] not in self._uploading:
            return None
        self._uploading.discard(words[2])
        return words[2]


async def close_spent(reactor: IReactorTime, control: TorControlProtocol) -> None:
    """From now on, while the connection lasts. Raises as `answered` does."""
    book = SpentBook()
    for event, look in (("CIRC", book.circuit), ("CIRC_MINOR", book.circuit), ("STREAM", book.stream)):
        await answered(reactor, control.add_event_listener(event, partial(_heard, control, look)))


def _heard(control: TorControlProtocol, look: Callable[[str], str | None], event: str) -> None:
    number = look(event)
    if number is not None:
        # one that a stream has just taken stays, and one that has just gone is no error
        closing = control.queue_command(f"CLOSECIRCUIT {number} IfUnused")
        closing.addErrback(lambda failure: failure.trap(TorProtocolError, TorDisconnectError))
