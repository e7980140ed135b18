"""The node of a RustBalance cluster that `ronctl balance` asks.

In: --control, --cap. Out: what the node answers; `RonError` telling what is missing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ron.ctl.control import ControlApi
from ron.kernel.units import parse_quantity

if TYPE_CHECKING:
    from ron.sdk.balance import Balance

T = TypeVar("T")
NODE = ControlApi(
    what="the RustBalance node",
    socket="run/balance.sock",
    system=Path("/run/ron/balance.sock"),
    start="twistd -n ron-balance --config etc/balance.toml",
    sdk="ron.sdk.balance",
    at="balance_at",
)
reach = NODE.reach
for_option = click.option("--for", "for_text", metavar="TIME", help="End it by itself after so long, e.g. 30m.")
op_id_option = click.option(
    "--op-id", metavar="UUID", help="Makes it one act however often it is called within ten minutes.  [a fresh one]"
)


def seconds(text: str | None) -> int | None:
    """What --for means. Raises `RonError` (BadRequest)."""
    return int(parse_quantity(text, "s")) if text is not None else None


def ask(control: str | None, cap: str | None, work: Callable[[Balance], Awaitable[T]]) -> T:
    """What `work(balance)` gives, at the node that is meant. Raises `RonError`; Unreachable without one."""
    return ask_for_long(control, cap, lambda _reactor, balance: work(balance))


def ask_for_long(control: str | None, cap: str | None, work: Callable[[Any, Balance], Awaitable[T]]) -> T:
    """The same for work that needs the reactor."""
    from ron.sdk.balance import Balance

    return NODE.ask(control, cap, lambda reactor, api: work(reactor, Balance(api)))
