"""The effort that an onion asks of its visitors at present, as its own descriptor says (proposal 327, `pow-params`).

In: a tor that hosts the onion. Out: the suggested effort, 0 while there is no need. tor's MetricsPort would tell it
too, but to every program on the host, and with it the addresses of all other apps' onions.
"""

from __future__ import annotations

from typing import Any

from stem.descriptor.hidden_service import HiddenServiceDescriptorV3
from twisted.internet.threads import deferToThread
from txtorcon import TorControlProtocol
from txtorcon.torcontrolprotocol import TorProtocolError

from ron.kernel.aio import within
from ron.tor.control import ANSWER_TIMEOUT_S, ask

MAX_DESCRIPTOR_CHARS = 50_000


async def suggested_effort(reactor: Any, control: TorControlProtocol, onion: str) -> int | None:
    """Of `onion` (`<56 characters>.onion`); None when it has none: no descriptor yet, no defence, or restricted to
    clients whose keys we do not have. Raises what the control port does."""
    try:
        text = await ask(reactor, control, f"hs/service/desc/id/{onion.removesuffix('.onion')}")
    except TorProtocolError:
        return None
    # some 10 ms of arithmetic
    return await within(reactor, ANSWER_TIMEOUT_S, deferToThread(read_effort, text, onion))


def read_effort(text: str, onion: str) -> int | None:
    """The same from the descriptor's text. Blocks; never raises for what is no descriptor of `onion`."""
    if len(text) > MAX_DESCRIPTOR_CHARS:
        return None
    try:
        inner = str(HiddenServiceDescriptorV3.from_str(text, validate=False).decrypt(onion))
    except Exception:  # noqa: BLE001 - stem raises whatever its parsing and the cryptography below it do
        return None
    for line in inner.splitlines():
        words = line.split()
        if len(words) >= 4 and words[:2] == ["pow-params", "v1"] and words[3].isascii() and words[3].isdigit():
            return min(int(words[3][:12]), 2**31)
    return None
