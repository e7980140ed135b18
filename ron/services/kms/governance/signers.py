"""Who decides: the signers of a key service, their roles, and what makes a set of them fit (GOVERNANCE §2, C).

In: public keys with roles, signed objects. Out: sets that were checked; what was signed and by whom, or `RonError`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import msgspec
from nacl import bindings
from nacl.exceptions import CryptoError
from nacl.signing import SigningKey, VerifyKey

from ron.kernel.units import DAY_S, MINUTE_S
from ron.proto.errors import bad_request
from ron.proto.governance import JointStatement, Role, SignedObject, Signer, SignerSet, Statement
from ron.services.kms.governance import joint
from ron.services.kms.governance.canonical import canonical, decode_canonical, digest
from ron.services.kms.governance.naming import AUDITOR as AUDITOR
from ron.services.kms.governance.naming import key_id as key_id
from ron.services.kms.governance.naming import refused as refused

T = TypeVar("T", bound=msgspec.Struct)
OWNER: Role = "policy-owner"
SECOND: Role = "security-officer"
ROLES: tuple[Role, ...] = (OWNER, SECOND, "custodian", AUDITOR)


class Profile(NamedTuple):
    """What differs between a service of many and a lone device. second_for_s: how long a second key counts there."""

    micronode: bool
    freeze_s: int
    rotate_s: int
    second_for_s: int | None = None


MACRONODE = Profile(False, 60 * MINUTE_S, 90 * DAY_S)
MICRONODE = Profile(True, 30 * MINUTE_S, 90 * DAY_S, 7 * DAY_S)


def signer_set(
    members: Sequence[tuple[Role, str]],
    threshold: int,
    now: int,
    *,
    profile: Profile = MACRONODE,
    before: SignerSet | None = None,
    group: str = "",
) -> SignerSet:
    """A set that may decide. members: role and public key in hex. before: the set it follows; who stays in their role
    keeps their date. group: the joint key of those who vote, "" for none. Raises `RonError` (BadRequest)."""
    known = {(one.role, one.public): one.since for one in before.members} if before is not None else {}
    try:
        made = msgspec.convert(
            {
                "members": [
                    {"role": role, "public": public, "since": known.get((role, public), now)}
                    for role, public in members
                ],
                "threshold": threshold,
                "rotated_at": now,
                "group": group,
            },
            SignerSet,
        )
    except msgspec.ValidationError as error:
        raise bad_request(f"these are no signers: {error}".replace("`", "")) from None
    check_set(made, profile)
    return made


def check_set(signers: SignerSet, profile: Profile) -> None:
    """Raise `RonError` (BadRequest) for a set in which one could decide alone, or two halves against each other."""
    publics = [one.public for one in signers.members]
    if len(set(publics)) < len(publics):
        raise bad_request("one key is two signers", "give each role a key of its own")
    if not all(map(_is_key, publics)):
        raise bad_request("a signer's public key is no Ed25519 key")
    if signers.group:
        # of 2 or more by its nature
        joint.check_group(signers.group, [(one.role, one.public) for one in signers.members], signers.threshold)
    voters = [one.role for one in signers.members if one.role != AUDITOR]
    if signers.threshold == 1 and profile.micronode:
        if sorted(voters) != sorted((OWNER, SECOND)):
            raise bad_request(f"1-of-2 is for a {OWNER} and a {SECOND}", "name those two, or raise the threshold")
        return
    if signers.threshold < 2:
        raise bad_request("nobody decides alone", "a threshold of 2 or more; 1-of-2 is for micronodes")
    if not signers.threshold <= len(voters) < 2 * signers.threshold:
        raise bad_request(
            f"{signers.threshold} of {len(voters)} signers is no majority that can be had",
            "more than half of them, auditors not counted: 2 of 3, 3 of 5",
        )


def read_signers(content: bytes, now: int, *, profile: Profile = MACRONODE) -> SignerSet:
    """The first signers of a service, from the file that its config names, as of now: a date in it is nobody's word.

    Raises `RonError` (BadRequest).
    """
    try:
        found = msgspec.json.decode(content, type=SignerSet)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise bad_request("this is no file of signers", "ronctl governance signers FILE.pub… --out FILE") from None
    members = [(one.role, one.public) for one in found.members]
    return signer_set(members, found.threshold, now, profile=profile, group=found.group)


def set_digest(signers: SignerSet) -> str:
    """What a proposal names as its signer set."""
    return digest(canonical(signers)).hex()


def member(signers: SignerSet, signer: str) -> Signer | None:
    """The one with this key id."""
    return next((one for one in signers.members if key_id(one.public) == signer), None)


def counts(one: Signer, at: int, profile: Profile) -> bool:
    """May this signer's vote count then? A micronode's second device is to be renewed each week (GOVERNANCE §6)."""
    limit_s = profile.second_for_s
    return one.role != AUDITOR and not (limit_s is not None and one.role == SECOND and at - one.since > limit_s)


def is_due(one: Signer, at: int, profile: Profile) -> bool:
    """Ought this key to be rotated?"""
    limit_s = profile.second_for_s if one.role == SECOND and profile.second_for_s is not None else profile.rotate_s
    return at - one.since > limit_s


def parse_signers(text: str) -> list[tuple[str, str]]:
    """`role:public,role:public` taken apart. Raises `RonError` (BadRequest)."""
    found = [tuple(part.strip().split(":")) for part in text.split(",")]
    if not all(len(part) == 2 for part in found):
        raise bad_request("signers are written role:public,role:public", "the public key in hex, as in the .pub file")
    return [(part[0], part[1]) for part in found]


def sign(value: msgspec.Struct, key: SigningKey) -> SignedObject:
    """`value` in its canonical form, signed."""
    content = canonical(value)
    made = key.sign(digest(content)).signature
    return SignedObject(
        object=content.decode(), key_id=key_id(bytes(key.verify_key)), signature=base64.b64encode(made).decode()
    )


def opened(signed: SignedObject, shape: type[T], signers: SignerSet) -> tuple[T, Signer]:
    """What was signed, and by which of `signers`. Raises `RonError`: BadRequest for what is no such object, 403 for
    whoever is no signer or did not sign this."""
    one = member(signers, signed.key_id)
    if one is None:
        raise refused("this key is none of the service's signers", "ronctl governance list --signers shows them")
    content = signed.object.encode()
    try:
        VerifyKey(bytes.fromhex(one.public)).verify(digest(content), base64.b64decode(signed.signature))
    except (CryptoError, ValueError, TypeError):
        raise refused("the signature is not of this object", "sign it with the key that is named") from None
    return decode_canonical(content, shape), one


def statement_of(signed: SignedObject) -> Statement | JointStatement:
    """What is said, by whomever: nothing is verified yet. Raises `RonError` (BadRequest)."""
    content = signed.object.encode()
    if joint.says_joint(content):
        return decode_canonical(content, JointStatement)
    return decode_canonical(content, Statement)


def who_signed(signed: SignedObject) -> dict[str, str]:
    """For the audit log: whose key it is, and whom a joint statement names. The object was opened before."""
    content = signed.object.encode()
    told = {"signer": signed.key_id}
    return told | {"by": " ".join(decode_canonical(content, JointStatement).by)} if joint.says_joint(content) else told


def _is_key(public: str) -> bool:
    """On the curve, in its one encoding, and not of small order: such a key would have signed anything."""
    return bool(bindings.crypto_core_ed25519_is_valid_point(bytes.fromhex(public)))
