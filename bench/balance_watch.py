"""What is seen of a cluster from outside while things happen to it: uploads, and visitors one after another.

In: control ports of the tors that publish, a client tor. Out: when a directory took a descriptor, by tor's own word;
how many visits on new circuits failed. Nothing here asks the nodes, so that watching does not slow them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from stem import SocketClosed
from stem.control import Controller, EventType

from bench import harness
from tests.live.cluster import Client, Node

# One for each time period that is due.
DESCRIPTORS = 2
VISIT_EVERY_S = 0.1
VISIT_S = 10.0
AT_ONCE = 120


class Upload(NamedTuple):
    """A directory took a descriptor from the tor of `who`; at_s by the monotonic clock.

    name: of the onion; for what a node of ours publishes a name that only this text has.
    """

    at_s: float
    who: str
    name: str


class Uploads:
    """Listens to as many tors as it is told of. Those of a killed node are to be told of anew when it is back."""

    def __init__(self) -> None:
        self._all: list[Upload] = []
        self._news = threading.Condition()
        self._controls: dict[str, Controller] = {}

    def of_node(self, node: Node) -> None:
        """The tor by which `node` publishes."""
        folder = node.home / "tornet-joined"
        tors = json.loads((folder / "tornet.json").read_text())["tors"]
        self.of_tor(node.name, next(tor["control_port"] for tor in tors if tor["name"] == "outside"))

    def of_tor(self, who: str, port: int) -> None:
        """Any tor; instead of the last one of that name."""
        control = Controller.from_port(port=port)
        control.authenticate()

        def heard(event: Any) -> None:
            if event.action == "UPLOADED":
                self._note(Upload(time.monotonic(), who, event.address))

        control.add_event_listener(heard, EventType.HS_DESC)
        self._close(self._controls.pop(who, None))
        self._controls[who] = control

    def close(self) -> None:
        """Listen no more."""
        for control in self._controls.values():
            self._close(control)

    def published(self, after_s: float, patience_s: float, *, besides: str = "") -> Upload | None:
        """When after the moment `after_s` the descriptors of both periods had each been taken by one directory.

        besides: not by this node. None when it does not happen within `patience_s` from now.
        """
        deadline = time.monotonic() + patience_s
        with self._news:
            while True:
                names: dict[str, set[str]] = {}
                for one in self._all:
                    if one.at_s > after_s and one.who != besides:
                        names.setdefault(one.who, set()).add(one.name)
                        if len(names[one.who]) == DESCRIPTORS:
                            return one
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                self._news.wait(min(left_s, 1.0))

    def _note(self, upload: Upload) -> None:
        with self._news:
            self._all.append(upload)
            self._news.notify_all()

    @staticmethod
    def _close(control: Controller | None) -> None:
        if control is not None:
            with contextlib.suppress(SocketClosed):
                control.close()


class Visit(NamedTuple):
    """began_s, ended_s: by the monotonic clock. problem: empty when it got the page. again: a second try did."""

    began_s: float
    ended_s: float
    problem: str
    again: bool


class Visitors:
    """A visit every tenth of a second, each on a circuit of its own, whether or not the last one has ended."""

    def __init__(self, client: Client, onion: str) -> None:
        self._client = client
        self._onion = onion
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(AT_ONCE)
        self._thread = threading.Thread(target=self._come)
        self._lock = threading.Lock()
        self.visits: list[Visit] = []

    def start(self) -> Visitors:
        """Begin."""
        self._thread.start()
        return self

    def stop(self) -> list[Visit]:
        """No more; what came of all of them."""
        self._over.set()
        self._thread.join()
        self._pool.shutdown(wait=True)
        return self.visits

    def _come(self) -> None:
        due_s = time.monotonic()
        while not self._over.wait(max(0.0, due_s - time.monotonic())):
            self._pool.submit(self._visit)
            due_s += VISIT_EVERY_S

    def _visit(self) -> None:
        began_s = time.monotonic()
        problem = self._get()
        visit = Visit(began_s, time.monotonic(), problem, bool(problem) and not self._get())
        with self._lock:
            self.visits.append(visit)

    def _get(self) -> str:
        try:
            self._client.get(self._onion, timeout_s=VISIT_S)
        except (OSError, http.client.HTTPException) as error:
            return f"{type(error).__name__}: {error}"[:120]
        return ""


def availability(visits: list[Visit], kills_s: list[float]) -> dict[str, Any]:
    """Percent that succeeded: all; without those that were under way at a kill; and with a second try each."""
    failed = [visit for visit in visits if visit.problem]
    under_way = [visit for visit in failed if any(visit.began_s < at_s < visit.ended_s for at_s in kills_s)]
    count, left = len(visits), len(visits) - len(under_way)

    def percent(good: int, of: int) -> float:
        return round(100 * good / of, 3)

    return {
        "visits": count,
        "failed": len(failed),
        "failed, under way at a kill": len(under_way),
        "failed twice": sum(not visit.again for visit in failed),
        "percent": percent(count - len(failed), count),
        "percent without those under way at a kill": percent(left - (len(failed) - len(under_way)), left),
        "percent with a second try": percent(count - sum(not visit.again for visit in failed), count),
        "problems": dict(Counter(visit.problem for visit in failed).most_common(5)),
        "failed_after_kill_s": [
            round(visit.began_s - max((at_s for at_s in kills_s if at_s <= visit.began_s), default=visit.began_s), 1)
            for visit in failed
            if visit not in under_way
        ],
        "visit_ms": harness.spread([(v.ended_s - v.began_s) * 1000 for v in visits if not v.problem] or [0.0]),
    }
