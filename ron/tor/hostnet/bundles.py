"""Bundles: what one host needs, in one tar file; the same content gives the same bytes, and reading takes care.

In: named bytes. Out: a tar (members 0600, no times, no owners) whose `bundle.json` names and digests the other files,
and back, with `RonError` (BadRequest, TooLarge) for anything that is not exactly such a tar. That finds damage; against
forgery there is the digest of the whole, which people compare.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import tarfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ron.proto.errors import bad_request, too_large
from ron.tor.hostnet.plan import FORMAT, Member

INDEX, SEAL = "bundle.json", "bundle.sha256"
MAX_BUNDLE_BYTES, MAX_FILE_BYTES, MAX_FILES = 1024 * 1024, 256 * 1024, 32
_NAME = re.compile(r"(keys/)?[a-zA-Z0-9][a-zA-Z0-9_-]{0,63}(\.[a-z0-9]{1,8})?", re.ASCII)
_REMAKE = "fetch the bundle again, or let the operator make it anew"


class Index(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle is. role: authority, relay or client. whole: it brings the node's keys, not only what changed.

    members: all nodes, for an authority. sha256: digest by file in the bundle.
    """

    format: int
    network_id: str
    generation: int
    name: str
    role: str
    whole: bool
    members: tuple[Member, ...]
    sha256: dict[str, str]


class Bundle(msgspec.Struct, frozen=True, kw_only=True):
    """An index and the files it tells of."""

    index: Index
    files: dict[str, bytes]


def digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """What an index says of `files`."""
    return {name: digest(files[name]) for name in sorted(files)}


def pack(bundle: Bundle) -> bytes:
    """The tar of `bundle`: a function of its content alone."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        index = msgspec.json.encode(bundle.index)
        for name, content in ((SEAL, digest(index).encode()), (INDEX, index), *sorted(bundle.files.items())):
            header = tarfile.TarInfo(name)
            header.size, header.mode = len(content), 0o600
            tar.addfile(header, io.BytesIO(content))
    return sink.getvalue()


def unpack(content: bytes) -> Bundle:
    """The bundle in `content`. Raises BadRequest or TooLarge unless it is one that `pack` could have made."""
    if len(content) > MAX_BUNDLE_BYTES:
        raise too_large(f"a bundle of {len(content)} bytes", f"one has at most {MAX_BUNDLE_BYTES}")
    files = _files(content)
    raw = files.pop(INDEX, b"")
    if files.pop(SEAL, b"") != digest(raw).encode():
        raise bad_request(f"the bundle's {INDEX} is damaged", _REMAKE)
    try:
        index = msgspec.json.decode(raw, type=Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise bad_request(f"the bundle has no proper {INDEX}", _REMAKE) from None
    if index.format != FORMAT:
        raise bad_request(f"the bundle has format {index.format}, this ronctl reads {FORMAT}", "use the same version")
    if digests(files) != index.sha256:
        raise bad_request(f"the bundle's content is not what its {INDEX} says", _REMAKE)
    bundle = Bundle(index=index, files=files)
    if pack(bundle) != content:
        raise bad_request("the bundle was put together by something else", _REMAKE)
    return bundle


def read_bundle(path: Path, sha256: str | None = None) -> Bundle:
    """The bundle at `path`, which only its owner may read; `sha256`: the digest it must have.

    Raises BadRequest also for a file others may read: the keys in it are known to them then.
    """
    content = _read_owned(path)
    if sha256 is not None and sha256.lower() != digest(content):
        raise bad_request(f"{path} has another SHA-256: {digest(content)}", _REMAKE)
    return unpack(content)


def digest(content: bytes) -> str:
    """SHA-256 in hex; of a bundle, for people to compare."""
    return hashlib.sha256(content).hexdigest()


def _read_owned(path: Path) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise bad_request(f"cannot read {path}: {error.strerror}", "name the bundle itself, not a link") from None
    facts = os.fstat(handle)
    if not stat.S_ISREG(facts.st_mode):
        os.close(handle)
        raise bad_request(f"{path} is no file", "name the bundle")
    with os.fdopen(handle, "rb") as file:
        if facts.st_mode & 0o077:
            raise bad_request(
                f"{path} may be read by others, who may know its keys now", f"make new ones, or chmod 600 {path}"
            )
        return file.read(MAX_BUNDLE_BYTES + 1)


def _files(content: bytes) -> dict[str, bytes]:
    """Every file by name. Refuses links, devices, folders, odd names, doubles, and more than fits in memory."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
            for header in tar:
                if not header.isreg() or header.pax_headers or not _NAME.fullmatch(header.name):
                    raise bad_request(f"the bundle holds {header.name[:80]!r}, which is no plain file of ours", _REMAKE)
                if header.name in files or len(files) >= MAX_FILES or header.size > MAX_FILE_BYTES:
                    raise bad_request(f"the bundle holds {header.name!r} twice, or too much", _REMAKE)
                body = tar.extractfile(header)
                files[header.name] = body.read() if body is not None else b""
    except (tarfile.TarError, EOFError, ValueError, OSError, OverflowError) as error:
        raise bad_request(f"that is no bundle: {error}", _REMAKE) from None
    return files
