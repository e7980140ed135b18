"""What tor says of its onions, as figures by app: descriptors, circuits, introductions, rendezvous, bytes, set-up time.

In: events of each tor as they come (control-spec §4.1: HS_DESC, CIRC, CIRC_MINOR, CIRC_BW). Out: metrics, a ring of
`OnionEvent`, a `Sample` for the autoscaler. Bounded; apps go by name and no address is ever shown.
STREAM and STREAM_BW are not asked for: a tor that serves tells of its own uploads there and nothing of its visitors.
"""

from __future__ import annotations

import math
import re
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client import Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from txtorcon.util import find_keywords

from ron.kernel import Metrics
from ron.kernel.clock import Clock
from ron.services.oniond.autoscale import Sample
from ron.services.oniond.circuitbook import Circuit, CircuitBook
from ron.services.oniond.figures import OTHER, TOR, AppFigures, EventKind, OnionEvent, gauges, sums

# What to subscribe to on every tor that carries onions.
EVENTS = ("HS_DESC", "CIRC", "CIRC_MINOR", "CIRC_BW")
MAX_APPS = 256
MAX_CIRCUITS = 65_536
RING = 1024
# How long a rendezvous counts for the load.
LOAD_S = 60.0
P95 = 0.95
_PURPOSES = {
    "HS_SERVICE_INTRO": "intro",
    "HS_SERVICE_REND": "rend",
    "HS_SERVICE_HSDIR": "hsdir",
    "HS_VANGUARDS": "vanguards",
}
_ENDS = {"CLOSED": "closed", "FAILED": "failed"}
# HS_DESC FAILED is said of fetches too; an upload fails with one of these.
_UPLOAD_FAILURES = {"UPLOAD_REJECTED", "UNEXPECTED"}
_SETUP_BUCKETS_S = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0, 20.0, 40.0, 60.0)
_JOIN_BUCKETS_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.2, 2.0, 4.0, 8.0, 16.0, 32.0)
# SOCKS user names stand in CIRC events, and whoever chose one may have written keywords into it.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"?')
_WORD = re.compile(r"[A-Z][A-Z_]{0,31}\Z")
_CIRCUIT_ID = re.compile(r"[A-Za-z0-9]{1,16}\Z")
_BYTES = re.compile(r"[0-9]{1,15}\Z")


@dataclass(slots=True)
class _Setup:
    """An onion that we know. began_s: when its set-up began, None once that was measured."""

    app: str
    began_s: float | None


class _Line(NamedTuple):
    """An event taken apart: words before the first keyword, and the keywords."""

    words: list[str]
    keys: dict[str, str]


class Telemetry:
    """The figures of every tor of this process. clock: for durations. now: Unix seconds.

    visited: told the address of an onion that has more or fewer visitors than before; it must not raise.
    """

    def __init__(self, metrics: Metrics, clock: Clock, now: Callable[[], float]) -> None:
        self._clock = clock
        self._now = now
        self.visited: Callable[[str], None] = lambda onion: None
        self._tors: dict[str, CircuitBook] = {}
        self._onions: dict[str, _Setup] = {}
        self._apps: dict[str, AppFigures] = {TOR: AppFigures(), OTHER: AppFigures()}
        # suggested efforts of proof of work by app, for as long as they are known
        self.efforts: dict[str, int] = {}
        self._ring: deque[OnionEvent] = deque(maxlen=RING)
        self._seq = 0
        self._observers: list[Callable[[OnionEvent], None]] = []
        self._unread = 0
        handlers = (self._descriptor, self._circuit, self._circuit, self._bandwidth)
        self._heard = dict(zip(EVENTS, handlers, strict=True))
        self._setup_s = Histogram(
            "onion_setup_seconds",
            "From the call to the first directory that has the descriptor",
            buckets=_SETUP_BUCKETS_S,
            registry=metrics.registry,
        )
        self._join_s = Histogram(
            "onion_rendezvous_seconds",
            "From a client's introduction to the circuit that it meets us on",
            buckets=_JOIN_BUCKETS_S,
            registry=metrics.registry,
        )
        metrics.registry.register(self)

    # What is told

    def watch(self, onion: str, app: str, *, began_s: float | None = None) -> None:
        """`onion` belongs to `app` from now on. began_s: when its set-up began, by the clock; None: long ago.

        Several onions may belong to one app. Beyond `MAX_APPS` apps the rest are counted together as `_other`.
        """
        if app not in self._apps:
            if len(self._apps) - 2 < MAX_APPS:
                self._apps[app] = AppFigures()
            else:
                app = OTHER
        self._onions[_bare(onion)] = _Setup(app, began_s)

    def forget(self, onion: str) -> None:
        """`onion` is gone, and with its last onion what was counted of an app."""
        gone = self._onions.pop(_bare(onion), None)
        if gone is not None and gone.app != OTHER and all(left.app != gone.app for left in self._onions.values()):
            self._apps.pop(gone.app, None)

    def tor_up(self, tor: str, status: str = "") -> None:
        """`tor` is there; its events come next. status: its `circuit-status`, circuits from before we came: they are
        there, and count for nothing else."""
        self._forget_circuits(tor)
        there = self._tors[tor] = CircuitBook(self._visited)
        for line in map(_taken_apart, status.splitlines()):
            if len(line.words) > 1 and line.words[1] == "BUILT" and _CIRCUIT_ID.match(line.words[0]):
                if len(there.open) >= MAX_CIRCUITS:
                    return
                found = Circuit(None, self._clock.seconds(), TOR, built=True, introduced=True)
                self._learn(found, line.keys)
                found.state = line.keys.get("HS_STATE", "")
                there.enter(line.words[0], found)

    def tor_down(self, tor: str) -> None:
        """`tor` has ended, and its circuits with it."""
        ended = self._forget_circuits(tor)
        for circuit in ended:
            if circuit.built:
                self._count(circuit.app, circuit.purpose, "lost")
        for app in sorted({circuit.app for circuit in ended} - {TOR, OTHER}):
            self._tell("tor_down", app)

    def heard(self, tor: str, event: str, text: str) -> None:
        """`tor`, which is up, said `text` after the word `event`. What is not understood is counted, no more."""
        there, handler = self._tors.get(tor), self._heard.get(event)
        if there is None or handler is None or not handler(there, _taken_apart(text)):
            self._unread += 1

    # What is asked

    def recent(self, *, app: str | None = None, after: int = 0) -> list[OnionEvent]:
        """Kept events after number `after`, oldest first; of one app, or of all for an operator."""
        return [e for e in self._ring if e.seq > after and (app is None or e.app == app)]

    def observe(self, callback: Callable[[OnionEvent], None]) -> Callable[[], None]:
        """Call `callback` with each event, at once; it must not raise. Returns what undoes it."""
        self._observers.append(callback)
        return lambda: self._observers.remove(callback)

    def figures(self, app: str) -> AppFigures | None:
        """What was counted of `app`; None when we know no such app."""
        return self._apps.get(app)

    def visitors(self, tor: str, *, quiet_s: float = math.inf) -> Tally[str]:
        """Rendezvous circuits on `tor` that are new or moved payload within `quiet_s`, by onion address.

        A client keeps its circuit for minutes after its last request, so that a drain without `quiet_s` waits as long.
        """
        there = self._tors.get(tor)
        found = there.tally(self._clock.seconds() - quiet_s) if there is not None else {}
        return Tally({f"{onion}.onion": count for onion, count in found.items()})

    def visits(self, tor: str, address: str) -> list[str] | None:
        """tor's numbers of the rendezvous circuits that the onion `address` has on `tor`; None when `tor` has more
        circuits than we keep, or does not talk to us."""
        there = self._tors.get(tor)
        return there.visitors(_bare(address)) if there is not None and len(there.open) < MAX_CIRCUITS else None

    def introduction_points(self, tor: str) -> Tally[str]:
        """How many of those on `tor` are established, by onion address."""
        there = self._tors.get(tor)
        found = there.introduction_points() if there is not None else {}
        return Tally({f"{onion}.onion": count for onion, count in found.items()})

    def load(self, tors: Sequence[str]) -> Sample:
        """What the busiest of `tors` have: rendezvous circuits, those of them that wait, and how long the last minute's
        took. A tor that does not talk to us makes all of it unknown."""
        now_s = self._clock.seconds()
        known = [there for there in map(self._tors.get, tors) if there is not None]
        if not known or len(known) < len(tors):
            return Sample(None, None, None, now_s)
        rends = [[c for c in there.open.values() if c.purpose == "rend"] for there in known]
        joins = [took_s for there in known for at_s, took_s in there.joins if now_s - at_s <= LOAD_S]
        return Sample(
            circuits_p95=_p95(len(circuits) for circuits in rends),
            queue_depth=_p95(sum(1 for c in circuits if c.state != "HSSR_JOINED") for circuits in rends),
            connect_ms_p95=1000 * _p95(joins),
            at_s=now_s,
        )

    def collect(self) -> Iterator[Metric]:
        """For the registry: every figure as it is now."""
        yield from sums(self._apps)
        there = (circuit for book in self._tors.values() for circuit in book.open.values())
        yield from gauges(self._apps, there, self.efforts)
        yield CounterMetricFamily("onion_events_unread", "Events of tor that were not understood", self._unread)

    # Inside

    def _descriptor(self, _tor: CircuitBook, line: _Line) -> bool:
        """`UPLOADED <onion> <auth> <directory>`; `FAILED … REASON=…`; the rest is the way there."""
        if len(line.words) < 2:
            return False
        action, onion = line.words[:2]
        reason = line.keys.get("REASON", "")
        if action == "UPLOADED":
            self._uploaded(onion)
        elif action == "FAILED" and reason in _UPLOAD_FAILURES and onion in self._onions:
            self._figures(self._app(onion)).uploads_failed += 1
            self._tell("descriptor", self._app(onion), result="failed", reason=reason)
        return bool(_WORD.match(action))

    def _uploaded(self, onion: str) -> None:
        self._figures(self._app(onion)).uploads_ok += 1
        known = self._onions.get(onion)
        if known is not None and known.began_s is not None:
            self._setup_s.observe(self._clock.seconds() - known.began_s)
            known.began_s = None
        self._tell("descriptor", self._app(onion), result="ok")

    def _circuit(self, tor: CircuitBook, line: _Line) -> bool:
        """`<id> <status or change> [<path>] PURPOSE=… HS_STATE=… REND_QUERY=<onion>`."""
        if len(line.words) < 2 or not _CIRCUIT_ID.match(line.words[0]) or not _WORD.match(line.words[1]):
            return False
        number, status = line.words[:2]
        circuit, now_s = tor.open.get(number), self._clock.seconds()
        if circuit is None:
            if status in _ENDS:
                return True  # it was there before we were
            if len(tor.open) >= MAX_CIRCUITS:
                return False
            circuit = Circuit(now_s if status == "LAUNCHED" else None, now_s, TOR)
        circuit.moved_s = now_s
        self._learn(circuit, line.keys)
        if status in _ENDS:
            tor.end(number)
            self._introduced(circuit)
            self._note(circuit, _ENDS[status], line.keys.get("REASON", ""))
            return True
        tor.enter(number, circuit)
        if status == "BUILT":
            circuit.built = True
            self._note(circuit, "built")
        self._joined(tor, circuit, line.keys.get("HS_STATE", ""))
        return True

    def _learn(self, circuit: Circuit, keys: dict[str, str]) -> None:
        """What the event says of the circuit; a first event says neither onion nor, sometimes, purpose."""
        purpose = _PURPOSES.get(keys["PURPOSE"], "other") if "PURPOSE" in keys else circuit.purpose
        if keys.get("OLD_PURPOSE", keys.get("PURPOSE")) != keys.get("PURPOSE"):
            # tor takes spare circuits for something else, and makes what it has too many of into spare ones
            circuit.began_s, circuit.app, circuit.onion = self._clock.seconds(), TOR, ""
        circuit.purpose = purpose
        if "REND_QUERY" in keys:
            circuit.onion = _bare(keys["REND_QUERY"])
            circuit.app = self._app(circuit.onion)
            self._introduced(circuit)

    def _introduced(self, circuit: Circuit) -> None:
        """tor says nothing of an introduction itself; each rendezvous circuit that it begins stands for one."""
        if circuit.purpose == "rend" and not circuit.introduced:
            circuit.introduced = True
            app = OTHER if circuit.app == TOR else circuit.app
            self._figures(app).introductions += 1
            self._tell("introduction", app)

    def _joined(self, tor: CircuitBook, circuit: Circuit, state: str) -> None:
        before, circuit.state = circuit.state, state
        if state == "HSSR_JOINED" and before != state and circuit.purpose == "rend":
            self._figures(circuit.app).rendezvous += 1
            detail = {}
            if circuit.began_s is not None:
                now_s = self._clock.seconds()
                took_s = now_s - circuit.began_s
                tor.joins.append((now_s, took_s))
                self._join_s.observe(took_s)
                detail["ms"] = str(round(1000 * took_s))
            self._tell("rendezvous", circuit.app, **detail)

    def _bandwidth(self, tor: CircuitBook, line: _Line) -> bool:
        """`ID=… DELIVERED_READ=… DELIVERED_WRITTEN=…` since the last one; not what cells and padding add."""
        read, written = line.keys.get("DELIVERED_READ", ""), line.keys.get("DELIVERED_WRITTEN", "")
        if not (_BYTES.match(read) and _BYTES.match(written)):
            return False
        circuit = tor.open.get(line.keys.get("ID", ""))
        if circuit is not None and circuit.purpose == "rend":
            figures = self._figures(circuit.app)
            if int(read) or int(written):
                circuit.moved_s = self._clock.seconds()
            figures.bytes_in += int(read)
            figures.bytes_out += int(written)
        return True

    def _visited(self, onion: str) -> None:
        self.visited(f"{onion}.onion")

    def _forget_circuits(self, tor: str) -> list[Circuit]:
        """Those that `tor` had, which are no more."""
        gone = self._tors.pop(tor, None)
        if gone is None:
            return []
        ended = list(gone.open.values())
        gone.forget()
        return ended

    def _note(self, circuit: Circuit, event: str, reason: str = "") -> None:
        self._count(circuit.app, circuit.purpose, event)
        if circuit.app != TOR:
            why = {"reason": reason} if _WORD.match(reason) else {}
            self._tell("circuit", circuit.app, purpose=circuit.purpose, event=event, **why)

    def _count(self, app: str, purpose: str, event: str) -> None:
        counts = self._figures(app).circuits
        counts[purpose, event] = counts.get((purpose, event), 0) + 1

    def _app(self, onion: str) -> str:
        known = self._onions.get(onion)
        return known.app if known is not None else OTHER

    def _figures(self, app: str) -> AppFigures:
        """Of `app`, or of `_other` once it was forgotten."""
        return self._apps.get(app) or self._apps[OTHER]

    def _tell(self, kind: EventKind, app: str, **detail: str) -> None:
        self._seq += 1
        self._ring.append(event := OnionEvent(seq=self._seq, kind=kind, app=app, at=self._now(), detail=detail))
        for observer in list(self._observers):
            observer(event)


def _taken_apart(text: str) -> _Line:
    parts = _QUOTED.sub('""', text).split()
    words = [part for part in parts if "=" not in part or part.startswith("$")]
    return _Line(words, find_keywords(parts))


def _bare(onion: str) -> str:
    return onion.removesuffix(".onion")


def _p95(values: Iterable[float]) -> float:
    """Nearest rank; 0 of nothing."""
    ranked = sorted(values)
    return ranked[math.ceil(P95 * len(ranked)) - 1] if ranked else 0.0
