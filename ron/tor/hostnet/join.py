"""What a host does with a bundle: see whether it fits, fill in its own paths, let tor judge the torrc, put it in place.

In: a bundle and a folder. Out: `torrc`, unit and README in the folder, keys in `data/keys`, and `node.json`, by which
the next bundle is judged. A bundle that does not fit changes nothing. Everything here blocks.
"""

from __future__ import annotations

import os
import pwd
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from ron.kernel.files import DirectoryLock, private_dir, socket_path, write_private
from ron.proto.errors import RonError, bad_request, conflict
from ron.tor.binary import TorBinary
from ron.tor.hostnet.bundles import Bundle, Index
from ron.tor.hostnet.owned import owned_folder, write_owned
from ron.tor.hostnet.plan import CLIENT, Member, check_name
from ron.tor.hostnet.texts import USUAL_SOCKS_PORT, filled
from ron.tor.hostnet.workshop import UNIT
from ron.tor.torrc import write_verified

STATE = "node.json"
_ROLES = {"authority", "relay", CLIENT}
_NOT_OURS = "name a new folder with --dir"


class Joined(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`node.json`: which node of which network lives in a folder. user: who tor runs as.

    members: all nodes, for an authority to know who belongs to the network.
    """

    network_id: str
    generation: int
    name: str
    role: str
    directory: str
    user: str
    socks_port: int | None = None
    members: tuple[Member, ...] = ()


class Owner(NamedTuple):
    """Who tor runs as. apart: somebody else than us, so that tor cannot change its own configuration."""

    name: str
    uid: int
    gid: int
    apart: bool


def join(
    bundle: Bundle, directory: Path, tor: TorBinary, *, user: str | None = None, socks_port: int | None = None
) -> Joined:
    """Put `bundle` into `directory`, new or that of the same node.

    user: who tor will run as (we must be root to choose); by default whoever calls. socks_port: for a client; by
    default the one it has, or 9050. Raises Conflict for the folder of another node or a newer generation, BadRequest
    for an update where nothing is, or what tor refuses.
    """
    owner = _owner(user)
    before = _before(directory, bundle.index)
    socks_port = _socks_port(bundle.index, before, socks_port)
    values = _values(directory, tor, owner, socks_port)
    texts = _texts(bundle, values)
    lock = _prepared(directory, owner)
    try:
        _verify(tor, bundle, values, directory / ".join")
        _put(bundle, directory, texts, owner)
        state = Joined(
            network_id=bundle.index.network_id,
            generation=bundle.index.generation,
            name=bundle.index.name,
            role=bundle.index.role,
            directory=str(directory),
            user=owner.name,
            socks_port=socks_port,
            members=bundle.index.members,
        )
        write_private(directory / STATE, msgspec.json.encode(state))
        (directory / STATE).chmod(0o644)  # no secret; the probe reads it as tor's user
    except OSError as error:
        raise bad_request(f"cannot write in {directory}: {error.strerror}", "mend that, and join again") from None
    finally:
        lock.release()
    return state


def _owner(user: str | None) -> Owner:
    """Raises BadRequest for a user that is none, or that only root may choose."""
    me = os.geteuid()
    try:
        found = pwd.getpwuid(me) if user is None else pwd.getpwnam(user)
    except KeyError:
        raise bad_request(f"this host has no user {user or me}", "apt-get install tor makes debian-tor") from None
    if found.pw_uid != me and me != 0:
        raise bad_request(f"only root can hand the node to {user}", "run it with sudo, or without --user")
    return Owner(found.pw_name, found.pw_uid, found.pw_gid, apart=found.pw_uid != me)


def _before(directory: Path, index: Index) -> Joined | None:
    """What lives in `directory`. Raises unless `index` is the same node, as new or newer, or the folder is empty."""
    _check_index(index)
    for path in (directory, directory / "data", directory / "data" / "keys"):
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise conflict(f"{path} is not a folder", _NOT_OURS)
    try:
        state = msgspec.json.decode((directory / STATE).read_bytes(), type=Joined)
    except FileNotFoundError:
        _check_new(directory, index)
        return None
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise bad_request(f"{directory / STATE} is damaged: {error}", _NOT_OURS) from None
    if (state.network_id, state.name, state.role) != (index.network_id, index.name, index.role):
        raise conflict(f"{directory} holds {state.role} {state.name} of network {state.network_id}", _NOT_OURS)
    if index.generation < state.generation:
        raise conflict(
            f"the bundle is of generation {index.generation}, the node has {state.generation} already",
            "take the newest bundle",
        )
    return state


def _check_new(directory: Path, index: Index) -> None:
    if directory.is_dir() and any(entry.name not in {".join", "data", "nothing"} for entry in directory.iterdir()):
        raise conflict(f"{directory} holds other files", _NOT_OURS)
    if not index.whole:
        raise bad_request(f"the bundle only updates {index.name}, which is not in {directory}", "join with its first")


def _check_index(index: Index) -> None:
    if index.role not in _ROLES or index.generation < 1:
        raise bad_request(f"the bundle is for a {index.role!r}", "use the ronctl that made it")
    if index.name != CLIENT or index.role != CLIENT:
        check_name(index.name)


def _socks_port(index: Index, before: Joined | None, wanted: int | None) -> int | None:
    if index.role != CLIENT:
        if wanted is not None:
            raise bad_request(f"{index.role} {index.name} has no SOCKS port", "leave --socks-port out")
        return None
    port = wanted or (before.socks_port if before else None) or USUAL_SOCKS_PORT
    if not 1 <= port <= 65535:
        raise bad_request(f"{port} is no port", "--socks-port 9050")
    return port


def _values(directory: Path, tor: TorBinary, owner: Owner, socks_port: int | None) -> dict[str, object]:
    """What this host decides. Raises BadRequest for a folder that tor cannot use."""
    if not directory.is_absolute():
        raise bad_request(f"{directory} is not absolute", "name the folder from / on")
    socket_path(directory / "data" / "control")
    return {
        "directory": directory,
        "user": owner.name,
        "tor": tor.path,
        "ronctl": Path(sys.executable).parent / "ronctl",
        "socks_port": socks_port or 0,
    }


def _texts(bundle: Bundle, values: Mapping[str, object]) -> dict[str, tuple[str, int]]:
    """File name → text and mode: what tor and systemd read. A tor that is not us may read it, never write it."""
    texts = {"nothing": ("", 0o644)}
    for name, content in bundle.files.items():
        if not name.startswith("keys/"):
            _check_name(name, bundle.index.name)
            text = content.decode("utf-8", "replace")
            texts[name] = (text if name == "README" else filled(text, values), 0o644)
    if not {"torrc", UNIT.format(name=bundle.index.name)} <= texts.keys():
        raise bad_request("the bundle has no torrc or no unit", "let the operator make it anew")
    return texts


def _check_name(name: str, node: str) -> None:
    """Raises BadRequest for a file that none of our bundles holds."""
    unit = UNIT.format(name=node).removesuffix(".service")
    ours = {"torrc", "README", "snippet.torrc", f"{unit}.service", f"{unit}-probe.service", f"{unit}-probe.timer"}
    if name not in ours:
        raise bad_request(f"the bundle holds {name!r}, which is no file of ours", "let the operator make it anew")


def _prepared(directory: Path, owner: Owner) -> DirectoryLock:
    """The folder, locked in a corner of its own: a tor that runs in it must not be locked out meanwhile."""
    try:
        if owner.apart:
            directory.mkdir(parents=True, exist_ok=True, mode=0o711)
            directory.chmod(0o711)
        else:
            private_dir(directory)
        return DirectoryLock(directory / ".join")
    except OSError as error:
        raise bad_request(f"cannot use {directory}: {error.strerror}", _NOT_OURS) from None


def _verify(tor: TorBinary, bundle: Bundle, values: Mapping[str, object], corner: Path) -> None:
    """tor's judgement of the new torrc, in a folder of its own: it refuses to look into data that is another user's."""
    with tempfile.TemporaryDirectory(dir=corner) as scratch:
        place = Path(scratch)
        private_dir(place / "data")
        (place / "nothing").touch()
        text = filled(bundle.files["torrc"].decode("utf-8", "replace"), {**values, "directory": place})
        try:
            write_verified(tor, place / "torrc", text)
        except RonError as error:
            raise bad_request(error.message, "is this host's tor as new as the operator's?") from None


def _put(bundle: Bundle, directory: Path, texts: dict[str, tuple[str, int]], owner: Owner) -> None:
    """Keys first: a tor that is told to reload in between finds the old torrc with keys that fit it too."""
    with (
        owned_folder(directory / "data", owner.uid, owner.gid) as data,
        owned_folder("keys", owner.uid, owner.gid, within=data) as keys,
    ):
        for name, content in sorted(bundle.files.items()):
            if name.startswith("keys/"):
                write_owned(keys, name.removeprefix("keys/"), content, owner.uid, owner.gid)
    for name, (text, mode) in texts.items():
        write_private(directory / name, text.encode())
        (directory / name).chmod(mode)
