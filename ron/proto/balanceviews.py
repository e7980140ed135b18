"""RustBalance on the operator's side: what is asked of a node over its control socket, and what it shows.

In: JSON bodies of `/v1/balance`. Out: strict structs for the service, the SDK and `ronctl` alike. Requests are refused
with a field nobody knows; answers may grow. Times are RFC 3339, ages and durations seconds by this node's clock.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from ron.proto.balance import MAX_NODES, HeadMode, Mode, NodeName, ServiceName, Where
from ron.proto.onions import OpId

MAX_MEMBERS = 16
MAX_FOR_S = 7 * 24 * 3600
BUNDLE_CHARS = 64 * 1024
# Shown before anybody turns it on, and in the answer.
ROULETTE_WARNING = (
    "the roulette takes about half of the heads out of the descriptor each turn: visitors who hold an older one meet "
    "heads that let nobody in, and wait until their tor asks for a new one. It is for an attack that outgrows the "
    "cluster, and ends by itself."
)

ForS = Annotated[int, Meta(ge=1, le=MAX_FOR_S, description="Seconds; then it ends by itself.")]
Signers = Annotated[int, Meta(ge=2, le=MAX_MEMBERS)]
Names = Annotated[tuple[NodeName, ...], Meta(max_length=MAX_NODES)]
# 64 bytes as base64: 32 of clamped scalar, 32 of prefix (RFC 8032 §5.1.5), as tor keeps them
ExpandedKey = Annotated[str, Meta(pattern=r"^[A-Za-z0-9+/]{86}==\Z")]
# alive: heard. suspect: not heard for too long for a vote, not long enough to be dead. removed: by an operator.
MemberState = Literal["alive", "suspect", "dead", "removed"]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class _Shown(msgspec.Struct, frozen=True, kw_only=True):
    pass


# Asked


class PromoteRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/balance/promote`. node: leads from now on if it can, for `for_s` or until another order; None
    ends the order, and the longest uptime counts again."""

    node: NodeName | None
    for_s: ForS | None = None


class SiegeRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/balance/siege`: the head of `node` is taken for attacked, or, with `on` false, is not, whatever
    it measures. Without `for_s` until another order."""

    node: NodeName
    on: bool
    for_s: ForS | None = None


class RouletteRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/balance/roulette`. for_s: None is as the config says (`roulette_for_s`)."""

    on: bool
    for_s: ForS | None = None


class RefreshRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/balance/refresh`: new shares of the same key, among those who have one."""

    op_id: OpId
    service: ServiceName


class ReshareRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/balance/reshare`. threshold: None keeps it. add, remove: members that get, or lose, a share."""

    op_id: OpId
    service: ServiceName
    threshold: Signers | None = None
    add: Names = ()
    remove: Names = ()


class LeaveRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/balance/leave`: this node leaves the cluster for good."""


class ApproveRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/balance/members/{name}/approve`: it may have key or share, in the run that it is in now."""


class RemoveRequest(_Strict, frozen=True, kw_only=True):
    """Body of `DELETE /v1/balance/members/{name}`."""


class TokenRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/balance/token/rotate`."""

    op_id: OpId


class InvitationRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/balance/invitations`. addresses: where the new node is reached, for its certificate too."""

    op_id: OpId
    name: NodeName
    addresses: Annotated[tuple[Where, ...], Meta(max_length=16)] = ()


class NewServiceRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/balance/services`. threshold of members: in mode `threshold` only. among: the nodes that get
    a share, as many as `members`; empty is whoever is approved and alive. key: the 64 bytes of an address that exists,
    base64; None makes a new address. Its repr keeps the key."""

    op_id: OpId
    name: ServiceName
    mode: Mode = "shared"
    threshold: Signers | None = None
    members: Signers | None = None
    among: Annotated[tuple[NodeName, ...], Meta(max_length=MAX_MEMBERS)] = ()
    key: ExpandedKey | None = None

    def __repr__(self) -> str:
        """Without the key."""
        return f"NewServiceRequest({self.name!r}, {self.mode!r}, key={'kept back' if self.key else None})"


class PublishRequest(_Strict, frozen=True, kw_only=True):
    """Body of `POST /v1/balance/publish`. service: None is all of them."""

    service: ServiceName | None = None


# Shown


class HeadView(_Shown, frozen=True, kw_only=True):
    """A node's own tor and throw-away onion. introductions_per_s: of the last seconds. sessions: visitors' circuits.
    attacks: introductions while it was a ghost, since the node started."""

    mode: HeadMode
    onion: str
    healthy: bool
    under_siege: bool
    introductions_per_s: float
    sessions: int
    attacks: int


class MemberView(_Shown, frozen=True, kw_only=True):
    """A node as the asked one sees it.

    why: of its state. uptime_s, drift_s (its clock minus ours): None while unknown. unfit: why it cannot lead, empty
    when it can. hears: whom it says it hears. in_descriptor: the newest published descriptor of an address names it:
    visitors are sent there; published_in: of which addresses. planned_in: those whose next one is to name it, by this
    node's own view; out: why none is. holds: services of which it has key or share. approved: it may have them; else it
    waits for an operator, or asks for nothing.
    """

    name: str
    number: int
    addresses: tuple[str, ...]
    connected: bool
    state: MemberState
    why: str = ""
    uptime_s: float | None = None
    drift_s: float | None = None
    fit: bool = False
    unfit: str = ""
    leads: bool = False
    hears: tuple[str, ...] = ()
    head: HeadView | None = None
    in_descriptor: bool = False
    published_in: tuple[str, ...] = ()
    planned_in: tuple[str, ...] = ()
    out: str = ""
    holds: tuple[str, ...] = ()
    approved: bool = False
    waiting: bool = False


class LeaderView(_Shown, frozen=True, kw_only=True):
    """name: who publishes, None when nobody can. why: it is this one. lease_left_s: until others pass it over unless
    it publishes. promoted_until: end of an operator's order, where there is one. claims: all who say they lead."""

    name: str | None
    why: str
    lease_left_s: float | None = None
    promoted_until: str | None = None
    claims: tuple[str, ...] = ()


class PublicationView(_Shown, frozen=True, kw_only=True):
    """The descriptor of one time period. taken: directories that took it, of `directories`. missing: fingerprints of
    those that do not hold it by the last look, checked_s ago (None: nobody has looked)."""

    period: int
    revision: int
    by: str
    age_s: float
    heads: tuple[str, ...]
    taken: int
    directories: int
    missing: tuple[str, ...] = ()
    checked_s: float | None = None


class FailingView(_Shown, frozen=True, kw_only=True):
    """A head that cannot answer for a service. why: which target of its does not answer."""

    node: str
    why: str


class ServiceView(_Shown, frozen=True, kw_only=True):
    """A master address. threshold, members: t of n; 0 in mode `shared`. epoch: grows with each refresh and resharing.
    holders: connected nodes with key or share. suspects: nodes that signed wrongly. heads: those in the newest
    published descriptor; planned: those to be in the next. failing: heads left out of it because of a target;
    answering: how many heads are there whose targets answer. refusing: there are heads, and none of them.
    next_publish_s: None when another node leads. reachable: a canary of this node's came through; None while it has
    not tried."""

    name: str
    onion: str
    mode: Mode
    threshold: int = 0
    members: int = 0
    epoch: int = 0
    holders: tuple[str, ...] = ()
    suspects: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    planned: tuple[str, ...] = ()
    failing: tuple[FailingView, ...] = ()
    answering: int = 0
    refusing: bool = False
    publications: tuple[PublicationView, ...] = ()
    next_publish_s: float | None = None
    reachable: bool | None = None


class BalanceView(_Shown, frozen=True, kw_only=True):
    """Answer of `GET /v1/balance`: the cluster as `node` sees it. refused: why the cluster does not take this node,
    which sees itself alone then; empty: it does. roulette_until: None while it is off."""

    node: str
    cluster: str
    time: str
    leader: LeaderView
    members: tuple[MemberView, ...]
    services: tuple[ServiceView, ...]
    refused: str = ""
    roulette_until: str | None = None
    warnings: tuple[str, ...] = ()


class RouletteAnswer(_Shown, frozen=True, kw_only=True):
    """Answer of `POST /v1/balance/roulette`. warning: what it costs visitors; empty when it was turned off."""

    until: str | None
    warning: str


class GhostView(_Shown, frozen=True, kw_only=True):
    """A head that has left all descriptors. why: it had to; since_s: how long ago, as the asked node sees it, None for
    one that is a ghost by its own word alone. sessions: visitors it still has."""

    node: str
    since_s: float | None
    why: str
    sessions: int
    attacks: int
    introductions_per_s: float


class GhostsAnswer(_Shown, frozen=True, kw_only=True):
    """Answer of `GET /v1/balance/ghosts`."""

    ghosts: tuple[GhostView, ...]


class LeaveAnswer(_Shown, frozen=True, kw_only=True):
    """Answer of `POST /v1/balance/leave`."""

    node: str
    left: bool = True


class RemoveAnswer(_Shown, frozen=True, kw_only=True):
    """Answer of `DELETE /v1/balance/members/{name}`. removed: it is none any more; else `needed` members have to ask
    for it, and `asked_by` have."""

    name: str
    removed: bool = True
    asked_by: tuple[str, ...] = ()
    needed: int = 1


class TokenAnswer(_Shown, frozen=True, kw_only=True):
    """Answer of `POST /v1/balance/token/rotate`. version: grows by one. told: who has the new one; the others ask when
    they come back. The token itself leaves no node this way."""

    version: int
    told: tuple[str, ...]


class InvitationAnswer(_Shown, frozen=True, kw_only=True):
    """Answer of `POST /v1/balance/invitations`. bundle: text for `ronctl balance join`, a secret: certificate, key and
    cluster token. Its repr keeps it."""

    name: str
    bundle: Annotated[str, Meta(max_length=BUNDLE_CHARS)]

    def __repr__(self) -> str:
        """Without the bundle."""
        return f"InvitationAnswer({self.name!r}, bundle kept back)"


class PublishAnswer(_Shown, frozen=True, kw_only=True):
    """Answer of `POST /v1/balance/publish`. leader: who was asked to. services: what it is to publish."""

    leader: str
    services: tuple[str, ...]
