"""The visitors' circuits of an onion, as tor lists them (control-spec §3.9 GETINFO circuit-status, §4.1.1).

In: a control connection, an address. Out: circuit ids; and their end.
"""

from __future__ import annotations

import contextlib
from typing import Any

from txtorcon import TorControlProtocol
from txtorcon.torcontrolprotocol import TorProtocolError

from ron.kernel.aio import within
from ron.tor.control import ANSWER_TIMEOUT_S, ask

_VISITORS = "PURPOSE=HS_SERVICE_REND"
_QUERY = "REND_QUERY="


async def visitors(reactor: Any, control: TorControlProtocol) -> dict[str, list[str]]:
    """Ids of the rendezvous circuits that this tor's services have open, by address."""
    return parse_visitors(await ask(reactor, control, "circuit-status"))


def parse_visitors(text: str) -> dict[str, list[str]]:
    """The same from the text of `circuit-status`. Lines that are none are passed over."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.split()
        query = next((word for word in words if word.startswith(_QUERY)), None)
        if len(words) > 2 and words[1] == "BUILT" and _VISITORS in words and query:
            found.setdefault(f"{query.removeprefix(_QUERY)}.onion", []).append(words[0])
    return found


async def close(reactor: Any, control: TorControlProtocol, circuit: str) -> None:
    """CLOSECIRCUIT; one that has gone meanwhile is no error."""
    with contextlib.suppress(TorProtocolError):
        await within(reactor, ANSWER_TIMEOUT_S, control.queue_command(f"CLOSECIRCUIT {circuit}"))
