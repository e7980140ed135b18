"""Keeps the onions of one tor as they are wanted, whatever becomes of the tor, of the connection to it, or of us.

In: the services wanted, and what this tor was last seen to publish. Out: for each whether clients can find it, and why
not. What the tor has and nobody wants goes, what it has as wanted stays untouched, the rest is published, many at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import CancelledError, Deferred, DeferredList, DeferredSemaphore
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import deferLater
from twisted.logger import Logger
from txtorcon import TorControlProtocol

from ron.kernel.aio import within
from ron.kernel.backoff import Backoff
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.services.oniond.introductions import Introductions
from ron.tor import circuits
from ron.tor.attached import AttachedTor, TorHost
from ron.tor.control import TorSilent
from ron.tor.onions import OnionSpec, TorOnions
from ron.tor.unlisted import mute, unlist

AT_ONCE = 16
WITHDRAW_TIMEOUT_S = 5.0
RETRY_S = 1.0
GONE = "the tor that hosts it is gone and will be started again"
LOST = "it lost its introduction points and is published anew"
MOVED = "another tor has it now"
PUBLISHING = "its descriptor is not published yet"
_log = Logger(namespace="ron.oniond")

Remember = Callable[[str, str | None], Awaitable[None]]


class Wanted(NamedTuple):
    """A service to be had. kept: what was published may be written down, for whoever comes after us.

    listed: new visitors are to come; one that is not serves those who are there, if it has been published at all.
    """

    spec: OnionSpec
    digest: str
    kept: bool
    listed: bool = True


class Standing(NamedTuple):
    """How a service stands. reason: why it is not ready."""

    ready: bool
    reason: str | None = PUBLISHING
    uploads: int = 0
    bringup_ms: float | None = None


class Watch(Protocol):
    """Who wants to know."""

    async def connected(self, role: str, control: TorControlProtocol) -> None:
        """The tor `role` is there; nothing is published before this returns."""

    def disconnected(self, role: str) -> None:
        """It is gone."""

    def standing_changed(self, address: str) -> None:
        """`address` stands otherwise than before."""


class Publisher:
    """One tor's services.

    remembered: digests by address, of what it was seen to publish. remember: writes that down. watch: told of every
    change.
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
    ) -> None:
        self.role = role
        self._reactor = reactor
        self._host = host
        self._remembered = dict(remembered)
        self._remember = remember
        self._watch = watch
        self._wanted: dict[str, Wanted] = {}
        self._standing: dict[str, Standing] = {}
        self._have: dict[str, str] = {}
        self._unlisted: set[str] = set()
        self._muted = False
        self._refused: dict[str, str] = {}
        self._tasks: dict[str, tuple[str, Deferred[None]]] = {}
        self._retries: dict[str, IDelayedCall] = {}
        self._backoff: dict[str, Backoff] = {}
        self._useless: RonError | None = None
        self._gate = DeferredSemaphore(AT_ONCE)
        self._wake: Deferred[None] = Deferred()
        self._waiting: dict[str, list[Deferred[None]]] = {}
        self._introductions = Introductions()
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

    def want(self, wanted: Mapping[str, Wanted]) -> None:
        """These from now on, and no others."""
        self._wanted = dict(wanted)
        for address in set(self._standing) - set(wanted):
            self._standing.pop(address)
            self._end_retry(address)
            self._backoff.pop(address, None)
            self._tell(address)
        for address, service in wanted.items():
            if address not in self._standing or self._have.get(address, service.digest) != service.digest:
                self._stand(address, Standing(False))
        self._poke()

    async def mute(self, *, muted: bool) -> None:
        """While it is muted this tor uploads no descriptor: what is to be published here waits, and what another tor
        has published of our onions stays. Raises what the control port does, and Unavailable without a tor."""
        control = self.tor.control
        if muted and control is None:
            raise unavailable(f"tor {self.role} is not there")
        self._muted = muted
        if control is not None:
            await mute(self._reactor, control, muted=muted)
        self._poke()

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
            self._poke()

    def standing(self, address: str) -> Standing:
        """How it stands."""
        return self._standing.get(address, Standing(False))

    def introducible(self, points: Mapping[str, int]) -> None:
        """points: working introduction points by address, as they are now. What has lost them is published anew."""
        ready = [address for address, standing in self._standing.items() if standing.ready]
        for address in self._introductions.lost(points, ready, self._wanted, self._reactor.seconds()):
            _log.warn("an onion lost its introduction points", event="onion_lost", tor=self.role)
            self._stand(address, Standing(False, LOST))
            self._have[address] = ""
            self._poke()

    async def ready(self, address: str) -> None:
        """Return when clients can find `address`. For as long as it takes: whoever waits gives up by itself."""
        while not self.standing(address).ready:
            waiter: Deferred[None] = Deferred()
            self._waiting.setdefault(address, []).append(waiter)
            try:
                await waiter
            finally:
                waiting = self._waiting.get(address, [])
                if waiter in waiting:
                    waiting.remove(waiter)

    async def hang_up(self, address: str) -> None:
        """Close the circuits of whoever is still there. Raises what the control port does."""
        control = self.tor.control
        if control is not None:
            for circuit in (await circuits.visitors(self._reactor, control)).get(address, []):
                await circuits.close(self._reactor, control, circuit)

    # With a tor

    async def _tor_up(self, control: TorControlProtocol) -> None:
        onions = TorOnions(self._reactor, control)
        await onions.open()
        # whoever was here before us may have muted it and not come back
        await mute(self._reactor, control, muted=self._muted)
        await self._watch.connected(self.role, control)
        there = await onions.detached()
        self._onions, self._useless = onions, None
        self._have = {address: digest for address, digest in self._remembered.items() if address in there}
        self._refused.clear()
        # somebody's before us: whether any directory has them is not known, so they are taken down before anything else
        self._have.update(dict.fromkeys(there - set(self._have), ""))
        for address, service in self._wanted.items():
            if self._have.get(address) == service.digest:
                self._stand(address, Standing(True, None))
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
        self._unlisted.clear()
        for address in self._standing:
            self._stand(address, Standing(False, GONE))

    async def _reconcile(self, onions: TorOnions) -> None:
        for address, (digest, task) in list(self._tasks.items()):
            if self._digest(address) != digest:
                task.cancel()
                self._tasks.pop(address, None)
                await self._withdraw(onions, address)
        for address, digest in list(self._have.items()):
            service = self._wanted.get(address)
            if service is not None and not service.listed and digest == service.digest:
                continue
            if self._digest(address) != digest or address in self._unlisted:
                if service is not None and service.listed and self._muted:
                    continue  # it could not be published again
                await self._withdraw(onions, address)
        await self._unlist()
        for address, service in self._wanted.items():
            idle = address not in self._have and address not in self._tasks and address not in self._retries
            wished = service.listed and not self._muted
            if idle and wished and self._refused.get(address) != service.digest:
                self._begin(onions, address, service)

    async def _unlist(self) -> None:
        leaving = {a: one for a, one in self._wanted.items() if not one.listed and self._have.get(a) == one.digest}
        leaving = {address: one for address, one in leaving.items() if address not in self._unlisted}
        if not leaving:
            return
        for address in leaving:
            self._stand(address, Standing(False, MOVED))
            if self._remembered.pop(address, None) is not None:
                await self._note(address, None)  # to whoever comes after us it is a stray
        port = await self._host.control_port(self.role)
        await unlist(self._reactor, port, [one.spec for one in leaving.values()])
        self._unlisted.update(leaving)

    def _begin(self, onions: TorOnions, address: str, service: Wanted) -> None:
        self._stand(address, Standing(False))
        task: Deferred[None] = self._gate.run(
            lambda: Deferred.fromCoroutine(self._publish(onions, address, service)),
        )
        self._tasks[address] = (service.digest, task)
        task.addErrback(self._failed, address, service)

    async def _publish(self, onions: TorOnions, address: str, service: Wanted) -> None:
        uploads = await onions.publish(service.spec)
        if service.kept:
            self._remembered[address] = service.digest
            await self._note(address, service.digest)
        self._tasks.pop(address, None)
        self._backoff.pop(address, None)
        self._have[address] = service.digest
        self._stand(address, Standing(True, None, uploads.confirmed, uploads.bringup_ms))
        self._poke()

    def _failed(self, failure: Any, address: str, service: Wanted) -> None:
        if failure.check(CancelledError):
            return
        self._tasks.pop(address, None)
        error = failure.value
        if not isinstance(error, RonError):
            _log.failure("publishing an onion", failure, event="onion_failed")
            error = RonError(ErrorCode.INTERNAL, "it could not be published; the log says why")
        _log.error("an onion is not published: {reason}", event="onion_failed", reason=error.message)
        self._stand(address, Standing(False, error.message))
        if not error.retryable:
            self._refused[address] = service.digest
        elif error.code is ErrorCode.TIMEOUT and not self._have:
            self._useless = error  # nothing gets through: another tor may have better luck
        else:
            delay_s = self._backoff.setdefault(address, Backoff(base_s=1.0)).next_delay_s()
            self._retries[address] = self._reactor.callLater(delay_s, self._retry, address)
        self._have[address] = ""  # tor may have it: taken down before anything else
        self._poke()

    def _retry(self, address: str) -> None:
        self._retries.pop(address, None)
        self._poke()

    async def _withdraw(self, onions: TorOnions, address: str) -> None:
        if self._remembered.pop(address, None) is not None:
            await self._note(address, None)  # before tor loses it: what stands written must be there
        await onions.withdraw(address)
        self._have.pop(address, None)
        self._unlisted.discard(address)

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

    def _stand(self, address: str, standing: Standing) -> None:
        if self._standing.get(address) != standing:
            self._standing[address] = standing
            self._tell(address)

    def _tell(self, address: str) -> None:
        self._watch.standing_changed(address)
        if self.standing(address).ready:
            for waiter in self._waiting.pop(address, []):
                waiter.callback(None)

    def _poke(self) -> None:
        if not self._wake.called:
            self._wake.callback(None)

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
