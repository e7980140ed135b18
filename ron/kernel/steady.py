"""A reactor whose timers do not jump with the host's clock.

In: Twisted's reactor, which goes by the wall clock. Out: the same one, going by the monotonic clock. Set back by an
hour, the wall clock would have every timer that runs wait an hour longer: probes, refreshed revocations, upkeep. Set
forward, every deadline would be over at once. What is about dates (expiry, leases, logs) asks the wall clock itself.
"""

from __future__ import annotations

import time
from typing import Any


def steady(reactor: Any) -> None:
    """From now on `reactor.seconds` counts on evenly from the present time; timers that are set already stay right."""
    ahead_s = reactor.seconds() - time.monotonic()
    reactor.seconds = lambda: time.monotonic() + ahead_s
