"""How `ronctl balance` finds the node it is about, and what its commands have in common.

In: --control, --cap. Out: what the node answers; `RonError` telling what is missing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ron.ctl import onion_reach
from ron.ctl.node import cap_option, connect, find_capability, home, json_option, run
from ron.kernel.units import parse_quantity
from ron.proto.errors import ErrorCode, RonError
from ron.proto.exitcodes import Unreachable

if TYPE_CHECKING:
    from ron.sdk.balance import Balance
    from ron.sdk.client import Api

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
SOCKET = "run/balance.sock"
SYSTEM_SOCKET = Path("/run/ron/balance.sock")
TRIES = 3

_CONTROL = click.option(
    "--control",
    metavar="ADDRESS",
    help=f"The node: unix:/path or http(s)://host:port.  [$RON_HOME/{SOCKET}, else {SYSTEM_SOCKET}]",
)
for_option = click.option("--for", "for_text", metavar="TIME", help="End it by itself after so long, e.g. 30m.")


def reach(command: F) -> F:
    """The options of every command that asks the node: --control, --cap, --json."""
    return _CONTROL(cap_option(json_option(command)))


def seconds(text: str | None) -> int | None:
    """What --for means. Raises `RonError` (BadRequest)."""
    return int(parse_quantity(text, "s")) if text is not None else None


def ask(control: str | None, cap: str | None, work: Callable[[Balance], Awaitable[T]]) -> T:
    """What `work(balance)` gives, at the node that is meant. Raises `RonError`; Unreachable without one."""
    return ask_for_long(control, cap, lambda _reactor, balance: work(balance))


def ask_for_long(control: str | None, cap: str | None, work: Callable[[Any, Balance], Awaitable[T]]) -> T:
    """The same for work that needs the reactor."""
    from ron.sdk.balance import Balance

    where = place(control)

    async def whole(reactor: Any) -> T:
        try:
            return await work(reactor, Balance(_api(reactor, where, cap)))
        except Unreachable as error:
            if isinstance(where, Path):
                raise Unreachable(f"{where} is there, and nobody answers", hint="is ron-balance running?") from error
            raise

    return run(whole)


def place(control: str | None) -> Path | str:
    """The Unix socket, or the URL, of the node. Raises `Unreachable` when there is none to be found."""
    if control is not None:
        path = Path(control.removeprefix("unix:"))
        if control.startswith("unix:/") and not path.exists():
            raise Unreachable(f"there is no socket {path}", hint="start ron-balance, or correct --control")
        return onion_reach.place(control)
    candidates = [home() / SOCKET, SYSTEM_SOCKET]
    for path in candidates:
        if path.exists():
            return onion_reach.place(f"unix:{path}")
    raise Unreachable(
        f"no RustBalance node here: there is neither {candidates[0]} nor {candidates[1]}",
        hint="start one (twistd -n ron-balance --config etc/balance.toml), set RON_HOME to its home, or name it: "
        "--control unix:/path",
    )


def _api(reactor: Any, where: Path | str, cap: str | None) -> Api:
    from ron.sdk.balance import DEADLINE_S, balance_at

    if isinstance(where, str):
        return connect(reactor, where, cap, deadline_s=DEADLINE_S, tries=TRIES)
    capability = find_capability(cap)
    if capability is None:
        raise RonError(
            ErrorCode.NO_CAPABILITY,
            "no capability to show to the node",
            hint=f"--cap TOKEN|FILE or RON_CAP; admin.cap is in the daemon's RON_HOME (not in {home()})",
        )
    return balance_at(reactor, where, capability, tries=TRIES)
