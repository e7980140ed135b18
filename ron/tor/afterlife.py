"""The last seconds of a tor whose daemon was killed: it takes in nobody new, lets visitors finish, and ends.

    python -m ron.tor.afterlife CONTROL_PORT

Run by the tor's lifeline (`ron.kernel.processes.Lifeline`) once the daemon is gone. Clients keep descriptors for hours:
as long as the introduction points answered, some of them would come, and be cut off at the end. When they do not, a
client takes those of another head at once. Standard library and stem only, to begin quickly.
"""

from __future__ import annotations

import os
import sys
import time

from stem import CircPurpose, ControllerError
from stem.connection import AuthenticationFailure, authenticate
from stem.control import Controller
from stem.socket import ControlPort

# Whoever leads next has published without this head by then.
LEAVE_S = 3.0
# So long it is there in all.
LINGER_S = 10.0
# An introduction circuit takes longer to come up again.
AGAIN_S = 0.1


def fade(control_port: int) -> None:
    """Wait, close the door, wait, end that tor. Raises `stem.ControllerError` or AuthenticationFailure when it
    ends before us.

    Nothing happens to a tor whose owner is not this process: of a daemon that is back already, on the same port.
    """
    began_s = time.monotonic()
    end_s = began_s + LINGER_S
    control = ControlPort("127.0.0.1", control_port)
    # not by the controller: that one would take ownership of the tor, and its end would be the tor's
    authenticate(control)
    with Controller(control) as tor:
        if tor.get_conf("__OwningControllerProcess") != str(os.getpid()):
            return
        time.sleep(max(0.0, began_s + LEAVE_S - time.monotonic()))
        while time.monotonic() < end_s:
            for circuit in tor.get_circuits():
                if circuit.purpose == CircPurpose.HS_SERVICE_INTRO:
                    _close(tor, circuit.id)
            time.sleep(AGAIN_S)
        tor.signal("HALT")


def _close(tor: Controller, circuit: str) -> None:
    try:
        tor.close_circuit(circuit)
    except ControllerError:
        return  # it has gone by itself


if __name__ == "__main__":
    try:
        fade(int(sys.argv[1]))
    except (ControllerError, AuthenticationFailure):
        sys.exit(1)
