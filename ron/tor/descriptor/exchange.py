"""Descriptors to and from directories, through one tor's control port (control-spec HSFETCH, HSPOST, HS_DESC events).

In: an address, or a text and the directories it is for. Out: what a directory has, and which directories took what they
were given. One exchange at a time: tor's events tell the address and the directory, and not which request they answer.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred, DeferredLock
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.threads import deferToThread
from txtorcon import TorControlProtocol
from txtorcon.torcontrolprotocol import TorDisconnectError, TorProtocolError

from ron.kernel.aio import within
from ron.proto.errors import ErrorCode, RonError, not_found
from ron.tor.clientauth import service_id
from ron.tor.control import TorSilent, answered, ask
from ron.tor.descriptor.hashring import CONSENSUS_KEY, MICRODESCRIPTORS_KEY, HsDir, Ring, read_ring
from ron.tor.descriptor.intropoints import MAX_DESCRIPTOR_BYTES
from ron.tor.descriptor.refused import Reason, Refused

FETCH_TIMEOUT_S = 30.0
POST_TIMEOUT_S = 30.0
_FINGERPRINT = re.compile(r"\$?([0-9A-F]{40})")
_HEX = re.compile(r"[0-9A-F]{40}")
_ENDS = {"UPLOADED": True, "FAILED": False}


class Posted(NamedTuple):
    """Fingerprints of directories that took a descriptor, that refused it or failed, that did not answer in time."""

    taken: frozenset[str]
    refused: frozenset[str]
    silent: frozenset[str]


class Exchange:
    """Fetches and posts through the tor behind `control`. `open` first."""

    def __init__(self, reactor: Any, control: TorControlProtocol) -> None:
        self._reactor = reactor
        self._control = control
        self._one = DeferredLock()
        self._fetching: tuple[str, Deferred[str]] | None = None
        self._posting: _Posting | None = None

    async def open(self) -> None:
        """Listen to what becomes of requests. Raises Unavailable when tor does not answer."""
        await answered(self._reactor, self._control.add_event_listener("HS_DESC", self._heard))
        await answered(self._reactor, self._control.add_event_listener("HS_DESC_CONTENT", self._content))

    async def ring(self, *, testing: bool) -> Ring:
        """What this tor's consensus says now. Raises `Refused`, or Unavailable when tor does not answer."""
        consensus = await self._ask(CONSENSUS_KEY)
        microdescriptors = await self._ask(MICRODESCRIPTORS_KEY)
        ring: Ring = await deferToThread(read_ring, consensus, microdescriptors, testing=testing)
        return ring

    async def fetch(self, onion: str, directory: HsDir | None = None) -> str:
        """The descriptor of `onion` from one of its directories, or from `directory`, whatever this tor has cached.

        Raises `RonError`: NotFound when that directory has none, Timeout after 30 s, Unavailable when tor is silent.
        """
        name = service_id(onion)
        at = f" {_server(directory)}" if directory is not None else ""
        await self._one.acquire()
        try:
            found: Deferred[str] = Deferred()
            self._fetching = (name, found)
            await self._command(f"HSFETCH {name}{at}")
            return await within(self._reactor, FETCH_TIMEOUT_S, found)
        except DeadlineError:
            raise RonError(ErrorCode.TIMEOUT, f"no directory answered in {FETCH_TIMEOUT_S:.0f} s") from None
        finally:
            self._fetching = None
            self._one.release()

    async def post(self, onion: str, dealt: Mapping[str, Sequence[HsDir]]) -> Posted:
        """Give each text of `dealt` to its directories, all at once; returns when all have answered, or after 30 s.

        A directory is given one text: tor's events do not tell which of two it took. Raises `RonError`: Unavailable
        when tor does not answer; `Refused` (MALFORMED) for a text that is no descriptor or a directory that tor does
        not know, and then what came before it may be there.
        """
        name = service_id(onion)
        commands = [_hspost(name, text, directories) for text, directories in dealt.items()]
        wanted = [directory.fingerprint for directories in dealt.values() for directory in directories]
        if not commands or len(set(wanted)) != len(wanted):
            raise Refused(Reason.MALFORMED, "nothing to post, or two descriptors for one directory")
        await self._one.acquire()
        try:
            self._posting = posting = _Posting(name, frozenset(wanted))
            for command in commands:
                await self._command(command)
            with contextlib.suppress(DeadlineError):
                await within(self._reactor, POST_TIMEOUT_S, posting.done)
            return posting.so_far()
        finally:
            self._posting = None
            self._one.release()

    def _heard(self, event: str) -> None:
        """`UPLOADED|FAILED <address> <auth type> <hsdir> …`."""
        words = event.split()
        named = _FINGERPRINT.match(words[3]) if len(words) > 3 else None
        if named is None or words[0] not in _ENDS:
            return
        if self._posting is not None and self._posting.name == words[1]:
            self._posting.heard(named[1], taken=_ENDS[words[0]])

    def _content(self, event: str) -> None:
        """`<address> <descriptor id> <hsdir>`, a line end, and the descriptor; empty when there is none."""
        head, _, text = event.partition("\n")
        if self._fetching is None or head.split()[:1] != [self._fetching[0]] or self._fetching[1].called:
            return
        # txtorcon leaves the last line of the event itself after it
        text = text.removesuffix("OK").strip("\n")
        if text:
            self._fetching[1].callback(text + "\n")
        else:
            self._fetching[1].errback(not_found("that directory has no descriptor of the address"))

    async def _command(self, command: str) -> None:
        try:
            await answered(self._reactor, self._control.queue_command(command))
        except TorProtocolError as error:
            raise Refused(Reason.MALFORMED, f"tor refuses the request: error {error.code}") from None

    async def _ask(self, key: str) -> str:
        try:
            return await ask(self._reactor, self._control, key)
        except TorProtocolError:
            raise Refused(Reason.MALFORMED, "tor has no consensus yet") from None
        except (DeadlineError, TorDisconnectError):
            raise TorSilent from None


class _Posting:
    """Who has answered so far."""

    def __init__(self, name: str, wanted: frozenset[str]) -> None:
        self.name = name
        self.done: Deferred[None] = Deferred()
        self._wanted = wanted
        self._answers: dict[str, bool] = {}

    def heard(self, fingerprint: str, *, taken: bool) -> None:
        if fingerprint in self._wanted:
            self._answers[fingerprint] = taken
        if self._wanted == self._answers.keys() and not self.done.called:
            self.done.callback(None)

    def so_far(self) -> Posted:
        taken = frozenset(name for name, answer in self._answers.items() if answer)
        refused = frozenset(self._answers) - taken
        return Posted(taken, refused, self._wanted - taken - refused)


def _hspost(name: str, text: str, directories: Sequence[HsDir]) -> str:
    """Multi-line: a line that is a lone dot would end it, and what follows would be commands."""
    if not directories or not text.isascii() or len(text) > MAX_DESCRIPTOR_BYTES or "\r" in text or "\n." in text:
        raise Refused(Reason.MALFORMED, "not a descriptor, or for no directory")
    servers = " ".join(map(_server, directories))
    lines = text.rstrip("\n").replace("\n", "\r\n")
    return f"+HSPOST {servers} HSADDRESS={name}\r\n{lines}\r\n."


def _server(directory: HsDir) -> str:
    if not _HEX.fullmatch(directory.fingerprint):
        raise Refused(Reason.MALFORMED, "a fingerprint has 40 hex digits")
    return f"SERVER={directory.fingerprint}"
