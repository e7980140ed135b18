"""How commands find a daemon's control API, on its Unix socket or at a URL, and what such commands have in common.

In: which daemon, --control, --cap. Out: what it answers; `RonError` telling what is missing.
"""

from __future__ import annotations

import importlib
import os
import stat
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from ron.ctl.node import cap_option, connect, find_capability, home, json_option, run
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.proto.exitcodes import Unreachable

if TYPE_CHECKING:
    from ron.sdk.client import Api

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
TRIES = 3

op_id_option = click.option(
    "--op-id", metavar="UUID", help="Makes it one act however often it is called within a day.  [a fresh one]"
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


class ControlApi(NamedTuple):
    """One daemon's. what: how people call it. socket: in the home; system: where Debian's package has it.

    start: how to have one. sdk: the module that knows its calls, imported when one is made; at: what makes an `Api` on
    a socket there.
    """

    what: str
    socket: str
    system: Path
    start: str
    sdk: str
    at: str

    def reach(self, command: F) -> F:
        """The options of every command that asks it: --control, --cap, --json."""
        where = f"{self.what[0].upper()}{self.what[1:]}: unix:/path or http(s)://host:port."
        control = click.option(
            "--control", metavar="ADDRESS", help=f"{where}  [$RON_HOME/{self.socket}, else {self.system}]"
        )
        return control(cap_option(json_option(command)))

    def place(self, control: str | None) -> Path | str:
        """The Unix socket, or the URL. Raises `Unreachable` when there is none to be found."""
        if control is None:
            return self._own_socket()
        scheme, _, rest = control.partition(":")
        if scheme == "unix" and rest.startswith("/"):
            path = Path(rest)
            if not _is_socket(path):
                raise Unreachable(f"there is no socket {path}", hint=f"start one ({self.start}), or correct --control")
            return path
        if scheme in {"http", "https"}:
            return control
        raise bad_request(f"--control {control!r} is no address", "unix:/absolute/path, http://host:port or https://…")

    def ask(self, control: str | None, cap: str | None, work: Callable[[Any, Api], Awaitable[T]]) -> T:
        """What `work(reactor, api)` gives, at the daemon that is meant. Raises `RonError`; Unreachable without one."""
        where = self.place(control)

        async def whole(reactor: Any) -> T:
            try:
                return await work(reactor, self.api(reactor, where, cap))
            except Unreachable as error:
                if isinstance(where, Path):
                    raise Unreachable(f"{where} is there, and nobody answers", hint="is the daemon running?") from error
                raise

        return run(whole)

    def api(self, reactor: Any, where: Path | str, cap: str | None) -> Api:
        """With a capability to show. Raises NoCapability when none is found."""
        sdk = importlib.import_module(self.sdk)
        if isinstance(where, str):
            return connect(reactor, where, cap, deadline_s=sdk.DEADLINE_S, tries=TRIES)
        capability = find_capability(cap)
        if capability is None:
            raise RonError(
                ErrorCode.NO_CAPABILITY,
                f"no capability to show to {self.what}",
                hint=f"--cap TOKEN|FILE or RON_CAP; admin.cap is in the daemon's RON_HOME (not in {home()})",
            )
        api: Api = getattr(sdk, self.at)(reactor, where, capability, tries=TRIES)
        return api

    def _own_socket(self) -> Path:
        candidates = [home() / self.socket, self.system]
        for path in candidates:
            if _is_socket(path):
                return path
        raise Unreachable(
            f"{self.what} is not here: there is neither {candidates[0]} nor {candidates[1]}",
            hint=f"start one ({self.start}), set RON_HOME to its home, or name it: --control unix:/path",
        )


def is_asked(yes: bool) -> bool:
    """Is there somebody to ask, who has not said yes already?"""
    return not yes and sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> None:
    """Go on, or abort."""
    click.confirm(question, abort=True, err=True)


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
