"""The `[limits]` section: what every listener allows. On this floor, because `ron.web` applies it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from ron.kernel.units import GIB, KIB, MIB

_LIVE = {"reload": True}
_Timeout = Annotated[int, Meta(ge=10, le=600_000, extra={"unit": "ms", **_LIVE})]
_Count = Annotated[int, Meta(ge=1, le=1_000_000, extra=_LIVE)]


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one listener, all of them refused before work is done.

    handshake_timeout_ms: a TLS handshake. read_idle_ms: a request's head, and the silence within its body. idle_ms:
    between the requests of a connection; 0 is as long as read_idle_ms. write_timeout_ms: a client that does not
    read its answer. headers_bytes, body_bytes: of one request. connections: open at a time; connections_per_peer,
    streams_per_peer: of one address (all that comes through an onion has the address 127.0.0.1, hence the high
    defaults). requests_per_second_per_peer, bytes_per_second_per_peer: rates. concurrency: requests being worked on
    at a time. decompress_ratio: how many times its size a body may inflate to.
    """

    handshake_timeout_ms: _Timeout = 2000
    read_idle_ms: _Timeout = 15_000
    idle_ms: Annotated[int, Meta(ge=0, le=600_000, extra={"unit": "ms", **_LIVE})] = 0
    write_timeout_ms: _Timeout = 10_000
    headers_bytes: Annotated[int, Meta(ge=KIB, le=MIB, extra={"unit": "bytes", **_LIVE})] = 64 * KIB
    body_bytes: Annotated[int, Meta(ge=KIB, le=64 * GIB, extra={"unit": "bytes", **_LIVE})] = 16 * MIB
    connections: _Count = 16_384
    connections_per_peer: _Count = 8192
    streams_per_peer: _Count = 8192
    requests_per_second_per_peer: _Count = 20_000
    bytes_per_second_per_peer: Annotated[int, Meta(ge=KIB, le=1024 * GIB, extra={"unit": "bytes", **_LIVE})] = GIB
    concurrency: _Count = 1024
    decompress_ratio: Annotated[int, Meta(ge=1, le=1000, extra=_LIVE)] = 10
