"""The onion runtime on the wire: what is asked of it and what it answers (specs/private-onion-runtime.md, control API).

In: JSON bodies of the control API. Out: strict structs for the service, the SDK and `ronctl` alike. No rules but
shapes: what a request means for an onion is decided in `ron.services.oniond.model`.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_PORTS = 16
MAX_CLIENTS = 64
MAX_HINTS = 8
MAX_GRACE_S = 7 * 24 * 3600

AppName = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]{0,62}\\Z")]
OpId = Annotated[
    str, Meta(min_length=36, max_length=36, description="A UUID of the caller's: the same one is one act.")
]
OnionPort = Annotated[int, Meta(ge=1, le=65535)]
# tor connects to it: loopback only, or a Unix socket
LocalTarget = Annotated[str, Meta(pattern=r"^(127\.0\.0\.1:[0-9]{1,5}|unix:/[A-Za-z0-9_./-]{1,100})\Z", max_length=107)]
ClientName = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]{0,62}\\Z")]
# an x25519 public key as tor writes it: 52 characters of base32 without padding
ClientPublicKey = Annotated[str, Meta(pattern="^[A-Z2-7]{52}\\Z")]
Label = Annotated[str, Meta(pattern="^[a-z0-9][a-z0-9-]{0,31}\\Z")]
Persistence = Literal["durable", "ephemeral"]
Isolation = Literal["shared", "process"]
State = Literal["active", "draining", "drained"]
WaitS = Annotated[float, Meta(ge=0, le=60, description="Answer when it can be reached, or after so many seconds.")]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Port(_Strict, frozen=True, kw_only=True):
    """`onion_port` of the service is answered by `local`: 127.0.0.1:PORT, or unix:/absolute/path."""

    onion_port: OnionPort
    local: LocalTarget


class Client(_Strict, frozen=True, kw_only=True):
    """Somebody who may find a restricted onion (v3 client authorisation)."""

    name: ClientName
    public_key: ClientPublicKey


class Pow(_Strict, frozen=True, kw_only=True):
    """tor's proof-of-work defence for introductions: requests per second let through, and how many at once."""

    enabled: bool = True
    queue_rate: Annotated[int, Meta(ge=1, le=1_000_000)] = 250
    queue_burst: Annotated[int, Meta(ge=1, le=1_000_000)] = 2500


class Limits(_Strict, frozen=True, kw_only=True):
    """What one visitor may have. streams: connections at a time on one circuit; a circuit that wants more is closed."""

    streams: Annotated[int, Meta(ge=0, le=65535, description="0: as many as it likes")] = 0


class Hints(_Strict, frozen=True, kw_only=True):
    """Wishes. regions: labels of own relays that introduction points should be near, the best first."""

    regions: Annotated[tuple[Label, ...], Meta(max_length=MAX_HINTS)] = ()


class CreateRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/onions`. client_auth: not empty, only these can find it."""

    op_id: OpId
    app: AppName
    ports: Annotated[tuple[Port, ...], Meta(min_length=1, max_length=MAX_PORTS)]
    persistence: Persistence = "durable"
    client_auth: Annotated[tuple[Client, ...], Meta(max_length=MAX_CLIENTS)] = ()
    pow: Pow | None = None
    hints: Hints = Hints()
    limits: Limits = Limits()
    isolation: Isolation | None = None
    wait_s: WaitS = 0.0


class BindRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/onions/{id}/bind`: other ports from now on; a drained onion serves again."""

    op_id: OpId
    ports: Annotated[tuple[Port, ...], Meta(min_length=1, max_length=MAX_PORTS)]
    wait_s: WaitS = 0.0


class RotateRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/onions/{id}/rotate`: a new key; the old address is served for `grace_s` seconds more."""

    op_id: OpId
    grace_s: Annotated[int, Meta(ge=0, le=MAX_GRACE_S)] = 24 * 3600
    wait_s: WaitS = 0.0


class DrainRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/onions/{id}/drain`: no new visitors; those who are there have `deadline_s` seconds."""

    op_id: OpId
    deadline_s: Annotated[int, Meta(ge=0, le=24 * 3600)] = 60


class DeleteRequest(_Strict, frozen=True, kw_only=True):
    """Body of `DELETE /v1/onions/{id}`: the service and its key are gone for good."""

    op_id: OpId


class ExportRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/onions/{id}/export`."""

    op_id: OpId


class AddClientRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/onions/{id}/clients`."""

    op_id: OpId
    client: Client


class RemoveClientRequest(_Strict, frozen=True, kw_only=True):
    """Body of `DELETE /v1/onions/{id}/clients/{name}`."""

    op_id: OpId


class Previous(msgspec.Struct, frozen=True, kw_only=True):
    """The address before the last rotation. until: RFC 3339, when it stops being served."""

    onion: str
    until: str
    ready: bool


class Socks(msgspec.Struct, frozen=True, kw_only=True):
    """The app's own way out: circuits used under this name and password are shared with nobody."""

    host: str
    port: int
    username: str
    password: str


class OnionView(msgspec.Struct, frozen=True, kw_only=True):
    """An onion as its owner sees it.

    ready: directories have its descriptor, so that whoever looks for it finds it. reason: why not. bringup_ms: from
    ADD_ONION to the first directory; None for one that was found published. uploads: directories that have it.
    circuits: visitors' circuits that are open. created_at: RFC 3339.
    """

    id: str
    app: str
    onion: str
    state: State
    ready: bool
    ports: tuple[Port, ...]
    persistence: Persistence
    isolation: Isolation
    clients: tuple[Client, ...]
    created_at: str
    hints: Hints = Hints()
    limits: Limits = Limits()
    pow: Pow | None = None
    previous: Previous | None = None
    reason: str | None = None
    bringup_ms: float | None = None
    uploads: int = 0
    circuits: int = 0
    socks: Socks | None = None


class ListAnswer(msgspec.Struct, frozen=True):
    """Body of `GET /v1/onions`."""

    onions: tuple[OnionView, ...]


class DeleteAnswer(msgspec.Struct, frozen=True):
    """Answer of `DELETE /v1/onions/{id}`."""

    id: str
    deleted: bool = True


class ExportAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of `POST /v1/onions/{id}/export`. key: tor's blob; whoever has it *is* the onion."""

    id: str
    onion: str
    key: str
