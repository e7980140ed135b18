"""The `[kms]` section; the file of ron-kms has the same keys at its top (specs/ron-kms.md, CONFIG §3).

In: tables. Out: strict structs. Durations are in milliseconds and sizes in bytes, or texts with a unit. Pure.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ron.kernel.units import KIB, MIB
from ron.proto.kms import Alg, VerifyMode
from ron.services.sections import LIVE, PathText

Variable = Annotated[str, Meta(pattern=r"^([A-Z][A-Z0-9_]{0,63})?\Z")]
BackendName = Literal["inmem", "file", "pkcs11", "tpm", "cloud"]
Rank = Literal["never", "if-available", "required"]
_Port = Annotated[str, Meta(max_length=64)]
_Count = Annotated[int, Meta(ge=1, le=1_000_000, extra=LIVE)]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class CustodySection(_Section, frozen=True, kw_only=True):
    """backend: where new keys are made. amnesia: nothing outlives the process. allowed_algs: what keys may be made of.

    multi_backends: whom reads may ask, in this order; the first signs, and is `backend` where both are said. A cloud
    does not sign: it is the first of two, and holds the keys that wrap.
    allow_sign_fallback: another of them may sign, when it has the same key under the same attestation class (I-20).
    """

    backend: BackendName = "file"
    amnesia: bool = False
    allowed_algs: Annotated[tuple[Alg, ...], Meta(min_length=1, max_length=4, extra=LIVE)] = tuple(Alg)
    allow_sign_fallback: bool = False
    multi_backends: Annotated[tuple[BackendName, ...], Meta(max_length=5)] = ()


class KmsTls(_Section, frozen=True, kw_only=True):
    """enabled: the listener speaks TLS 1.3 and nothing else. cert_path, key_path: PEM files, relative to the home."""

    enabled: bool = False
    cert_path: PathText = ""
    key_path: PathText = ""


class KmsLimits(_Section, frozen=True, kw_only=True):
    """max_body_bytes: of a request. max_inflight_sign, max_inflight_verify: calls at a time, those that wait too.

    tenant_share_min: of what can be done at a time, so much is kept for each tenant that asks.
    verify_cache_max: key versions whose public halves are remembered. All are, so that each verifies in an outage
    (I-18): beyond it no more are made.
    """

    max_body_bytes: Annotated[int, Meta(ge=KIB, le=64 * MIB, extra={"unit": "bytes"})] = MIB
    max_inflight_sign: _Count = 512
    max_inflight_verify: _Count = 1024
    tenant_share_min: Annotated[float, Meta(ge=0, le=1, extra=LIVE)] = 0.05
    verify_cache_max: Annotated[int, Meta(ge=1, le=10_000_000, extra=LIVE)] = 262_144


class KmsSecurity(_Section, frozen=True, kw_only=True):
    """attest_require: sign only with evidence of where the key lives. sign_rate_limit_rps: of this process.

    time_skew_tolerance_ms: a wall clock that jumped further stops everything that signs. allow_unlocked: go on where
    the system does not lock keys into memory; else that is refused.
    """

    attest_require: Annotated[Rank, Meta(extra=LIVE)] = "if-available"
    sign_rate_limit_rps: Annotated[int, Meta(ge=1, le=10_000_000, extra=LIVE)] = 500
    time_skew_tolerance_ms: Annotated[int, Meta(ge=1, le=3_600_000, extra={"unit": "ms", **LIVE})] = 2000
    allow_unlocked: bool = False


class EntropyTime(_Section, frozen=True, kw_only=True):
    """rng_reseed_interval_ops: after so many operations the system's random source is proved anew."""

    rng_reseed_interval_ops: Annotated[int, Meta(ge=1, le=10**12, extra=LIVE)] = 100_000


class KmsPq(_Section, frozen=True, kw_only=True):
    """produce_hybrid: sign with the post-quantum half too. verify_mode: what a signature has to satisfy by itself.

    rollout_percent: of the tenants; the others stay one phase behind. min_verify_mode: the least a request may ask for.
    """

    produce_hybrid: Annotated[bool, Meta(extra=LIVE)] = True
    verify_mode: Annotated[VerifyMode, Meta(extra=LIVE)] = "and"
    rollout_percent: Annotated[int, Meta(ge=0, le=100, extra=LIVE)] = 100
    min_verify_mode: Annotated[VerifyMode, Meta(extra=LIVE)] = "or"


class WitnessAt(_Section, frozen=True, kw_only=True):
    """url: a witness's submission prefix (C2SP tlog-witness). key: its verifier key, as it shows it."""

    url: Annotated[str, Meta(max_length=2048, pattern=r"^https?://[^\s@#?]+\Z")]
    key: Annotated[str, Meta(max_length=512)]


class KmsAudit(_Section, frozen=True, kw_only=True):
    """dir: the log, relative to the home. checkpoint_interval_ops: records between signed heads.

    sealing: `attested` signs nothing without evidence, in the log itself, that the key of its heads is in a device.
    verify_cache_ttl_ms: how old what is known of keys may get while the
    backend is away; twice that, and verifying is refused too. export_url: where each record is sent as well, https
    beyond loopback; export_token_env: the variable with a token for it.

    witness_for: verifier keys of the logs that this service cosigns, a file for each, relative to the home. witnesses:
    who is asked to cosign this one. witness_quorum: so many of them should have signed what is older than
    witness_max_age_ms; witness_required: else the service is not ready, and not only degraded.
    """

    dir: PathText = "./kms-audit"
    checkpoint_interval_ops: Annotated[int, Meta(ge=1, le=10_000_000)] = 5000
    sealing: Literal["software", "attested"] = "software"
    verify_cache_ttl_ms: Annotated[int, Meta(ge=1, le=86_400_000, extra={"unit": "ms", **LIVE})] = 300_000
    export_url: Annotated[str, Meta(max_length=2048, pattern=r"^(https?://[^\s@#]+)?\Z")] = ""
    export_token_env: Variable = ""
    witness_for: Annotated[tuple[PathText, ...], Meta(max_length=64)] = ()
    witnesses: Annotated[tuple[WitnessAt, ...], Meta(max_length=16)] = ()
    witness_quorum: Annotated[int, Meta(ge=0, le=16)] = 0
    witness_max_age_ms: Annotated[int, Meta(ge=1000, le=86_400_000, extra={"unit": "ms"})] = 600_000
    witness_required: bool = False


class KmsObservability(_Section, frozen=True, kw_only=True):
    """redact_level: what stands for an input in the log. log_inputs: always refused; there are no inputs in our logs.

    correlation_id_mode: of ids we make. emit_cache_age_metric: show the cache's age while the backend is away.
    """

    redact_level: Annotated[Literal["none", "lengths", "hashes"], Meta(extra=LIVE)] = "hashes"
    log_inputs: Annotated[bool, Meta(extra=LIVE)] = False
    correlation_id_mode: Literal["uuidv4", "uuidv7"] = "uuidv7"
    emit_cache_age_metric: Annotated[bool, Meta(extra=LIVE)] = True


class Pkcs11Section(_Section, frozen=True, kw_only=True):
    """module_path: the token's library. slot_label: of the token. pin_env: the variable that holds its PIN.

    sessions: open at a time. Everything it keeps is in the token.
    """

    module_path: PathText = ""
    slot_label: Annotated[str, Meta(max_length=32)] = "RON-KMS"
    pin_env: Variable = ""
    sessions: Annotated[int, Meta(ge=1, le=64)] = 4


class FileSection(_Section, frozen=True, kw_only=True):
    """dir: sealed blobs, relative to the home. kdf, aead: how they are sealed.

    passphrase_env, passphrase_file: where the passphrase is; without either, one is made and kept in the home (0600).
    """

    dir: PathText = "./kms-sealed"
    kdf: Literal["scrypt", "age"] = "scrypt"
    aead: Literal["chacha20poly1305", "aes-gcm"] = "chacha20poly1305"
    passphrase_env: Variable = ""
    passphrase_file: PathText = ""


class TpmSection(_Section, frozen=True, kw_only=True):
    """tcti: how to reach the TPM (`device:/dev/tpmrm0`, `swtpm:path=…`). dir: blobs it seals, relative to the home.

    auth_env: the variable with the owner's password, if there is one. pcrs: registers of the SHA-256 bank that a new
    store is bound to; an existing one says its own.
    """

    tcti: Annotated[str, Meta(max_length=256)] = "device:/dev/tpmrm0"
    dir: PathText = "./kms-tpm"
    auth_env: Variable = ""
    pcrs: Annotated[tuple[Annotated[int, Meta(ge=0, le=23)], ...], Meta(min_length=1, max_length=24)] = (7,)


class CloudSection(_Section, frozen=True, kw_only=True):
    """key_id: of the provider's key. region, endpoint: where it is; credentials come from the environment.

    dir: what it encrypted for us, relative to the home.
    """

    key_id: Annotated[str, Meta(max_length=2048)] = ""
    region: Annotated[str, Meta(max_length=64)] = ""
    endpoint: Annotated[str, Meta(max_length=2048)] = ""
    dir: PathText = "./kms-cloud"


class BackendsSection(_Section, frozen=True, kw_only=True):
    """One table for each backend that has something to say."""

    pkcs11: Pkcs11Section = Pkcs11Section()
    file: FileSection = FileSection()
    tpm: TpmSection = TpmSection()
    cloud: CloudSection = CloudSection()


class GovernanceSection(_Section, frozen=True, kw_only=True):
    """signers: a JSON file with the first signer set, relative to the home; without one, nothing that needs a quorum
    can be done. dir: proposals and decisions, relative to the home. micronode: 1 of 2 may decide, with the stricter
    limits of that profile; it counts when the book begins.

    capabilities_active: for keys, of one tenant at a time. capabilities_per_minute: new ones of one tenant (K-G3).
    """

    signers: PathText = ""
    dir: PathText = "./kms-governance"
    micronode: bool = False
    capabilities_active: _Count = 1000
    capabilities_per_minute: _Count = 60


class KmsConfig(_Section, frozen=True, kw_only=True):
    """Custody of keys. bind_addr: where `/v1/kms` listens; loopback, unless TLS is on.

    grpc_addr, oap_addr: where gRPC and OAP/1 do, on the same terms; nowhere, unless it is said.
    control: the operators' Unix socket, relative to the home. workers: processes beside this one that share the
    listeners and sign; 0: this one does it all.
    """

    bind_addr: _Port = "127.0.0.1:0"
    workers: Annotated[int, Meta(ge=0, le=16)] = 0
    grpc_addr: _Port = ""
    oap_addr: _Port = ""
    control: Annotated[str, Meta(max_length=90, pattern=r"^[A-Za-z0-9_./-]*\Z")] = ""
    service: CustodySection = CustodySection()
    tls: KmsTls = KmsTls()
    limits: KmsLimits = KmsLimits()
    security: KmsSecurity = KmsSecurity()
    entropy_time: EntropyTime = EntropyTime()
    pq: KmsPq = KmsPq()
    audit: KmsAudit = KmsAudit()
    observability: KmsObservability = KmsObservability()
    backends: BackendsSection = BackendsSection()
    governance: GovernanceSection = GovernanceSection()

    @property
    def order(self) -> tuple[BackendName, ...]:
        """The backends, the one that signs first."""
        return self.service.multi_backends or (self.service.backend,)


class EmbeddedKms(KmsConfig, frozen=True, kw_only=True):
    """The `[kms]` section of a ron-node. enabled: have one."""

    enabled: bool = False
