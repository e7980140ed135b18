"""Who comes to a head and on which circuits, and whose circuits are to be closed when its onion is shut. Pure.

In: tor's lines about circuits; which onion is shut. Out: circuits to close, sessions, introductions, attacks.
A circuit is closed when it is built and not before: tor counts one that ends earlier as a failure, and after some of
those it builds no circuits at all for a while, not even for other onions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ron.tor.backendonion import CircuitLine

MAX_CIRCUITS = 65_536
_INTRO, _REND = "HS_SERVICE_INTRO", "HS_SERVICE_REND"
_ESTABLISHED, _JOINED = "HSSI_ESTABLISHED", "HSSR_JOINED"
_ENDS = ("CLOSED", "FAILED")


@dataclass(slots=True)
class _Circuit:
    purpose: str
    onion: str = ""
    state: str = ""
    built: bool = False
    attack: bool = False
    closing: bool = False


class Visits:
    """Introduction and rendezvous circuits of one tor.

    introductions: rendezvous that tor began. attacks: those of them that somebody asked of a shut onion.
    """

    def __init__(self) -> None:
        self.introductions = 0
        self.attacks = 0
        self._circuits: dict[str, _Circuit] = {}
        self._shut: set[str] = set()
        # rendezvous that were under way when an onion was shut, and whose tor had not told yet
        self._unnamed: set[str] = set()

    def begin(self, lines: Iterable[CircuitLine | None]) -> list[str]:
        """A connection to tor is there, with these circuits: they count for nothing, and no session is an attack.
        Returns introduction circuits to close: an onion that was shut stays so."""
        self._circuits.clear()
        self._unnamed.clear()
        for line in lines:
            if line is not None and line.purpose in (_INTRO, _REND) and len(self._circuits) < MAX_CIRCUITS:
                built = line.status == "BUILT"
                self._circuits[line.circuit] = _Circuit(line.purpose, line.onion, line.state, built)
        judged = [self._judged(name, circuit) for name, circuit in self._circuits.items()]
        return [name for name in judged if name is not None]

    def heard(self, line: CircuitLine) -> str | None:
        """Something happened to a circuit. Returns it when it is to be closed."""
        if line.status in _ENDS:
            self._circuits.pop(line.circuit, None)
            self._unnamed.discard(line.circuit)
            return None
        if line.purpose not in (_INTRO, _REND):
            self._circuits.pop(line.circuit, None)  # tor has taken it for something else
            return None
        return self._judged(line.circuit, self._learned(line))

    def shut(self, onion: str) -> list[str]:
        """Nobody new gets in by `onion` from now on; sessions that are there, or on their way, go on. What to close."""
        if onion in self._shut:
            return []
        self._shut.add(onion)
        self._unnamed.update(name for name, c in self._circuits.items() if c.purpose == _REND and not c.onion)
        judged = [
            self._judged(name, circuit)
            for name, circuit in self._circuits.items()
            if circuit.onion == onion and circuit.purpose == _INTRO
        ]
        return [name for name in judged if name is not None]

    def forget(self, onion: str) -> None:
        """tor has it no more."""
        self._shut.discard(onion)

    def sessions(self) -> Counter[str]:
        """Visitors' rendezvous circuits that are up, by onion."""
        return Counter(c.onion for c in self._circuits.values() if c.purpose == _REND and c.built and not c.attack)

    def points(self, onion: str) -> int:
        """Its introduction circuits that are established, of both its periods."""
        return sum(
            1
            for c in self._circuits.values()
            if c.onion == onion and c.purpose == _INTRO and c.state == _ESTABLISHED and not c.closing
        )

    def _learned(self, line: CircuitLine) -> _Circuit:
        circuit = self._circuits.get(line.circuit)
        if circuit is None or circuit.purpose != line.purpose:
            circuit = _Circuit(line.purpose)
            if len(self._circuits) < MAX_CIRCUITS:
                self._circuits[line.circuit] = circuit
            self.introductions += line.purpose == _REND
        if line.onion and not circuit.onion:
            circuit.onion = line.onion
            circuit.attack = self._is_attack(line, circuit)
            self.attacks += circuit.attack
        circuit.state = line.state or circuit.state
        circuit.built = circuit.built or line.status == "BUILT" or line.state in (_ESTABLISHED, _JOINED)
        return circuit

    def _is_attack(self, line: CircuitLine, circuit: _Circuit) -> bool:
        return circuit.purpose == _REND and line.onion in self._shut and line.circuit not in self._unnamed

    def _judged(self, name: str, circuit: _Circuit) -> str | None:
        unwanted = circuit.attack or (circuit.purpose == _INTRO and circuit.onion in self._shut)
        if not unwanted or not circuit.built or circuit.closing:
            return None
        circuit.closing = True
        return name
