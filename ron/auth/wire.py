"""Capabilities as they are asked for and shown: the bodies of `/v1/caps`, and what `ronctl cap` prints with `--json`.

In: a request for a capability. Out: the caveats it comes to. Times on the wire are RFC 3339, UTC.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from msgspec import Meta

from ron.auth.caveats import Caveat, expiry
from ron.auth.register import MAX_LABEL_CHARS, Minted
from ron.auth.rootkeys import GRACE_S, ROTATE_AFTER_S, Epoch
from ron.proto.clock import rfc3339

# A token cannot outlive its root key: 30 days of minting and 48 hours of grace.
MAX_TTL_S = ROTATE_AFTER_S + GRACE_S

_Text = Annotated[str, Meta(min_length=1, max_length=256)]


class MintRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of `POST /v1/caps/mint`. ttl_s: seconds until it expires. rps: requests a second, at the finest 0.001."""

    scope: _Text
    ttl_s: Annotated[float, Meta(ge=1, le=MAX_TTL_S)]
    app: _Text | None = None
    tenant: _Text | None = None
    topic: _Text | None = None
    holder: _Text | None = None
    method: _Text | None = None
    path: _Text | None = None
    rps: Annotated[float, Meta(ge=0.001, le=9_999_999)] | None = None
    bytes_per_day: Annotated[int, Meta(ge=1, lt=10**15)] | None = None
    label: Annotated[str, Meta(max_length=MAX_LABEL_CHARS)] = ""

    def caveats(self, now_s: float) -> list[Caveat]:
        """What the new capability is narrowed by. Minting raises ValueError on what `parse_caveat` would refuse."""
        given = [
            (name, getattr(self, name))
            for name in ("scope", "app", "tenant", "topic", "holder", "method", "path", "bytes_per_day")
            if getattr(self, name) is not None
        ]
        rps = [] if self.rps is None else [Caveat("rps", f"{self.rps:.3f}".rstrip("0").rstrip("."))]
        return [*(Caveat(name, str(value)) for name, value in given), *rps, expiry(now_s, self.ttl_s)]


class MintAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The only time the token is shown."""

    token: str
    cap_id: str
    kid: int
    caveats: tuple[str, ...]
    expires_at: str | None


class RevokeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of `POST /v1/caps/revoke`: a token or a cap_id. op_id: a fresh UUID; used a second time it is a 409."""

    op_id: str
    token: str | None = None
    cap_id: str | None = None


class RevokeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The cap_ids that are void now: the one asked for first, then what was minted with it."""

    revoked: tuple[str, ...]


class RotateRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Body of `POST /v1/caps/rotate`. grace_s: how long older tokens still hold, at most 48 hours."""

    op_id: str
    grace_s: Annotated[float, Meta(ge=0, le=GRACE_S)] = GRACE_S


class EpochLine(msgspec.Struct, frozen=True, kw_only=True):
    """A root-key epoch. retires_at is null for the one that mints."""

    kid: int
    created_at: str
    retires_at: str | None


class CapLine(msgspec.Struct, frozen=True, kw_only=True):
    """A capability that was given out. parent: the one it was minted with."""

    cap_id: str
    kid: int
    label: str
    caveats: tuple[str, ...]
    minted_at: str
    expires_at: str | None
    parent: str | None
    revoked: bool


class EpochsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `POST /v1/caps/rotate`, oldest epoch first."""

    epochs: tuple[EpochLine, ...]


class ListAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer to `GET /v1/caps`: what could still be used, oldest first."""

    epochs: tuple[EpochLine, ...]
    capabilities: tuple[CapLine, ...]


def mint_answer(token: str, entry: Minted) -> MintAnswer:
    """`token` with what the register says of it."""
    return MintAnswer(
        token=token,
        cap_id=entry.cap_id,
        kid=entry.kid,
        caveats=entry.caveats,
        expires_at=_or_none(entry.expires_at),
    )


def epoch_lines(epochs: Iterable[Epoch]) -> tuple[EpochLine, ...]:
    """Epochs without their keys."""
    return tuple(
        EpochLine(kid=e.kid, created_at=rfc3339(e.created_at_s), retires_at=_or_none(e.retires_at_s)) for e in epochs
    )


def cap_lines(entries: Iterable[tuple[Minted, bool]]) -> tuple[CapLine, ...]:
    """Entries of the register, each with whether it is revoked."""
    return tuple(
        CapLine(
            cap_id=entry.cap_id,
            kid=entry.kid,
            label=entry.label,
            caveats=entry.caveats,
            minted_at=rfc3339(entry.minted_at),
            expires_at=_or_none(entry.expires_at),
            parent=entry.parent,
            revoked=revoked,
        )
        for entry, revoked in entries
    )


def _or_none(at_s: float | None) -> str | None:
    return None if at_s is None else rfc3339(at_s)
