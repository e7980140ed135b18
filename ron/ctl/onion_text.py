"""Onions, and the backends they can run on, as text for people; and the options that say what an onion is to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from ron.ctl.plain import plain_text
from ron.proto.errors import RonError, bad_request

if TYPE_CHECKING:
    from ron.proto.onions import Client, OnionView, Port, Pow
    from ron.tor.backends import BackendReport

_ID_CHARS = 8


def parse_ports(texts: Sequence[str]) -> tuple[Port, ...]:
    """`80:127.0.0.1:8080`, `80:8080` or `80:unix:/path` each. Raises `click.BadParameter`."""
    from ron.sdk.onions import checked_port

    ports = []
    for text in texts:
        number, _, local = text.partition(":")
        try:
            ports.append(checked_port(int(number), f"127.0.0.1:{local}" if local.isdigit() else local))
        except (RonError, ValueError):
            raise click.BadParameter(
                f"{text!r} is not ONION_PORT:127.0.0.1:PORT, ONION_PORT:PORT or ONION_PORT:unix:/path",
                param_hint="--port",
            ) from None
    return tuple(ports)


def parse_clients(texts: Sequence[str]) -> tuple[Client, ...]:
    """`NAME=PUBKEY` each. Raises `RonError` (BadRequest)."""
    return tuple(parse_client(*text.partition("=")[::2]) for text in texts)


def parse_client(name: str, public_key: str) -> Client:
    """public_key: 52 characters of base32, or the whole line. Raises `RonError` (BadRequest)."""
    from ron.proto.onions import Client
    from ron.tor.clientauth import parse_public

    if not name or not public_key:
        raise bad_request("a client is NAME=PUBKEY", "make a key: ronctl onion client new-key")
    return Client(name=name, public_key=parse_public(public_key.strip()).base32)


def parse_pow(wanted: bool, rate: int | None, burst: int | None) -> Pow | None:
    """As --pow, --pow-rate and --pow-burst say. Raises `click.UsageError`."""
    from ron.proto.onions import Pow

    if not wanted and (rate is not None or burst is not None):
        raise click.UsageError("--pow-rate and --pow-burst need --pow")
    if not wanted:
        return None
    rate = Pow().queue_rate if rate is None else rate
    return Pow(queue_rate=rate, queue_burst=max(rate, Pow().queue_burst) if burst is None else burst)


def table(onions: Sequence[OnionView]) -> str:
    """One line an onion under a heading, by app and age; ids as short as they can be given."""
    ordered = sorted(onions, key=lambda one: (one.app, one.created_at, one.id))
    chars = _distinct([one.id for one in ordered])
    rows = [("id", "app", "state", "ports", "onion")]
    rows += [(one.id[:chars], one.app, standing(one), _ports(one), one.onion) for one in ordered]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*map(str.ljust, row[:4], widths), row[4]]).rstrip() for row in rows)


def standing(view: OnionView) -> str:
    """One word or two."""
    if view.state != "active":
        return view.state
    return "ready" if view.ready else "not ready"


def details(view: OnionView) -> str:
    """All of it."""
    rows = [("onion", view.onion), ("state", _state(view)), ("id", view.id)]
    rows += [("app", f"{view.app}, {view.persistence}, tor {view.isolation}, made {view.created_at}")]
    rows += [("port", f"{port.onion_port} → {port.local}") for port in view.ports]
    if view.previous is not None:
        state = "ready" if view.previous.ready else "not ready"
        rows += [("old", f"{view.previous.onion} until {view.previous.until} ({state})")]
    rows += [("client", f"{client.name}  {client.public_key}") for client in view.clients]
    if view.pow is not None and view.pow.enabled:
        rows += [("pow", f"{view.pow.queue_rate} requests a second, {view.pow.queue_burst} at once")]
    if view.limits.streams:
        rows += [("limit", f"{view.limits.streams} connections a visitor")]
    if view.hints.regions:
        rows += [("region", ", ".join(view.hints.regions))]
    rows += [("visitors", f"{view.circuits} circuits")]
    if view.socks is not None:
        rows += [("way out", f"SOCKS {view.socks.host}:{view.socks.port}, {view.socks.username}:{view.socks.password}")]
    return "\n".join(f"{name:<8}  {value}" for name, value in rows)


def summary(view: OnionView) -> str:
    """One line beside the address."""
    return f"{view.id}: {view.app}, {standing(view)}, {_ports(view)}"


def backends_text(reports: Sequence[BackendReport]) -> str:
    """What each can do, and why it cannot."""
    blocks = []
    for report in reports:
        # one that is there and can do nothing for us is of no more use than one that is not
        state = "can be used" if report.available and report.capabilities else "cannot be used"
        rows = [f"{report.name}  {report.version or '-'}  {plain_text(report.path or '-')}  {state}"]
        rows += [f"  yes  {capability}" for capability in sorted(report.capabilities)]
        rows += [f"  no   {gap.capability:<18}  {plain_text(gap.why)}" for gap in report.gaps]
        rows += [f"  !    {advice}" for advice in report.advice]
        blocks.append("\n".join(rows))
    return "\n".join(blocks)


def _state(view: OnionView) -> str:
    if not view.ready:
        return f"{standing(view)}: {plain_text(view.reason)}" if view.reason else standing(view)
    took = f" after {view.bringup_ms / 1000:.1f} s" if view.bringup_ms is not None else ""
    return f"ready{took}" + (f", {view.uploads} directories have its descriptor" if view.uploads else "")


def _ports(view: OnionView) -> str:
    return ",".join(f"{port.onion_port}:{port.local.removeprefix('127.0.0.1:')}" for port in view.ports)


def _distinct(ids: Sequence[str]) -> int:
    chars = _ID_CHARS
    while len({one[:chars] for one in ids}) < len(set(ids)):
        chars += 1
    return chars
