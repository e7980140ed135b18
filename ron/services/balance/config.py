"""The `[balance]` section."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ron.proto.balance import MAX_SERVICES, Mode, NodeName, ServiceName, Where
from ron.services.sections import LIVE, PathText

ClientKey = Annotated[str, Meta(pattern=r"^[A-Z2-7]{52}\Z")]
Ports = Annotated[tuple[Annotated[str, Meta(max_length=300)], ...], Meta(min_length=1, max_length=16)]


class BalancedService(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One master address. ports: `80:127.0.0.1:8080` or `80:unix:/run/app.sock`, or `80:<onion>:80` through our tor;
    what *this* node's head forwards to. clients: x25519 public keys (base32) of those who may visit; none: everybody.

    mode: `shared` gives the key to every approved node, in memory; `threshold` gives each of `members` nodes a share,
    any `threshold` of which sign. Mode, threshold and members count where the address is made.
    """

    name: ServiceName
    ports: Ports
    mode: Mode = "shared"
    threshold: Annotated[int, Meta(ge=2, le=16)] = 2
    members: Annotated[int, Meta(ge=2, le=16)] = 3
    clients: Annotated[tuple[ClientKey, ...], Meta(max_length=256, extra=LIVE)] = ()


class BalanceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One node of a RustBalance cluster. enabled: have a ron-node be one, too; ron-balance always is.

    node: its name, as in its certificate. listen: where the mesh listens, `host:port`. advertise: where others reach
    it, an address of the network between the nodes (WireGuard, a LAN) or an onion; left out, `listen`. seeds: any
    other nodes' addresses. socks: a SOCKS port for peers whose address is an onion.
    directory: certificate, token and book, relative to the home. control: the operators' Unix socket.
    approval: who gets a key or share: nodes an `operator` approved, each time they start; or any with the `token`.
    remove_by: so many members have to ask for a node's removal before it counts, the same on all nodes; with 1 a node
    in wrong hands can throw out all others, with 2 or more no single one can.
    allow_unlocked: go on, degraded, where the system does not lock keys into memory; else that is refused.
    beat_ms, suspect_ms: how often nodes are heard, and when one that is not is taken for dead.
    publish_every_s: a descriptor is at most so old. drift_s: a node whose clock is off by more does not lead.
    silence_s: a link on which nothing is heard for so long is cut; longer where peers are onions. At least 2 s, for a
    link is tried once a second.
    siege_introductions_per_s: from there on a head is under siege; 0 is never. quiet_s: when it comes back.
    ghost_grace_s: a head that left the descriptor takes visitors for so long, who may have read the old one.
    roulette_s, roulette_for_s: the roulette's pace, and when it ends by itself.
    canary_s: how often this node visits the address as a client; 0 is never. vanguards: heads share their guards.
    """

    enabled: bool = False
    node: NodeName = "node"
    listen: Where = "127.0.0.1:9470"
    advertise: Annotated[str, Meta(max_length=256, pattern=r"^([^\x00-\x20]+:[0-9]{1,5})?\Z")] = ""
    seeds: Annotated[tuple[Where, ...], Meta(max_length=64)] = ()
    socks: Annotated[str, Meta(pattern=r"^(127\.0\.0\.1:[0-9]{1,5})?\Z")] = ""
    directory: PathText = "balance"
    control: Annotated[str, Meta(max_length=90, pattern=r"^[A-Za-z0-9_./-]*\Z")] = ""
    approval: Literal["operator", "token"] = "operator"
    remove_by: Annotated[int, Meta(ge=1, le=16)] = 1
    allow_unlocked: bool = False
    beat_ms: Annotated[int, Meta(ge=50, le=60_000, extra={"unit": "ms"})] = 500
    suspect_ms: Annotated[int, Meta(ge=200, le=600_000, extra={"unit": "ms"})] = 2500
    silence_s: Annotated[float, Meta(ge=2, le=600, extra={"unit": "s"})] = 3.0
    publish_every_s: Annotated[int, Meta(ge=10, le=7200, extra={"unit": "s"})] = 600
    drift_s: Annotated[float, Meta(ge=0.1, le=3600, extra={"unit": "s"})] = 30.0
    siege_introductions_per_s: Annotated[float, Meta(ge=0, le=1e6)] = 30.0
    quiet_s: Annotated[int, Meta(ge=1, le=86_400, extra={"unit": "s"})] = 120
    ghost_grace_s: Annotated[int, Meta(ge=0, le=3600, extra={"unit": "s", **LIVE})] = 10
    roulette_s: Annotated[int, Meta(ge=10, le=86_400, extra={"unit": "s"})] = 600
    roulette_for_s: Annotated[int, Meta(ge=10, le=604_800, extra={"unit": "s", **LIVE})] = 7200
    canary_s: Annotated[int, Meta(ge=0, le=86_400, extra={"unit": "s", **LIVE})] = 60
    vanguards: bool = False
    services: Annotated[tuple[BalancedService, ...], Meta(max_length=MAX_SERVICES)] = ()
