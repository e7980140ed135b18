"""How a network over several hosts stands, seen from here: what was found out, and what to make of it. Pure.

In: the manifest; per node, which ports answered; per authority, its consensus and certificate. Out: a `Report`.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from ron.proto.errors import bad_request
from ron.tor.hostnet.plan import Manifest, Node

_TIMES = re.compile(r"^(valid-after|fresh-until|valid-until) (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)$", re.MULTILINE)
_ROUTER = re.compile(r"^r \S+ ([A-Za-z0-9+/]{27}) ", re.MULTILINE)
_SIGNATURE = re.compile(r"^directory-signature (?:\S+ )?([0-9A-F]{40}) [0-9A-F]{40}$", re.MULTILINE)


class Consensus(NamedTuple):
    """A consensus (dir-spec §3.4.1): its times (UTC), its relays and the authorities that signed it (40 hex each)."""

    valid_after: datetime
    fresh_until: datetime
    valid_until: datetime
    relays: frozenset[str]
    signers: frozenset[str]


class Seen(NamedTuple):
    """What was found out about a node. certificate_expires, consensus: of an authority that answered."""

    or_port: bool
    dir_port: bool | None = None
    certificate_expires: datetime | None = None
    consensus: Consensus | None = None


class NodeReport(msgspec.Struct, frozen=True, kw_only=True):
    """A node. or_port_open, dir_port_open: TLS, HTTP were answered. listed: the newest consensus has it as running.

    signed: the authority signed that consensus. certificate_days_left: begun days, negative once over.
    """

    name: str
    role: str
    address: str
    or_port: int
    or_port_open: bool
    listed: bool
    region: str | None = None
    dir_port: int | None = None
    dir_port_open: bool | None = None
    signed: bool | None = None
    certificate_expires: datetime | None = None
    certificate_days_left: int | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The network. whole: a consensus in force lists every node. problems: sentences; none when all is well."""

    network_id: str
    generation: int
    whole: bool
    consensus_valid_after: datetime | None
    consensus_valid_until: datetime | None
    nodes: tuple[NodeReport, ...]
    problems: tuple[str, ...]


def read_consensus(text: str) -> Consensus:
    """The consensus in `text`. Raises BadRequest when it is none."""
    times = {name: datetime.strptime(at, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC) for name, at in _TIMES.findall(text)}
    if len(times) != len(("valid-after", "fresh-until", "valid-until")):
        raise bad_request("that is no consensus")
    return Consensus(
        times["valid-after"],
        times["fresh-until"],
        times["valid-until"],
        frozenset(_hex(identity) for identity in _ROUTER.findall(text)),
        frozenset(_SIGNATURE.findall(text)),
    )


def judge(manifest: Manifest, seen: Mapping[str, Seen], now: datetime, before: timedelta) -> Report:
    """What to make of `seen` at `now`. before: how long ahead an ending certificate is a problem."""
    every = [each.consensus for each in seen.values() if each.consensus is not None]
    newest = max(every, key=lambda each: each.valid_after, default=None)
    if newest is not None and newest.valid_until < now:
        newest = None
    nodes = tuple(_node(node, seen[node.name], newest, now) for node in manifest.nodes)
    return Report(
        network_id=manifest.network_id,
        generation=manifest.generation,
        whole=newest is not None and all(node.listed for node in nodes),
        consensus_valid_after=newest.valid_after if newest else None,
        consensus_valid_until=newest.valid_until if newest else None,
        nodes=nodes,
        problems=(*_agreement(manifest, newest, now), *(p for node in nodes for p in _problems(node, newest, before))),
    )


def _node(node: Node, seen: Seen, newest: Consensus | None, now: datetime) -> NodeReport:
    expires = seen.certificate_expires or node.certificate_expires
    days = (expires - now) / timedelta(days=1) if expires is not None else None
    return NodeReport(
        name=node.name,
        role=node.role,
        address=node.address,
        or_port=node.or_port,
        or_port_open=seen.or_port,
        listed=newest is not None and node.fingerprint in newest.relays,
        region=node.region,
        dir_port=node.dir_port,
        dir_port_open=seen.dir_port,
        signed=newest is not None and node.v3ident in newest.signers if node.role == "authority" else None,
        certificate_expires=expires,
        certificate_days_left=None if days is None else math.ceil(days) if days > 0 else math.floor(days),
    )


def _agreement(manifest: Manifest, newest: Consensus | None, now: datetime) -> list[str]:
    if newest is None:
        return ["no authority has a consensus that is in force: fewer than half of them vote, or none has yet"]
    late = now - newest.fresh_until
    if late > timedelta(seconds=manifest.voting_interval_s):
        return [f"the authorities have agreed on nothing new for {late.total_seconds():.0f} s longer than they should"]
    return []


def _problems(node: NodeReport, newest: Consensus | None, before: timedelta) -> list[str]:
    found = []
    if not node.or_port_open:
        found.append(f"{node.name}: nothing answers at {node.address}:{node.or_port}")
    if node.dir_port_open is False:
        found.append(f"{node.name}: nothing answers at {node.address}:{node.dir_port}")
    if newest is not None and not node.listed:
        found.append(f"{node.name}: the consensus does not list it")
    if newest is not None and node.signed is False:
        found.append(f"{node.name}: it did not sign the consensus")
    left = node.certificate_days_left
    if left is not None and left <= before / timedelta(days=1):
        ends = f"its certificate ends in {left} days" if left > 0 else "its certificate has ended"
        found.append(f"{node.name}: {ends}; fix: ronctl tornet rotate-certs --authority {node.name}")
    return found


def _hex(identity: str) -> str:
    try:
        return base64.b64decode(identity + "=").hex().upper()
    except binascii.Error:  # pragma: no cover - the pattern admits base64 alone
        return ""
