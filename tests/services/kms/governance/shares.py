"""A joint key of people, made in memory as `keygen --threshold` makes it with letters; and signatures of some."""

from __future__ import annotations

import base64
from collections.abc import Sequence

from nacl.signing import SigningKey

from ron.crypto.frost import dkg, signing
from ron.crypto.frost.keys import GroupKey, KeyShare
from ron.proto.governance import JointStatement, Proposal, SignedObject, Statement
from ron.services.kms.governance.canonical import canonical, digest
from ron.services.kms.governance.joint import numbered
from ron.services.kms.governance.signers import key_id


def hexed(key: SigningKey) -> str:
    """Its public half."""
    return bytes(key.verify_key).hex()


class JointKey:
    """shares: by the members' public keys in hex."""

    def __init__(self, keys: Sequence[SigningKey], threshold: int = 2) -> None:
        members = numbered([hexed(key) for key in keys])
        plan = dkg.keygen_plan(b"n" * 32, threshold, list(members))
        parts = {number: dkg.keygen(plan, number) for number in members}
        while any(part.result is None for part in parts.values()):
            for sender, part in parts.items():
                for message in part.outgoing():
                    for receiver, other in parts.items():
                        if receiver != sender and message.to in (None, receiver):
                            other.receive(sender, message.body)
        self.shares: dict[str, KeyShare] = {}
        for number, part in parts.items():
            assert part.result is not None
            self.shares[members[number]] = part.result
        self.group: GroupKey = next(iter(self.shares.values())).group
        self.text = self.group.encode().hex()
        self.key_id = key_id(self.group.public)

    def sign(self, value: JointStatement | Statement | Proposal, by: Sequence[SigningKey]) -> SignedObject:
        """`value`, signed by those whose keys these are."""
        content = canonical(value)
        shares = sorted((self.shares[hexed(key)] for key in by), key=lambda share: share.identifier)
        nonces = {share.identifier: signing.commit(share) for share in shares}
        commitments = [nonces[share.identifier].commitment for share in shares]
        made = {
            share.identifier: signing.sign_share(share, nonces[share.identifier], commitments, digest(content))
            for share in shares
        }
        signature = signing.aggregate(self.group, made, commitments, digest(content))
        return SignedObject(object=content.decode(), key_id=self.key_id, signature=base64.b64encode(signature).decode())
