"""One signature for a quorum: the joint key that the signers of a set share (FROST, RFC 9591; docs/threshold.rst).

In: a set with a group, what was signed with the group's key. Out: the statement, the signers it names, or `RonError`.

The signature proves that as many shares took part as the threshold asks for, and not whose. So the names are part of
what is signed, and `ronctl` signs only together with exactly the signers that are named: a wrong name takes a whole
quorum that lies about itself.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import lru_cache

from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from ron.crypto.frost.errors import InvalidGroupError
from ron.crypto.frost.keys import GroupKey
from ron.proto.errors import bad_request
from ron.proto.governance import JointStatement, Role, SignedObject, Signer, SignerSet, Voice
from ron.services.kms.governance.canonical import decode_canonical, digest
from ron.services.kms.governance.naming import AUDITOR, key_id, refused

VOICE: Voice = "joint"
_MARK = b'"type":"ron-kms/governance/joint/1"'


def numbered(publics: Sequence[str]) -> dict[int, str]:
    """The members of a group by their FROST identifiers: from 1, in the order of their public keys in hex."""
    return dict(enumerate(sorted(publics), start=1))


def voters(members: Sequence[tuple[Role, str]]) -> list[str]:
    """The public keys of those who vote."""
    return [public for role, public in members if role != AUDITOR]


def check_group(text: str, members: Sequence[tuple[Role, str]], threshold: int) -> None:
    """Raises `RonError` (BadRequest) unless `text` is a joint key of exactly the voters, for this threshold."""
    group, publics = group_of(text), voters(members)
    if group.members != tuple(numbered(publics)) or group.threshold != threshold:
        raise bad_request(
            f"the joint key is one of {group.threshold} of {len(group.members)}, and the set is another",
            "ronctl governance keygen --threshold, by all who vote",
        )
    if group.public.hex() in [public for _role, public in members]:
        raise bad_request("the joint key is a signer's own")


@lru_cache(maxsize=8)
def group_of(text: str) -> GroupKey:
    """Checked as a whole: all verification shares lie on one polynomial. Raises `RonError` (BadRequest)."""
    try:
        return GroupKey.decode(bytes.fromhex(text))
    except (InvalidGroupError, ValueError):
        raise bad_request("this is no joint key", "the file that `keygen --threshold` wrote has it") from None


def is_joint(signed: SignedObject, signers: SignerSet) -> bool:
    """Is it signed with the set's joint key, as it says?"""
    return bool(signers.group) and signed.key_id == key_id(group_of(signers.group).public)


def says_joint(content: bytes) -> bool:
    """Does it call itself a joint statement? Within a string the quotes would be escaped."""
    return _MARK in content


def opened(signed: SignedObject, signers: SignerSet) -> JointStatement:
    """What was said, when the joint key signed it. Raises `RonError`: BadRequest, 403 for another signature."""
    content = signed.object.encode()
    try:
        key = VerifyKey(group_of(signers.group).public)
        key.verify(digest(content), base64.b64decode(signed.signature))
    except (CryptoError, ValueError, TypeError):
        raise refused("the signature is not of this object", "sign it with the joint key that is named") from None
    statement = decode_canonical(content, JointStatement)
    if statement.signer != signed.key_id:
        raise refused("one key speaks for another")
    return statement


def named(statement: JointStatement, signers: SignerSet) -> list[Signer]:
    """Who says it. Raises `RonError` (403) unless they are a quorum of different voters, in the order of their ids."""
    known = {key_id(one.public): one for one in signers.members if one.role != AUDITOR}
    if list(statement.by) != sorted(set(statement.by)) or not set(statement.by) <= set(known):
        raise refused("a joint statement names those who vote, each once and in order")
    if len(statement.by) < signers.threshold:
        raise refused("a joint statement names fewer than have to agree")
    return [known[one] for one in statement.by]
