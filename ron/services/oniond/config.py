"""The `[onion]` section."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ron.proto.onions import AppName, Isolation
from ron.services.sections import LIVE, AutoscaleConfig

# The app whose onion peers federate with.
FEDERATION_APP = "federation"
OnionPeer = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x20]+\Z")]

# Each takes 50 to 100 MiB; the fleet has room for some onions' own tors beside them.
MAX_TORS = 32
Fingerprint = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-F]{40}\Z")]
# `eu`, `eu-west`, `rack-7`
RelayLabel = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9]{1,16}(-[a-z0-9]{1,16}){0,3}\Z")]


class OnionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How onions are made.

    backend: `binary-tor`; `arti` is known, and refused for what it lacks (`ronctl onion backends`). embedded: run the
    runtime inside this process. amnesia: keys only in memory, network state in a memory-backed folder that is wiped at
    exit. app: whose onion the node's own ports are exposed on.
    network: `private` is one of our own on this host; `joined` one over several hosts, whose operator's lines stand in
    the file `client_torrc`; `public` the public Tor network, as a client and host of onions and nothing else.
    tor_binary: a program name or path; 0.4.8 or newer. federate_peers: onions to federate with at
    all times; others wait until somebody asks (`[federation]`).
    control: the Unix socket of the control API; left out, `run/oniond.sock` in the home.
    isolation: `shared` puts all onions on one tor, circuits apart; `process` gives each a tor of its own, unless its
    maker says otherwise.
    scale_min, scale_max: tors that share the onions, as many as `autoscale` finds necessary; see `docs/scaling.rst`.
    relay_labels: fingerprints of our own relays, and where each stands; what `hints.regions` of an onion are about.
    max_onions, max_per_app: so many that programs ask for; those of the config do not count.
    """

    backend: Literal["binary-tor", "arti"] = "binary-tor"
    network: Literal["private", "joined", "public"] = "private"
    client_torrc: Annotated[str, msgspec.Meta(max_length=4096)] = ""
    embedded: bool = True
    amnesia: bool = False
    app: AppName = "hello-map"
    tor_binary: str = "tor"
    isolation: Isolation = "shared"
    max_onions: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 1000
    control: Annotated[str, msgspec.Meta(max_length=90, pattern=r"^[A-Za-z0-9_./-]*\Z")] = ""
    max_per_app: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 64
    scale_min: Annotated[int, msgspec.Meta(ge=1, le=MAX_TORS, extra=LIVE)] = 1
    scale_max: Annotated[int, msgspec.Meta(ge=1, le=MAX_TORS, extra=LIVE)] = 1
    autoscale: AutoscaleConfig | None = None
    relay_labels: Annotated[dict[Fingerprint, RelayLabel], msgspec.Meta(max_length=256, extra=LIVE)] = {}
    federate_peers: Annotated[tuple[OnionPeer, ...], msgspec.Meta(max_length=1024)] = ()
