"""What this room needs of the outside: a tor that reaches directories, threads, and a place to count.

In: nothing. Out: protocols, which `Exchange` (ron.tor.descriptor) and `BoundedPool` (ron.kernel.threads) fulfil,
and the room's figures, registered once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, Protocol, TypeVar

from prometheus_client import Counter, Gauge, Histogram

from ron.kernel import Metrics
from ron.tor.descriptor.exchange import Posted
from ron.tor.descriptor.hashring import HsDir, Ring

P = ParamSpec("P")
T = TypeVar("T")
# from a siege signal to the first directory is to take at most 2 s, so the buckets are close there
_UPLOAD_BUCKETS_S = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0)
_VISIT_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)


class Threads(Protocol):
    """Where what blocks for milliseconds runs."""

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`function(*args)`. Raises what it raises, and `RonError` when there is no room for it."""
        ...


class Directories(Protocol):
    """The network's directories, as one tor reaches them. Each method raises `RonError` when tor does not answer."""

    async def consensus_time(self) -> str:
        """Another text whenever tor has another consensus."""
        ...

    async def on_consensus(self, arrived: Callable[[], None]) -> None:
        """Call `arrived` when it has."""
        ...

    async def ring(self, *, testing: bool) -> Ring:
        """What that consensus says."""
        ...

    async def fetch(self, onion: str, directory: HsDir | None = None) -> str:
        """What a directory has of the period that clients ask for. Raises `RonError`: NotFound, Timeout."""
        ...

    async def post(
        self, onion: str, dealt: Mapping[str, Sequence[HsDir]], taken: Callable[[str], None] = ...
    ) -> Posted:
        """Give texts to directories; `taken` hears of each that took one."""
        ...


class Figures:
    """What this room counts. Make one per process."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.refused = Counter(
            "balance_head_descriptors_refused_total", "Heads' descriptors not used", ["reason"], registry=registry
        )
        self.points_left_out = Gauge(
            "balance_intro_points_left_out", "Heads' introduction points not used now", ["reason"], registry=registry
        )
        self.heads_out = Gauge("balance_heads_unusable", "Heads not used now, by reason", ["reason"], registry=registry)
        self.descriptor_age = Gauge(
            "balance_head_descriptor_age_seconds",
            "Since a head last told or confirmed its descriptor",
            ["head"],
            registry=registry,
        )
        self.certifications = Counter(
            "balance_certifications_total", "Descriptor-signing keys asked for", ["result"], registry=registry
        )
        self.published = Counter(
            "balance_publications_total", "Descriptors published", ["service", "result"], registry=registry
        )
        self.upload = Histogram(
            "balance_upload_seconds",
            "From the order to publish until the first directory, or all, took it",
            ["service", "until"],
            buckets=_UPLOAD_BUCKETS_S,
            registry=registry,
        )
        self.holding = Gauge(
            "balance_directories_holding", "Directories that hold our descriptor", ["service"], registry=registry
        )
        self.repairs = Counter(
            "balance_repairs_total", "What was found when a directory was read back", ["found"], registry=registry
        )
        self.emergencies = Counter(
            "balance_republish_asked_total", "Republications asked for, by reason", ["reason"], registry=registry
        )
        self.available = Gauge(
            "balance_canary_available", "1 when the last visit as a client succeeded", ["service"], registry=registry
        )
        self.visits = Counter("balance_canary_visits_total", "Visits", ["service", "result"], registry=registry)
        self.visit_latency = Histogram(
            "balance_canary_seconds",
            "How long a visit through a fresh circuit took",
            ["service"],
            buckets=_VISIT_BUCKETS_S,
            registry=registry,
        )
        metrics.merge_rules["balance_canary_available"] = "min"
        metrics.merge_rules["balance_head_descriptor_age_seconds"] = "max"
