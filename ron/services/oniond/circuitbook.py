"""The circuits that one tor has open, and which of them are visitors of which onion.

In: circuits as they open, change and end. Out: visitors and introduction points by onion, counted as they come and go:
whoever asks for a hundred onions must not have every circuit looked at a hundred times.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

# How many of the latest rendezvous are remembered for the load.
LOAD_JOINS = 1024


@dataclass(slots=True)
class Circuit:
    """One open circuit. began_s: for its present purpose, if seen. moved_s: moved payload or changed.

    onion: without `.onion`, empty for none. visits: the onion under which it is counted as a visitor.
    """

    began_s: float | None
    moved_s: float
    app: str
    purpose: str = "other"
    onion: str = ""
    built: bool = False
    introduced: bool = False
    state: str = ""
    visits: str = ""


class CircuitBook:
    """Those of one tor, by tor's number. visited: told of an onion that has more or fewer visitors than before.

    joins: (when, how long it took) of the latest rendezvous.
    """

    def __init__(self, visited: Callable[[str], None]) -> None:
        self.open: dict[str, Circuit] = {}
        self.joins: deque[tuple[float, float]] = deque(maxlen=LOAD_JOINS)
        self._visited = visited
        self._visits: dict[str, dict[str, Circuit]] = {}

    def enter(self, number: str, circuit: Circuit) -> None:
        """`circuit` is there, or is about something else than before."""
        self.open[number] = circuit
        visits = circuit.onion if circuit.purpose == "rend" else ""
        if visits == circuit.visits:
            return
        self._leave(number, circuit)
        circuit.visits = visits
        if visits:
            self._visits.setdefault(visits, {})[number] = circuit
            self._visited(visits)

    def end(self, number: str) -> None:
        """It is no more."""
        circuit = self.open.pop(number, None)
        if circuit is not None:
            self._leave(number, circuit)

    def forget(self) -> None:
        """All of them have ended."""
        visited, self._visits = self._visits, {}
        self.open.clear()
        for onion in visited:
            self._visited(onion)

    def visitors(self, onion: str) -> list[str]:
        """Numbers of the circuits of those who visit it."""
        return list(self._visits.get(onion, ()))

    def tally(self, since_s: float = -math.inf) -> Counter[str]:
        """How many visitors each onion has that are new or moved payload at `since_s` or later."""
        if since_s == -math.inf:
            return Counter({onion: len(circuits) for onion, circuits in self._visits.items()})
        found = {o: sum(c.moved_s >= since_s for c in circuits.values()) for o, circuits in self._visits.items()}
        return Counter({onion: count for onion, count in found.items() if count})

    def introduction_points(self) -> Counter[str]:
        """How many of each onion are established."""
        there = self.open.values()
        return Counter(c.onion for c in there if c.purpose == "intro" and c.state == "HSSI_ESTABLISHED")

    def _leave(self, number: str, circuit: Circuit) -> None:
        before = self._visits.get(circuit.visits)
        if before is None or before.pop(number, None) is None:
            return
        if not before:
            del self._visits[circuit.visits]
        self._visited(circuit.visits)
