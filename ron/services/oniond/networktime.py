"""Onions and the clock: where time has left them behind, and when nothing must be published.

In: the time of a tor's consensus, now and then, and the host's. Out: whether a period was skipped; whether the host is
behind. tor makes descriptors for the present period and the next, and takes one step at a time: on a network of our
own, with periods of eight minutes, an hour forward leaves both of them where nobody looks. And each descriptor is
numbered by the time since the present shared random run began: a tor whose clock says that this is still to come
(0.4.9.11) takes the highest number there is, and directories then refuse every later one as long as the period lasts.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec
from twisted.logger import Logger
from txtorcon import TorControlProtocol

from ron.tor.control import ask
from ron.tor.descriptor.periods import NetworkTime

_log = Logger(namespace="ron.oniond")


class Seen(NamedTuple):
    """skipped: the consensus is of neither the period that the one before was of nor the next. behind: see above."""

    skipped: bool
    behind: bool


class TimeWatch:
    """What the consensus of one tor says, as long as it runs. now: Unix seconds, by the clock that tor has too."""

    def __init__(self, reactor: Any, now: Callable[[], float]) -> None:
        self._reactor = reactor
        self._now = now
        self._period: int | None = None

    async def look(self, control: TorControlProtocol | None) -> Seen | None:
        """How it stands; None without a consensus, and when tor does not say."""
        if control is None:
            return None
        try:
            after = await ask(self._reactor, control, "consensus/valid-after")
            time = network_time(after, await ask(self._reactor, control, "consensus/fresh-until"))
        except Exception as error:  # noqa: BLE001 - it is going, or has no consensus yet; the next time will tell
            _log.debug("the time of a consensus is not known: {error}", error=str(error))
            return None
        return self.judge(time) if time is not None else None

    def judge(self, time: NetworkTime) -> Seen:
        """The same of a consensus that is there."""
        before, self._period = self._period, time.period.number
        skipped = before is not None and self._period not in (before, before + 1)
        return Seen(skipped, behind=self._now() < time.run_start_s)

    def forget(self) -> None:
        """Another tor comes."""
        self._period = None


def network_time(valid_after: str, fresh_until: str) -> NetworkTime | None:
    """From the times as tor writes them; None for what is no time of a consensus.

    Periods of the public network last as long as 24 voting intervals too, like those of a testing network.
    """
    try:
        after_s, until_s = (
            int(datetime.strptime(text.strip('" \n'), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp())
            for text in (valid_after, fresh_until)
        )
        fields = {"valid_after_s": after_s, "interval_s": until_s - after_s, "testing": True}
        return msgspec.convert(fields, NetworkTime)
    except ValueError:  # msgspec's too
        return None
