"""Keys in sealed files whose master key a TPM keeps, beside a counter that nobody turns back.

In: calls of `Backend`. Out: the same as of the file backend, which does the work; the TPM unseals the master key at
`open`, on this machine and in this state of it only, and counts each change: an older copy of the whole directory does
not open (I-6). Private halves are in the memory of this process while they are used: the class says `tpm-sealed`.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, NoReturn

import msgspec
from msgspec import Meta

from ron.crypto.sealing import Aead, Sealer
from ron.crypto.secrets import SecretBuffer
from ron.proto.errors import unavailable
from ron.proto.kms import Alg, Attestation, Kid
from ron.services.kms.backends.errors import DamagedError, RolledBackError
from ron.services.kms.backends.file import FileBackend
from ron.services.kms.backends.tpm_device import Sealed, TpmDevice
from ron.services.kms.ports import Held

ATTESTATION_CLASS = "tpm-sealed"
SEALED_PCRS = (7,)
"""Secure Boot's state and keys. What firmware and kernel updates change often is not in it."""
QUOTED_PCRS = (0, 1, 2, 3, 4, 5, 6, 7)
# master key ‖ who may move the counter ‖ its NV index ‖ where it stood at change 0: all of it has to be authentic
_PAYLOAD = struct.Struct(">32s32sIQ")
_SHA256_PCRS = 24


class TpmRoot(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file `root`. v: of this format. Nothing in it is secret, and the TPM finds out what was changed."""

    v: Annotated[int, Meta(ge=1, le=1)] = 1
    kind: Annotated[str, Meta(pattern=r"^tpm2\Z")] = "tpm2"
    public: Annotated[bytes, Meta(max_length=1024)]
    private: Annotated[bytes, Meta(max_length=1024)]
    pcrs: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=_SHA256_PCRS)], ...], Meta(min_length=1, max_length=_SHA256_PCRS)
    ]


class _Counter(NamedTuple):
    """auth: who may move it. base: where it stood when the store had seen no change."""

    nv_index: int
    base: int
    auth: SecretBuffer


class ByTpm:
    """`Unlock` by a TPM. pcrs: what a new root is bound to; an existing one says its own. aead: for new blobs."""

    def __init__(
        self,
        device: TpmDevice,
        *,
        pcrs: Sequence[int] = SEALED_PCRS,
        aead: Aead = Aead.CHACHA20_POLY1305,
        allow_unlocked: bool = False,
    ) -> None:
        self._device = device
        self._pcrs = tuple(sorted(set(pcrs)))
        self._aead = aead
        self._allow_unlocked = allow_unlocked
        self._counter: _Counter | None = None

    def create(self) -> tuple[bytes, Sealer]:
        """A new master key and a new counter. Raises as `TpmDevice`, `NotLockedError`."""
        auth = os.urandom(32)
        index, base = self._device.define_counter(auth)
        payload = bytearray(_PAYLOAD.pack(os.urandom(32), auth, index, base))
        try:
            return self._encode(self._device.seal(bytes(payload), self._pcrs), self._pcrs), self._taken(payload)
        finally:
            payload[:] = bytes(len(payload))

    def open(self, root: bytes) -> Sealer:
        """Raises `DamagedError` for what is no root, `LockedError` where the TPM refuses, as `TpmDevice`."""
        known = _decode(root)
        payload = self._device.unseal(Sealed(known.public, known.private), known.pcrs)
        try:
            if len(payload) != _PAYLOAD.size:
                raise _damaged()
            return self._taken(payload)
        finally:
            payload[:] = bytes(len(payload))

    def reseal(self, root: bytes, pcrs: Sequence[int]) -> bytes:
        """The same master key bound to `pcrs` as they are now. Raises as `open`.

        For what comes before an update that changes them: bind to fewer, update, bind to the usual ones again.
        """
        known, chosen = _decode(root), tuple(sorted(set(pcrs)))
        payload = self._device.unseal(Sealed(known.public, known.private), known.pcrs)
        try:
            return self._encode(self._device.seal(bytes(payload), chosen), chosen)
        finally:
            payload[:] = bytes(len(payload))

    def changes(self, *, one_more: bool = False) -> int:
        """How many changes the TPM has counted; after one more, if so said. Raises as `TpmDevice`."""
        if self._counter is None:
            raise unavailable("the TPM's counter is not known: the key store is not open")
        with self._counter.auth.open() as auth:
            count = self._device.count(self._counter.nv_index, bytes(auth), up=one_more)
        return count - self._counter.base

    def close(self) -> None:
        """Wipe what moves the counter."""
        if self._counter is not None:
            self._counter.auth.close()
            self._counter = None

    def _taken(self, payload: bytearray) -> Sealer:
        master, auth, index, base = _PAYLOAD.unpack(payload)
        self.close()
        taken = SecretBuffer.taking(bytearray(auth), allow_unlocked=self._allow_unlocked)
        self._counter = _Counter(index, base, taken)
        return Sealer(SecretBuffer.taking(bytearray(master), allow_unlocked=self._allow_unlocked), self._aead)

    @staticmethod
    def _encode(sealed: Sealed, pcrs: tuple[int, ...]) -> bytes:
        return msgspec.msgpack.encode(TpmRoot(public=sealed.public, private=sealed.private, pcrs=pcrs))


class TpmBackend:
    """`Backend` in a directory. pcrs: see `ByTpm`. device: of this machine."""

    name = "tpm"
    quick = True

    def __init__(
        self,
        directory: Path,
        device: TpmDevice,
        *,
        pcrs: Sequence[int] = SEALED_PCRS,
        aead: Aead = Aead.CHACHA20_POLY1305,
        allow_unlocked: bool = False,
    ) -> None:
        self._device = device
        self._unlock = ByTpm(device, pcrs=pcrs, aead=aead, allow_unlocked=allow_unlocked)
        self._file = FileBackend(
            directory,
            self._unlock,
            name=self.name,
            attestation_class=ATTESTATION_CLASS,
            allow_unlocked=allow_unlocked,
        )
        self._changing = threading.Lock()

    def open(self) -> None:
        """Raises `RonError`: as `FileBackend.open`; `RolledBackError` also where all of it is an older copy."""
        with self._changing:
            self._file.open()
            try:
                self._settle()
            except BaseException:
                self._shut()
                raise

    def close(self) -> None:
        """Wipe what is in memory."""
        with self._changing:
            self._shut()

    def probe(self) -> None:
        """As the file backend: signing does not ask the TPM."""
        self._file.probe()

    def held(self) -> Sequence[Held]:
        """As the port has it."""
        return self._file.held()

    def head(self) -> tuple[int, bytes]:
        """As `FileBackend.head`."""
        return self._file.head()

    def check_head(self, counter: int, digest: bytes) -> None:
        """As `FileBackend.check_head`."""
        self._file.check_head(counter, digest)

    def generate(self, kid: Kid, algs: Sequence[Alg]) -> Held:
        """As the port has it; counted by the TPM before it returns, so it raises StoreUnavailable without the TPM."""
        with self._changing:
            self._settle()
            held = self._file.generate(kid, algs)
            self._settle()
        return held

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """As the port has it."""
        return self._file.sign(kid, alg, message)

    def unwrap(self, kid: Kid, suite: str, envelope: bytes, info: bytes) -> bytes:
        """As the port has it."""
        return self._file.unwrap(kid, suite, envelope, info)

    def destroy(self, kid: Kid) -> None:
        """As the port has it; as `generate`."""
        with self._changing:
            self._settle()
            self._file.destroy(kid)
            self._settle()

    def attest(self, kid: Kid | None) -> Attestation | None:
        """A quote of this TPM, whose nonce is SHA-256 over `bound`: what it is about. JSON in base64."""
        bound = msgspec.json.encode(self._about(kid), order="deterministic")
        quote = self._device.quote(hashlib.sha256(bound).digest(), QUOTED_PCRS)
        told = {
            "format": "ron-kms tpm2-quote 1",
            "tpm": self._device.describe(),
            "bound": bound.decode(),
            "quoted": quote.quoted,
            "signature": quote.signature,
            "ak_public": quote.ak_pem.decode(),
            "pcrs": {str(pcr): value.hex() for pcr, value in quote.pcrs.items()},
        }
        evidence = base64.b64encode(msgspec.json.encode(told, order="deterministic")).decode()
        return Attestation(class_=ATTESTATION_CLASS, evidence=evidence)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a backend is neither copied nor stored")

    def __repr__(self) -> str:
        return f"<TpmBackend {self._file!r}>"

    def _about(self, kid: Kid | None) -> dict[str, object]:
        counter, digest = self._file.change()
        about: dict[str, object] = {"store": {"change": counter, "digest": digest.hex()}}
        if kid is not None:
            self._file.attest(kid)
            held = next(one for one in self._file.held() if one.kid == kid)
            about["kid"] = str(kid)
            about["halves"] = [
                {"alg": half.alg.value, "public_sha256": hashlib.sha256(half.public).hexdigest()}
                for half in held.halves
            ]
        return about

    def _settle(self) -> None:
        """Bring the TPM's count to the store's, which a kill may have left one ahead. Raises `RolledBackError`."""
        ours, _digest = self._file.change()
        seen = self._unlock.changes()
        if ours == seen + 1:
            # that change was told to nobody before: to count it now, or to lose it, are both what a kill may do
            seen = self._unlock.changes(one_more=True)
        if ours != seen:
            raise RolledBackError(
                f"the key store is at change {ours}, and the TPM has counted {seen}",
                hint="another copy was restored: put the newest one back, or decide a rollback by quorum",
            )

    def _shut(self) -> None:
        self._file.close()
        self._unlock.close()


def _decode(root: bytes) -> TpmRoot:
    try:
        return msgspec.msgpack.decode(root, type=TpmRoot)
    except msgspec.MsgspecError:
        raise _damaged() from None


def _damaged() -> DamagedError:
    return DamagedError("the key store's file `root` is no root of a TPM", hint="restore it from the backup")
