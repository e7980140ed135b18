"""Ctrl-C and SIGTERM: the first asks for an orderly end, the second is immediate.

In: the reactor. Out: a Deferred that fires with the first signal; after the second the process is gone with code 130.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import Any

from twisted.internet.defer import Deferred

IMMEDIATE_EXIT = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2


def wait_for_ctrl_c(reactor: Any) -> Deferred[signal.Signals]:
    """Fires with the first SIGINT or SIGTERM; from then on the next one ends the process at once, undrained.

    Replaces the reactor's own handlers, so call it once the reactor runs. A signal that the process was started to
    ignore (a background job's SIGINT) stays ignored.
    """
    first: Deferred[signal.Signals] = Deferred()

    def heard(number: int, _frame: object) -> None:
        if first.called or asked[0]:
            _end_now()
        asked[0] = True
        # a signal handler runs between any two instructions: everything else happens in the reactor's own turn
        reactor.callFromThread(first.callback, signal.Signals(number))

    asked = [False]
    for wanted in _SIGNALS:
        if signal.getsignal(wanted) is not signal.SIG_IGN:
            signal.signal(wanted, heard)
    return first


def on_hangup(reactor: Any, callback: Any) -> None:
    """Call `callback()` on the reactor thread for each SIGHUP."""
    signal.signal(signal.SIGHUP, lambda _number, _frame: reactor.callFromThread(callback))


def _end_now() -> None:
    # the descriptor, for under twistd sys.stderr is a log; and only when it can be written to at once
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [_STDERR], [], 0)[1]:
            os.write(_STDERR, b"\nended at once, as asked twice\n")
    os._exit(IMMEDIATE_EXIT)
