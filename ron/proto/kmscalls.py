"""Calls of the key service where there are no paths: over gRPC and OAP/1 the key's name stands in the request itself.

In: whole requests. Out: strict structs beside those of `ron.proto.kms`, and the numbers of the calls in OAP/1. Shapes,
no rules.
"""

from __future__ import annotations

import enum

import msgspec

from ron.proto.kms import DestroyRequest, KidText, RotateRequest, TenantName

# The application's protocol in OAP/1 (DESIGN §4)
OAP_PROTOCOL = 0x0501


class KmsCall(enum.IntEnum):
    """`code` of a request in OAP/1; its payload is the JSON of the struct that belongs to it."""

    SIGN = 1
    VERIFY = 2
    WRAP = 3
    UNWRAP = 4
    CREATE_KEY = 5
    ROTATE = 6
    GET_KEY = 7
    LIST_KEYS = 8
    ATTEST = 9
    DESTROY_KEY = 10


class RotateCall(RotateRequest, frozen=True, kw_only=True):
    """`POST /keys/{kid}/rotate`. kid: without a version."""

    kid: KidText


class DestroyCall(DestroyRequest, frozen=True, kw_only=True):
    """`DELETE /keys/{kid}`."""

    kid: KidText


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    pass


class GetKeyRequest(_Strict, frozen=True, kw_only=True):
    """`GET /keys/{kid}`. kid: without a version its newest."""

    kid: KidText


class ListKeysRequest(_Strict, frozen=True, kw_only=True):
    """`GET /keys`. after: what `next` of the page before said."""

    tenant: TenantName | None = None
    after: KidText | None = None


class AttestRequest(_Strict, frozen=True, kw_only=True):
    """`GET /attest`. kid: None asks for the backend as a whole."""

    kid: KidText | None = None
