"""The audit log of the key service on the wire (specs/ron-kms.md, IDB §3.6): pages of leaves, proofs, a new key of it.

In: `/v1/kms/audit`. Out: strict structs for the service, the SDK and whoever audits. Shapes, no rules.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ron.proto.kms import OpId


class AuditPage(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Leaves in base64, as they are hashed. start: the index of the first. size: records in the log just now."""

    entries: tuple[str, ...]
    start: int
    size: int


class AuditProof(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Hashes in base64. size: of the tree it is of. index: of the leaf (inclusion), or old: the size before
    (consistency)."""

    hashes: tuple[str, ...]
    size: int
    index: int | None = None
    old: int | None = None


class RotateLogKeyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """proposal: of the quorum, where there is one, for `root_rotation` with the change `root=audit-log`; left out, the
    one that fits. op_id: the same one again is the same act, as long as no other has followed it."""

    proposal: Annotated[str, Meta(max_length=36)] | None = None
    op_id: OpId | None = None


class RotateLogKeyResponse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """kid: the key version that signs checkpoints from now on; previous: that did. vkeys: of `kid`, for auditors and
    witnesses, a verifier key each."""

    kid: str
    previous: str
    vkeys: tuple[str, ...]
