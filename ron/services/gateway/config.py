"""The `[gateway]` section."""

from __future__ import annotations

from typing import Annotated

import msgspec

from ron.services.sections import TlsConfig


class Expose(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One port of the node's onion: `onion_port` is answered by `local`, `host:port` on this machine."""

    local: Annotated[str, msgspec.Meta(pattern=r"^127\.0\.0\.1:[0-9]{1,5}\Z")]
    onion_port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the gateway listens, and what the node's onion exposes.

    bind: a loopback address; port 0 lets the system choose. expose: empty means the gateway on 80 and the mailbox on
    9410, wherever they listen. workers: processes that share the listener. tls: the listener's certificate; left out,
    it speaks plain HTTP.
    """

    bind: str = "127.0.0.1:9080"
    expose: Annotated[tuple[Expose, ...], msgspec.Meta(max_length=16)] = ()
    workers: Annotated[int, msgspec.Meta(ge=1, le=64)] = 1
    tls: TlsConfig | None = None
