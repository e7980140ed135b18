"""The edge of a listener for processes of our own.

In: the process's `Edge`. Out: one without limits for each peer: a gateway is one peer and speaks for all its callers,
who were counted and limited where they came in.
"""

from __future__ import annotations

import msgspec

from ron.kernel.units import KIB
from ron.web import Edge

# What the config allows at most.
MOST = 1_000_000


def inner_edge(edge: Edge) -> Edge:
    """`edge` for a Unix socket between our processes; what one answer or body may be stays as it was."""
    limits = msgspec.structs.replace(
        edge.limits,
        connections_per_peer=MOST,
        streams_per_peer=MOST,
        requests_per_second_per_peer=MOST,
        bytes_per_second_per_peer=MOST * KIB,
        concurrency=MOST,
    )
    inner = Edge(
        authority=edge.authority, metrics=edge.metrics, reactor=edge.reactor, limits=limits, tracer=edge.tracer
    )
    inner.traffic = edge.traffic
    return inner
