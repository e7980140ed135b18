"""What of an answer the socket takes at once, and what is still on its way there.

In: a transport of Twisted's. Out: counts of bytes.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.tcp import Connection


def sent_at_once(transport: Connection, data: bytes) -> int:
    """How many bytes the socket took. Where nothing else waits there is no need to wait for the reactor to say that it
    is writable: that is three system calls more for each answer."""
    if transport.disconnecting or not transport.connected or unsent(transport):
        return 0
    sent = transport.writeSomeData(data)
    # what is no number is an error, which the ordinary way finds, too
    return sent if isinstance(sent, int) else 0


def unsent(transport: Any) -> int:
    """Bytes in our own buffers on their way out; 0 for a transport that keeps none. Below TLS lies the socket's."""
    while (below := getattr(transport, "transport", None)) is not None:
        transport = below
    waiting = len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
    return waiting + int(getattr(transport, "_tempDataLen", 0))
