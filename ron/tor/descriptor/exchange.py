"""Descriptors to and from directories, through one tor's control port (control-spec HSFETCH, HSPOST, HS_DESC events).

In: an address, or a text and the directories it is for. Out: what a directory has, and which directories took what they
were given. Any number of exchanges at a time, so that one directory's silence holds up nobody.

tor's events about an upload name an address and a directory, and not which of several texts they are about. But the
address is the one that HSPOST was told, and tor does not compare it with the text: each text gets a name of its own.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from twisted.internet.defer import Deferred
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
from ron.tor.onionkeys import address_of, new_key

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


Taken = Callable[[str], None]
_VALID_AFTER_KEY = "consensus/valid-after"


class Exchange:
    """Fetches and posts through the tor behind `control`. `open` first."""

    def __init__(self, reactor: Any, control: TorControlProtocol) -> None:
        self._reactor = reactor
        self._control = control
        # by address and fingerprint; an empty one: from whichever directory tor takes
        self._fetching: dict[tuple[str, str], list[Deferred[str]]] = {}
        # by the name that tor was told for one text
        self._posting: dict[str, _Posting] = {}

    async def open(self) -> None:
        """Listen to what becomes of requests. Raises Unavailable when tor does not answer."""
        await answered(self._reactor, self._control.add_event_listener("HS_DESC", self._heard))
        await answered(self._reactor, self._control.add_event_listener("HS_DESC_CONTENT", self._content))
        self._control.when_disconnected().addBoth(self._lost)

    async def consensus_time(self) -> str:
        """When this tor's consensus became valid, as tor writes it: tells cheaply whether it is another one.

        Raises `Refused` while there is none, Unavailable when tor does not answer.
        """
        return await self._ask(_VALID_AFTER_KEY)

    async def on_consensus(self, arrived: Callable[[], None]) -> None:
        """Call `arrived` whenever tor has a new consensus. Raises Unavailable when tor does not answer."""

        def heard(event: str) -> None:
            if "CONSENSUS_ARRIVED" in event.split():
                arrived()

        await answered(self._reactor, self._control.add_event_listener("STATUS_CLIENT", heard))

    async def ring(self, *, testing: bool) -> Ring:
        """What this tor's consensus says now. Raises `Refused`, or Unavailable when tor does not answer."""
        consensus = await self._ask(CONSENSUS_KEY)
        microdescriptors = await self._ask(MICRODESCRIPTORS_KEY)
        ring: Ring = await deferToThread(read_ring, consensus, microdescriptors, testing=testing)
        return ring

    async def fetch(self, onion: str, directory: HsDir | None = None) -> str:
        """The descriptor of `onion` from one of its directories, or from `directory`, whatever this tor has cached.

        It is the one of the period that clients ask for: tor's HSFETCH knows no other. Raises `RonError`: NotFound when
        that directory has none, Timeout after 30 s, Unavailable when tor is silent.
        """
        name = service_id(onion)
        at = f" {_server(directory)}" if directory is not None else ""
        key = name, directory.fingerprint if directory is not None else ""
        found: Deferred[str] = Deferred()
        self._fetching.setdefault(key, []).append(found)
        try:
            await self._command(f"HSFETCH {name}{at}")
            return await within(self._reactor, FETCH_TIMEOUT_S, found)
        except DeadlineError:
            raise RonError(ErrorCode.TIMEOUT, f"no directory answered in {FETCH_TIMEOUT_S:.0f} s") from None
        finally:
            self._forget(key, found)

    async def post(
        self, onion: str, dealt: Mapping[str, Sequence[HsDir]], taken: Taken = lambda fingerprint: None
    ) -> Posted:
        """Give each text of `dealt` to its directories, all at once; returns when all have answered, or in 30 s.

        taken: called with the fingerprint of each directory as it takes its text. A directory is given one text: of one
        period it keeps one. Raises `RonError`: Unavailable when tor does not answer; `Refused` (MALFORMED) for a text
        that is no descriptor or a directory that tor does not know, and then what came before it may be there.
        """
        service_id(onion)
        named = {_stand_in(): (text, directories) for text, directories in dealt.items()}
        commands = [_hspost(name, text, directories) for name, (text, directories) in named.items()]
        wanted = [directory.fingerprint for directories in dealt.values() for directory in directories]
        if not commands or len(set(wanted)) != len(wanted):
            raise Refused(Reason.MALFORMED, "nothing to post, or two descriptors for one directory")
        posting = _Posting({(name, d.fingerprint) for name, (_, ds) in named.items() for d in ds}, taken)
        self._posting.update(dict.fromkeys(named, posting))
        try:
            for command in commands:
                await self._command(command)
            with contextlib.suppress(DeadlineError):
                await within(self._reactor, POST_TIMEOUT_S, posting.done)
            return posting.so_far()
        finally:
            for name in named:
                del self._posting[name]

    def _heard(self, event: str) -> None:
        """`UPLOADED|FAILED <address> <auth type> <hsdir> …`."""
        words = event.split()
        named = _FINGERPRINT.match(words[3]) if len(words) > 3 else None
        if named is None or words[0] not in _ENDS:
            return
        if words[1] in self._posting:
            self._posting[words[1]].heard(words[1], named[1], taken=_ENDS[words[0]])

    def _content(self, event: str) -> None:
        """`<address> <descriptor id> <hsdir>`, a line end, and the descriptor; empty when there is none."""
        head, _, text = event.partition("\n")
        words = head.split()
        named = _FINGERPRINT.match(words[2]) if len(words) > 2 else None
        waiting = self._waiting(words[0], named[1] if named else "") if words else None
        if waiting is None:
            return
        # txtorcon leaves the last line of the event itself after it
        text = text.removesuffix("OK").strip("\n")
        if text:
            waiting.callback(text + "\n")
        else:
            waiting.errback(not_found("that directory has no descriptor of the address"))

    def _lost(self, _how: object) -> None:
        """Nothing more will be heard: whoever waits is told at once."""
        for posting in list(self._posting.values()):
            posting.end()
        fetching, self._fetching = self._fetching, {}
        for found in [each for line in fetching.values() for each in line]:
            found.errback(TorSilent())

    def _waiting(self, name: str, fingerprint: str) -> Deferred[str] | None:
        """Who asked that directory first, else who asked any; whoever it is asks no more."""
        for key in ((name, fingerprint), (name, "")):
            if key in self._fetching:
                first = self._fetching[key][0]
                self._forget(key, first)
                return first
        return None

    def _forget(self, key: tuple[str, str], found: Deferred[str]) -> None:
        left = [other for other in self._fetching.pop(key, []) if other is not found]
        if left:
            self._fetching[key] = left

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
    """Who has answered so far. wanted: the name of a text, and a directory that it is for."""

    def __init__(self, wanted: set[tuple[str, str]], taken: Taken) -> None:
        self.done: Deferred[None] = Deferred()
        self._wanted = wanted
        self._taken = taken
        self._answers: dict[tuple[str, str], bool] = {}

    def heard(self, name: str, fingerprint: str, *, taken: bool) -> None:
        key = name, fingerprint
        if key not in self._wanted or key in self._answers:
            return
        self._answers[key] = taken
        if taken:
            self._taken(fingerprint)
        if self._wanted == self._answers.keys():
            self.end()

    def end(self) -> None:
        """There is nothing more to wait for."""
        if not self.done.called:
            self.done.callback(None)

    def so_far(self) -> Posted:
        taken = frozenset(fingerprint for (_, fingerprint), answer in self._answers.items() if answer)
        refused = frozenset(fingerprint for (_, fingerprint), answer in self._answers.items() if not answer)
        return Posted(taken, refused, frozenset(fingerprint for _, fingerprint in self._wanted) - taken - refused)


def _stand_in() -> str:
    """A name that tor's events about one text carry, and no other text's. tor wants it to be an address."""
    return service_id(address_of(new_key()))


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
