"""Keeps the onions of one tor as they are wanted, whatever becomes of the tor, of the connection to it, or of us.

In: the services wanted, and what this tor was last seen to publish. Out: for each whether clients can find it, and why
not. What the tor has and nobody wants goes, what it has as wanted stays untouched, the rest is published, many at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from txtorcon import TorControlProtocol

from ron.kernel.aio import within
from ron.kernel.backoff import Backoff
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.services.oniond.introductions import Introductions
from ron.services.oniond.networktime import TimeWatch
from ron.services.oniond.standings import BEHIND, GONE, LOST, MOVED, SKIPPED, Standing, Standings, Wanted, Watch
from ron.tor import circuits
from ron.tor.attached import AttachedTor, TorHost
from ron.tor.control import TorSilent, ask
from ron.tor.onions import NoWay, TorOnions
from ron.tor.unlisted import mute, unlist

AT_ONCE = 16
WITHDRAW_TIMEOUT_S = 5.0
RETRY_S = 1.0
_log = Logger(namespace="ron.oniond")

Remember = Callable[[str, str | None], Awaitable[None]]


class Publisher:
    """One tor's services.

    remembered: digests by address, of what it was seen to publish. remember: writes that down. watch: told of every
    change. now: Unix seconds, by the clock that its tor has too.
    """

    def __init__(
        self,
        reactor: Any,
        role: str,
        *,
        host: TorHost,
        remembered: Mapping[str, str],
        remember: Remember,
        watch: Watch,
        now: Callable[[], float],
    ) -> None:
        self.role = role
        self._reactor = reactor
        self._host = host
        self._remembered = dict(remembered)
        self._remember = remember
        self._watch = watch
        self._wanted: dict[str, Wanted] = {}
        # addresses whose state may not be as wanted
        self._dirty: set[str] = set()
        self._standings = Standings(watch.standing_changed)
        self._have: dict[str, str] = {}
        self._unlisted: set[str] = set()
        self._muted = self._behind = False
        self._refused: dict[str, str] = {}
        self._tasks: dict[str, tuple[str, Deferred[None]]] = {}
        self._retries: dict[str, IDelayedCall] = {}
        self._backoff: dict[str, Backoff] = {}
        self._useless: RonError | None = None
        self._vain = False  # the last attempt found no way
        self._gate = DeferredSemaphore(AT_ONCE)
        self._wake: Deferred[None] = Deferred()
        self._leaving: dict[str, list[Deferred[None]]] = {}
        self._introductions = Introductions()
        self._time = TimeWatch(reactor, now)
        self._onions: TorOnions | None = None
        self.tor = AttachedTor(reactor, name=role, host=host, on_up=self._tor_up, on_down=self._tor_down)

    def start(self) -> None:
        """Look for the tor, and keep it as wanted."""
        self.tor.start()

    async def stop(self) -> None:
        """Take the services down, and let go of the tor."""
        onions, self._onions = self._onions, None
        if onions is not None:
            try:
                await within(self._reactor, WITHDRAW_TIMEOUT_S, self._withdraw_all(onions))
            except Exception as error:  # noqa: BLE001 - tor may be gone already, and takes them along
                _log.warn("onions were not taken down: {error}", event="onion_left", tor=self.role, error=str(error))
        self.let_go()

    def let_go(self) -> None:
        """Leave tor as it is."""
        self._end_tasks()
        self.tor.stop()

    def want(self, wanted: Mapping[str, Wanted], gone: Iterable[str] = ()) -> None:
        """These from now on, and those of `gone` no more; what else is wanted stays so."""
        for address in gone:
            if self._wanted.pop(address, None) is not None:
                self._end_retry(address)
                self._backoff.pop(address, None)
                self._poke(address)
                self._standings.forget(address)
        for address, service in wanted.items():
            if self._wanted.get(address) == service:
                continue
            self._wanted[address] = service
            if address not in self._standings or self._have.get(address, service.digest) != service.digest:
                self._standings.put(address, Standing(False))
            self._poke(address)

    async def mute(self, *, muted: bool) -> None:
        """While it is muted this tor uploads no descriptor: what is to be published here waits, and what another tor
        has published of our onions stays. Raises what the control port does, and Unavailable without a tor."""
        control = self.tor.control
        if muted and control is None:
            raise unavailable(f"tor {self.role} is not there")
        self._muted = muted
        if control is not None:
            await mute(self._reactor, control, muted=self._is_mute)
        self._poke(*self._wanted)

    async def expect(self, address: str) -> None:
        """`address` is about to come here from another tor: written down, so that whoever comes after us knows."""
        self._remembered[address] = ""
        await self._note(address, "")

    async def expect_no_more(self, address: str) -> None:
        """It does not come after all."""
        if self._remembered.get(address) == "":
            self._remembered.pop(address)
            await self._note(address, None)

    def is_unlisted(self) -> bool:
        """Is everything unlisted that is to be?"""
        return all(
            one.listed or address in self._unlisted or address not in self._have
            for address, one in self._wanted.items()
        )

    def again(self, address: str) -> None:
        """Publish `address` anew: some other tor may have uploaded its own descriptor since."""
        if address in self._have:
            self._have[address] = ""
            self._poke(address)

    async def look_at_time(self) -> None:
        """What a skipped period has left behind is published anew; nothing is while we are behind (`networktime`)."""
        seen = await self._time.look(self.tor.control)
        if seen is None:
            return
        if seen.behind is not self._behind:
            _log.warn("behind our network's time: {behind}", event="clock_behind", tor=self.role, behind=seen.behind)
            self._behind = seen.behind
            await self.mute(muted=self._muted)
        for address in self._standings:
            if seen.behind and address not in self._have:
                self._standings.put(address, Standing(False, BEHIND))
            elif seen.skipped and self._standings[address].ready:
                self._standings.put(address, Standing(False, SKIPPED))
                self.again(address)

    @property
    def _is_mute(self) -> bool:
        return self._muted or self._behind

    def standing(self, address: str) -> Standing:
        """How it stands."""
        return self._standings[address]

    def introducible(self, points: Mapping[str, int]) -> None:
        """points: working introduction points by address, as they are now. What has lost them is published anew."""
        for address in self._introductions.lost(points, self._standings.ready(), self._wanted, self._reactor.seconds()):
            _log.warn("an onion lost its introduction points", event="onion_lost", tor=self.role)
            self._standings.put(address, Standing(False, LOST))
            self._have[address] = ""
            self._poke(address)

    async def ready(self, address: str) -> None:
        """As `Standings.until_ready`."""
        await self._standings.until_ready(address)

    async def hang_up(self, address: str, known: Callable[[], Sequence[str] | None]) -> None:
        """Close the circuits of whoever is still there, once nobody new comes. Raises what the control port does.

        known: their numbers, as far as they are known; else tor is asked, which then lists every circuit it has.
        """
        await self._withdrawn(address)
        control = self.tor.control
        if control is None:
            return
        await ask(self._reactor, control, "version")  # what came before the end has been told when this is answered
        numbers = known()
        if numbers is None:
            numbers = (await circuits.visitors(self._reactor, control)).get(address, [])
        for circuit in numbers:
            await circuits.close(self._reactor, control, circuit)

    async def _withdrawn(self, address: str) -> None:
        """Return when tor has `address` no more, or takes too long about it."""
        if address in self._wanted or not (address in self._have or address in self._tasks):
            return
        gone: Deferred[None] = Deferred()
        self._leaving.setdefault(address, []).append(gone)
        try:
            await within(self._reactor, WITHDRAW_TIMEOUT_S, gone)
        except DeadlineError:
            _log.warn("tor was slow to take an onion down", event="onion_left", tor=self.role)

    # With a tor

    async def _tor_up(self, control: TorControlProtocol) -> None:
        onions = TorOnions(self._reactor, control)
        await onions.open()
        # whoever was here before us may have muted it and not come back
        await mute(self._reactor, control, muted=self._is_mute)
        await self.look_at_time()
        await self._watch.connected(self.role, control)
        there = await onions.detached()
        self._onions, self._useless, self._vain = onions, None, False
        self._have = {address: digest for address, digest in self._remembered.items() if address in there}
        self._refused.clear()
        # somebody's before us: whether any directory has them is not known, so they are taken down before anything else
        self._have.update(dict.fromkeys(there - set(self._have), ""))
        for address, service in self._wanted.items():
            if self._have.get(address) == service.digest:
                self._standings.put(address, Standing(True, None))
        self._dirty = {*self._wanted, *self._have}
        while True:
            self._wake = Deferred()
            try:
                await self._reconcile(onions)
            except TorSilent as error:
                # it may be busy with its other onions, which would all end with it: its watch knows better
                _log.warn("{error}; trying again", event="tor_silent", tor=self.role, error=error.message)
                await deferLater(self._reactor, RETRY_S)
                continue
            await self._wake
            if self._useless is not None:
                raise self._useless

    def _tor_down(self) -> None:
        self._onions = None
        self._watch.disconnected(self.role)
        self._end_tasks()
        self._have.clear()
        self._time.forget()
        self._unlisted.clear()
        for address in list(self._leaving):
            self._let_wait_no_more(address)
        for address in self._standings:
            self._standings.put(address, Standing(False, GONE))

    async def _reconcile(self, onions: TorOnions) -> None:
        """What may not be as wanted becomes so, or is begun."""
        dirty, self._dirty = self._dirty, set()
        try:
            for address in dirty:
                await self._take_down(onions, address)
            await self._unlist(dirty)
        except BaseException:
            self._dirty |= dirty
            raise
        for address in dirty:
            service = self._wanted.get(address)
            idle = address not in self._have and address not in self._tasks and address not in self._retries
            wished = service is not None and service.listed and not self._is_mute
            if service is not None and wished and idle and self._refused.get(address) != service.digest:
                self._begin(onions, address, service)

    async def _take_down(self, onions: TorOnions, address: str) -> None:
        """What is under way at `address`, or there, and not wanted so."""
        digest, task = self._tasks.get(address, (None, None))
        if task is not None and self._digest(address) != digest:
            task.cancel()
            self._tasks.pop(address, None)
            await self._withdraw(onions, address)
        there, service = self._have.get(address), self._wanted.get(address)
        if there is None or (service is not None and not service.listed and there == service.digest):
            return
        if self._digest(address) != there or address in self._unlisted:
            if service is not None and service.listed and self._is_mute:
                return  # it could not be published again
            await self._withdraw(onions, address)

    async def _unlist(self, dirty: Iterable[str]) -> None:
        unlisted = {a: one for a in dirty if (one := self._wanted.get(a)) is not None and not one.listed}
        leaving = {a: one for a, one in unlisted.items() if self._have.get(a) == one.digest and a not in self._unlisted}
        if not leaving:
            return
        for address in leaving:
            self._standings.put(address, Standing(False, MOVED))
            if self._remembered.pop(address, None) is not None:
                await self._note(address, None)  # to whoever comes after us it is a stray
        port = await self._host.control_port(self.role)
        await unlist(self._reactor, port, [one.spec for one in leaving.values()])
        self._unlisted.update(leaving)

    def _begin(self, onions: TorOnions, address: str, service: Wanted) -> None:
        self._standings.put(address, Standing(False))
        # at its first directory it is no more among those that crowd each other out of circuits: the next one may come
        announced = self._gate.run(lambda: Deferred.fromCoroutine(onions.announce(service.spec)))
        task: Deferred[None] = announced.addCallback(
            lambda bringup_ms: Deferred.fromCoroutine(self._announced(onions, address, service, bringup_ms))
        )
        self._tasks[address] = (service.digest, task)
        task.addErrback(self._failed, address, service)

    async def _announced(self, onions: TorOnions, address: str, service: Wanted, bringup_ms: float) -> None:
        uploads = await onions.settled(address)
        if service.kept:
            self._remembered[address] = service.digest
            await self._note(address, service.digest)
        self._tasks.pop(address, None)
        self._backoff.pop(address, None)
        self._vain = False
        self._have[address] = service.digest
        self._standings.put(address, Standing(True, None, uploads, bringup_ms))
        self._poke(address)

    def _failed(self, failure: Any, address: str, service: Wanted) -> None:
        if failure.check(CancelledError):
            return
        self._tasks.pop(address, None)
        error = failure.value
        if not isinstance(error, RonError):
            _log.failure("publishing an onion", failure, event="onion_failed")
            error = RonError(ErrorCode.INTERNAL, "it could not be published; the log says why")
        _log.error("an onion is not published: {reason}", event="onion_failed", reason=error.message)
        self._standings.put(address, Standing(False, error.message))
        if not error.retryable:
            self._refused[address] = service.digest
        elif error.code is ErrorCode.TIMEOUT and not self._have and (self._vain or not isinstance(error, NoWay)):
            self._useless = error  # nothing gets through: another tor may have better luck
        else:
            self._vain = isinstance(error, NoWay)
            delay_s = self._backoff.setdefault(address, Backoff(base_s=1.0)).next_delay_s()
            self._retries[address] = self._reactor.callLater(delay_s, self._retry, address)
        self._have[address] = ""  # tor may have it: taken down before anything else
        self._poke(address)

    def _retry(self, address: str) -> None:
        self._retries.pop(address, None)
        self._poke(address)

    async def _withdraw(self, onions: TorOnions, address: str) -> None:
        if self._remembered.pop(address, None) is not None:
            await self._note(address, None)  # before tor loses it: what stands written must be there
        await onions.withdraw(address)
        self._have.pop(address, None)
        self._unlisted.discard(address)
        self._let_wait_no_more(address)

    async def _note(self, address: str, digest: str | None) -> None:
        """Write it down. What cannot be written (the disk is full) costs whoever comes after us a new publication."""
        try:
            await self._remember(address, digest)
        except RonError as error:
            _log.warn("what tor has was not written down: {error}", event="onion_unnoted", error=error.message)

    async def _withdraw_all(self, onions: TorOnions) -> None:
        self._end_tasks()
        withdrawing = [Deferred.fromCoroutine(self._withdraw(onions, address)) for address in list(self._have)]
        await DeferredList(withdrawing, consumeErrors=True)

    # Telling

    def _digest(self, address: str) -> str | None:
        service = self._wanted.get(address)
        return service.digest if service is not None else None

    def _poke(self, *addresses: str) -> None:
        self._dirty.update(addresses)
        if not self._wake.called:
            self._wake.callback(None)

    def _let_wait_no_more(self, address: str) -> None:
        for waiter in self._leaving.pop(address, ()):
            if not waiter.called:
                waiter.callback(None)

    def _end_retry(self, address: str) -> None:
        retry = self._retries.pop(address, None)
        if retry is not None and retry.active():
            retry.cancel()

    def _end_tasks(self) -> None:
        tasks, self._tasks = self._tasks, {}
        for _digest, task in tasks.values():
            task.cancel()
        for address in list(self._retries):
            self._end_retry(address)
