"""The config file that `ronctl balance init` and `join` write: what ron-balance would start with, and nothing else.

In: what was given on the command line. Out: a new TOML file, checked as the daemon checks it before it is written.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from ron.kernel.config import convert
from ron.kernel.files import write_private
from ron.proto.balance import Mode
from ron.proto.errors import bad_request, unavailable
from ron.services.configs import SCHEMAS

FILE = "balance.toml"
_HEAD = "# Made by `ronctl balance`; every key is in docs/rustbalance.rst.\n#   twistd -n ron-balance --config {path}\n"


class Wanted(NamedTuple):
    """What a node's config is to say. ports: `80:127.0.0.1:8080`. torrc: the lines of the nodes' own Tor network.

    threshold, members: None in mode `shared`. directory: the node's files; relative to its home, or absolute.
    """

    node: str
    listen: str
    service: str
    ports: tuple[str, ...]
    mode: Mode = "shared"
    threshold: int | None = None
    members: int | None = None
    advertise: str = ""
    seeds: tuple[str, ...] = ()
    socks: str = ""
    approval: str = "operator"
    directory: str = "balance"
    public: bool = False
    torrc: Path | None = None
    admin: str = ""


def tables(wanted: Wanted) -> dict[str, Any]:
    """The config as tables. Raises `ConfigError` for one that ron-balance would not start with."""
    if wanted.public and wanted.torrc is not None:
        raise bad_request("--public and --torrc are two networks", "give one of them")
    balance: dict[str, Any] = {"enabled": True, "node": wanted.node, "listen": wanted.listen}
    balance |= {key: getattr(wanted, key) for key in ("advertise", "socks") if getattr(wanted, key)}
    if wanted.seeds:
        balance["seeds"] = list(wanted.seeds)
    balance |= {"directory": wanted.directory, "approval": wanted.approval}
    service: dict[str, Any] = {"name": wanted.service, "ports": list(wanted.ports), "mode": wanted.mode}
    if wanted.threshold is not None and wanted.members is not None:
        service |= {"threshold": wanted.threshold, "members": wanted.members}
    balance["services"] = [service]
    network = "public" if wanted.public else "joined" if wanted.torrc is not None else "private"
    onion = {"network": network, **({"client_torrc": str(wanted.torrc.absolute())} if wanted.torrc is not None else {})}
    found = {"balance": balance, "onion": onion, **({"admin": {"bind": wanted.admin}} if wanted.admin else {})}
    schema, check = SCHEMAS["ron-balance"]
    check(convert(found, schema))
    return found


def write(folder: Path, found: dict[str, Any]) -> Path:
    """`found` as `folder/balance.toml`, which must not be there. Raises `RonError`."""
    path = config_path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_private(path, (_HEAD.format(path=path) + toml(found)).encode())
    except OSError as error:
        raise unavailable(f"cannot write {path}: {error.strerror}") from None
    return path


def config_path(folder: Path) -> Path:
    """Where the config goes. Raises `RonError` (BadRequest) when something is there."""
    path = folder / FILE
    if path.exists():
        raise bad_request(f"{path} exists", "choose another folder with --out")
    return path


def toml(found: dict[str, Any]) -> str:
    """Tables of strings, numbers, booleans, lists of strings and one level of lists of tables, as TOML."""
    lines: list[str] = []
    for name, table in found.items():
        lines += ["", f"[{name}]", *_pairs(table)]
        for key, rows in table.items():
            if _is_rows(rows):
                for row in rows:
                    lines += ["", f"[[{name}.{key}]]", *_pairs(row)]
    return "\n".join([*lines, ""])


def _pairs(table: dict[str, Any]) -> list[str]:
    return [f"{key} = {_value(value)}" for key, value in table.items() if not _is_rows(value)]


def _value(value: Any) -> str:
    """A JSON string, number, boolean or list of strings is the same in TOML, but for DEL, which JSON keeps."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(one, dict) for one in value)
