"""A set of watched tors on this host: a client tor per role, and whatever the network behind them needs besides.

In: a folder, the roles wanted, and (in subclasses) how their torrc comes about. Out: running tors with SOCKS and
control ports by role; more of them, or fewer, while it runs. `tornet.json` tells how it stands.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, DeferredLock, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from ron.kernel import HealthState, Metrics
from ron.kernel.files import DirectoryLock, private_dir, write_private
from ron.kernel.processes import Lifeline
from ron.proto.errors import ErrorCode, RonError, bad_request, conflict, not_found, unavailable
from ron.tor.binary import TorBinary
from ron.tor.facts import FACTS_FILE, NetworkFacts, Stage, TorFacts
from ron.tor.ports import remembered_ports
from ron.tor.process import reap_stale
from ron.tor.torrc import command, no_defaults, write_verified
from ron.tor.watchdog import UP_TIMEOUT_S, WatchedTor

BRING_UP_TIMEOUT_S = 120.0
POLL_S = 0.2
CLIENT_TARGET = 100
MAX_CLIENTS = 64
_ROLE = re.compile(r"^[a-z][a-z0-9-]{0,31}\Z")
_log = Logger(namespace="ron.tor")
__all__ = ["FACTS_FILE", "Fleet", "NetworkFacts", "Progress", "Stage", "TorFacts"]

Progress = Callable[[Stage], None]


class Fleet:
    """Brings tors up, watches them, takes them down. Subclasses say what they are.

    directory: where keys and state live; keys are made once and kept. clients: a tor each, by role name.
    on_client_up: called with the `WatchedTor` each time a client tor has come up, first and after restarts.
    lingers: when this process is killed its tors go on for a while (`ron.tor.afterlife`), unless it is back before.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        directory: Path,
        tor: TorBinary,
        clients: Sequence[str],
        health: HealthState,
        metrics: Metrics,
        progress: Progress = lambda stage: None,
        on_client_up: Callable[[WatchedTor], None] = lambda tor: None,
        lingers: bool = False,
    ) -> None:
        self.directory = directory
        self.clients = list(clients)
        self.tors: dict[str, WatchedTor] = {}
        self.state = "down"
        self._reactor = reactor
        self._tor = tor
        self._health = health
        self._metrics = metrics
        self._progress = progress
        self._ports: dict[str, int] = {}
        self._stage = ""
        self._lock: DirectoryLock | None = None
        self._changing = DeferredLock()
        self._on_client_up = on_client_up
        self._lifelines: dict[str, Lifeline] | None = {} if lingers else None

    # What subclasses say

    network = "private"
    infrastructure: tuple[str, ...] = ()
    # Percent of tor's bootstrap at which a client counts as up, and what it has until then.
    client_target = CLIENT_TARGET
    up_timeout_s = UP_TIMEOUT_S
    bring_up_timeout_s = BRING_UP_TIMEOUT_S
    # What clients remember of the last run stays. On a network that is made anew each time it would mislead them.
    keeps_state = False

    def role(self, name: str) -> str:
        """What the tor `name` is: client, unless the network has others."""
        return "client"

    def _prepare_network(self) -> None:
        """Keys and the like. In a thread, with the ports chosen."""

    def _torrc(self, name: str, values: dict[str, object]) -> str:
        """The torrc of `name`."""
        raise NotImplementedError

    def _extra_ports(self) -> list[str]:
        """Names of ports besides the clients' own."""
        return []

    async def _bring_up_network(self, deadline_s: float) -> None:
        """Return when clients may start."""

    def _check_torrc(self, path: Path) -> None:
        """Further judgement on a torrc that tor itself takes. In a thread. Raises `RonError`."""

    # Life

    async def bring_up(self) -> None:
        """Start everything and return when every client is up. Raises Timeout after `bring_up_timeout_s`."""
        self._lock = DirectoryLock(self.directory)
        self._set_state("starting")
        self._health.missing("tor.net", f"the {self.network} network is starting")
        deadline_s = self._reactor.seconds() + self.bring_up_timeout_s
        self._tell(Stage("prepare", 0, 1, "keys, ports and torrc files"))
        await deferToThread(self._prepare)
        self._tell(Stage("prepare", 1, 1, f"{len(self._names())} tors prepared"))
        await self._bring_up_network(deadline_s)
        await self._start_clients(deadline_s)

    async def _start_clients(self, deadline_s: float) -> None:
        """Then the network is up."""
        for name in self.clients:
            self._start(name, self.client_target)
        await self._until(deadline_s, "clients", self._clients_progress)
        self._set_state("up")
        self._health.ok("tor.net")

    async def take_down(self) -> None:
        """Stop clients, then whatever stands behind them; returns when no process is left."""
        if self.state != "failed":
            self._set_state("stopping")
        for group in self._stop_order():
            stops = [Deferred.fromCoroutine(self.tors[name].stop()) for name in group if name in self.tors]
            await gatherResults(stops, consumeErrors=True)
        for lifeline in (self._lifelines or {}).values():
            await lifeline.stop()
        if self.state != "failed":
            self._set_state("down")
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _stop_order(self) -> Sequence[Sequence[str]]:
        return (self.clients, self.infrastructure)

    async def add_client(self, name: str) -> None:
        """Have a client tor `name` and return when it is up; nothing to do when there is one.

        Raises `RonError`: BadRequest for a name that is none, Conflict when there are too many, Unavailable while the
        network is not up or when tor does not come up.
        """
        if not _ROLE.match(name):
            raise bad_request(f"{name!r} is no role")
        await self._changing.acquire()
        try:
            if name in self.tors:
                return
            if self.state != "up":
                raise unavailable("the network is not up")
            if len(self.clients) >= MAX_CLIENTS:
                raise conflict(f"there are {MAX_CLIENTS} client tors, the most there may be")
            self.clients.append(name)
            await deferToThread(self._prepare_client, name)
            self._start(name, self.client_target)
            self._health.missing(f"tor.{name}", "it is starting")
            deadline_s = self._reactor.seconds() + self.bring_up_timeout_s
            await self._until(deadline_s, name, lambda: self._client_progress(name))
        finally:
            self._changing.release()

    async def remove_client(self, name: str) -> None:
        """End the client tor `name`; nothing to do when there is none."""
        await self._changing.acquire()
        try:
            tor = self.tors.pop(name, None)
            if name in self.clients:
                self.clients.remove(name)
            if tor is not None:
                await tor.stop()
                if self._lifelines is not None and name in self._lifelines:
                    await self._lifelines.pop(name).stop()
                self._health.forget(f"tor.{name}")
                await deferToThread(shutil.rmtree, self.directory / name, ignore_errors=True)
                self.write_facts()
        finally:
            self._changing.release()

    def release(self, name: str) -> None:
        """Let a quarantined tor try again. Raises NotFound for a name that is none."""
        self._tor_called(name).release()

    def restart(self, name: str) -> None:
        """Start a tor anew. Raises NotFound for a name that is none."""
        self._tor_called(name).restart()

    # Looking

    def control_port(self, name: str) -> int:
        """The control port of a tor that is up. Raises NotFound for no such name, Unavailable while it is not."""
        if not self._tor_called(name).up:
            raise unavailable(f"tor {name} is not up")
        return self._ports[f"{name}.control"]

    def socks_port(self, client: str) -> int:
        """The SOCKS port of a client role. Raises KeyError before the network was prepared."""
        return self._ports[f"{client}.socks"]

    def pids(self) -> dict[str, int]:
        """Running tors by name."""
        return {name: tor.pid for name, tor in self.tors.items() if tor.pid is not None}

    def facts(self) -> NetworkFacts:
        """The network as it stands."""
        return NetworkFacts(
            directory=str(self.directory),
            supervisor_pid=os.getpid(),
            state=self.state,
            stage=self._stage,
            tors=tuple(self._tor_facts(tor) for tor in self.tors.values()),
        )

    def fail(self, reason: str) -> None:
        """Leave `reason` in `tornet.json` for whoever waits for the network."""
        self._stage = reason
        self._set_state("failed")

    def write_facts(self) -> None:
        """Leave `tornet.json` for `ronctl tornet status`."""
        if self.directory.is_dir():
            write_private(self.directory / FACTS_FILE, msgspec.json.encode(self.facts()))

    # -- preparing (in a thread) ------------------------------------------------------------------------------------

    def _names(self) -> list[str]:
        return [*self.infrastructure, *self.clients]

    def _prepare(self) -> None:
        private_dir(self.directory)
        self._forget()
        self._choose_ports()
        self._prepare_network()
        for name in self._names():
            self._write_torrc(name)

    def _forget(self) -> None:
        for name in self._names():
            reap_stale(self.directory / name, self._torrc_path(name))
            if not self.keeps_state:
                _forget_state(self.directory / name, keep_keys=name in self.infrastructure)

    def _prepare_client(self, name: str) -> None:
        reap_stale(self.directory / name, self._torrc_path(name))
        _forget_state(self.directory / name, keep_keys=False)
        wanted = [f"{name}.control", f"{name}.socks"]
        self._ports.update(remembered_ports(self.directory / f"ports-{name}.json", wanted))
        self._write_torrc(name)

    def _choose_ports(self) -> None:
        names = [*self._extra_ports(), *(f"{n}.control" for n in self._names()), *(f"{n}.socks" for n in self.clients)]
        self._ports = remembered_ports(self.directory / "ports.json", names)

    def _write_torrc(self, name: str) -> None:
        folder = private_dir(self.directory / name)
        values: dict[str, object] = {
            "data_directory": folder,
            "no_defaults": no_defaults(),
            "nickname": name,
            "control_port": self._ports[f"{name}.control"],
        }
        for kind in ("or", "dir", "socks"):
            if f"{name}.{kind}" in self._ports:
                values[f"{kind}_port"] = self._ports[f"{name}.{kind}"]
        write_verified(self._tor, self._torrc_path(name), self._torrc(name, values))
        self._check_torrc(self._torrc_path(name))

    def _torrc_path(self, name: str) -> Path:
        return self.directory / f"{name}.torrc"

    # -- running ----------------------------------------------------------------------------------------------------

    def _start(self, name: str, target_percent: int, *options: str) -> None:
        tor = WatchedTor(
            self._reactor,
            name=name,
            command=lambda: self._command(name, options),
            outlives=self._lifelines is not None,
            control_port=self._ports[f"{name}.control"],
            target_percent=target_percent,
            on_up=self._came_up,
            on_down=self._went_down,
            up_timeout_s=self.up_timeout_s,
        )
        self.tors[name] = tor
        tor.start()

    def _command(self, name: str, options: Sequence[str]) -> list[str]:
        owner = None
        if self._lifelines is not None:
            last = [sys.executable, "-m", "ron.tor.afterlife", str(self._ports[f"{name}.control"])]
            owner = self._lifelines.setdefault(name, Lifeline(self._reactor, last)).pid
        return [*command(self._tor, self._torrc_path(name), owner), *options]

    async def _came_up(self, tor: WatchedTor) -> None:
        self.write_facts()
        self._health.ok(f"tor.{tor.name}")
        if tor.name in self.clients:
            self._on_client_up(tor)

    def _went_down(self, tor: WatchedTor, reason: str) -> None:
        if not tor.quarantined:
            self._metrics.restarts.labels(f"tor.{tor.name}").inc()
            reason = f"tor ended and is being restarted: {reason}"
        report = self._health.missing if tor.name in self.clients else self._health.degraded
        report(f"tor.{tor.name}", reason)
        self.write_facts()

    async def _until(self, deadline_s: float, stage: str, measure: Callable[[], Awaitable[Stage]]) -> None:
        last = None
        while True:
            now = await measure()
            if now != last:
                self._tell(now)
                last = now
            if now.done >= now.total:
                return
            if self._reactor.seconds() > deadline_s:
                raise self._too_slow(stage, now)
            await deferLater(self._reactor, POLL_S)

    def _too_slow(self, stage: str, now: Stage) -> RonError:
        words = next((f"{t.name}: {t.last_words}" for t in self.tors.values() if t.last_words), now.detail)
        return RonError(
            ErrorCode.TIMEOUT,
            f"the {self.network} Tor network was not up in {self.bring_up_timeout_s:.0f} s (stage {stage}; {words})",
            hint=f"look at the log, or remove {self.directory} and start again",
        )

    async def _clients_progress(self) -> Stage:
        tors = [self.tors[name] for name in self.clients]
        slowest = min(tors, key=lambda tor: tor.progress.percent, default=None)
        if slowest is None:
            return Stage("clients", 0, 0)
        detail = "all up" if all(t.up for t in tors) else f"{slowest.name}: {slowest.progress.summary}"
        done = sum(100 if tor.up else min(tor.progress.percent, 99) for tor in tors)
        return Stage("clients", done, 100 * len(tors), detail)

    async def _client_progress(self, name: str) -> Stage:
        tor = self.tors[name]
        return Stage("client", 100 if tor.up else min(tor.progress.percent, 99), 100, tor.progress.summary)

    def _tor_called(self, name: str) -> WatchedTor:
        tor = self.tors.get(name)
        if tor is None:
            raise not_found(f"there is no tor {name}")
        return tor

    def _tor_facts(self, tor: WatchedTor) -> TorFacts:
        return TorFacts(
            name=tor.name,
            role=self.role(tor.name),
            pid=tor.pid,
            up=tor.up,
            percent=100 if tor.up else tor.progress.percent,
            restarts=tor.restarts,
            control_port=self._ports[f"{tor.name}.control"],
            socks_port=self._ports.get(f"{tor.name}.socks"),
        )

    def _tell(self, stage: Stage) -> None:
        self._progress(stage)
        text = f"{stage.name} {stage.done}/{stage.total} {stage.detail}"
        if text != self._stage:
            self._stage = text
            self.write_facts()

    def _set_state(self, state: str) -> None:
        self.state = state
        self.write_facts()


def _forget_state(folder: Path, *, keep_keys: bool) -> None:
    """Remove what tor remembered of the last run: an old consensus or guard state only misleads it at start."""
    if not folder.is_dir():
        return
    for entry in folder.iterdir():
        if keep_keys and (entry.name == "keys" or entry.name.startswith("fingerprint")):
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
