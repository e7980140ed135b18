"""How `ronctl onion` finds the onion runtime, and the onion that is meant, and waits until it can be found by others.

In: --control, --cap, an ID as people write it. Out: what the runtime answers; `RonError` telling what is missing.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ron.ctl.console import StageConsole
from ron.ctl.node import cap_option, connect, find_capability, home, json_option, run
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict, not_found
from ron.proto.exitcodes import Unreachable
from ron.proto.ids import is_uuid

if TYPE_CHECKING:
    from ron.proto.onions import OnionView
    from ron.sdk.client import Api
    from ron.sdk.onions import Onions

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
SOCKET = "run/oniond.sock"
SYSTEM_SOCKET = Path("/run/ron/oniond.sock")
# A prefix of an id shorter than that is a slip of the hand rather than a name.
MIN_PREFIX = 4
TRIES = 3
SLICE_S = 1.0

_CONTROL = click.option(
    "--control",
    metavar="ADDRESS",
    help=f"The runtime: unix:/path or http(s)://host:port.  [$RON_HOME/{SOCKET}, else {SYSTEM_SOCKET}]",
)
op_id_option = click.option(
    "--op-id", metavar="UUID", help="Makes it one act however often it is called within a day.  [a fresh one]"
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
wait_option = click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(0, 600),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait until it can be found; 0 is not at all. Exit code 6 when it takes longer.",
)


def reach(command: F) -> F:
    """The options of every command that asks the runtime: --control, --cap, --json."""
    return _CONTROL(cap_option(json_option(command)))


def ask(control: str | None, cap: str | None, work: Callable[[Any, Onions], Awaitable[T]]) -> T:
    """What `work(reactor, onions)` gives, at the runtime that is meant. Raises `RonError`; Unreachable without one."""
    from ron.sdk.onions import Onions

    where = place(control)

    async def whole(reactor: Any) -> T:
        try:
            return await work(reactor, Onions(_api(reactor, where, cap)))
        except Unreachable as error:
            if isinstance(where, Path):
                raise Unreachable(f"{where} is there, and nobody answers", hint="is the daemon running?") from error
            raise

    return run(whole)


def place(control: str | None) -> Path | str:
    """The Unix socket, or the URL, of the runtime. Raises `Unreachable` when there is none to be found."""
    if control is None:
        return _own_socket()
    scheme, _, rest = control.partition(":")
    if scheme == "unix" and rest.startswith("/"):
        path = Path(rest)
        if not _is_socket(path):
            raise Unreachable(f"there is no socket {path}", hint="start the onion runtime, or correct --control")
        return path
    if scheme in {"http", "https"}:
        return control
    raise bad_request(f"--control {control!r} is no address", "unix:/absolute/path, http://host:port or https://…")


def _own_socket() -> Path:
    candidates = [home() / SOCKET, SYSTEM_SOCKET]
    for path in candidates:
        if _is_socket(path):
            return path
    raise Unreachable(
        f"no onion runtime here: there is neither {candidates[0]} nor {candidates[1]}",
        hint="start one (make run, or twistd -n ron-oniond --config etc/oniond.toml), set RON_HOME to its home, "
        "or name it: --control unix:/path",
    )


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode) and _may_use(path)
    except PermissionError:
        raise _somebody_elses(path) from None
    except OSError:
        return False


def _may_use(path: Path) -> bool:
    if not os.access(path, os.R_OK | os.W_OK):
        raise _somebody_elses(path)
    return True


def _somebody_elses(path: Path) -> RonError:
    return Unreachable(f"{path} is another user's", hint="call ronctl as the user that the daemon runs as, or as root")


def _api(reactor: Any, where: Path | str, cap: str | None) -> Api:
    from ron.sdk.onions import DEADLINE_S, oniond_at

    if isinstance(where, str):
        return connect(reactor, where, cap, deadline_s=DEADLINE_S, tries=TRIES)
    capability = find_capability(cap)
    if capability is None:
        raise RonError(
            ErrorCode.NO_CAPABILITY,
            "no capability to show to the onion runtime",
            hint=f"--cap TOKEN|FILE or RON_CAP; admin.cap is in the daemon's RON_HOME (not in {home()})",
        )
    return oniond_at(reactor, where, capability, tries=TRIES)


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


def is_asked(yes: bool) -> bool:
    """Is there somebody to ask, who has not said yes already?"""
    return not yes and sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> None:
    """Go on, or abort."""
    click.confirm(question, abort=True, err=True)
