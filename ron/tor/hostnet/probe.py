"""An authority looks at every relay now, and keeps those that do not answer, and strangers, off its next vote.

In: the folder of a running authority. Out: `approved-routers` in its data, read again by tor. tor's own test would
call a relay running for 45 minutes after its last answer: in a small network that stops new onion services for as long,
because they choose the dead relay as an introduction point and wait for it.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.threads import deferToThread
from txtorcon import TorControlProtocol, TorProtocolFactory

from ron.kernel.aio import within
from ron.proto.errors import bad_request
from ron.proto.exitcodes import Unreachable
from ron.tor.hostnet.join import STATE, Joined
from ron.tor.hostnet.owned import owned_folder, write_owned

ANSWER_TIMEOUT_S = 10
HANDSHAKE_TIMEOUT_S = 4.0
TRIES = 2
LIST = "approved-routers"
_AT_ONCE = 32
_RELAY = re.compile(
    r"^router (?P<name>\S+) (?P<address>[0-9.]+) (?P<port>\d+) .*?^fingerprint (?P<fingerprint>(?:[0-9A-F]{4} ?){10})$",
    re.MULTILINE | re.DOTALL,
)


class Relay(NamedTuple):
    """A relay as its own descriptor tells (dir-spec §2.1.1): nickname, 40 hex, and where its ORPort is."""

    name: str
    fingerprint: str
    address: str
    port: int


class Probed(msgspec.Struct, frozen=True, kw_only=True):
    """How many relays were looked at; names of those that do not answer; fingerprints of those that do not belong here.

    changed: the next vote will be another.
    """

    relays: int
    down: tuple[str, ...]
    strangers: tuple[str, ...]
    changed: bool


async def probe(reactor: Any, directory: Path) -> Probed:
    """Look at all relays the authority in `directory` knows. Raises Unreachable when its tor does not answer."""
    members = _members(directory)
    control = await _connect(reactor, directory / "data" / "control")
    try:
        relays = read_relays(await _ask(reactor, control, "desc/all-recent"))
        own = (await _ask(reactor, control, "fingerprint")).strip()
        strangers = [relay for relay in relays if relay.fingerprint not in members]
        others = [relay for relay in relays if relay.fingerprint in members - {own}]
        up = await deferToThread(answers, others)
        down = [relay for relay in others if not up[relay.fingerprint]]
        changed = not cut_off(up) and _write(directory / "data", unlisted(down, strangers))
        if changed:
            await within(reactor, ANSWER_TIMEOUT_S, control.signal("RELOAD"))
        return Probed(
            relays=len(relays),
            down=tuple(relay.name for relay in down),
            strangers=tuple(relay.fingerprint for relay in strangers),
            changed=changed,
        )
    finally:
        control.transport.loseConnection()


def read_relays(descriptors: str) -> list[Relay]:
    """The relays in server descriptors."""
    found = _RELAY.finditer(descriptors)
    return [Relay(m["name"], m["fingerprint"].replace(" ", ""), m["address"], int(m["port"])) for m in found]


def cut_off(up: Mapping[str, bool]) -> bool:
    """True when at least half of the others do not answer: then it is us who have lost the network, not they."""
    return 2 * sum(not answered for answered in up.values()) >= max(len(up), 1)


def unlisted(down: Sequence[Relay], strangers: Sequence[Relay]) -> bytes:
    """tor's file of exceptions: `down` are left out of votes, but known for when they return; `strangers` refused."""
    lines = [f"!invalid {relay.fingerprint}\n" for relay in down]
    lines += [f"!reject {relay.fingerprint}\n" for relay in strangers]
    return ("# Written by ronctl tornet probe.\n" + "".join(sorted(lines))).encode()


def answers(relays: list[Relay]) -> dict[str, bool]:
    """By fingerprint: did a TLS handshake come about? A frozen tor accepts connections, but shakes no hands. Blocks."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        found = pool.map(lambda relay: any(_shakes_hands(relay) for _ in range(TRIES)), relays)
        return {relay.fingerprint: answered for relay, answered in zip(relays, found, strict=True)}


def _shakes_hands(relay: Relay) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # whether it is the relay it says is tor's own test; here only whether somebody is there
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((relay.address, relay.port), timeout=HANDSHAKE_TIMEOUT_S) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except OSError:
        return False


def _write(data: Path, content: bytes) -> bool:
    """Put the list where tor looks for it; False when it is there already. No list and an empty one are the same."""
    path, owner = data / LIST, data.stat()
    before = path.read_bytes() if path.exists() else unlisted([], [])
    if before == content:
        return False
    uid, gid = (owner.st_uid, owner.st_gid) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    with owned_folder(data, uid, gid) as folder:
        write_owned(folder, LIST, content, uid, gid)
    return True


def _members(directory: Path) -> frozenset[str]:
    """Fingerprints of the network's nodes, as the last bundle had them."""
    try:
        state = msgspec.json.decode((directory / STATE).read_bytes(), type=Joined)
    except (OSError, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise bad_request(f"{directory / STATE} cannot be read: {error}", "name an authority's folder: --dir") from None
    if state.role != "authority":
        raise bad_request(f"{state.name} is a {state.role}", "authorities alone decide who is listed")
    return frozenset(state.members)


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
