"""Publishes v3 onion services through a tor's ControlPort (control-spec §3.27 ADD_ONION, §4.1.25 HS_DESC).

In: a control connection, ports and, from the second time on, the key. Out: the address and the key, once at least one
directory has confirmed the descriptor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from txtorcon import TorControlProtocol
from txtorcon.torcontrolprotocol import TorProtocolError

from ron.kernel.aio import within
from ron.proto.errors import ErrorCode, RonError, bad_request

UPLOAD_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 10.0
_KEY = re.compile(r"^ED25519-V3:[A-Za-z0-9+/]{86}==\Z")
_SERVICE_ID = re.compile(r"^[a-z2-7]{56}\Z")


class PortMap(NamedTuple):
    """`onion_port` of the service is answered by `local`, `host:port` on loopback."""

    onion_port: int
    local: str


@dataclass(frozen=True, slots=True)
class OnionKey:
    """tor's private key blob (`ED25519-V3:<base64>`). Its repr keeps the secret."""

    blob: str = field(repr=False)


class Published(NamedTuple):
    """A service that clients can reach. `uploads`: directories that had confirmed when we stopped waiting."""

    onion: str
    key: OnionKey
    uploads: int
    bringup_ms: float


def parse_key(text: str) -> OnionKey:
    """A stored key blob. Raises `RonError` when it is not one."""
    if not _KEY.match(text):
        raise bad_request(
            "not a v3 onion key", hint="restore the key file from a backup, or remove it for a new address"
        )
    return OnionKey(text)


async def publish(
    reactor: Any, control: TorControlProtocol, ports: Sequence[PortMap], key: OnionKey | None
) -> Published:
    """ADD_ONION, then wait until a directory has the descriptor. Raises `RonError(Timeout)` after a minute.

    txtorcon's own onion class gives up when the first uploads fail; on a young network tor simply tries again, and so
    this waits for the first one that succeeds. The service lives as long as `control` does.
    """
    started = reactor.seconds()
    watch = _UploadWatch()
    await within(reactor, ANSWER_TIMEOUT_S, control.add_event_listener("HS_DESC", watch.heard))
    try:
        service_id, kept = await _add_onion(reactor, control, ports, key)
        try:
            await within(reactor, UPLOAD_TIMEOUT_S, watch.first_upload(service_id))
        except DeadlineError:
            raise RonError(
                ErrorCode.TIMEOUT,
                f"no onion directory took the descriptor within {UPLOAD_TIMEOUT_S:.0f} s",
                hint="ronctl tornet status shows whether the network is whole",
            ) from None
    finally:
        await within(reactor, ANSWER_TIMEOUT_S, control.remove_event_listener("HS_DESC", watch.heard))
    elapsed_ms = (reactor.seconds() - started) * 1000
    return Published(f"{service_id}.onion", kept, watch.uploads(service_id), elapsed_ms)


async def withdraw(reactor: Any, control: TorControlProtocol, onion: str) -> None:
    """DEL_ONION; existing rendezvous connections end with it."""
    await within(reactor, ANSWER_TIMEOUT_S, control.queue_command(f"DEL_ONION {onion.removesuffix('.onion')}"))


async def _add_onion(
    reactor: Any, control: TorControlProtocol, ports: Sequence[PortMap], key: OnionKey | None
) -> tuple[str, OnionKey]:
    maps = " ".join(f"Port={p.onion_port},{p.local}" for p in ports)
    command = f"ADD_ONION {key.blob if key else 'NEW:ED25519-V3'} {maps}"
    if "\r" in command or "\n" in command:
        raise bad_request("a port target holds a line break")
    answer: Deferred[str] = control.queue_command(command)
    try:
        lines = (await within(reactor, ANSWER_TIMEOUT_S, answer)).splitlines()
    except TorProtocolError as error:
        raise RonError(ErrorCode.INTERNAL, f"tor refused the onion: {error.text}") from None
    fields = dict(line.split("=", 1) for line in lines if "=" in line)
    service_id, blob = fields.get("ServiceID", ""), fields.get("PrivateKey", "")
    if not _SERVICE_ID.match(service_id) or not (key or blob):
        raise RonError(ErrorCode.INTERNAL, "tor answered ADD_ONION without a v3 address and its key")
    return service_id, key if key else parse_key(blob)


class _UploadWatch:
    """Collects HS_DESC events; they may come before we know the service's own id."""

    def __init__(self) -> None:
        self._confirmed: dict[str, set[str]] = {}
        self._waiting: dict[str, Deferred[None]] = {}

    def heard(self, event: str) -> None:
        """`UPLOADED <service id> <auth type> <hsdir> …`; other actions are tor's own business."""
        words = event.split()
        if len(words) < 4 or words[0] != "UPLOADED":
            return
        self._confirmed.setdefault(words[1], set()).add(words[3])
        waiting = self._waiting.pop(words[1], None)
        if waiting is not None:
            waiting.callback(None)

    def first_upload(self, service_id: str) -> Deferred[None]:
        """Fires once one directory has confirmed."""
        done: Deferred[None] = Deferred()
        if self._confirmed.get(service_id):
            done.callback(None)
        else:
            self._waiting[service_id] = done
        return done

    def uploads(self, service_id: str) -> int:
        """Directories that have confirmed so far."""
        return len(self._confirmed.get(service_id, ()))
