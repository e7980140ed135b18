"""A node that is kept busy: threads that call it without a pause, and what came of it.

In: where the node listens and a capability. Out: how many calls were made, answered and refused, and by whom.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import Any, Protocol

from tests.live.support import Reply, http

PAYLOAD_B64 = "aGk="
READ = ("/tiles/1/0/0.png", "/tiles/2/1/1.png", "/healthz")
PAUSE_S = 0.05
DEADLINE_S = 10


class Target(Protocol):
    """A node to call: the URLs of its gateway and its mailbox, and a capability for both."""

    gateway: str
    mailbox: str
    cap: str


class Load:
    """Calls while it is entered: `senders` threads send to `topic`, `readers` ask for tiles and health.

    sent: ids of the messages that were acknowledged. statuses: of the answers to sending. refused: those that were not
    200. calls and failures: by "gateway" and "mailbox"; no answer within 10 s, or none at all, is a failure too. After
    a failure a thread waits for 50 ms.
    """

    def __init__(self, target: Target, topic: str = "t/load", *, senders: int = 1, readers: int = 1) -> None:
        self.sent: set[str] = set()
        self.refused: list[Reply] = []
        self.statuses: Counter[int] = Counter()
        self.calls: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._target = target
        self._topic = topic
        self._over = threading.Event()
        work = [self._send] * senders + [self._read] * readers
        self._threads = [threading.Thread(target=self._go_on, args=(one,), daemon=True) for one in work]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    def _go_on(self, work: Any) -> None:
        while not self._over.is_set():
            work()

    def _read(self) -> None:
        for path in READ:
            self._call("gateway", "GET", self._target.gateway + path)

    def _send(self) -> None:
        body = {"topic": self._topic, "payload_b64": PAYLOAD_B64}
        reply = self._call("mailbox", "POST", f"{self._target.mailbox}/v1/send", body)
        if reply is None:
            return
        self.statuses[reply.status] += 1
        if reply.status == 200:
            self.sent.add(reply.json()["msg_id"])
        else:
            self.refused.append(reply)

    def _call(self, who: str, method: str, url: str, body: Any = None) -> Reply | None:
        self.calls[who] += 1
        try:
            reply = http(method, url, cap=self._target.cap, body=body, timeout_s=DEADLINE_S)
        except OSError:
            reply = None
        if reply is None or reply.status != 200:
            self.failures[who] += 1
            time.sleep(PAUSE_S)
        return reply
