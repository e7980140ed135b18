"""Time periods of onion services, as a tor's consensus has them (rend-spec-v3 §2.2.1).

In: a control connection, now and then. Out: that the period has changed to one for which tor has no descriptors. tor
makes them for the present period and the next; when clocks are set far forward on a network of short periods, neither
is the one that clients look for, and tor itself notices only one and two periods later.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from txtorcon import TorControlProtocol

from ron.tor.control import ask

# A period is so many voting intervals, and begins at the middle of the first such stretch since 1970.
INTERVALS = 24
OFFSET = 12


def period(valid_after_s: float, interval_s: float) -> int:
    """The number of the period that a consensus of Unix second `valid_after_s` stands in. interval_s: between votes."""
    return int((valid_after_s - OFFSET * interval_s) // (INTERVALS * interval_s))


class Periods:
    """The periods of one tor, as long as it runs."""

    def __init__(self) -> None:
        self._last: int | None = None

    def skipped(self, number: int) -> bool:
        """It is in period `number` now: is that another than the one before and the one after that?"""
        last, self._last = self._last, number
        return last is not None and number not in (last, last + 1)


async def present_period(reactor: Any, control: TorControlProtocol) -> int | None:
    """The period of the consensus that this tor has; None when it has none. Raises what the control port does."""
    after = _unix(await ask(reactor, control, "consensus/valid-after"))
    until = _unix(await ask(reactor, control, "consensus/fresh-until"))
    return period(after, until - after) if after is not None and until is not None and until > after else None


def _unix(text: str) -> float | None:
    try:
        return datetime.strptime(text.strip().strip('"'), "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None
