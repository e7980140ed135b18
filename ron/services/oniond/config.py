"""The `[onion]` section."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

AppName = Annotated[str, msgspec.Meta(pattern="^[a-z0-9][a-z0-9-]{0,62}\\Z")]
OnionPeer = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x20]+\Z")]


class OnionConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How onions are made.

    backend: `binary-tor` is the only one yet. embedded: run the runtime inside this process. amnesia: keys only in
    memory, network state in a memory-backed folder that is wiped at exit. app: whose onion the node's own ports are
    exposed on.
    tor_binary: a program name or path; 0.4.8 or newer. federate_peers: onions of other nodes to peer with.
    """

    backend: Literal["binary-tor"] = "binary-tor"
    embedded: bool = True
    amnesia: bool = False
    app: AppName = "hello-map"
    tor_binary: str = "tor"
    federate_peers: Annotated[tuple[OnionPeer, ...], msgspec.Meta(max_length=1024)] = ()
