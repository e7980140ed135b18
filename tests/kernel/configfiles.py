"""A small config, and everything bad that may lie where its file was. In: a path. Out: files, pipes, sockets, links."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec

from ron.kernel.config import MAX_CONFIG_BYTES, ConfigError


class Box(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    size: Annotated[int, msgspec.Meta(ge=0, extra={"reload": True})] = 1
    name: str = "a"
    peers: tuple[str, ...] = ()
    api_token: str = "unset"
    endpoint: str = ""


class House(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    box: Box = Box()


def check(house: House) -> None:
    if house.box.size == 13:
        raise ConfigError("thirteen", key="box.size", hint="not that")


def box(**values: Any) -> bytes:
    return b"[box]\n" + "".join(f"{k} = {msgspec.json.encode(v).decode()}\n" for k, v in values.items()).encode()


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


_times = itertools.count(1)


def stamp(path: Path) -> None:
    """A time of its own: here much more happens in one tick of the file system's clock than in a node's life."""
    if path.is_symlink() or path.exists():
        os.utime(path, ns=(0, 1_000_000 * next(_times)), follow_symlinks=False)


def replace(path: Path, content: bytes) -> None:
    """The way editors and config management do it."""
    if not path.is_file():
        remove(path)
    beside = path.with_name("beside")
    beside.write_bytes(content)
    stamp(beside)
    beside.replace(path)


def spoil(path: Path, kind: str) -> str:
    """Put something bad where the config was; a word of the complaint."""
    remove(path)
    make, word = BAD[kind]
    make(path)
    stamp(path)
    return word


def unix_socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path.name)
    finally:
        os.chdir(here)


# what may lie where the config was, and a word of the complaint
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "garbage": (lambda p: p.write_bytes(b"\x00\xff\xfe garbage"), "UTF-8"),
    "half a file": (lambda p: p.write_bytes(b"[box]\nsize = "), "value"),
    "empty": (lambda p: p.write_bytes(b""), "is empty"),
    "only a comment": (lambda p: p.write_bytes(b"# nothing\n\n"), "is empty"),
    "an unknown key": (lambda p: p.write_bytes(b"[box]\nsizes = 1"), "box.sizes"),
    "out of range": (lambda p: p.write_bytes(b"[box]\nsize = -1"), "box.size"),
    "a rule broken": (lambda p: p.write_bytes(b"[box]\nsize = 13"), "thirteen"),
    "huge": (lambda p: p.write_bytes(b"#" * (MAX_CONFIG_BYTES + 1)), "over"),
    "a directory": (lambda p: p.mkdir(), "a directory"),
    "a pipe": (lambda p: os.mkfifo(p), "a pipe"),
    "a socket": (unix_socket, "no regular file"),
    "a device": (lambda p: p.symlink_to("/dev/zero"), "no regular file"),
    "a link to itself": (lambda p: p.symlink_to(p.name), "cannot read"),
    "a link to nothing": (lambda p: p.symlink_to("nowhere"), "cannot read"),
    "nothing": (lambda p: None, "cannot read"),
}
