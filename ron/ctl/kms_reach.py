"""The key service that `ronctl kms` asks.

In: --control, --cap. Out: what it answers; `RonError` telling what is missing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from ron.ctl.control import ControlApi

if TYPE_CHECKING:
    from ron.sdk.kms import Kms

T = TypeVar("T")
# of what makes or destroys
act_option = click.option(
    "--op-id", metavar="UUID", help="Makes it one act however often it is called within 30 days.  [a fresh one]"
)
# of what is remembered in memory alone
sign_option = click.option(
    "--op-id", metavar="UUID", help="Gives the same signatures again while the service runs.  [a fresh one]"
)
NODE = ControlApi(
    what="the key service",
    socket="run/kms.sock",
    system=Path("/run/ron/kms.sock"),
    start="twistd -n ron-kms --config etc/ron-kms.toml",
    sdk="ron.sdk.kms",
    at="kms_at",
)


def ask(control: str | None, cap: str | None, work: Callable[[Kms], Awaitable[T]]) -> T:
    """What `work(kms)` gives, at the service that is meant. Raises `RonError`; Unreachable without one."""
    from ron.sdk.kms import Kms

    return NODE.ask(control, cap, lambda _reactor, api: work(Kms(api)))
