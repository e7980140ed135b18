"""On the path of the test run only: a daemon that ends by a signal saves its coverage first.

twistd ends by sending itself the signal that stopped it, which skips Python's own exit handlers.
"""

import os

import coverage

_kill = os.kill


def kill(pid: int, sig: int) -> None:
    """`os.kill`, with our coverage saved when it is us; and going on if that was not our end."""
    measuring = coverage.Coverage.current() if pid == os.getpid() else None
    if measuring is not None:
        measuring.stop()
        measuring.save()
    _kill(pid, sig)
    if measuring is not None:
        measuring.start()


os.kill = kill
