from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KidSelector(_message.Message):
    __slots__ = ("kid", "kid_set")
    KID_FIELD_NUMBER: _ClassVar[int]
    KID_SET_FIELD_NUMBER: _ClassVar[int]
    kid: str
    kid_set: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, kid: _Optional[str] = ..., kid_set: _Optional[_Iterable[str]] = ...) -> None: ...

class SignPolicy(_message.Message):
    __slots__ = ("produce_hybrid",)
    PRODUCE_HYBRID_FIELD_NUMBER: _ClassVar[int]
    produce_hybrid: bool
    def __init__(self, produce_hybrid: _Optional[bool] = ...) -> None: ...

class VerifyPolicy(_message.Message):
    __slots__ = ("mode",)
    MODE_FIELD_NUMBER: _ClassVar[int]
    mode: str
    def __init__(self, mode: _Optional[str] = ...) -> None: ...

class SignRequest(_message.Message):
    __slots__ = ("kid_or_set", "payload_b3", "policy", "op_id")
    KID_OR_SET_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_B3_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    kid_or_set: KidSelector
    payload_b3: str
    policy: SignPolicy
    op_id: str
    def __init__(self, kid_or_set: _Optional[_Union[KidSelector, _Mapping]] = ..., payload_b3: _Optional[str] = ..., policy: _Optional[_Union[SignPolicy, _Mapping]] = ..., op_id: _Optional[str] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("alg", "signature_b64")
    ALG_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_B64_FIELD_NUMBER: _ClassVar[int]
    alg: str
    signature_b64: str
    def __init__(self, alg: _Optional[str] = ..., signature_b64: _Optional[str] = ...) -> None: ...

class Attestation(_message.Message):
    __slots__ = ("evidence",)
    CLASS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    evidence: str
    def __init__(self, evidence: _Optional[str] = ..., **kwargs) -> None: ...

class SignResponse(_message.Message):
    __slots__ = ("sigs", "kid", "attestation")
    SIGS_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    sigs: _containers.RepeatedCompositeFieldContainer[Signature]
    kid: str
    attestation: Attestation
    def __init__(self, sigs: _Optional[_Iterable[_Union[Signature, _Mapping]]] = ..., kid: _Optional[str] = ..., attestation: _Optional[_Union[Attestation, _Mapping]] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("payload_b3", "sigs", "policy", "kid_or_set")
    PAYLOAD_B3_FIELD_NUMBER: _ClassVar[int]
    SIGS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    KID_OR_SET_FIELD_NUMBER: _ClassVar[int]
    payload_b3: str
    sigs: _containers.RepeatedCompositeFieldContainer[Signature]
    policy: VerifyPolicy
    kid_or_set: KidSelector
    def __init__(self, payload_b3: _Optional[str] = ..., sigs: _Optional[_Iterable[_Union[Signature, _Mapping]]] = ..., policy: _Optional[_Union[VerifyPolicy, _Mapping]] = ..., kid_or_set: _Optional[_Union[KidSelector, _Mapping]] = ...) -> None: ...

class VerifyDetails(_message.Message):
    __slots__ = ("checked", "satisfied_mode")
    CHECKED_FIELD_NUMBER: _ClassVar[int]
    SATISFIED_MODE_FIELD_NUMBER: _ClassVar[int]
    checked: _containers.RepeatedScalarFieldContainer[str]
    satisfied_mode: str
    def __init__(self, checked: _Optional[_Iterable[str]] = ..., satisfied_mode: _Optional[str] = ...) -> None: ...

class VerifyResponse(_message.Message):
    __slots__ = ("ok", "details", "kid", "cache_age_ms")
    OK_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    CACHE_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    details: VerifyDetails
    kid: str
    cache_age_ms: int
    def __init__(self, ok: _Optional[bool] = ..., details: _Optional[_Union[VerifyDetails, _Mapping]] = ..., kid: _Optional[str] = ..., cache_age_ms: _Optional[int] = ...) -> None: ...

class WrapRequest(_message.Message):
    __slots__ = ("kid", "plaintext_key_b64", "size", "kem_mode")
    KID_FIELD_NUMBER: _ClassVar[int]
    PLAINTEXT_KEY_B64_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    KEM_MODE_FIELD_NUMBER: _ClassVar[int]
    kid: str
    plaintext_key_b64: str
    size: int
    kem_mode: str
    def __init__(self, kid: _Optional[str] = ..., plaintext_key_b64: _Optional[str] = ..., size: _Optional[int] = ..., kem_mode: _Optional[str] = ...) -> None: ...

class WrapResponse(_message.Message):
    __slots__ = ("wrapped_b64", "alg", "kid")
    WRAPPED_B64_FIELD_NUMBER: _ClassVar[int]
    ALG_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    wrapped_b64: str
    alg: str
    kid: str
    def __init__(self, wrapped_b64: _Optional[str] = ..., alg: _Optional[str] = ..., kid: _Optional[str] = ...) -> None: ...

class UnwrapRequest(_message.Message):
    __slots__ = ("kid", "wrapped_b64")
    KID_FIELD_NUMBER: _ClassVar[int]
    WRAPPED_B64_FIELD_NUMBER: _ClassVar[int]
    kid: str
    wrapped_b64: str
    def __init__(self, kid: _Optional[str] = ..., wrapped_b64: _Optional[str] = ...) -> None: ...

class UnwrapResponse(_message.Message):
    __slots__ = ("plaintext_key_b64", "alg", "kid")
    PLAINTEXT_KEY_B64_FIELD_NUMBER: _ClassVar[int]
    ALG_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    plaintext_key_b64: str
    alg: str
    kid: str
    def __init__(self, plaintext_key_b64: _Optional[str] = ..., alg: _Optional[str] = ..., kid: _Optional[str] = ...) -> None: ...

class CreateKeyRequest(_message.Message):
    __slots__ = ("tenant", "purpose", "alg", "policy_hints", "op_id")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    ALG_FIELD_NUMBER: _ClassVar[int]
    POLICY_HINTS_FIELD_NUMBER: _ClassVar[int]
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    purpose: str
    alg: str
    policy_hints: _struct_pb2.Struct
    op_id: str
    def __init__(self, tenant: _Optional[str] = ..., purpose: _Optional[str] = ..., alg: _Optional[str] = ..., policy_hints: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., op_id: _Optional[str] = ...) -> None: ...

class PublicHalf(_message.Message):
    __slots__ = ("alg", "pubkey_b64")
    ALG_FIELD_NUMBER: _ClassVar[int]
    PUBKEY_B64_FIELD_NUMBER: _ClassVar[int]
    alg: str
    pubkey_b64: str
    def __init__(self, alg: _Optional[str] = ..., pubkey_b64: _Optional[str] = ...) -> None: ...

class KeyMaterialPublic(_message.Message):
    __slots__ = ("alg", "pubkey_b64", "halves")
    ALG_FIELD_NUMBER: _ClassVar[int]
    PUBKEY_B64_FIELD_NUMBER: _ClassVar[int]
    HALVES_FIELD_NUMBER: _ClassVar[int]
    alg: str
    pubkey_b64: str
    halves: _containers.RepeatedCompositeFieldContainer[PublicHalf]
    def __init__(self, alg: _Optional[str] = ..., pubkey_b64: _Optional[str] = ..., halves: _Optional[_Iterable[_Union[PublicHalf, _Mapping]]] = ...) -> None: ...

class CreateKeyResponse(_message.Message):
    __slots__ = ("kid", "public")
    KID_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    kid: str
    public: KeyMaterialPublic
    def __init__(self, kid: _Optional[str] = ..., public: _Optional[_Union[KeyMaterialPublic, _Mapping]] = ...) -> None: ...

class RotateRequest(_message.Message):
    __slots__ = ("kid", "op_id")
    KID_FIELD_NUMBER: _ClassVar[int]
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    kid: str
    op_id: str
    def __init__(self, kid: _Optional[str] = ..., op_id: _Optional[str] = ...) -> None: ...

class RotateResponse(_message.Message):
    __slots__ = ("kid", "previous")
    KID_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    kid: str
    previous: str
    def __init__(self, kid: _Optional[str] = ..., previous: _Optional[str] = ...) -> None: ...

class GetKeyRequest(_message.Message):
    __slots__ = ("kid",)
    KID_FIELD_NUMBER: _ClassVar[int]
    kid: str
    def __init__(self, kid: _Optional[str] = ...) -> None: ...

class KeyView(_message.Message):
    __slots__ = ("kid", "alg", "versions", "public", "attestation_class", "created_at", "policy_hints")
    KID_FIELD_NUMBER: _ClassVar[int]
    ALG_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_CLASS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    POLICY_HINTS_FIELD_NUMBER: _ClassVar[int]
    kid: str
    alg: str
    versions: _containers.RepeatedScalarFieldContainer[str]
    public: KeyMaterialPublic
    attestation_class: str
    created_at: str
    policy_hints: _struct_pb2.Struct
    def __init__(self, kid: _Optional[str] = ..., alg: _Optional[str] = ..., versions: _Optional[_Iterable[str]] = ..., public: _Optional[_Union[KeyMaterialPublic, _Mapping]] = ..., attestation_class: _Optional[str] = ..., created_at: _Optional[str] = ..., policy_hints: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ListKeysRequest(_message.Message):
    __slots__ = ("tenant", "after")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    after: str
    def __init__(self, tenant: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class KeyList(_message.Message):
    __slots__ = ("keys", "next")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    keys: _containers.RepeatedCompositeFieldContainer[KeyView]
    next: str
    def __init__(self, keys: _Optional[_Iterable[_Union[KeyView, _Mapping]]] = ..., next: _Optional[str] = ...) -> None: ...

class AttestRequest(_message.Message):
    __slots__ = ("kid",)
    KID_FIELD_NUMBER: _ClassVar[int]
    kid: str
    def __init__(self, kid: _Optional[str] = ...) -> None: ...

class AttestResponse(_message.Message):
    __slots__ = ("backend", "attestation", "kid", "issued_at")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ATTESTATION_FIELD_NUMBER: _ClassVar[int]
    KID_FIELD_NUMBER: _ClassVar[int]
    ISSUED_AT_FIELD_NUMBER: _ClassVar[int]
    backend: str
    attestation: Attestation
    kid: str
    issued_at: str
    def __init__(self, backend: _Optional[str] = ..., attestation: _Optional[_Union[Attestation, _Mapping]] = ..., kid: _Optional[str] = ..., issued_at: _Optional[str] = ...) -> None: ...

class DestroyRequest(_message.Message):
    __slots__ = ("kid", "proposal", "op_id")
    KID_FIELD_NUMBER: _ClassVar[int]
    PROPOSAL_FIELD_NUMBER: _ClassVar[int]
    OP_ID_FIELD_NUMBER: _ClassVar[int]
    kid: str
    proposal: str
    op_id: str
    def __init__(self, kid: _Optional[str] = ..., proposal: _Optional[str] = ..., op_id: _Optional[str] = ...) -> None: ...

class DestroyResponse(_message.Message):
    __slots__ = ("kid", "destroyed")
    KID_FIELD_NUMBER: _ClassVar[int]
    DESTROYED_FIELD_NUMBER: _ClassVar[int]
    kid: str
    destroyed: bool
    def __init__(self, kid: _Optional[str] = ..., destroyed: _Optional[bool] = ...) -> None: ...
