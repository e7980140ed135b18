"""The files of a key store, as bytes: one for each key version, the manifest that lists them, the head that dates it.

In: key versions, a `Sealer`. Out: bytes for the disk, and the records back, each checked as a whole. No disk here.
`root` opens the store (`unlocking`); `<40 hex>.key` is one key version; `manifest` has the digest of each of them, and
a counter that grows by one with each change; `head` repeats the counter, so that an older manifest is found out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, TypeVar

import blake3
import msgspec
from msgspec import Meta

from ron.crypto.kdf import Label
from ron.crypto.sealing import BrokenSealError, Sealer
from ron.proto.errors import RonError
from ron.proto.kms import Alg, Kid, parse_kid
from ron.services.kms.backends.sealedkeys import SealedKey
from ron.services.kms.ports import Half, Held

ROOT, MANIFEST, HEAD = "root", "manifest", "head"
KEY_SUFFIX = ".key"
MAX_KEY_FILE_BYTES = 16 * 1024
MAX_KEYS = 50_000
"""Key versions at a time, and twice that many ever: the manifest keeps the names of those destroyed."""
HISTORY = 32
"""Earlier digests in a manifest: how far the audit log may lag behind and still be compared."""
_MANIFEST = Label("store", "manifest", "file")
_HEAD = Label("store", "head", "file")
_VERSION = 1

_Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: Annotated[int, Meta(ge=_VERSION, le=_VERSION)] = _VERSION


class Head(_Record, frozen=True, kw_only=True):
    """digest: of the manifest as it lies on the disk."""

    counter: Annotated[int, Meta(ge=0)]
    digest: _Digest


class Manifest(_Record, frozen=True, kw_only=True):
    """keys: kid → digest of its file. gone: file names of what was destroyed, for ever. history: digests of the
    manifests before this one, the newest last."""

    counter: Annotated[int, Meta(ge=0)]
    keys: Annotated[dict[str, _Digest], Meta(max_length=MAX_KEYS)]
    gone: frozenset[str] = frozenset()
    history: Annotated[tuple[_Digest, ...], Meta(max_length=HISTORY)] = ()


class _KeyFile(_Record, frozen=True, kw_only=True):
    kid: str
    made: Annotated[int, Meta(ge=1)]
    attestation_class: Annotated[str, Meta(max_length=64)]
    halves: Annotated[list[tuple[Alg, bytes]], Meta(min_length=1, max_length=4)]
    blob: bytes


_R = TypeVar("_R", bound=_Record)


def digest_of(raw: bytes) -> bytes:
    """BLAKE3-256."""
    return blake3.blake3(raw).digest()


def file_name(kid: Kid) -> str:
    """Of its key file. It shows neither tenant nor purpose."""
    return blake3.blake3(str(kid).encode()).hexdigest()[:40] + KEY_SUFFIX


def encode_key(key: SealedKey) -> bytes:
    """The file of a key version."""
    held = key.held
    record = _KeyFile(
        kid=str(held.kid),
        made=key.made,
        attestation_class=held.attestation_class,
        halves=[(half.alg, half.public) for half in held.halves],
        blob=key.blob,
    )
    return msgspec.msgpack.encode(record)


def decode_key(raw: bytes) -> SealedKey:
    """The key version in a file, unproven: see `SealedKeys.check`. Raises `BrokenSealError` for what is none."""
    if len(raw) > MAX_KEY_FILE_BYTES:
        raise BrokenSealError("too long for a key file")
    try:
        record = msgspec.msgpack.decode(raw, type=_KeyFile)
        kid = parse_kid(record.kid)
    except (msgspec.MsgspecError, RonError):
        raise BrokenSealError("not a key file") from None
    halves = tuple(Half(alg, public) for alg, public in record.halves)
    return SealedKey(Held(kid, halves, record.attestation_class), record.made, record.blob)


def seal_manifest(sealer: Sealer, manifest: Manifest) -> bytes:
    """For the disk."""
    return sealer.seal(_MANIFEST, msgspec.msgpack.encode(manifest))


def open_manifest(sealer: Sealer, raw: bytes) -> Manifest:
    """Raises `BrokenSealError`."""
    return _decode(sealer.open(_MANIFEST, raw), Manifest)


def seal_head(sealer: Sealer, head: Head) -> bytes:
    """For the disk."""
    return sealer.seal(_HEAD, msgspec.msgpack.encode(head))


def open_head(sealer: Sealer, raw: bytes) -> Head:
    """Raises `BrokenSealError`."""
    return _decode(sealer.open(_HEAD, raw), Head)


def successor(manifest: Manifest, digest: bytes, *, keys: dict[str, bytes], gone: Sequence[str] = ()) -> Manifest:
    """The manifest after `manifest`, whose file has `digest`."""
    return Manifest(
        counter=manifest.counter + 1,
        keys=keys,
        gone=manifest.gone.union(gone),
        history=(*manifest.history, digest)[-HISTORY:],
    )


def has_room(manifest: Manifest) -> bool:
    """For one more key version."""
    return len(manifest.keys) < MAX_KEYS and len(manifest.keys) + len(manifest.gone) < 2 * MAX_KEYS


def knows(manifest: Manifest, own_digest: bytes, known: Head) -> bool:
    """Is `manifest`, whose file has `own_digest`, the one that `known` names or one of those after it?"""
    back = manifest.counter - known.counter
    if back == 0:
        return own_digest == known.digest
    return 1 <= back <= len(manifest.history) and manifest.history[-back] == known.digest


def _decode(raw: bytearray, kind: type[_R]) -> _R:
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except msgspec.MsgspecError:
        raise BrokenSealError("a record of a version this program does not know") from None
