"""The caveats of a verified token, read once into what a call is compared with. Pure.

In: caveats. Out: `judge` lets a call pass or raises `Refused`. The meaning is that of `ron.auth.caveats`; a test holds
the two against each other.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Iterable
from typing import NamedTuple

from ron.auth.budgets import Allowance
from ron.auth.caveats import RESOURCE, Caveat, bytes_a_day, instant_s, requests_per_s, scope_parts
from ron.auth.refusals import forbidden, unauthorized

# One token's chain may carry so many `rps` (and as many `bytes_per_day`) caveats that each say less than the last.
MAX_ALLOWANCES = 8


class Wanted(NamedTuple):
    """What a call asks for. `enforces`: the resource caveats its endpoint promises to check itself."""

    scope: str
    method: str
    path: str
    enforces: frozenset[str] = frozenset()


class Capability(NamedTuple):
    """A token whose signature holds: its id (128 bits, hex), the root-key epoch it stands on, and its caveats.

    quotas: what its `bytes_per_day` caveats allow; whoever moves bytes for it tells `Authority.charge_bytes`.
    """

    cap_id: str
    kid: int
    caveats: tuple[Caveat, ...]
    quotas: tuple[Allowance, ...] = ()

    def require(self, name: str, value: str) -> None:
        """Refuse (403) unless every `name` caveat equals `value`. Endpoints call it for what they enforce."""
        for caveat in self.caveats:
            if caveat.name == name and not secrets.compare_digest(caveat.value.encode(), value.encode()):
                raise forbidden("resource", f"the capability is for another {name}")


class Terms:
    """What a capability's caveats come to. Several of one name must all hold."""

    __slots__ = ("alien", "capability", "ends_s", "methods", "paths", "rates", "resources", "retires_s", "scopes")

    def __init__(
        self, cap_id: str, kid: int, caveats: tuple[Caveat, ...], *, audience: str, retires_s: float | None
    ) -> None:
        def values(name: str) -> list[str]:
            return [caveat.value for caveat in caveats if caveat.name == name]

        self.capability = Capability(cap_id, kid, caveats, _allowances(caveats, "bytes_per_day", bytes_a_day))
        self.rates = _allowances(caveats, "rps", requests_per_s)
        self.retires_s = math.inf if retires_s is None else retires_s
        self.ends_s = min(map(instant_s, values("exp")), default=math.inf)
        self.alien = any(value != audience for value in values("aud"))
        patterns = [frozenset(scope_parts(value)) for value in values("scope")]
        self.scopes = tuple(pattern for pattern in patterns if "*" not in pattern)
        self.methods = tuple(set(values("method")))
        self.paths = tuple({(value, value.rstrip("/") + "/") for value in values("path")})
        self.resources = tuple(sorted(RESOURCE & {caveat.name for caveat in caveats}))

    def judge(self, wanted: Wanted, now_s: float) -> None:
        """Raises `Refused`: 401 when the token's time is over, 403 when it does not cover `wanted`."""
        if now_s >= self.ends_s:
            raise unauthorized("expired", "the capability has expired", "mint a new one")
        if now_s >= self.retires_s:
            raise unauthorized("retired", "the capability stands on a retired key", "mint a new one")
        if self.alien:
            raise forbidden("audience", "the capability is for another audience")
        scope, method, path, enforces = wanted
        for allowed in self.scopes:
            if scope not in allowed and f"{scope.partition(':')[0]}:*" not in allowed:
                raise forbidden("scope", f"the capability lacks scope {scope}")
        for only in self.methods:
            if method != only:
                raise forbidden("method", "the capability is for another method")
        for prefix, below in self.paths:
            if path != prefix and not path.startswith(below):
                raise forbidden("path", "the capability is for another path")
        for name in self.resources:
            if name not in enforces:
                raise forbidden("resource", f"a caveat on {name} cannot be honoured here")


def _allowances(caveats: Iterable[Caveat], name: str, read: Callable[[str], float]) -> tuple[Allowance, ...]:
    """One for each `name` caveat that says less than those before it: the others can never bind."""
    found: list[Allowance] = []
    chain = hashlib.sha256()
    for caveat in caveats:
        text = str(caveat).encode()
        chain.update(len(text).to_bytes(2, "big") + text)
        if caveat.name == name and (not found or read(caveat.value) < found[-1].limit):
            found.append(Allowance(chain.digest(), read(caveat.value)))
    if len(found) > MAX_ALLOWANCES:
        raise forbidden("resource", f"over {MAX_ALLOWANCES} caveats on {name}")
    return tuple(found)
