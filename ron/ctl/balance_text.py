"""A RustBalance cluster as text for people: who leads, who is in the descriptor, who hears whom, who holds what.

In: views. Out: lines, drawn with rich; nothing that another node said can move the cursor or be taken for markup.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ron.ctl.plain import plain_text

if TYPE_CHECKING:
    from ron.proto.balanceviews import BalanceView, GhostView, MemberView, PublicationView, ServiceView

_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_STATES = {"alive": "green", "suspect": "yellow", "dead": "red", "removed": "dim"}
# Of text that is for no terminal, and of a matrix.
_WIDTH, _MATRIX = 200, 24
# Columns that hold a reason, and may take several lines.
_LONG = frozenset({"holds", "heads", "directories", "why"})
_SHORT = 8
_OUT = {True: "leaves the descriptor", False: "is out of the descriptor"}


def drawn(view: BalanceView) -> RenderableType:
    """All of it, for a terminal."""
    parts: list[RenderableType] = [_heading(view)]
    parts += [Text(f"warning  {plain_text(one)}", style="yellow") for one in view.warnings]
    present = [member for member in view.members if member.state != "removed"]
    parts += [Text(), _nodes(view), *_reasons(view), Text(), _links(present)]
    for service in view.services:
        parts += [Text(), *_service(service)]
    return Group(*parts)


def text(view: BalanceView) -> str:
    """All of it as plain lines."""
    return plain(drawn(view))


def plain(what: RenderableType) -> str:
    """Without colours, and as wide as it is."""
    stream = io.StringIO()
    Console(file=stream, width=_WIDTH, color_system=None, force_terminal=False).print(what)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())


def ghosts_text(ghosts: Sequence[GhostView]) -> str:
    """One line a ghost under a heading."""
    table = _table("node", "since", "visitors", "attacks", "intros/s", "why")
    for one in ghosts:
        since = f"{span(one.since_s)} ago" if one.since_s is not None else "-"
        _row(table, one.node, since, one.sessions, one.attacks, f"{one.introductions_per_s:.1f}", one.why)
    return plain(table)


def service_line(service: ServiceView) -> str:
    """One line beside the address."""
    if service.mode == "shared":
        return f"{service.name}: shared, held by {_named(service.holders)}"
    kind = f"{service.threshold} of {service.members}, epoch {service.epoch}"
    return f"{service.name}: {kind}, held by {_named(service.holders)}"


def member_line(member: MemberView) -> str:
    """One line for what became of a member."""
    head = member.head.mode if member.head is not None else "no head"
    if member.in_descriptor:
        shown = f"in the descriptor, leaves it: {plain_text(member.out)}" if member.out else "in the descriptor"
    else:
        shown = f"out of the descriptor: {plain_text(member.out) or 'not published yet'}"
    may = "approved" if member.approved else "waiting for approval" if member.waiting else "not approved"
    return f"{member.name}: {member.state}, {head}, {shown}, {may}"


def span(seconds: float) -> str:
    """A duration as short as it can be said: 0.4 s, 42 s, 9 min, 3 h, 2 d."""
    for unit_s, unit in ((_DAY_S, "d"), (_HOUR_S, "h"), (_MINUTE_S, "min")):
        if abs(seconds) >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s" if abs(seconds) >= 10 else f"{seconds:.1f} s"


def _heading(view: BalanceView) -> Text:
    leader = view.leader
    lines = [f"cluster  {view.cluster[:_SHORT]}, as {plain_text(view.node)} sees it at {view.time}"]
    if view.refused:
        lines += [f"REFUSED  {plain_text(view.refused)}", "         it runs alone: all below is what it sees by itself"]
    if leader.name is None:
        lines += [f"leader   NOBODY: {plain_text(leader.why)}"]
    else:
        lease = f", lease {span(leader.lease_left_s)}" if leader.lease_left_s is not None else ""
        until = f", promoted until {leader.promoted_until}" if leader.promoted_until is not None else ""
        lines += [f"leader   {plain_text(leader.name)}: {plain_text(leader.why)}{lease}{until}"]
    if len(leader.claims) > 1:
        lines += [f"SPLIT    {_named(leader.claims)} all say they lead"]
    if view.roulette_until is not None:
        lines += [f"roulette on until {view.roulette_until}"]
    return Text("\n".join(lines))


def _nodes(view: BalanceView) -> Table:
    table = _table("", "node", "state", "head", "in desc.", "intros/s", "visitors", "attacks", "up", "drift", "holds")
    for member in view.members:
        head = member.head
        figures = ("-", "-", "-") if head is None else (f"{head.introductions_per_s:.1f}", head.sessions, head.attacks)
        _row(
            table,
            "*" if member.name == view.leader.name else "",
            member.name,
            Text(member.state, style=_STATES[member.state]),
            "-" if head is None else head.mode + (" under siege" if head.under_siege else ""),
            _listed(member, view),
            *figures,
            span(member.uptime_s) if member.uptime_s is not None else "-",
            f"{1000 * member.drift_s:+.0f} ms" if member.drift_s is not None else "-",
            _named(member.holds) if member.holds else "waits for approval" if member.waiting else "nothing",
        )
    return table


def _listed(member: MemberView, view: BalanceView) -> str:
    """Whether visitors are sent there now, by what is published; and what is to become of it, where that differs."""
    names = {service.name for service in view.services}
    now, soon = set(member.published_in) & names, set(member.planned_in) & names
    said = "no" if not now else "yes" if now == names else f"{len(now)} of {len(names)}"
    if now == soon:
        return said
    return f"{said}, {'joins' if now < soon else 'leaves' if soon < now else 'changes'}"


def _reasons(view: BalanceView) -> list[RenderableType]:
    """Why a node is not what it should be; below the table, which has no room for sentences."""
    lines = []
    for member in view.members:
        said = [(f"is {member.state}", member.why), (_OUT[member.in_descriptor], member.out)]
        said += [("cannot lead", member.unfit)]
        lines += [f"{member.name} {what}: {why}" for what, why in said if why]
    return [Text(plain_text(line)) for line in lines]


def _links(members: Sequence[MemberView]) -> RenderableType:
    """Who hears whom: a matrix, and for more nodes than a screen has room for what is missing."""
    heard = "who hears whom (+: the row's node hears the column's)"
    if len(members) > _MATRIX:
        deaf = [f"{one.name} does not hear {_named(gone)}" for one in members if (gone := _unheard(one, members))]
        return Text("\n".join(["who does not hear whom", *(deaf or ["everybody hears everybody"])]))
    table = _table("", "", *(str(place) for place in range(1, len(members) + 1)))
    for place, member in enumerate(members, 1):
        gone = _unheard(member, members)
        marks = ["." if one is member else "?" if _silent(member) else "+-"[one.name in gone] for one in members]
        _row(table, place, member.name, *marks)
    return Group(Text(heard), table)


def _unheard(member: MemberView, members: Sequence[MemberView]) -> list[str]:
    """Whom it says that it does not hear; what a dead one said last is old."""
    others = [one.name for one in members if one is not member]
    return [] if _silent(member) else [name for name in others if name not in member.hears]


def _silent(member: MemberView) -> bool:
    return member.state == "dead"


def _service(service: ServiceView) -> list[RenderableType]:
    lines = [f"service  {service_line(service)}", f"         {service.onion}"]
    if service.refusing:
        lines += ["         VISITORS ARE REFUSED: no head's target answers"]
    lines += [f"         {plain_text(one.node)} does not answer: {plain_text(one.why)}" for one in service.failing]
    if service.suspects:
        lines += [f"         SUSPECT, signed wrongly: {_named(service.suspects)}"]
    if service.reachable is not None:
        lines += [f"         {'a visit came through' if service.reachable else 'A VISIT DID NOT COME THROUGH'}"]
    if service.next_publish_s is not None:
        lines += [f"         next publication in {span(service.next_publish_s)} at the latest"]
    if not service.publications:
        return [Text("\n".join([*lines, "         NOT PUBLISHED"]))]
    table = _table("period", "last", "by", "revision", "heads", "directories")
    for one in service.publications:
        _row(table, one.period, f"{span(one.age_s)} ago", one.by, one.revision, _named(one.heads), _directories(one))
    return [Text("\n".join(lines)), table]


def _directories(one: PublicationView) -> str:
    said = f"{one.taken} of {one.directories}"
    if one.checked_s is None:
        return f"{said} took it"
    if one.missing:
        return f"{said} took it, not held by {', '.join(name[:_SHORT] for name in one.missing)}"
    return f"{said} took it, all hold it ({span(one.checked_s)} ago)"


def _named(names: Iterable[str]) -> str:
    return ", ".join(map(plain_text, names)) or "nobody"


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, show_edge=False)
    for heading in headings:
        table.add_column(heading, no_wrap=heading not in _LONG, overflow="fold")
    return table


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(cell if isinstance(cell, Text) else Text(plain_text(str(cell))) for cell in cells))
