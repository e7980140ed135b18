"""What workers have counted, beside what the owner has: sums that do not go back when a worker dies. Pure.

In: families of metrics. Out: those of them that mean something when they are added up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ron.kernel.metrics import Family, Sample

# Gauges that are amounts of each process. The owner tells the others by itself.
_AMOUNTS = frozenset({"inflight_requests", "open_connections", "queue_depth"})
_LASTING = frozenset({"counter", "histogram"})
# The client library has these of each process; they keep its name as a label.
_PER_PROCESS = ("process_", "python_")


def shown(families: Iterable[Family]) -> list[Family]:
    """Of a living worker."""
    return [
        one for one in families if one.type in _LASTING or one.name in _AMOUNTS or one.name.startswith(_PER_PROCESS)
    ]


def left_behind(before: Sequence[Family], families: Iterable[Family]) -> list[Family]:
    """What workers that are gone have counted: `before`, and what the one that goes now was known to have."""
    sums = {one.name: one for one in before}
    for family in families:
        if family.type in _LASTING and not family.name.startswith(_PER_PROCESS):
            known = sums.get(family.name)
            sums[family.name] = family if known is None else _added(known, family)
    return list(sums.values())


def _added(known: Family, more: Family) -> Family:
    values: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
    for sample in (*known.samples, *more.samples):
        key = (sample.name, tuple(sorted(sample.labels.items())))
        held = values.get(key)
        values[key] = sample if held is None else Sample(sample.name, sample.labels, held.value + sample.value)
    return Family(name=known.name, type=known.type, help=known.help, samples=tuple(values.values()), merge=known.merge)
