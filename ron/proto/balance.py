"""RustBalance's words: what nodes of one cluster tell one another, and what an operator is shown. Shapes only.

In: MessagePack over the mesh, JSON of the operator's API. Out: strict structs for the service, the SDK and `ronctl`.
Onions are `<56 characters>.onion`; ages and rates are the sender's own measure, so that clocks need not agree.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

MAX_NODES = 64
MAX_SERVICES = 16
DESCRIPTOR_CHARS = 50_000

# A node's name is the one in its certificate, `ron://node/<name>`.
NodeName = Annotated[str, Meta(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z")]
ServiceName = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,31}\Z")]
Onion = Annotated[str, Meta(pattern=r"^[a-z2-7]{56}\.onion\Z")]
Where = Annotated[str, Meta(min_length=3, max_length=256, pattern=r"^[^\x00-\x20]+:[0-9]{1,5}\Z")]
Said = Annotated[str, Meta(max_length=200)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Rate = Annotated[float, Meta(ge=0, le=1e9)]
Mode = Literal["shared", "threshold"]
# starting: no descriptor of its own yet. serving: visitors may come. ghost: out of the master's descriptor, keeps the
# visitors it has. down: its tor has gone.
HeadMode = Literal["starting", "serving", "ghost", "down"]


class _Shape(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Failing(_Shape, frozen=True, kw_only=True):
    """A service that a head cannot answer for now. target: which of its targets does not answer, and how."""

    service: ServiceName
    target: Said


class HeadReport(_Shape, frozen=True, kw_only=True):
    """How a node's head is. onion: its throw-away address, empty while it has none. descriptor: BLAKE3 (hex) of its own
    newest descriptor, which is sent when it changes and on request.

    healthy: its tor is there and all targets of all services answer. failing: the services of which one does not; with
    none named, a head that is not healthy fails for all. sessions: visitors' rendezvous circuits. attacks:
    introductions at a ghost since the node started.
    """

    mode: HeadMode = "starting"
    onion: Annotated[str, Meta(pattern=r"^([a-z2-7]{56}\.onion)?\Z")] = ""
    descriptor: Annotated[str, Meta(max_length=64)] = ""
    healthy: bool = False
    failing: Annotated[tuple[Failing, ...], Meta(max_length=MAX_SERVICES)] = ()
    under_siege: bool = False
    introductions_per_s: Rate = 0.0
    sessions: Count = 0
    attacks: Count = 0


class HeadDescriptor(_Shape, frozen=True, kw_only=True):
    """A head's own descriptor, as its tor wrote it."""

    onion: Onion
    text: Annotated[str, Meta(max_length=DESCRIPTOR_CHARS)]


class Published(_Shape, frozen=True, kw_only=True):
    """ "Told as "I published": a descriptor of `service` for one time period.

    revision: its counter, the highest where directories got different ones. heads: whose introduction points are in
    it. taken: directories that took it, of so many. ago_ms: how long ago.
    """

    service: ServiceName
    period: Count
    revision: Count
    heads: Annotated[tuple[NodeName, ...], Meta(max_length=MAX_NODES)] = ()
    taken: Count = 0
    directories: Count = 0
    ago_ms: Count = 0


class Beat(_Shape, frozen=True, kw_only=True):
    """What every node tells all others every beat.

    born_ms: when it started, Unix milliseconds by its own clock, the same in all beats of one run. fit: it could lead;
    else `unfit` says why not. leads: it believes it does. hears: whom it has heard within the suspicion time.
    published: its own newest publications. services: those it has key or share of.
    """

    born_ms: Count
    fit: bool = False
    unfit: Said = ""
    leads: bool = False
    head: HeadReport = HeadReport()
    hears: Annotated[tuple[NodeName, ...], Meta(max_length=MAX_NODES)] = ()
    published: Annotated[tuple[Published, ...], Meta(max_length=4 * MAX_SERVICES)] = ()
    services: Annotated[tuple[ServiceName, ...], Meta(max_length=MAX_SERVICES)] = ()
