"""A TPM 2.0, call by call: seal to it and to the machine's state, count, and have it say what it saw.

In: how to reach it (a TCTI, `device:/dev/tpmrm0`), secrets of up to 128 bytes, nonces. Out: sealed bytes that only this
TPM opens, counters that only grow, signed quotes. Each call connects, and leaves no object behind. Blocks.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from tpm2_pytss import ESAPI, TSS2_Exception
from tpm2_pytss.constants import (
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_NT,
    TPM2_PT,
    TPM2_PT_FIRMWARE,
    TPM2_RC,
    TPM2_SE,
    TPMA_NV,
    TPMA_OBJECT,
    TPMA_SESSION,
)
from tpm2_pytss.types import (
    TPM2B_AUTH,
    TPM2B_DATA,
    TPM2B_DIGEST,
    TPM2B_NV_PUBLIC,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPM2B_SENSITIVE_DATA,
    TPML_PCR_SELECTION,
    TPMS_NV_PUBLIC,
    TPMS_SENSITIVE_CREATE,
    TPMT_SYM_DEF,
    TPMU_SYM_KEY_BITS,
    TPMU_SYM_MODE,
)

from ron.crypto.secrets import SecretBuffer
from ron.proto.errors import RonError, bad_request, unavailable
from ron.services.kms.backends.errors import LockedError

MAX_SECRET_BYTES = 128
NONCE_BYTES = 32
# TCG's registry of handles leaves these to the platform's owner
_NV_FIRST, _NV_LAST = 0x01800000, 0x01BFFFFF
_NV_TRIES = 8
_COUNTER_BYTES = 8
# The last part of a response code: what the TPM itself said. See TPM 2.0 Library, Part 2, 6.6.
_LOCKED = {TPM2_RC.POLICY_FAIL, TPM2_RC.INTEGRITY, TPM2_RC.AUTH_FAIL, TPM2_RC.BAD_AUTH, TPM2_RC.LOCKOUT}
_FIXED = TPMA_OBJECT.FIXEDTPM | TPMA_OBJECT.FIXEDPARENT
_OWN = _FIXED | TPMA_OBJECT.SENSITIVEDATAORIGIN | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.RESTRICTED
_STORAGE = _OWN | TPMA_OBJECT.DECRYPT | TPMA_OBJECT.NODA
_COUNTER = TPMA_NV.AUTHREAD | TPMA_NV.AUTHWRITE | TPMA_NV.NO_DA | TPMA_NV((TPM2_NT.COUNTER << 4) & TPMA_NV.TPM2_NT_MASK)


class Sealed(NamedTuple):
    """TPM2B_PUBLIC and TPM2B_PRIVATE, as bytes. Only the TPM that made them can load them."""

    public: bytes
    private: bytes


class Quote(NamedTuple):
    """quoted: TPMS_ATTEST, whose extraData is the nonce. signature: ECDSA with SHA-256 over it, in DER.

    ak_pem: whose. pcrs: the values that the digest in `quoted` is of (SHA-256 of them all, in this order).
    """

    quoted: bytes
    signature: bytes
    ak_pem: bytes
    pcrs: dict[int, bytes]


def owner_auth_from_env(name: str, *, allow_unlocked: bool = False) -> SecretBuffer | None:
    """The owner hierarchy's password from the environment variable that the config names; None where it names none.

    Raises `RonError` (BadRequest) for an empty one; `NotLockedError` as `SecretBuffer`.
    """
    if not name:
        return None
    if not os.environ.get(name):
        hint = "backends.tpm.auth_env names it, the environment has it"
        raise bad_request(f"the variable {name} is empty or not set", hint)
    return SecretBuffer.taking(bytearray(os.environb[name.encode()]), allow_unlocked=allow_unlocked)


class TpmDevice:
    """tcti: as tpm2-tss has it. owner_auth: the owner hierarchy's password, if it has one; the caller's, kept open.

    wait_s: one call at a time, and others wait so long. Every method raises `RonError` (StoreUnavailable) while the TPM
    cannot be reached, and `LockedError` where it refuses.
    """

    def __init__(self, tcti: str, *, owner_auth: SecretBuffer | None = None, wait_s: float = 2.0) -> None:
        self._tcti = tcti
        self._owner_auth = owner_auth
        self._wait_s = wait_s
        self._one = threading.Lock()

    def seal(self, secret: bytes, pcrs: Sequence[int]) -> Sealed:
        """Under the storage primary; opens only while `pcrs` (SHA-256 bank) are as they are now. 1 to 128 bytes."""
        if not 1 <= len(secret) <= MAX_SECRET_BYTES:
            raise ValueError(f"a TPM seals 1 to {MAX_SECRET_BYTES} bytes")
        with self._connected() as (esys, stack):
            parent = _storage(esys, stack)
            trial = _session(esys, stack, parent, TPM2_SE.TRIAL)
            esys.policy_pcr(trial, TPM2B_DIGEST(), _selection(pcrs))
            template = TPM2B_PUBLIC.parse(
                "keyedhash", objectAttributes=_FIXED | TPMA_OBJECT.NODA, authPolicy=esys.policy_get_digest(trial)
            )
            inside = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(data=TPM2B_SENSITIVE_DATA(secret)))
            # encrypted on its way: whoever listens on the bus learns nothing
            crypted = _session(esys, stack, parent, TPM2_SE.HMAC)
            private, public, *_ = esys.create(parent, inside, template, session1=crypted)
            return Sealed(bytes(public.marshal()), bytes(private.marshal()))

    def unseal(self, sealed: Sealed, pcrs: Sequence[int]) -> bytearray:
        """The caller overwrites it. Raises `LockedError`: another TPM, or the machine's state is not the one it was."""
        with self._connected() as (esys, stack):
            parent = _storage(esys, stack)
            public, _ = TPM2B_PUBLIC.unmarshal(sealed.public)
            private, _ = TPM2B_PRIVATE.unmarshal(sealed.private)
            handle = esys.load(parent, private, public)
            stack.callback(esys.flush_context, handle)
            policy = _session(esys, stack, parent, TPM2_SE.POLICY)
            esys.policy_pcr(policy, TPM2B_DIGEST(), _selection(pcrs))
            return bytearray(bytes(esys.unseal(handle, session1=policy)))

    def define_counter(self, auth: bytes) -> tuple[int, int]:
        """A new counter that only `auth` (32 bytes) moves: its NV index, and where it stands."""
        with self._connected() as (esys, stack):
            for _ in range(_NV_TRIES):
                index = _NV_FIRST + secrets.randbelow(_NV_LAST - _NV_FIRST + 1)
                area = TPMS_NV_PUBLIC(
                    nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=_COUNTER, dataSize=_COUNTER_BYTES
                )
                try:
                    handle = esys.nv_define_space(TPM2B_AUTH(auth), TPM2B_NV_PUBLIC(nvPublic=area))
                except TSS2_Exception as error:
                    if error.error != TPM2_RC.NV_DEFINED:
                        raise
                    continue
                stack.callback(esys.tr_close, handle)
                # a counter has no value before: it begins above every counter there ever was
                esys.nv_increment(handle, handle)
                return index, _count(esys, handle)
            raise unavailable("the TPM has no place for one more counter", "look at `tpm2_getcap handles-nv-index`")

    def count(self, index: int, auth: bytes, *, up: bool = False) -> int:
        """Where the counter stands; after it moved by one, if `up`. Raises `LockedError` for one that is not there."""
        with self._connected() as (esys, stack):
            try:
                handle = esys.tr_from_tpmpublic(index)
            except TSS2_Exception as error:
                if error.error != TPM2_RC.HANDLE:
                    raise
                raise LockedError(
                    "the TPM's counter is gone", hint="was the TPM cleared? restore as the docs say"
                ) from None
            stack.callback(esys.tr_close, handle)
            esys.tr_set_auth(handle, auth)
            if up:
                esys.nv_increment(handle, handle)
            return _count(esys, handle)

    def quote(self, nonce: bytes, pcrs: Sequence[int]) -> Quote:
        """By the attestation key of this TPM: the same one each time, restricted to sign what the TPM itself says."""
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
        with self._connected() as (esys, stack):
            template = TPM2B_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=_OWN | TPMA_OBJECT.SIGN_ENCRYPT)
            handle, public, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT)
            stack.callback(esys.flush_context, handle)
            quoted, signature = esys.quote(handle, _selection(pcrs), TPM2B_DATA(nonce))
            r, s = (
                int.from_bytes(bytes(part), "big")
                for part in (signature.signature.ecdsa.signatureR, signature.signature.ecdsa.signatureS)
            )
            values = {pcr: _register(esys, pcr) for pcr in sorted(pcrs)}
            return Quote(bytes(quoted), encode_dss_signature(r, s), bytes(public.to_pem()), values)

    def describe(self) -> dict[str, str]:
        """Manufacturer and firmware, as the TPM says."""
        with self._connected() as (esys, _stack):
            maker, first, second = (_property(esys, name) for name in _PROPERTIES)
            return {
                "manufacturer": maker.to_bytes(4, "big").rstrip(b"\0").decode("ascii", "replace"),
                "firmware": f"{first >> 16}.{first & 0xFFFF}.{second >> 16}.{second & 0xFFFF}",
            }

    @contextmanager
    def _connected(self) -> Iterator[tuple[ESAPI, ExitStack]]:
        """The stack is unwound before the connection ends: without a resource manager a TPM forgets nothing."""
        if not self._one.acquire(timeout=self._wait_s):
            raise unavailable(f"the TPM was busy for {self._wait_s:g} s")
        try:
            with ExitStack() as connection:
                esys = ESAPI(self._tcti)
                connection.callback(esys.close)
                if self._owner_auth is not None:
                    with self._owner_auth.open() as auth:
                        esys.tr_set_auth(ESYS_TR.OWNER, bytes(auth))
                with ExitStack() as stack:
                    yield esys, stack
        except TSS2_Exception as error:
            raise _named(error) from error
        finally:
            self._one.release()


_PROPERTIES = (TPM2_PT.MANUFACTURER, TPM2_PT_FIRMWARE.VERSION_1, TPM2_PT_FIRMWARE.VERSION_2)


def _storage(esys: ESAPI, stack: ExitStack) -> ESYS_TR:
    """The same key each time: it grows from the owner's seed and this template."""
    template = TPM2B_PUBLIC.parse("ecc256:aes128cfb", objectAttributes=_STORAGE)
    handle = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.OWNER)[0]
    stack.callback(esys.flush_context, handle)
    return handle


def _session(esys: ESAPI, stack: ExitStack, salted_by: ESYS_TR, kind: TPM2_SE) -> ESYS_TR:
    """One whose secrets are encrypted, under a salt that only the TPM can read."""
    symmetric = TPMT_SYM_DEF(
        algorithm=TPM2_ALG.AES, keyBits=TPMU_SYM_KEY_BITS(aes=128), mode=TPMU_SYM_MODE(aes=TPM2_ALG.CFB)
    )
    session = esys.start_auth_session(
        tpm_key=salted_by, bind=ESYS_TR.NONE, session_type=kind, symmetric=symmetric, auth_hash=TPM2_ALG.SHA256
    )
    # without CONTINUESESSION the TPM would end it after one command, or keep it after a failed one
    esys.trsess_set_attributes(session, TPMA_SESSION.DECRYPT | TPMA_SESSION.ENCRYPT | TPMA_SESSION.CONTINUESESSION)
    stack.callback(esys.flush_context, session)
    return session


def _selection(pcrs: Sequence[int]) -> TPML_PCR_SELECTION:
    return TPML_PCR_SELECTION.parse("sha256:" + ",".join(map(str, sorted(set(pcrs)))))


def _register(esys: ESAPI, pcr: int) -> bytes:
    # held by a name: what tpm2-pytss gives out of a structure does not keep the structure alive
    _changes, _selected, values = esys.pcr_read(_selection((pcr,)))
    return bytes(values[0])


def _count(esys: ESAPI, handle: ESYS_TR) -> int:
    return int.from_bytes(bytes(esys.nv_read(handle, _COUNTER_BYTES, auth_handle=handle)), "big")


def _property(esys: ESAPI, name: int) -> int:
    _more, found = esys.get_capability(TPM2_CAP.TPM_PROPERTIES, name, 1)
    return int(found.data.tpmProperties[0].value)


def _named(error: TSS2_Exception) -> RonError:
    if error.error in _LOCKED:
        return LockedError(
            "the TPM does not unseal the key store: another TPM, or the machine started otherwise than before",
            hint="start the machine as it was, or restore as docs/kms/backends.rst says",
        )
    return unavailable("the TPM cannot be used for now", "is it there, and may ron-kms open it? see the log")
