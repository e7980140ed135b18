"""Objects in a PKCS#11 token: what is made, found and shown there, call by call.

In: a session that is logged in, a kid. Out: keys, data objects, descriptions. Knows nothing of pools and of records.
Whatever the module raises passes. Blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from blake3 import blake3
from pkcs11 import (
    Attribute,
    Key,
    KeyType,
    Mechanism,
    MechanismFlag,
    Object,
    ObjectClass,
    SecretKey,
    Session,
    Token,
)
from pkcs11.exceptions import (
    ArgumentsBad,
    AttributeValueInvalid,
    DomainParamsInvalid,
    FunctionFailed,
    GeneralError,
    MechanismParamInvalid,
    NoSuchKey,
    TemplateIncomplete,
    TemplateInconsistent,
    TokenNotPresent,
)

from ron.crypto import signing
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg, Kid
from ron.services.kms.backends.pkcs11_records import (
    APPLICATION,
    MARKER,
    DamagedRecordError,
    HalfRecord,
    kid_hash,
    object_id,
)

T = TypeVar("T")

# The curve's name, or its object identifier (PKCS#11 3.0, elliptic curves): SoftHSM 2.6 takes both, others one of them,
# and each says in its own way that it does not
ED25519_PARAMS = (bytes.fromhex("130c656477617264733235353139"), bytes.fromhex("06032b6570"))
_OTHER_PARAMS = (
    ArgumentsBad,
    AttributeValueInvalid,
    DomainParamsInvalid,
    FunctionFailed,
    GeneralError,
    MechanismParamInvalid,
    TemplateIncomplete,
    TemplateInconsistent,
)
_PROBE = b"ron-kms: does it sign?".ljust(32, b"\0")
_KEY_CLASSES = (ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY, ObjectClass.PUBLIC_KEY)
_SHOWN = (
    Attribute.SENSITIVE,
    Attribute.EXTRACTABLE,
    Attribute.ALWAYS_SENSITIVE,
    Attribute.NEVER_EXTRACTABLE,
    Attribute.LOCAL,
)


# How python-pkcs11 fails over an attribute that is not of its type: text that is no UTF-8, a flag of two bytes.
MALFORMED = (ValueError, TypeError, struct.error)


def understood(read: Callable[[], T], label: str = "") -> T:
    """What `read` makes of the token's answer. Raises `DamagedRecordError` for one that cannot be read."""
    try:
        return read()
    except MALFORMED:
        raise DamagedRecordError(label) from None


def value_of(found: Object, label: str = "") -> bytes:
    """CKA_VALUE of a data object of ours. Raises `DamagedRecordError`."""
    return understood(lambda: bytes(found[Attribute.VALUE]), label)


def label_of(found: Object) -> str:
    """CKA_LABEL. Raises `DamagedRecordError`."""
    return understood(lambda: str(found[Attribute.LABEL]))


def check_present(session: Session) -> None:
    """Raises `TokenNotPresent` unless our mark is there.

    SoftHSM finds nothing, and says nothing, in a directory that is gone; a token initialised anew is another one.
    """
    if data(session, MARKER) is None:
        raise TokenNotPresent


def data(session: Session, label: str) -> Object | None:
    """Our data object of that label."""
    at = {Attribute.CLASS: ObjectClass.DATA, Attribute.APPLICATION: APPLICATION, Attribute.LABEL: label}
    found = list(session.get_objects(at))
    return found[0] if found else None


def all_data(session: Session) -> Iterator[Object]:
    """All data objects of ours, the mark too."""
    yield from session.get_objects({Attribute.CLASS: ObjectClass.DATA, Attribute.APPLICATION: APPLICATION})


def put(session: Session, label: str, value: bytes) -> None:
    """A data object that only who has the PIN can read, and nobody can change."""
    session.create_object(
        {
            Attribute.CLASS: ObjectClass.DATA,
            Attribute.TOKEN: True,
            Attribute.PRIVATE: True,
            Attribute.MODIFIABLE: False,
            Attribute.APPLICATION: APPLICATION,
            Attribute.LABEL: label,
            Attribute.VALUE: value,
        }
    )


def find(session: Session, kid: Kid, kind: ObjectClass) -> Key:
    """The key of that kind of a key version. Raises `NoSuchKey`."""
    return session.get_key(object_class=kind, id=object_id(kid))


def sealing_key(session: Session, kid: Kid) -> SecretKey | None:
    """The one that seals halves of this key version, if it was made."""
    try:
        key = find(session, kid, ObjectClass.SECRET_KEY)
    except NoSuchKey:
        return None
    return key if isinstance(key, SecretKey) else None


def clear(session: Session, kid: Kid) -> None:
    """No key of this key version is left. Its record is not touched."""
    for kind in _KEY_CLASSES:
        for key in list(session.get_objects({Attribute.CLASS: kind, Attribute.ID: object_id(kid)})):
            key.destroy()


def make_ed25519(session: Session, kid: Kid) -> bytes:
    """A key pair that signs and never leaves the token; its public 32 bytes. It has signed once when this returns.

    Raises `RonError` (Internal) for a token whose signature does not verify.
    """
    for last, params in ((False, ED25519_PARAMS[0]), (True, ED25519_PARAMS[1])):
        try:
            public = _make_pair(session, kid, params)
            break
        except _OTHER_PARAMS:
            if last:
                raise
    private = find(session, kid, ObjectClass.PRIVATE_KEY)
    if not signing.verify(Alg.ED25519, public, _PROBE, eddsa(private, _PROBE)):
        clear(session, kid)
        raise RonError(ErrorCode.INTERNAL, f"the token's key {kid_hash(str(kid))} does not sign as RFC 8032 has it")
    return public


def _make_pair(session: Session, kid: Kid, params: bytes) -> bytes:
    curve = session.create_domain_parameters(KeyType.EC_EDWARDS, {Attribute.EC_PARAMS: params}, local=True)
    public, _ = curve.generate_keypair(
        mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
        capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
        store=True,
        label=str(kid),
        id=object_id(kid),
        private_template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False, Attribute.PRIVATE: True},
    )
    return point_bytes(understood(lambda: bytes(public[Attribute.EC_POINT]), str(kid)))


def point_bytes(raw: bytes) -> bytes:
    """CKA_EC_POINT is an OCTET STRING in DER with most tokens, and the 32 bytes themselves with some."""
    return raw[2:] if len(raw) == 34 and raw[:2] == b"\x04\x20" else raw


def eddsa(key: Any, message: bytes) -> bytes:
    """64 bytes, as RFC 8032 has them: CKM_EDDSA without parameters is the pure mode."""
    return bytes(key.sign(message, mechanism=Mechanism.EDDSA))


def describe_token(token: Token) -> dict[str, object]:
    """What it says of itself."""
    return {
        "label": token.label,
        "manufacturer": token.manufacturer_id,
        "model": token.model,
        "serial": token.serial.decode("ascii", "replace"),
        "hardware": ".".join(map(str, token.hardware_version)),
        "firmware": ".".join(map(str, token.firmware_version)),
    }


def describe_half(session: Session, kid: Kid, half: HalfRecord) -> dict[str, object]:
    """Where it is, and what the token says of the key that is or that seals it. Raises `NoSuchKey`."""
    kind = ObjectClass.PRIVATE_KEY if half.where == "token" else ObjectClass.SECRET_KEY
    key = find(session, kid, kind)
    shown = understood(lambda: {one.name.lower(): bool(key[one]) for one in _SHOWN}, str(kid))
    return {"alg": half.alg.value, "where": half.where, "public_b3": blake3(half.public).hexdigest(), **shown}
