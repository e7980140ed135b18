"""Onions that time has left behind, so that nobody looks for them where they are: found, to be published anew.

In: the time of a tor's consensus, now and then. Out: whether a period was skipped. tor makes descriptors for the
present period and the next, and takes one step at a time. On a network of our own, with periods of eight minutes, an
hour forward leaves both of them behind: tor mends that by itself, two periods later.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
from twisted.logger import Logger
from txtorcon import TorControlProtocol

from ron.tor.control import ask
from ron.tor.descriptor.periods import NetworkTime

_log = Logger(namespace="ron.oniond")


class Skips:
    """What the consensus of one tor said last, as long as that tor runs."""

    def __init__(self) -> None:
        self._period: int | None = None

    def skipped(self, period: int) -> bool:
        """Its consensus is of `period` now. Is that neither the one before nor the next?"""
        before, self._period = self._period, period
        return before is not None and period not in (before, before + 1)


def period_of(valid_after: str, fresh_until: str) -> int | None:
    """The number of the period, from the times as tor writes them; None for what is no time of a consensus.

    The public network's periods last as long as 24 voting intervals too.
    """
    try:
        after_s, until_s = (
            datetime.strptime(text.strip('" \n'), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
            for text in (valid_after, fresh_until)
        )
        fields = {"valid_after_s": int(after_s), "interval_s": int(until_s - after_s), "testing": True}
        return msgspec.convert(fields, NetworkTime).period.number
    except (ValueError, ZeroDivisionError):  # msgspec's errors are ValueErrors
        return None


async def present_period(reactor: Any, control: TorControlProtocol | None) -> int | None:
    """The period of the consensus that this tor has; None without one, and when tor does not say."""
    if control is None:
        return None
    try:
        after = await ask(reactor, control, "consensus/valid-after")
        return period_of(after, await ask(reactor, control, "consensus/fresh-until"))
    except Exception as error:  # noqa: BLE001 - it is going, or has no consensus yet; the next time will tell
        _log.debug("the time of a consensus is not known: {error}", error=str(error))
        return None
