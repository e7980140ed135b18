"""Keys that wrap, whose private halves open with a cloud's key only: AWS KMS, or what speaks like it.

In: calls of `Backend`. Out: opened envelopes. Each key version is a file: its seeds, sealed under a data key of its own
that the provider encrypted, with the kid in the encryption context. Every `unwrap` asks the provider, whose policy and
log count beside ours. A manifest, sealed under one more data key, lists the files and counts each change, so that an
older copy of them is found out (I-6). It does not sign. Blocks; from any thread.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
from msgspec import Meta

from ron.crypto import wrapping
from ron.crypto.kdf import Label
from ron.crypto.sealing import BrokenSealError, Sealer
from ron.crypto.secrets import SecretBuffer
from ron.proto.errors import ErrorCode, RonError, bad_request, unavailable
from ron.proto.kms import Alg, Attestation, Kid, KidText, parse_kid
from ron.services.kms.backends import seeds
from ron.services.kms.backends.cloud_key import MAX_ENCRYPTED_BYTES, CloudKey
from ron.services.kms.backends.countedfolder import CountedFolder
from ron.services.kms.backends.errors import DamagedError
from ron.services.kms.backends.filerecords import ROOT
from ron.services.kms.backends.folder import KeyFolder
from ron.services.kms.ports import Half, Held

ATTESTATION_CLASS = "cloud-aws-kms"
MAX_ROOT_BYTES = 16 * 1024
_CONTEXT = "ron-kms:kid"
# Of the store's own data key: a policy that asks for a kid lets it through, and no kid is spelled so
_STORE_CONTEXT = {_CONTEXT: "store"}


class _HalfRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    alg: Alg
    public: Annotated[bytes, Meta(max_length=2048)]
    sealed: Annotated[bytes, Meta(max_length=512)]


class _Root(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `root`. data_key: the manifest's, encrypted by the provider."""

    v: Annotated[int, Meta(ge=1, le=1)] = 1
    data_key: Annotated[bytes, Meta(min_length=1, max_length=MAX_ENCRYPTED_BYTES)]


class CloudRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of a key version. made: in which change. data_key: encrypted by the provider. sealed: a half's seed,
    under that data key."""

    v: Annotated[int, Meta(ge=1, le=1)] = 1
    kid: KidText
    made: Annotated[int, Meta(ge=1)]
    data_key: Annotated[bytes, Meta(min_length=1, max_length=MAX_ENCRYPTED_BYTES)]
    halves: Annotated[tuple[_HalfRecord, ...], Meta(min_length=1, max_length=2)]

    def held(self) -> Held:
        """As the port has it."""
        return Held(parse_kid(self.kid), tuple(Half(h.alg, h.public) for h in self.halves), ATTESTATION_CLASS)


class CloudBackend:
    """`Backend` for keys of purpose `kem` or `wrap`, in a directory."""

    name = "cloud"
    quick = False

    def __init__(self, directory: Path, key: CloudKey, *, allow_unlocked: bool = False) -> None:
        self._folder = KeyFolder(directory)
        self._key = key
        self._allow_unlocked = allow_unlocked
        self._changing = threading.Lock()
        self._store = CountedFolder(self._folder, self.name, lambda raw: _decoded(raw).made)
        self._open = False

    def open(self) -> None:
        """Asks for the key and reads the files. Raises `RonError`: `CustodyError`, StoreUnavailable, Conflict."""
        with self._changing, _disk():
            if self._open:
                return
            self._folder.acquire()
            try:
                self._key.open()
                self._key.describe()
                self._store.open(Sealer(self._root_key()))
                self.held()
            except BaseException:
                self._shut()
                raise
            self._open = True

    def close(self) -> None:
        """Let go of the connections and the directory."""
        with self._changing:
            if self._open:
                self._open = False
                self._shut()

    def probe(self) -> None:
        """Raises `RonError` (StoreUnavailable) unless the provider answers and lets us use the key."""
        with self._changing, _disk():
            self._store.probe()
        self._key.describe()

    def held(self) -> Sequence[Held]:
        """Everything it has."""
        return [_decoded(raw).held() for raw in self._store.files()]

    def head(self) -> tuple[int, bytes]:
        """As `FileBackend.head`."""
        return self._store.head()

    def check_head(self, counter: int, digest: bytes) -> None:
        """As `FileBackend.check_head`."""
        self._store.check_head(counter, digest)

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """Unsupported for algorithms that sign. Conflict also for what was destroyed."""
        if not kid.version or not algs or len(set(algs)) != len(algs):
            raise bad_request("a key version has a number, and one half of each algorithm")
        if not set(algs) <= set(wrapping.WRAPPING_ALGS):
            raise _does_not_sign()
        with self._changing, _disk():
            # before the provider is asked for a data key
            self._store.check_new(kid)
            encrypted, halves = self._make(kid, algs)
            self._store.add(kid, partial(_encoded, kid, encrypted, halves))
        return self._record(kid).held()

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """Unsupported; NotFound for what it does not hold."""
        self._record(kid)
        raise _does_not_sign()

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        """The provider opens the data key for this call alone."""
        wanted = seeds.suite_of(suite)
        seeds.check_envelope(kid, envelope)
        record = self._record(kid)
        needed = {half.alg: half for half in record.halves if half.alg in wanted.algs}
        if len(needed) != len(wanted.algs):
            raise RonError(ErrorCode.UNSUPPORTED, "this key has not the halves that suite needs")
        sealer = Sealer(self._key.data_key(record.data_key, _context(kid)))
        opened: dict[Alg, bytearray] = {}
        try:
            for alg, half in needed.items():
                opened[alg] = sealer.open(_label(kid, alg, half.public), half.sealed)
            publics = {alg: half.public for alg, half in needed.items()}
            return seeds.unwrap(wanted, opened, publics, envelope, info)
        except (BrokenSealError, seeds.ForeignSeedError):
            raise _damaged(str(kid)) from None
        finally:
            sealer.close()
            for seed in opened.values():
                seed[:] = bytes(len(seed))

    def destroy(self, kid: Kid) -> None:
        """The file is overwritten and removed. A copy of it opens as long as the provider's key does: see the docs."""
        with self._changing, _disk():
            self._store.remove(kid)

    def attest(self, kid: Kid | None) -> Attestation | None:
        """What the provider says of its key, as JSON in base64: it is no signed statement."""
        if kid is not None:
            self._record(kid)
        told = self._key.describe()
        shown = {
            name: str(told[name]) for name in ("Arn", "Origin", "KeyManager", "KeySpec", "KeyState") if name in told
        }
        evidence = base64.b64encode(msgspec.json.encode(shown, order="deterministic")).decode()
        return Attestation(class_=ATTESTATION_CLASS, evidence=evidence)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a backend is neither copied nor stored")

    def _make(self, kid: Kid, algs: Sequence[Alg]) -> tuple[bytes, tuple[_HalfRecord, ...]]:
        data_key, encrypted = self._key.new_data_key(_context(kid))
        sealer = Sealer(data_key)
        try:
            return encrypted, tuple(_sealed_half(sealer, kid, alg) for alg in algs)
        finally:
            sealer.close()

    def _root_key(self) -> SecretBuffer:
        """What seals the manifest: the provider opens it once for each start. An empty directory gets a new one."""
        names = self._folder.sweep()
        if ROOT in names:
            return self._key.data_key(_root(self._folder.read(ROOT, MAX_ROOT_BYTES)).data_key, _STORE_CONTEXT)
        if names:
            raise DamagedError("the cloud's directory has files and no `root`", hint="restore it from the backup")
        data_key, encrypted = self._key.new_data_key(_STORE_CONTEXT)
        try:
            self._folder.write(ROOT, msgspec.msgpack.encode(_Root(data_key=encrypted)))
        except OSError:
            data_key.close()
            raise
        return data_key

    def _shut(self) -> None:
        self._store.close()
        self._key.close()
        self._folder.release()

    def _record(self, kid: Kid) -> CloudRecord:
        return _decoded(self._store.get(kid))


def _encoded(kid: Kid, data_key: bytes, halves: tuple[_HalfRecord, ...], made: int) -> bytes:
    return msgspec.msgpack.encode(CloudRecord(kid=str(kid), made=made, data_key=data_key, halves=halves))


def _decoded(raw: bytes) -> CloudRecord:
    """Raises `DamagedError`."""
    try:
        return msgspec.msgpack.decode(raw, type=CloudRecord)
    except msgspec.MsgspecError:
        raise _damaged("") from None


def _root(raw: bytes) -> _Root:
    try:
        return msgspec.msgpack.decode(raw, type=_Root)
    except msgspec.MsgspecError:
        raise DamagedError("the file `root` is not what was written", hint="restore it from the backup") from None


def _sealed_half(sealer: Sealer, kid: Kid, alg: Alg) -> _HalfRecord:
    seed, public = seeds.fresh(alg)
    with seeds.wiped(seed):
        return _HalfRecord(alg=alg, public=public, sealed=sealer.seal(_label(kid, alg, public), seed))


def _label(kid: Kid, alg: Alg, public: bytes) -> Label:
    """Binds the key version, the algorithm and the public bytes."""
    digest = hashlib.sha256(public).hexdigest()
    return Label(kid.tenant, kid.purpose, f"cloud/{kid.alg}/{kid.uuid}#v{kid.version}/{alg}/{digest}")


def _context(kid: Kid) -> dict[str, str]:
    # the provider logs it in clear, and a policy of theirs may ask for it
    return {_CONTEXT: str(kid)}


def _does_not_sign() -> RonError:
    return RonError(
        ErrorCode.UNSUPPORTED,
        "the cloud backend wraps and unwraps, it does not sign",
        hint="put a backend that signs (file, pkcs11, tpm) first in service.multi_backends",
    )


def _damaged(kid: str) -> DamagedError:
    return DamagedError("a key's file is not what was written", hint="restore it from the backup", kid=kid)


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unavailable(
            f"the cloud's key files cannot be used: {error.strerror or error}", "look at the disk"
        ) from None
