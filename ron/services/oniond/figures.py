"""What is counted of each app's onions, and how the registry of metrics shows it. No address is ever in it.

In: sums of each app, the circuits that are open. Out: metric families; `OnionEvent`, which the events are made of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from ron.services.oniond.circuitbook import Circuit

# Labels that no app can have: circuits that are tor's own business, and onions that nobody told us of or too many.
TOR, OTHER = "_tor", "_other"

EventKind = Literal["descriptor", "circuit", "introduction", "rendezvous", "tor_down"]


class OnionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to an app's onion. seq grows by one. at: Unix seconds. detail: no address, ever."""

    seq: int
    kind: EventKind
    app: str
    at: float
    detail: dict[str, str] = {}


class AppFigures(msgspec.Struct, kw_only=True):
    """Sums of one app since we know it. circuits: by (purpose, what happened). bytes_in: from its visitors."""

    uploads_ok: int = 0
    uploads_failed: int = 0
    introductions: int = 0
    rendezvous: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    circuits: dict[tuple[str, str], int] = {}


def sums(apps: Mapping[str, AppFigures]) -> Iterator[Metric]:
    """What has been counted so far, by app."""
    circuits = CounterMetricFamily(
        "onion_circuits", "Circuits by purpose and what became of them", labels=["app", "purpose", "event"]
    )
    uploads = CounterMetricFamily("onion_descriptor_uploads", "Descriptor uploads", labels=["app", "result"])
    intros = CounterMetricFamily("onion_intro", "Introductions of clients", labels=["app"])
    rends = CounterMetricFamily("onion_rendezvous", "Rendezvous that came about", labels=["app"])
    moved = CounterMetricFamily("onion_bytes", "Bytes between visitors and apps", labels=["app", "direction"])
    for app, figures in apps.items():
        for (purpose, event), count in figures.circuits.items():
            circuits.add_metric([app, purpose, event], count)
        if app == TOR:
            continue
        uploads.add_metric([app, "ok"], figures.uploads_ok)
        uploads.add_metric([app, "failed"], figures.uploads_failed)
        intros.add_metric([app], figures.introductions)
        rends.add_metric([app], figures.rendezvous)
        moved.add_metric([app, "in"], figures.bytes_in)
        moved.add_metric([app, "out"], figures.bytes_out)
    yield from (circuits, uploads, intros, rends, moved)


def gauges(apps: Mapping[str, AppFigures], there: Iterable[Circuit], efforts: Mapping[str, int]) -> Iterator[Metric]:
    """What is there now. there: the open circuits of all tors. efforts: of proof of work, by app."""
    open_now: dict[tuple[str, str], int] = {}
    points = dict.fromkeys((app for app in apps if app != TOR), 0)
    for circuit in there:
        app = circuit.app if circuit.app in apps else OTHER
        if circuit.built:
            open_now[app, circuit.purpose] = open_now.get((app, circuit.purpose), 0) + 1
        if circuit.purpose == "intro" and circuit.state == "HSSI_ESTABLISHED" and app in points:
            points[app] += 1
    circuits = GaugeMetricFamily("onion_circuits_open", "Circuits that are open", labels=["app", "purpose"])
    for (app, purpose), count in open_now.items():
        circuits.add_metric([app, purpose], count)
    established = GaugeMetricFamily("onion_intro_points", "Introduction points that work", labels=["app"])
    for app, count in points.items():
        established.add_metric([app], count)
    effort = GaugeMetricFamily("onion_pow_effort", "Proof of work asked of visitors (proposal 327)", labels=["app"])
    for app, value in efforts.items():
        effort.add_metric([app if app in apps else OTHER], value)
    yield from (circuits, established, effort)
