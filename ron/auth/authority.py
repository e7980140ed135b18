"""Mints capabilities and decides whether one covers a call.

In: a token and what the call wants. Out: a `Capability`, or `Refused` (`RonError`) with 401 (no usable token), 403
(a good token that does not cover the call), 429 (its allowance is used up) or 503 (who is revoked cannot be told).
Anything not understood is refused.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from pymacaroons import Verifier

from ron.auth.budgets import Budgets
from ron.auth.caveats import Caveat, parse_caveat
from ron.auth.counts import AuthCounts
from ron.auth.refusals import Refused, unauthorized, unreadable
from ron.auth.revocations import Revocations
from ron.auth.rootkeys import RootKeys
from ron.auth.terms import Capability, Terms, Wanted
from ron.auth.tokens import decode, identity, seal

# Whom our own tokens are for, in every process of a node.
AUDIENCE = "ron-node"
VERIFIED_CACHE = 4096


class Authority:
    """Mints with the newest root key; admits tokens of every epoch that has not retired.

    `now` gives Unix seconds. Signatures that held are remembered with their caveats read, at most `VERIFIED_CACHE` of
    them and never over a change of the root keys. Decisions are not remembered: time, revocation and the call
    itself are judged on each call, so nothing outlives an expiry, a retirement or a revocation.
    """

    def __init__(
        self,
        keys: RootKeys,
        *,
        audience: str,
        now: Callable[[], float],
        revocations: Revocations | None = None,
        counts: AuthCounts | None = None,
    ) -> None:
        self.counts = counts or AuthCounts()
        self._keys = keys
        self._audience = audience
        self._now = now
        self._revocations = Revocations(keys) if revocations is None else revocations
        self._budgets = Budgets(now)
        self._generation = keys.generation
        # The key is the token itself. An attacker's text meets a good token's bytes only when their 64-bit SipHash
        # values are equal already, and that hash is keyed per process and taken over a 256-bit signature nobody can
        # guess: the comparison's time tells nothing. Keeping tokens costs 16 MiB at worst; a digest would double a hit.
        self._verified: OrderedDict[str, Terms] = OrderedDict()

    def mint(self, caveats: Iterable[Caveat]) -> str:
        """A new token for this audience, narrowed by `caveats`: libmacaroons v2 binary, base64url without padding.

        Raises ValueError on a caveat nobody would understand, `RonError` TooLarge on too many.
        """
        epoch = self._keys.current
        return seal(epoch.kid, epoch.key, (Caveat("aud", self._audience), *caveats))

    def admit(self, token: str | None, wanted: Wanted) -> Capability:
        """The capability behind `token` when it covers `wanted`; takes one request from its `rps`. Else `Refused`."""
        return self._admit(token, wanted, taking=True)

    def stands(self, token: str | None, wanted: Wanted) -> Capability:
        """As `admit`, for a call that goes on and on: asked again and again it takes nothing from `rps`."""
        return self._admit(token, wanted, taking=False)

    def _admit(self, token: str | None, wanted: Wanted, *, taking: bool) -> Capability:
        try:
            if not token:
                hint = f"send a macaroon with scope {wanted.scope} as Authorization: Bearer"
                raise unauthorized("missing", "no capability", hint)
            revoked = self._revocations
            if revoked.fault is not None:
                raise unreadable(revoked.fault)
            terms = self._recall(token)
            if terms.capability.cap_id in revoked.ids:
                raise unauthorized("revoked", "the capability was revoked", "ask for another")
            terms.judge(wanted, self._now())
            rates = terms.rates if taking else ()
            if rates or terms.capability.quotas:
                self._budgets.charge(terms.capability.cap_id, rates, terms.capability.quotas)
        except Refused as refusal:
            self.counts.refused[refusal.reason] += 1
            raise
        return terms.capability

    def charge_bytes(self, capability: Capability, count: int) -> None:
        """`count` bytes (request and answer) were moved for `capability`. Once its day's are used up, `admit` refuses
        it until midnight UTC; a call under way is finished, so the last one may go over."""
        if capability.quotas:
            self._budgets.charge_bytes(capability.cap_id, capability.quotas, count)

    def recognise(self, token: str) -> Capability:
        """The capability behind `token` when one of our keys signed it, whether or not it may still be used.

        Raises `Refused` (401).
        """
        return self._check_signature(token).capability

    def _recall(self, token: str) -> Terms:
        if self._generation != self._keys.generation:
            self._generation = self._keys.generation
            self._verified.clear()
        terms = self._verified.get(token)
        if terms is not None:
            self._verified.move_to_end(token)
            self.counts.hits += 1
            return terms
        terms = self._check_signature(token)
        self.counts.misses += 1
        self._verified[token] = terms
        if len(self._verified) > VERIFIED_CACHE:
            self._verified.popitem(last=False)
        return terms

    def _check_signature(self, token: str) -> Terms:
        macaroon = decode(token)
        kid, cap_id = identity(macaroon)
        epoch = self._keys.epoch(kid)
        if epoch is None:
            raise unauthorized("retired", "the capability stands on a retired key", "mint a new one")
        caveats: list[Caveat] = []

        def collect(text: str) -> bool:
            caveats.append(parse_caveat(text))
            return True

        verifier = Verifier()
        verifier.satisfy_general(collect)
        # pymacaroons signals every refusal by its own or a built-in exception, and none of them may become a 500;
        # it compares the signatures in constant time
        try:
            held = verifier.verify(macaroon, epoch.key)
        except Exception:  # noqa: BLE001
            held = False
        if not held:
            raise unauthorized("forged", "the capability does not verify", "use one minted by this node, unaltered")
        return Terms(cap_id, kid, tuple(caveats), audience=self._audience, retires_s=epoch.retires_at_s)
