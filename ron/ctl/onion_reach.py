"""Which onion of the runtime `ronctl onion` is about, and waiting until others can find it.

In: --control, --cap, an ID as people write it. Out: what the runtime answers; `RonError` telling what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ron.ctl.console import StageConsole
from ron.ctl.control import ControlApi
from ron.proto.errors import ErrorCode, RonError, conflict, not_found
from ron.proto.ids import is_uuid

if TYPE_CHECKING:
    from ron.proto.onions import OnionView
    from ron.sdk.onions import Onions

T = TypeVar("T")
ONIOND = ControlApi(
    what="the onion runtime",
    socket="run/oniond.sock",
    system=Path("/run/ron/oniond.sock"),
    start="make run, or twistd -n ron-oniond --config etc/oniond.toml",
    sdk="ron.sdk.onions",
    at="oniond_at",
)
reach = ONIOND.reach
place = ONIOND.place
# A prefix of an id shorter than that is a slip of the hand rather than a name.
MIN_PREFIX = 4
SLICE_S = 1.0

wait_option = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 600),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until it can be found; 0 is not at all. Exit code 6 when it takes longer.",
)


def ask(control: str | None, cap: str | None, work: Callable[[Any, Onions], Awaitable[T]]) -> T:
    """What `work(reactor, onions)` gives, at the runtime that is meant. Raises `RonError`; Unreachable without one."""
    from ron.sdk.onions import Onions

    return ONIOND.ask(control, cap, lambda reactor, api: work(reactor, Onions(api)))


# Which onion


async def find(onions: Onions, text: str) -> OnionView:
    """The onion that `text` means; see `pick`."""
    return pick(await onions.list(), text)


async def find_id(onions: Onions, text: str) -> str:
    """Its id. A whole id is taken as it is, so that a capability without onion:read will do."""
    return text.lower() if is_uuid(text) else (await find(onions, text)).id


def pick(onions: Sequence[OnionView], text: str) -> OnionView:
    """The one that `text` means: its id, its address, its app when that has just one, or the beginning of its id.

    Raises `RonError`: NotFound for none, Conflict for several, which it names.
    """
    name = text.strip().lower()
    address = name if name.endswith(".onion") else f"{name}.onion"
    exact = [one for one in onions if one.id == name or address in _addresses(one)]
    of_app = [one for one in onions if one.app == name]
    beginning = [one for one in onions if len(name) >= MIN_PREFIX and one.id.startswith(name)]
    found = exact or of_app or beginning
    if not found:
        raise not_found(f"there is no onion {text[:80]!r} that this capability lets us see")
    if len(found) > 1:
        several = ", ".join(sorted(one.id for one in found)[:5])
        raise conflict(f"{text[:80]!r} means {len(found)} onions", hint=f"give an id: {several}")
    return found[0]


def _addresses(view: OnionView) -> tuple[str, ...]:
    return (view.onion,) if view.previous is None else (view.onion, view.previous.onion)


# Waiting


async def until_ready(
    reactor: Any, what: str, wait_s: float, act: Callable[[float], Awaitable[OnionView]]
) -> OnionView:
    """What `act` answers once others can find the onion, or as it stands after `wait_s` seconds; shown on stderr.

    act: given so many seconds for the answer; it is called again and again, and must be one act under one op_id.
    """
    if wait_s <= 0:
        return await act(0.0)
    ends_s = reactor.seconds() + wait_s
    with StageConsole(sys.stderr) as console:
        console.show("onion", 0, 2, what)
        view = await act(0.0)
        while not _settled(view) and (left_s := ends_s - reactor.seconds()) > 0:
            console.show("onion", 1, 2, f"{view.onion}: {view.reason}")
            view = await act(min(SLICE_S, left_s))
        if view.ready:
            console.show("onion", 2, 2, f"{view.onion}: {_published(view)}")
    return view


def check_ready(view: OnionView, wait_s: float) -> None:
    """Raises Timeout for an onion that was waited for in vain."""
    if wait_s > 0 and not view.ready:
        reason = view.reason or "its descriptor is not published yet"
        raise RonError(
            ErrorCode.TIMEOUT,
            f"the onion {view.onion} is there, and cannot be found yet: {reason}",
            hint=f"ronctl onion status {view.id}",
        )


def _settled(view: OnionView) -> bool:
    return view.ready or view.state != "active"


def _published(view: OnionView) -> str:
    return f"published to {view.uploads} directories" if view.uploads else "published"
