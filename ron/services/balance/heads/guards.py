"""Guards that all heads share: relays that may be the second and third hop of their onion circuits. Pure.

In: the relays of the consensus, the set there is. Out: the set there should be, for the book (`vanguards`). If each
head had its own, every further head would be another chance that a relay of somebody's stands next to a guard; with one
set, more heads do not mean more relays to attack. Numbers and lifetimes: tor proposal 292.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

import msgspec
from msgspec import Meta

LAYER2_NODES, LAYER3_NODES = 4, 8
_HOUR_S, _DAY_S = 3600, 86_400
# A lifetime is the longer of two that are drawn evenly between these.
LAYER2_LIFE_S = (1 * _DAY_S, 45 * _DAY_S)
LAYER3_LIFE_S = (1 * _HOUR_S, 48 * _HOUR_S)
# In a smaller network pinned layers leave tor without paths: it chooses itself.
MIN_RELAYS = 3 * (LAYER2_NODES + LAYER3_NODES)
_FLAGS = {"Running", "Valid", "Fast", "Stable"}
_FINGERPRINT_BYTES = 20
Fingerprint = Annotated[str, Meta(pattern=r"^[0-9A-F]{40}\Z")]


class Relay(NamedTuple):
    """fingerprint: 40 hex digits. weight: its bandwidth in the consensus."""

    fingerprint: str
    weight: int


class Guard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """until_ms: Unix milliseconds, when another takes its place."""

    fingerprint: Fingerprint
    until_ms: Annotated[int, Meta(ge=0, le=2**53)]


class Guards(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the book holds under `vanguards`. Both empty: tor chooses."""

    layer2: Annotated[tuple[Guard, ...], Meta(max_length=LAYER2_NODES)] = ()
    layer3: Annotated[tuple[Guard, ...], Meta(max_length=LAYER3_NODES)] = ()

    def fingerprints(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """For `TorHead.set_guards`."""
        return tuple(guard.fingerprint for guard in self.layer2), tuple(guard.fingerprint for guard in self.layer3)


def choose_guards(relays: Sequence[Relay], now_s: float, previous: Guards, rng: random.Random) -> Guards:
    """`previous` with new relays for those whose time is over or that are in `relays` no more. now_s: Unix seconds.

    relays: those that may be chosen; too few of them: no guards, but what there is stays while the network is only
    known in part. rng: `SystemRandom`, unless for a test. The same set again when nothing is due.
    """
    if not relays:
        return previous
    if len(relays) < MIN_RELAYS:
        return Guards()
    layer2 = _kept(previous.layer2, relays, now_s)
    layer3 = _kept(previous.layer3, relays, now_s)
    taken = {guard.fingerprint for guard in (*layer2, *layer3)}
    for layer, number, life_s in ((layer2, LAYER2_NODES, LAYER2_LIFE_S), (layer3, LAYER3_NODES, LAYER3_LIFE_S)):
        while len(layer) < number:
            one = _drawn([relay for relay in relays if relay.fingerprint not in taken], rng)
            taken.add(one)
            lives_s = max(rng.uniform(*life_s), rng.uniform(*life_s))
            layer.append(Guard(fingerprint=one, until_ms=int(1000 * (now_s + lives_s))))
    return Guards(layer2=tuple(layer2), layer3=tuple(layer3))


def read_relays(ns_all: str) -> tuple[Relay, ...]:
    """Relays that may be chosen, from a `GETINFO ns/all`: Running, Valid, Fast, Stable. Entries that are none are
    passed over."""
    return tuple(relay for relay in _relays(ns_all.splitlines()) if relay is not None)


def _relays(lines: Iterable[str]) -> Iterable[Relay | None]:
    fingerprint, flags = "", set[str]()
    for line in lines:
        words = line.split()
        if line.startswith("r ") and len(words) > 2:
            fingerprint, flags = _hex(words[2]), set()
        elif line.startswith("s "):
            flags = set(words[1:])
        elif line.startswith("w Bandwidth=") and fingerprint and flags >= _FLAGS:
            weight = words[1].removeprefix("Bandwidth=")
            yield Relay(fingerprint, int(weight)) if weight.isascii() and weight.isdigit() else None
            fingerprint = ""


def _hex(base64_text: str) -> str:
    try:
        raw = msgspec.convert(f"{base64_text}=", bytes)
    except msgspec.ValidationError:
        return ""
    return raw.hex().upper() if len(raw) == _FINGERPRINT_BYTES else ""


def _kept(guards: Sequence[Guard], relays: Sequence[Relay], now_s: float) -> list[Guard]:
    known = {relay.fingerprint for relay in relays}
    return [guard for guard in guards if guard.fingerprint in known and guard.until_ms > 1000 * now_s]


def _drawn(relays: Sequence[Relay], rng: random.Random) -> str:
    weights = [max(1, relay.weight) for relay in relays]
    return rng.choices([relay.fingerprint for relay in relays], weights)[0]
