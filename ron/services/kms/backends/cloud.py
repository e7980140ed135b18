"""Keys that wrap, whose private halves open with a cloud's key only: AWS KMS, or what speaks like it.

In: calls of `Backend`. Out: opened envelopes. Each key version is a file: its seeds, sealed under a data key of its own
that the provider encrypted, with the kid in the encryption context. Every `unwrap` asks the provider, whose policy and
log count beside ours. It does not sign. Blocks; from any thread.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import msgspec
from blake3 import blake3
from msgspec import Meta

from ron.crypto import wrapping
from ron.crypto.kdf import Label
from ron.crypto.sealing import BrokenSealError, Sealer
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict, not_found, unavailable
from ron.proto.kms import Alg, Attestation, Kid, KidText, parse_kid
from ron.services.kms.backends import seeds
from ron.services.kms.backends.cloud_key import MAX_ENCRYPTED_BYTES, CloudKey
from ron.services.kms.backends.errors import DamagedError
from ron.services.kms.backends.folder import KeyFolder
from ron.services.kms.ports import Half, Held

ATTESTATION_CLASS = "cloud-aws-kms"
MAX_FILE_BYTES = 16 * 1024
_SUFFIX = ".key"
_CONTEXT = "ron-kms:kid"


class _HalfRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    alg: Alg
    public: Annotated[bytes, Meta(max_length=2048)]
    sealed: Annotated[bytes, Meta(max_length=512)]


class CloudRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of a key version. data_key: encrypted by the provider. sealed: a half's seed, under that data key."""

    v: Annotated[int, Meta(ge=1, le=1)] = 1
    kid: KidText
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
        self._records: dict[Kid, CloudRecord] | None = None

    def open(self) -> None:
        """Reads the files and asks for the key. Raises `RonError`: `CustodyError`, StoreUnavailable, Conflict."""
        with self._changing, _disk():
            if self._records is not None:
                return
            self._folder.acquire()
            try:
                records = self._read_all()
                self._key.open()
                self._key.describe()
            except BaseException:
                self._key.close()
                self._folder.release()
                raise
            self._records = records

    def close(self) -> None:
        """Let go of the connections and the directory."""
        with self._changing:
            if self._records is not None:
                self._records = None
                self._key.close()
                self._folder.release()

    def probe(self) -> None:
        """Raises `RonError` (StoreUnavailable) unless the provider answers and lets us use the key."""
        self._opened()
        self._key.describe()

    def held(self) -> Sequence[Held]:
        """Everything it has."""
        return [record.held() for record in list(self._opened().values())]

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """Unsupported for algorithms that sign."""
        if not kid.version or not algs or len(set(algs)) != len(algs):
            raise bad_request("a key version has a number, and one half of each algorithm")
        if not set(algs) <= set(wrapping.WRAPPING_ALGS):
            raise _does_not_sign()
        with self._changing, _disk():
            records = self._opened()
            if kid in records:
                raise conflict("there is such a key version already")
            record = self._make(kid, algs)
            self._folder.write(_file_name(kid), msgspec.msgpack.encode(record))
            self._records = {**records, kid: record}
        return record.held()

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
            return seeds.unwrap(wanted, opened, envelope, info)
        except BrokenSealError:
            raise _damaged(str(kid)) from None
        finally:
            sealer.close()
            for seed in opened.values():
                seed[:] = bytes(len(seed))

    def destroy(self, kid: Kid) -> None:
        """The file is overwritten and removed. A copy of it opens as long as the provider's key does: see the docs."""
        with self._changing, _disk():
            records = self._opened()
            self._records = {other: record for other, record in records.items() if other != kid}
            self._folder.shred(_file_name(kid))

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

    def _make(self, kid: Kid, algs: Sequence[Alg]) -> CloudRecord:
        data_key, encrypted = self._key.new_data_key(_context(kid))
        sealer = Sealer(data_key)
        try:
            return CloudRecord(
                kid=str(kid), data_key=encrypted, halves=tuple(_sealed_half(sealer, kid, alg) for alg in algs)
            )
        finally:
            sealer.close()

    def _read_all(self) -> dict[Kid, CloudRecord]:
        records = (self._read(name) for name in sorted(self._folder.sweep()))
        return {parse_kid(record.kid): record for record in records}

    def _read(self, name: str) -> CloudRecord:
        try:
            record = msgspec.msgpack.decode(self._folder.read(name, MAX_FILE_BYTES), type=CloudRecord)
        except msgspec.MsgspecError:
            raise _damaged("") from None
        if name != _file_name(parse_kid(record.kid)):
            raise _damaged(record.kid)
        return record

    def _opened(self) -> dict[Kid, CloudRecord]:
        if self._records is None:
            raise unavailable("the cloud's keys are not open")
        return self._records

    def _record(self, kid: Kid) -> CloudRecord:
        record = self._opened().get(kid)
        if record is None:
            raise not_found("this backend holds no such key version")
        return record


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


def _file_name(kid: Kid) -> str:
    return blake3(str(kid).encode()).hexdigest()[:40] + _SUFFIX


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
