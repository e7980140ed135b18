"""An authority looks at every relay now, and keeps those that do not answer, and strangers, off its next vote.

In: the folder of a running authority. Out: `approved-routers` in its data, read again by tor. tor's own test would
call a relay running for 45 minutes after its last answer: in a small network that stops new onion services for as long,
because they choose the dead relay as an introduction point and wait for it.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.threads import deferToThread
from txtorcon import TorControlProtocol, TorProtocolError, TorProtocolFactory

from ron.kernel.aio import within
from ron.proto.errors import bad_request
from ron.proto.exitcodes import Unreachable
from ron.tor.hostnet.join import STATE, Joined
from ron.tor.hostnet.look import shakes_hands
from ron.tor.hostnet.owned import owned_folder, write_owned
from ron.tor.hostnet.plan import Member

ANSWER_TIMEOUT_S = 10
HANDSHAKE_TIMEOUT_S = 4.0
TRIES = 2
LIST = "approved-routers"
_AT_ONCE = 32
_FINGERPRINT = re.compile(r"^fingerprint ((?:[0-9A-F]{4} ?){10})$", re.MULTILINE)
_EXCEPTED = re.compile(rb"^!(?:reject|invalid) ([0-9A-F]{40})$", re.MULTILINE)
_REFUSED = re.compile(rb"^!reject ([0-9A-F]{40})$", re.MULTILINE)


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """How many nodes were looked at; names of those that do not answer; fingerprints of those that do not belong here.

    changed: the next vote will be another.
    """

    relays: int
    down: tuple[str, ...]
    strangers: tuple[str, ...]
    changed: bool


async def probe(reactor: Any, directory: Path) -> Probed:
    """Look at all relays the authority in `directory` knows. Raises Unreachable when its tor does not answer."""
    members, path = _members(directory), directory / "data" / LIST
    control = await _connect(reactor, directory / "data" / "control")
    try:
        known = fingerprints(await _ask(reactor, control, "desc/all-recent"))
        own = (await _ask(reactor, control, "fingerprint")).strip()
        up = await deferToThread(answers, [member for member in members if member.fingerprint != own])
        before = path.read_bytes() if path.exists() else unlisted([], [])
        strangers = (known | _refused(before)) - {member.fingerprint for member in members}
        down = [member for member in members if not up.get(member.fingerprint, True)]
        after = unlisted([member.fingerprint for member in down], strangers)
        changed = after != before and not cut_off(up)
        if changed:
            _write(directory / "data", after)
        if changed or await _any_listed(reactor, control, _excepted(after)):
            await within(reactor, ANSWER_TIMEOUT_S, control.signal("RELOAD"))
        names = tuple(member.name for member in down)
        return Probed(relays=len(up), down=names, strangers=tuple(sorted(strangers)), changed=changed)
    finally:
        control.transport.loseConnection()


def fingerprints(descriptors: str) -> set[str]:
    """Whose server descriptors these are (dir-spec §2.1.1), 40 hex each."""
    return {found.replace(" ", "") for found in _FINGERPRINT.findall(descriptors)}


def cut_off(up: Mapping[str, bool]) -> bool:
    """True when at least half of the others do not answer: then it is us who have lost the network, not they."""
    return 2 * sum(not answered for answered in up.values()) >= max(len(up), 1)


def unlisted(down: Iterable[str], strangers: Iterable[str]) -> bytes:
    """tor's file of exceptions: `down` are left out of votes, but known for when they return; `strangers` refused."""
    lines = [f"!invalid {fingerprint}\n" for fingerprint in down]
    lines += [f"!reject {fingerprint}\n" for fingerprint in strangers]
    return ("# Written by ronctl tornet probe.\n" + "".join(sorted(lines))).encode()


async def _any_listed(reactor: Any, control: TorControlProtocol, fingerprints: Iterable[str]) -> bool:
    """Whether the consensus lists any of these. tor takes such a one for valid again with every consensus that does
    (0.4.9.11), and has to be told again between that consensus and its next vote."""
    for fingerprint in fingerprints:
        with contextlib.suppress(TorProtocolError):
            await _ask(reactor, control, f"ns/id/{fingerprint}")
            return True
    return False


def _excepted(content: bytes) -> list[str]:
    return [found.decode() for found in _EXCEPTED.findall(content)]


def _refused(content: bytes) -> set[str]:
    """Strangers already refused: tor has forgotten them, and would take them back with the line that names them."""
    return {found.decode() for found in _REFUSED.findall(content)}


def answers(members: Sequence[Member]) -> dict[str, bool]:
    """By fingerprint: does it answer? Asked twice, all at once. Blocks."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        found = pool.map(_answers, members)
        return {member.fingerprint: answered for member, answered in zip(members, found, strict=True)}


def _answers(member: Member) -> bool:
    return any(shakes_hands(member.address, member.or_port, HANDSHAKE_TIMEOUT_S) for _ in range(TRIES))


def _write(data: Path, content: bytes) -> None:
    owner = data.stat()
    uid, gid = (owner.st_uid, owner.st_gid) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    with owned_folder(data, uid, gid) as folder:
        write_owned(folder, LIST, content, uid, gid)


def _members(directory: Path) -> tuple[Member, ...]:
    """The network's nodes, as the last bundle had them."""
    try:
        state = msgspec.json.decode((directory / STATE).read_bytes(), type=Joined)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise bad_request(f"{directory / STATE} cannot be read: {error}", "name an authority's folder: --dir") from None
    if state.role != "authority":
        raise bad_request(f"{state.name} is a {state.role}", "authorities alone decide who is listed")
    return state.members


async def _connect(reactor: Any, path: Path) -> TorControlProtocol:
    try:
        endpoint = UNIXClientEndpoint(reactor, str(path), timeout=ANSWER_TIMEOUT_S)
        control = await endpoint.connect(TorProtocolFactory())
        await within(reactor, ANSWER_TIMEOUT_S, control.post_bootstrap)
    except Exception as error:  # noqa: BLE001 - txtorcon and Twisted raise a dozen kinds for "tor is not there"
        raise Unreachable(f"no tor answers at {path}: {error}", hint="start it, and run this as its user") from None
    return control


async def _ask(reactor: Any, control: TorControlProtocol, key: str) -> str:
    answer: Deferred[dict[str, str]] = control.get_info(key)
    return str((await within(reactor, ANSWER_TIMEOUT_S, answer))[key])
