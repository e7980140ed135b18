"""How much may be asked a second, of the instance and by each tenant: nobody can use up what is somebody else's.

In: a tenant's request and the time. Out: nothing, or `Refused` (429). Pure; times are seconds of one steady clock.

The instance's rate is dealt out to the tenants that ask at present, evenly. What one does not use overflows into a
spare bucket that any of them may take from (max-min fair sharing), so that a lone tenant has all of it.
"""

from __future__ import annotations

from collections import OrderedDict

from ron.kernel.limits import TokenBucket, too_many

RATE = 500.0
BURST_S = 1.0
# How often tokens are dealt; a tenant that has not asked for IDLE_S is dealt none
_STEP_S = 0.05
_IDLE_S = 2.0
# Tenants with a limit of their own that are remembered; beyond it the one that asked longest ago is forgiven
_REMEMBERED = 4096
_REASON = "rate"


class _Purse:
    __slots__ = ("asked_s", "tokens")

    def __init__(self, tokens: float, now_s: float) -> None:
        self.tokens = tokens
        self.asked_s = now_s


class Rates:
    """rps: requests a second of the instance. tenant_rps: of one tenant at most, None for as much as there is."""

    def __init__(self, rps: float, tenant_rps: float | None = None, *, now_s: float) -> None:
        if rps <= 0 or (tenant_rps is not None and tenant_rps <= 0):
            raise ValueError("a rate is above 0")
        self._rps = rps
        self._tenant_rps = tenant_rps
        self._burst = max(1.0, rps * BURST_S)
        self._spare = self._burst
        self._dealt_s = now_s
        self._purses: dict[str, _Purse] = {}
        self._own: OrderedDict[str, TokenBucket] = OrderedDict()

    def check(self, tenant: str, now_s: float) -> None:
        """One request of `tenant`. Raises `Refused` 429 with reason `rate`, and then nothing was taken."""
        self._deal(now_s)
        own = self._bucket(tenant, now_s)
        wait_s = own.wait_s(1.0, now_s) if own is not None else 0.0
        if wait_s:
            raise too_many(_REASON, "too many requests a second of this tenant", wait_s=wait_s)
        if not self._pay(tenant, now_s):
            raise too_many(_REASON, "too many requests a second")
        if own is not None:
            own.spend(1.0)

    def _pay(self, tenant: str, now_s: float) -> bool:
        purse = self._purses.get(tenant)
        if purse is None:
            # a newcomer has one to begin with: the spare bucket pays, into debt if it must
            purse = self._purses[tenant] = _Purse(1.0, now_s)
            self._spare -= 1.0
        purse.asked_s = now_s
        if purse.tokens >= 1.0:
            purse.tokens -= 1.0
        elif self._spare >= 1.0:
            self._spare -= 1.0
        else:
            return False
        return True

    def _deal(self, now_s: float) -> None:
        elapsed_s = now_s - self._dealt_s
        if 0 <= elapsed_s < _STEP_S:
            return
        # a clock that was set back deals nothing; beyond a burst nothing more fits anyhow
        tokens = self._rps * min(max(elapsed_s, 0.0), 2 * BURST_S)
        self._dealt_s = now_s
        for name in [name for name, purse in self._purses.items() if now_s - purse.asked_s > _IDLE_S]:
            tokens += self._purses.pop(name).tokens
        part = tokens / max(1, len(self._purses))
        most = max(1.0, self._burst / max(1, len(self._purses)))
        over = 0.0 if self._purses else tokens
        for purse in self._purses.values():
            filled = purse.tokens + part
            purse.tokens = min(most, filled)
            over += filled - purse.tokens
        self._spare = min(self._burst, self._spare + over)

    def _bucket(self, tenant: str, now_s: float) -> TokenBucket | None:
        if self._tenant_rps is None:
            return None
        bucket = self._own.get(tenant)
        if bucket is None:
            bucket = self._own[tenant] = TokenBucket(self._tenant_rps, max(1.0, self._tenant_rps * BURST_S), now_s)
            if len(self._own) > _REMEMBERED:
                self._own.popitem(last=False)
        self._own.move_to_end(tenant)
        return bucket
