"""The audit log of the key service on the wire (specs/ron-kms.md, IDB §3.6): pages of leaves and proofs.

In: `/v1/kms/audit`. Out: strict structs for the service, the SDK and whoever audits. Shapes, no rules.
"""

from __future__ import annotations

import msgspec


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
