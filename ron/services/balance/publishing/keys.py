"""Descriptor-signing keys: one for each service and time period, certified when needed and before the last one ends.

In: who signs for a service. Out: keys, in memory only. A signer that fails leaves the last key in use while it lasts,
and one signing per key is under way at a time, however many ask.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.logger import Logger

from ron.kernel.aio import within
from ron.proto.balance import ServiceName
from ron.proto.errors import ErrorCode, RonError, conflict
from ron.services.balance.publishing.outside import Figures
from ron.tor.descriptor.blinding import Signer
from ron.tor.descriptor.build import LIFETIME_MIN, DescriptorKey, certify
from ron.tor.descriptor.periods import TimePeriod

RENEW_BEFORE_S = 12 * 3600
"""A key with less left is renewed while it is still used: there is time for many tries."""
LEAST_LEFT_S = LIFETIME_MIN * 60
"""A key with less left would end before the descriptor that it signs."""
RETRY_S = 30.0
CERTIFY_TIMEOUT_S = 10.0
_log = Logger(namespace="ron.balance")
_Slot = tuple[ServiceName, TimePeriod]


class Keys:
    """signer: who signs for a service; raises `RonError` when nobody here does. now_s: Unix time."""

    def __init__(
        self,
        reactor: Any,
        *,
        signer: Callable[[ServiceName], Signer],
        now_s: Callable[[], float],
        figures: Figures,
    ) -> None:
        self._reactor = reactor
        self._signer = signer
        self._now_s = now_s
        self._figures = figures
        self._keys: dict[_Slot, DescriptorKey] = {}
        self._under_way: dict[_Slot, list[Deferred[DescriptorKey]]] = {}
        # counts `forget`: a key that was asked for before is not kept after it
        self._era = 0
        self._tried_s: dict[_Slot, float] = {}

    async def key(self, service: ServiceName, period: TimePeriod) -> DescriptorKey:
        """A key that outlives a descriptor. Raises what the signer raises, Timeout after 10 s, `Refused` when it lies,
        but only when there is no key left from before."""
        slot = service, period
        held = self._keys.get(slot)
        left_s = held.expires_s - self._now_s() if held else 0.0
        if held is None or left_s <= LEAST_LEFT_S:
            return await self._fresh(slot)
        if left_s <= RENEW_BEFORE_S:
            self._renew(slot)
        return held

    def prepare(self, service: ServiceName, periods: Collection[TimePeriod]) -> None:
        """Have keys ready before they are needed: whoever leads next then publishes without asking anybody."""
        for period in periods:
            held = self._keys.get((service, period))
            if held is None or held.expires_s - self._now_s() <= RENEW_BEFORE_S:
                self._renew((service, period))

    def ready(self, service: ServiceName, periods: Collection[TimePeriod]) -> bool:
        """Are there keys for all of them?"""
        return all((service, period) in self._keys for period in periods)

    def keep_only(self, periods: Collection[TimePeriod]) -> None:
        """Forget keys of other periods: they are over."""
        self._keys = {slot: key for slot, key in self._keys.items() if slot[1] in periods}
        self._tried_s = {slot: at_s for slot, at_s in self._tried_s.items() if slot[1] in periods}

    def forget(self, service: ServiceName) -> None:
        """It is not ours to publish any more, or its signers are others."""
        self._era += 1
        self._keys = {slot: key for slot, key in self._keys.items() if slot[0] != service}
        self._tried_s = {slot: at_s for slot, at_s in self._tried_s.items() if slot[0] != service}

    def _renew(self, slot: _Slot) -> None:
        tried_s = self._tried_s.get(slot)
        if tried_s is not None and self._reactor.seconds() - tried_s < RETRY_S:
            return
        self._tried_s[slot] = self._reactor.seconds()
        done = Deferred.fromCoroutine(self._fresh(slot))
        done.addErrback(lambda failure: failure.trap(RonError))  # counted and told where it happened
        done.addErrback(lambda failure: _log.failure("a descriptor-signing key was not made", failure))

    async def _fresh(self, slot: _Slot) -> DescriptorKey:
        """The outcome of the signing that is under way, or of a new one. Whoever stops waiting ends it for nobody."""
        waiter: Deferred[DescriptorKey] = Deferred()
        waiters = self._under_way.setdefault(slot, [])
        waiters.append(waiter)
        if len(waiters) == 1:
            Deferred.fromCoroutine(self._certify(slot)).addBoth(self._settled, slot)
        return await waiter

    def _settled(self, result: Any, slot: _Slot) -> None:
        for waiter in self._under_way.pop(slot):
            waiter.callback(result)

    async def _certify(self, slot: _Slot) -> DescriptorKey:
        service, period = slot
        era = self._era
        try:
            signing = certify(self._signer(service), period, self._now_s())
            made = await within(self._reactor, CERTIFY_TIMEOUT_S, signing)
        except DeadlineError:
            self._failed(service, "nobody signed in time")
            raise RonError(ErrorCode.TIMEOUT, f"no signature in {CERTIFY_TIMEOUT_S:.0f} s") from None
        except RonError as error:
            self._failed(service, error.message)
            raise
        if era != self._era:
            raise conflict("the service was given up meanwhile")
        self._figures.certifications.labels("made").inc()
        self._keys[slot] = made
        return made

    def _failed(self, service: ServiceName, why: str) -> None:
        self._figures.certifications.labels("failed").inc()
        _log.warn("{service}: no new descriptor-signing key: {why}", service=service, why=why)
