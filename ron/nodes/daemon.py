"""The life of a daemon under twistd: begin, run, an orderly end, and an exit code that tells what happened.

In: a `Runtime` and a subclass's `begin` and `end`. Out: a Twisted service. The first Ctrl-C or SIGTERM drains,
the second ends the process at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from twisted.application.service import IService, Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ReactorNotRunning
from twisted.logger import ILogObserver, Logger
from twisted.python.components import Componentized
from twisted.python.usage import Options, UsageError

from ron.kernel import Config, KernelEvent, memory, wait_for_ctrl_c
from ron.kernel.config import ConfigError, Layers
from ron.kernel.signals import on_hangup
from ron.nodes.runtime import Runtime
from ron.proto.errors import RonError, unavailable
from ron.proto.exitcodes import Exit, exit_code
from ron.services.configs import SCHEMAS

T = TypeVar("T")
_log = Logger(namespace="ron.node")


class ConfigOptions(Options):
    """`--config FILE` and `--set section.key=value`, for every daemon that has a config."""

    optParameters = [["config", "c", None, "The config file (TOML or YAML)."]]  # noqa: RUF012 - Twisted's own form

    def __init__(self) -> None:
        super().__init__()
        self["flags"] = {}

    def opt_set(self, assignment: str) -> None:
        """section.key=value, over file and environment; may be given again."""
        key, separator, value = assignment.partition("=")
        if not separator:
            raise UsageError("--set takes section.key=value")
        self["flags"][key] = value


def complain(program: str, error: RonError) -> NoReturn:
    """One clear line on stderr and the exit code that stands for it."""
    sys.__stderr__.write(f"{program}: {error.one_line()}\n")  # type: ignore[union-attr]
    raise SystemExit(int(exit_code(error)))


def open_config(daemon: str, options: ConfigOptions) -> Config[Any]:
    """The config of `daemon`: defaults < file < `RON_*` < `--set`. Raises `ConfigError`."""
    schema, check = SCHEMAS[daemon]
    path = Path(options["config"]) if options["config"] is not None else None
    return Config(Layers(schema, check, path, os.environ, options["flags"]))


class Daemon(Service):
    """Runs `begin` once started and `end` at shutdown; a failed `begin` ends the process with an exit code."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._begun: Deferred[None] | None = None
        self._exit = Exit.OK
        self._leaving = False

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
        self.runtime.reactor.callWhenRunning(self._heed_signals)
        self.runtime.start()
        self._begun = Deferred.fromCoroutine(self.begin())
        self._begun.addCallback(lambda _none: memory.settle())
        self._begun.addErrback(self._could_not_begin)

    def stopService(self) -> Deferred[None]:
        """End; fires when nothing of ours is left."""
        super().stopService()
        self.runtime.bus.publish(KernelEvent.Shutdown())
        if self._begun is not None:
            self._begun.cancel()
        return Deferred.fromCoroutine(self._end())

    def reload(self) -> None:
        """SIGHUP: take the config as it is now, or keep the old one and say why."""
        try:
            self.runtime.config.reload()
        except ConfigError:
            return  # logged by the config itself

    def leave(self, code: Exit) -> None:
        """End the process in order, with `code`; before the reactor runs as soon as it does. The first code counts."""
        if self._leaving:
            return
        self._leaving = True
        self._exit = code
        # twistd starts services before the reactor, which cannot be stopped until it runs
        self.runtime.reactor.callWhenRunning(self._stop_reactor)

    def _heed_signals(self) -> None:
        reactor = self.runtime.reactor
        wait_for_ctrl_c(reactor).addCallback(lambda _signal: self._stop_reactor())
        on_hangup(reactor, self.reload)

    def _stop_reactor(self) -> None:
        """Begin the shutdown, unless it is under way."""
        with contextlib.suppress(ReactorNotRunning):
            self.runtime.reactor.stop()

    async def _end(self) -> None:
        try:
            await self.end()
        except Exception:  # noqa: BLE001 - the rest of the shutdown must still happen
            _log.failure("shutdown was not clean", event="shutdown_failed")
        if self._exit is Exit.OK and self.runtime.cut_off:
            self._exit = Exit.CUT_OFF
        await self.runtime.flush()
        self.runtime.stop()
        if self._exit is not Exit.OK:
            # twistd has no way to hand out an exit code, so the last act after its whole shutdown is ours
            self.runtime.reactor.addSystemEventTrigger("after", "shutdown", lambda: os._exit(int(self._exit)))

    def _could_not_begin(self, failure: Any) -> None:
        if failure.check(CancelledError) or not self.running:
            return  # it was told to end before it was up, which is no failure
        error = failure.value
        if not isinstance(error, RonError):
            _log.failure("{name} could not start", failure, event="start_failed", name=self.runtime.name)
            error = unavailable(f"could not start: {failure.getErrorMessage()}", hint="the log has the whole story")
        self.runtime.say(f"{self.runtime.name}: {error.one_line()}")
        self.leave(exit_code(error))
