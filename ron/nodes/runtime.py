"""What every daemon of ours has: home, log observer, health, metrics, capabilities, an orderly start and stop.

In: a config and an async `main`. Out: a Twisted service for twistd; start-up complaints as one line and an exit code.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.usage import Options

from ron.auth import Authority, Caveat, RootKeys, Wanted
from ron.ctl.console import StageConsole
from ron.kernel import HealthState, Metrics
from ron.kernel.config import load
from ron.kernel.files import DirectoryLock, private_dir, read_private, write_private
from ron.kernel.logs import JsonLogObserver, open_log_file
from ron.proto.addresses import HostPort
from ron.proto.errors import RonError, unavailable
from ron.proto.exitcodes import Exit, exit_code
from ron.services.configs import LogSection, home_directory
from ron.tor.privnet import Stage

T = TypeVar("T")
AUDIENCE = "ron-node"
ADMIN_CAP = "admin.cap"
_log = Logger(namespace="ron.node")


class ConfigOptions(Options):
    """`--config FILE`, for every daemon that has one."""

    optParameters = [["config", "c", None, "The config file (TOML or YAML)."]]  # noqa: RUF012 - Twisted's own form


def complain(program: str, error: RonError) -> NoReturn:
    """One clear line on stderr and the exit code that stands for it."""
    sys.__stderr__.write(f"{program}: {error.one_line()}\n")  # type: ignore[union-attr]
    raise SystemExit(int(exit_code(error)))


def load_config(path: str | None, schema: type[T], check: Callable[[T], None]) -> T:
    """The config at `path`, checked; all defaults when there is no path. Raises `ConfigError`."""
    config = load(Path(path), schema) if path is not None else schema()
    check(config)
    return config


def ensure_free(address: HostPort, key: str) -> None:
    """Raise `RonError` naming `key` when something listens at `address` already."""
    if address.port == 0:
        return
    with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(tuple(address))
        except OSError as error:
            raise unavailable(
                f"{key}: cannot listen on {address}: {error.strerror}",
                hint=f"stop what holds it (ss -ltnp 'sport = :{address.port}'), or change {key}",
            ) from None


class Runtime:
    """The shared things of one process, made before the reactor runs."""

    def __init__(self, reactor: Any, *, name: str, log: LogSection, amnesia: bool) -> None:
        self.reactor = reactor
        self.name = name
        self.amnesia = amnesia
        self.home = private_dir(home_directory())
        self.lock = DirectoryLock(self.home)
        self.health = HealthState()
        self.metrics = Metrics()
        keys = RootKeys.generate() if amnesia else RootKeys.open(self.home / "auth" / "root.json")
        self.authority = Authority(keys, audience=AUDIENCE, now=time.time)
        self.console = StageConsole(sys.__stdout__)  # type: ignore[arg-type]
        self.observer = JsonLogObserver(self._sink(log), service=name, level=log.level)

    def _sink(self, log: LogSection) -> Any:
        if log.to == "file":
            return open_log_file(self.home / "log" / f"{self.name}.jsonl")
        return sys.__stderr__ if log.to == "stderr" else None

    def write_admin_capability(self) -> Path:
        """`admin.cap` (0600): kept while it still verifies, otherwise minted anew."""
        path = self.home / ADMIN_CAP
        if not (path.exists() and self._still_good(path)):
            write_private(path, (self.authority.mint([Caveat("scope", "*")]) + "\n").encode())
        return path

    def _still_good(self, path: Path) -> bool:
        try:
            self.authority.admit(read_private(path).decode("ascii").strip(), Wanted("node:read", "GET", "/v1/status"))
        except (RonError, UnicodeDecodeError):
            return False
        return True

    def show(self, stage: Stage) -> None:
        """Progress for whoever started us."""
        self.console.show(stage.name, stage.done, stage.total, stage.detail)

    def say(self, text: str) -> None:
        """Text for whoever started us, after the progress."""
        self.console.close()
        sys.__stdout__.write(text + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


class Daemon(Service):
    """Runs `begin` once started and `end` at shutdown; a failed `begin` ends the process with an exit code."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._begun: Deferred[None] | None = None

    async def begin(self) -> None:
        """Bring everything up; returns when ready. A `RonError` ends the process."""
        raise NotImplementedError

    async def end(self) -> None:
        """Stop accepting, drain, take everything down."""
        raise NotImplementedError

    def setServiceParent(self, parent: Any) -> None:
        """Give twistd our log observer, so that it does not print its own log over the progress."""
        if isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.runtime.observer)
        super().setServiceParent(IService(parent, parent))

    def startService(self) -> None:
        """Begin."""
        super().startService()
        self._begun = Deferred.fromCoroutine(self.begin())
        self._begun.addErrback(self._could_not_begin)

    def stopService(self) -> Deferred[None]:
        """End; fires when nothing of ours is left."""
        super().stopService()
        if self._begun is not None:
            self._begun.cancel()
        return Deferred.fromCoroutine(self._end())

    async def _end(self) -> None:
        try:
            await self.end()
        except Exception:  # noqa: BLE001 - the rest of the shutdown must still happen
            _log.failure("shutdown was not clean", event="shutdown_failed")
        self.runtime.lock.release()

    def _could_not_begin(self, failure: Any) -> None:
        if failure.check(CancelledError):
            return
        error = failure.value
        if not isinstance(error, RonError):
            _log.failure("{name} could not start", failure, event="start_failed", name=self.runtime.name)
            error = unavailable(f"could not start: {failure.getErrorMessage()}", hint="the log has the whole story")
        self.runtime.say(f"{self.runtime.name}: {error.one_line()}")
        self._exit_with(exit_code(error))

    def _exit_with(self, code: Exit) -> None:
        """twistd has no way to hand out an exit code, so the last act after its whole shutdown is ours."""
        reactor = self.runtime.reactor
        reactor.addSystemEventTrigger("after", "shutdown", lambda: os._exit(int(code)))
        reactor.stop()
