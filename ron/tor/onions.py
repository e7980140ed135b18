"""The onions of one tor, over one control connection (control-spec §3.27 ADD_ONION, §3.28 DEL_ONION, §4.1.25 HS_DESC).

In: what each service is to be. Out: services that clients can find, told by the directories that have confirmed their
descriptors. Services are detached: they live as long as tor does, whatever becomes of the connection, so that whoever
connects next finds them and looks after them.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from txtorcon import TorControlProtocol
from txtorcon.torcontrolprotocol import TorProtocolError

from ron.kernel.aio import occurred, within
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.tor.control import answered, ask
from ron.tor.onionkeys import OnionKey, address_of
from ron.tor.spent import close_spent

UPLOAD_TIMEOUT_S = 60.0
# A service whose introduction circuits do not come about asks no directory at all. It chose its points at the beginning
# and holds on to them; taken down and added again, it chooses anew. On a busy machine it takes up to 25 s.
ASKED_TIMEOUT_S = 30.0
# Directories that were asked and have not answered yet are waited for so long after the first that took it.
STRAGGLERS_S = 3.0
_SERVICE_ID = re.compile(r"^[a-z2-7]{56}\Z")
# "There is no such service": it is gone, which is what was wanted.
_NO_SUCH_ONION = 552
_COLLISION = 550


class PortMap(NamedTuple):
    """`onion_port` of the service is answered by `local`, `host:port` on loopback or `unix:/path`."""

    onion_port: int
    local: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OnionSpec:
    """A service as tor is to run it. options: further ADD_ONION arguments, flags: further flags; see control-spec."""

    key: OnionKey
    ports: tuple[PortMap, ...]
    flags: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def address(self) -> str:
        """`<id>.onion`."""
        return address_of(self.key)

    def arguments(self) -> str:
        """All of ADD_ONION but the key. Raises `RonError` for what would break the line."""
        ports = (f"Port={p.onion_port},{p.local}" for p in self.ports)
        text = " ".join([f"Flags={','.join(('Detach', *self.flags))}", *ports, *self.options])
        if not text.isprintable():
            raise bad_request("a port target holds a line break or another control character")
        return text

    def digest(self) -> str:
        """Two specs of one key are the same service when this is equal."""
        return hashlib.sha256(self.arguments().encode()).hexdigest()


class Uploads(NamedTuple):
    """Directories that have confirmed a descriptor, and the time from ADD_ONION to the first of them."""

    confirmed: int
    bringup_ms: float


class NoWay(RonError):
    """Timeout: introduction points could not be reached. Added anew, a service chooses others."""


class TorOnions:
    """What is published on the tor behind `control`. `open` first."""

    def __init__(self, reactor: Any, control: TorControlProtocol) -> None:
        self.control = control
        self._reactor = reactor
        self._watch = _UploadWatch()

    async def open(self) -> None:
        """Listen to what becomes of descriptors, and end the circuits that carried them."""
        await answered(self._reactor, self.control.add_event_listener("HS_DESC", self._watch.heard))
        await close_spent(self._reactor, self.control)

    async def detached(self) -> frozenset[str]:
        """Addresses of the services that tor has already."""
        try:
            text = await ask(self._reactor, self.control, "onions/detached")
        except TorProtocolError:  # 0.4.8 and before say so when there are none
            return frozenset()
        return frozenset(f"{word}.onion" for word in text.split() if _SERVICE_ID.match(word))

    async def publish(self, spec: OnionSpec) -> Uploads:
        """ADD_ONION, then wait until the directories have the descriptor, at least one of them.

        Raises as `announce` does.
        """
        bringup_ms = await self.announce(spec)
        return Uploads(await self.settled(spec.address), bringup_ms)

    async def announce(self, spec: OnionSpec) -> float:
        """ADD_ONION, then wait for the first directory that has the descriptor: how many ms that took.

        On a young network the first uploads may fail and tor tries again; this waits for the first one that succeeds.
        Raises `RonError`: Timeout after a minute, Unavailable when tor goes away, Internal when it refuses.
        """
        started = self._reactor.seconds()
        service_id = spec.address.removesuffix(".onion")
        self._watch.forget(service_id)
        await self._add(spec, service_id)
        try:
            await within(self._reactor, ASKED_TIMEOUT_S, self._watch.first_asked(service_id))
        except DeadlineError:
            raise NoWay(
                ErrorCode.TIMEOUT,
                f"tor built no circuits to its introduction points within {ASKED_TIMEOUT_S:.0f} s",
                hint="ronctl tornet status shows whether the network is whole",
            ) from None
        try:
            await within(self._reactor, UPLOAD_TIMEOUT_S, self._watch.first_upload(service_id))
        except DeadlineError:
            raise RonError(
                ErrorCode.TIMEOUT,
                f"no onion directory took the descriptor within {UPLOAD_TIMEOUT_S:.0f} s",
                hint="ronctl tornet status shows whether the network is whole",
            ) from None
        return float((self._reactor.seconds() - started) * 1000)

    async def settled(self, address: str) -> int:
        """How many directories have it, once all that were asked have answered, or a while after the first.

        A client asks one of several directories; it is better off when all have answered.
        """
        service_id = address.removesuffix(".onion")
        with contextlib.suppress(DeadlineError):
            await within(self._reactor, STRAGGLERS_S, self._watch.all_answered(service_id))
        return self._watch.uploads(service_id)

    async def withdraw(self, address: str) -> None:
        """DEL_ONION: no new introductions. Connections that exist go on until they are closed. None there: no error."""
        self._watch.forget(address.removesuffix(".onion"))
        try:
            await answered(self._reactor, self.control.queue_command(f"DEL_ONION {address.removesuffix('.onion')}"))
        except TorProtocolError as error:
            if error.code != _NO_SUCH_ONION:
                raise RonError(ErrorCode.INTERNAL, f"tor did not take the onion down: {error.text}") from None

    async def _add(self, spec: OnionSpec, service_id: str) -> None:
        command = f"ADD_ONION {spec.key.blob} {spec.arguments()}"
        try:
            lines = (await answered(self._reactor, self.control.queue_command(command))).splitlines()
        except TorProtocolError as error:
            # tor's text may quote the line it refuses
            reason = "it has this onion already" if error.code == _COLLISION else f"error {error.code}"
            raise RonError(ErrorCode.INTERNAL, f"tor refused the onion: {reason}") from None
        if f"ServiceID={service_id}" not in lines:
            raise RonError(ErrorCode.INTERNAL, "tor answered ADD_ONION with another address than the key's")


class _UploadWatch:
    """Collects HS_DESC events; they may come before anybody waits for them."""

    def __init__(self) -> None:
        self._asked: dict[str, set[str]] = {}
        self._confirmed: dict[str, set[str]] = {}
        self._failed: dict[str, set[str]] = {}
        self._begun: dict[str, Deferred[None]] = {}
        self._first: dict[str, Deferred[None]] = {}
        self._all: dict[str, Deferred[None]] = {}

    def heard(self, event: str) -> None:
        """`UPLOAD|UPLOADED|FAILED <service id> <auth type> <hsdir> …`; other actions are tor's own business."""
        words = event.split()
        if len(words) < 4:
            return
        action, service_id, _auth, directory = words[:4]
        into = {"UPLOAD": self._asked, "UPLOADED": self._confirmed, "FAILED": self._failed}.get(action)
        if into is None:
            return
        into.setdefault(service_id, set()).add(directory)
        _fire(self._begun.get(service_id))
        if self.uploads(service_id):
            _fire(self._first.get(service_id))
            if self._answered(service_id):
                _fire(self._all.get(service_id))

    def forget(self, service_id: str) -> None:
        """It is published anew."""
        for events in (self._asked, self._confirmed, self._failed):
            events.pop(service_id, None)
        self._begun.pop(service_id, None)
        self._first.pop(service_id, None)
        self._all.pop(service_id, None)

    def first_asked(self, service_id: str) -> Deferred[None]:
        """Fires once some directory is asked to take it."""
        known = (self._asked, self._confirmed, self._failed)
        return _wait(self._begun, service_id, now=any(service_id in events for events in known))

    def first_upload(self, service_id: str) -> Deferred[None]:
        """Fires once one directory has confirmed."""
        return _wait(self._first, service_id, now=bool(self.uploads(service_id)))

    def all_answered(self, service_id: str) -> Deferred[None]:
        """Fires once every directory that was asked has taken or refused it."""
        return _wait(self._all, service_id, now=self._answered(service_id))

    def uploads(self, service_id: str) -> int:
        """Directories that have confirmed so far."""
        return len(self._confirmed.get(service_id, ()))

    def _answered(self, service_id: str) -> bool:
        answered = self._confirmed.get(service_id, set()) | self._failed.get(service_id, set())
        return self._asked.get(service_id, set()) <= answered


def _wait(waiting: dict[str, Deferred[None]], service_id: str, *, now: bool) -> Deferred[None]:
    if service_id not in waiting or now:
        waiting[service_id] = Deferred()
        if now:
            waiting[service_id].callback(None)
    return occurred(waiting[service_id])


def _fire(waiting: Deferred[None] | None) -> None:
    if waiting is not None and not waiting.called:
        waiting.callback(None)
