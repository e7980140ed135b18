"""What a capability check costs on every call: a token seen before (hit), one not seen before (miss), a forged one.

Beside it, in the same rounds on the same core, what pymacaroons alone needs to read and verify a token of that shape.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable

from pymacaroons import MACAROON_V2, Macaroon, Verifier

from bench import harness
from ron.auth import Authority, Caveat, RootKeys, Wanted
from ron.auth.caveats import expiry
from ron.proto.errors import RonError

ROUNDS, HITS, TOKENS = 7, 50_000, 1_000
WANTED = Wanted("mailbox:send", "POST", "/v1/send")


def main() -> None:
    """Measure, interleaved, and save."""
    os.sched_setaffinity(0, {int(harness.SERVER_CPU)})
    runs: dict[str, list[float]] = {}
    keys = RootKeys.generate()
    caveats = [Caveat("scope", "mailbox:send"), Caveat("method", "POST"), expiry(time.time(), 3600)]
    try:
        for _ in range(ROUNDS):
            for name, microseconds in _round(keys, caveats).items():
                runs.setdefault(name, []).append(microseconds)
    finally:
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
    each = {name: harness.spread(times, 3) for name, times in runs.items()}
    read, miss, hit = (each[n]["p50"] for n in ("pymacaroons, read and verify", "miss", "hit"))
    ratios = {"miss, of pymacaroons": round(miss / read, 3), "hit, of pymacaroons": round(hit / read, 4)}
    setup = {"caveats": len(caveats) + 1, "rounds": ROUNDS, "hits": HITS, "tokens": TOKENS}
    harness.save("capability", {"setup": setup, "us_per_check": each, "hit_ns": round(hit * 1000), "ratios": ratios})
    rows = [[name, *(figures[k] for k in ("min", "p50", "p95"))] for name, figures in each.items()]
    harness.show(f"capability check, µs (a hit is {hit * 1000:.0f} ns)", ["", "min", "p50", "p95"], rows)


def _round(keys: RootKeys, caveats: list[Caveat]) -> dict[str, float]:
    """Microseconds a check, by kind."""
    authority = Authority(keys, audience="bench", now=time.time)
    tokens = [authority.mint(caveats) for _ in range(TOKENS)]
    # the last character carries two bits of the signature
    forged = [token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1] for token in tokens]
    key, peers = secrets.token_bytes(32), []
    for _ in range(TOKENS):
        peer = Macaroon(location="ron", identifier=f"ron1 1 {secrets.token_hex(16)}", key=key, version=MACAROON_V2)
        for caveat in (Caveat("aud", "bench"), *caveats):
            peer.add_first_party_caveat(str(caveat))
        peers.append(str(peer.serialize()))

    def admit(token: str) -> None:
        authority.admit(token, WANTED)

    def refuse(token: str) -> None:
        try:
            authority.admit(token, WANTED)
        except RonError:
            return
        raise AssertionError("a forged token was admitted")

    def verify(macaroon: Macaroon) -> None:
        verifier = Verifier()
        verifier.satisfy_general(lambda _text: True)
        assert verifier.verify(macaroon, key)

    return {
        "miss": _each(admit, tokens),
        "hit": _each(admit, [tokens[0]] * HITS),
        f"hit, {TOKENS} tokens in turn": _each(admit, tokens * (HITS // TOKENS)),
        "forged": _each(refuse, forged),
        "pymacaroons, read and verify": _each(lambda text: verify(Macaroon.deserialize(text)), peers),
        "pymacaroons, verify alone": _each(verify, [Macaroon.deserialize(text) for text in peers]),
    }


def _each(check: Callable[[str], None], arguments: Iterable[str]) -> float:
    """Microseconds a call, on average."""
    todo = list(arguments)
    started = time.perf_counter()
    for argument in todo:
        check(argument)
    return (time.perf_counter() - started) / len(todo) * 1e6


if __name__ == "__main__":
    sys.exit(main())
