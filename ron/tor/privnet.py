"""Our own Tor network on loopback: 3 authorities, 2 relays, and one client tor per role (DESIGN §4 Tor, §5).

In: a folder and the client roles wanted. Out: a running network whose tors are watched, with SOCKS and control ports by
role. Clients start only when the consensus is whole: earlier ones latch a view of two relays and stay useless.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.logger import Logger

from ron.kernel import HealthState, Metrics
from ron.kernel.aio import within
from ron.kernel.files import DirectoryLock, private_dir, write_private
from ron.proto.errors import ErrorCode, RonError, not_found, unavailable
from ron.tor.authkeys import authority_identity, relay_fingerprint
from ron.tor.binary import TorBinary
from ron.tor.control import ANSWER_TIMEOUT_S, ask, count_hsdirs
from ron.tor.ports import remembered_ports
from ron.tor.process import reap_stale
from ron.tor.torrc import command, no_defaults, render, write_verified
from ron.tor.watchdog import WatchedTor

AUTHORITIES = ("auth1", "auth2", "auth3")
RELAYS = ("relay1", "relay2")
INFRASTRUCTURE = (*AUTHORITIES, *RELAYS)
BRING_UP_TIMEOUT_S = 120.0
POLL_S = 0.2
# tor/authority.torrc: TestingV3AuthInitialVotingInterval; votes for a boundary close 2 s before it.
FIRST_INTERVAL_S = 6
BOUNDARY_AHEAD_S = 2
NUDGE_EVERY_S = 1.5
# Below this percentage a relay's or authority's control port answers already; their bootstrap is the consensus itself.
_RELAY_TARGET, _CLIENT_TARGET = 0, 100
FACTS_FILE = "tornet.json"
_log = Logger(namespace="ron.tor")


class Stage(NamedTuple):
    """Progress of a bring-up: which stage, how much of it is done, and what for people to read."""

    name: str
    done: int
    total: int
    detail: str = ""


class TorFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One tor as `tornet status` shows it."""

    name: str
    role: str
    pid: int | None
    up: bool
    percent: int
    restarts: int
    control_port: int
    socks_port: int | None = None


class NetworkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The network as written to `tornet.json` and shown by `ronctl tornet status`."""

    directory: str
    supervisor_pid: int
    state: str
    stage: str
    tors: tuple[TorFacts, ...]


Progress = Callable[[Stage], None]


class PrivateNetwork:
    """Brings the network up, watches it, takes it down.

    directory: where keys and state live; keys are made once and kept. clients: a tor each, by role name.
    on_client_up: called with the `WatchedTor` each time a client tor has come up, first and after restarts.
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
    ) -> None:
        self.directory = directory
        self.clients = tuple(clients)
        self.tors: dict[str, WatchedTor] = {}
        self.state = "down"
        self._reactor = reactor
        self._tor = tor
        self._health = health
        self._metrics = metrics
        self._progress = progress
        self._ports: dict[str, int] = {}
        self._next_nudge = 0.0
        self._stage = ""
        self._lock: DirectoryLock | None = None
        self._on_client_up = on_client_up

    def release(self, name: str) -> None:
        """Let a quarantined tor try again. Raises NotFound for a name that is none."""
        self._tor_called(name).release()

    def restart(self, name: str) -> None:
        """Start a tor anew. Raises NotFound for a name that is none."""
        self._tor_called(name).restart()

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

    async def bring_up(self) -> None:
        """Start everything and return when every client is at 100 %. Raises `RonError(Timeout)` after two minutes."""
        self._lock = DirectoryLock(self.directory)
        self._set_state("starting")
        self._health.missing("tor.net", "the private network is starting")
        deadline = self._reactor.seconds() + BRING_UP_TIMEOUT_S
        self._tell(Stage("prepare", 0, 1, "keys, ports and torrc files"))
        await deferToThread(self._prepare)
        self._tell(Stage("prepare", 1, 1, f"{len(INFRASTRUCTURE) + len(self.clients)} tors prepared"))
        offset = voting_offset_s(time.time())
        for name in INFRASTRUCTURE:
            voting = ["--TestingV3AuthVotingStartOffset", str(offset)] if name in AUTHORITIES else []
            self._start(name, _RELAY_TARGET, *voting)
        await self._until(deadline, "consensus", self._consensus_progress)
        for name in self.clients:
            self._start(name, _CLIENT_TARGET)
        await self._until(deadline, "clients", self._clients_progress)
        self._set_state("up")
        self._health.ok("tor.net")

    async def take_down(self) -> None:
        """Stop clients, then relays and authorities; returns when no process is left."""
        if self.state != "failed":
            self._set_state("stopping")
        for group in (self.clients, RELAYS, AUTHORITIES):
            stops = [Deferred.fromCoroutine(self.tors[name].stop()) for name in group if name in self.tors]
            await gatherResults(stops, consumeErrors=True)
        if self.state != "failed":
            self._set_state("down")
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def fail(self, reason: str) -> None:
        """Leave `reason` in `tornet.json` for whoever waits for the network."""
        self._stage = reason
        self._set_state("failed")

    def write_facts(self) -> None:
        """Leave `tornet.json` for `ronctl tornet status`."""
        if self.directory.is_dir():
            write_private(self.directory / FACTS_FILE, msgspec.json.encode(self.facts()))

    # -- preparing (in a thread) ------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        private_dir(self.directory)
        for name in (*INFRASTRUCTURE, *self.clients):
            reap_stale(self.directory / name, self._torrc_path(name))
            _forget_state(self.directory / name, keep_keys=name in INFRASTRUCTURE)
        self._ports = remembered_ports(self.directory / "ports.json", self._port_names())
        lines = "\n".join(self._authority_line(name) for name in AUTHORITIES)
        for name in (*INFRASTRUCTURE, *self.clients):
            self._write_torrc(name, lines)

    def _port_names(self) -> list[str]:
        names = [f"{n}.or" for n in INFRASTRUCTURE] + [f"{n}.dir" for n in AUTHORITIES]
        names += [f"{n}.control" for n in (*INFRASTRUCTURE, *self.clients)]
        return names + [f"{n}.socks" for n in self.clients]

    def _authority_line(self, name: str) -> str:
        folder = self.directory / name
        fingerprint = relay_fingerprint(self._tor, folder, name)
        identity = authority_identity(self._tor, folder)
        or_port, dir_port = self._ports[f"{name}.or"], self._ports[f"{name}.dir"]
        return f"DirAuthority {name} orport={or_port} v3ident={identity} 127.0.0.1:{dir_port} {fingerprint}"

    def _write_torrc(self, name: str, authority_lines: str) -> None:
        folder = private_dir(self.directory / name)
        values: dict[str, object] = {
            "dir_authorities": authority_lines,
            "data_directory": folder,
            "no_defaults": no_defaults(),
            "nickname": name,
            "control_port": self._ports[f"{name}.control"],
        }
        for kind in ("or", "dir", "socks"):
            if f"{name}.{kind}" in self._ports:
                values[f"{kind}_port"] = self._ports[f"{name}.{kind}"]
        write_verified(self._tor, self._torrc_path(name), render(_role(name), values))

    def _torrc_path(self, name: str) -> Path:
        return self.directory / f"{name}.torrc"

    # -- running ----------------------------------------------------------------------------------------------------

    def _start(self, name: str, target_percent: int, *options: str) -> None:
        tor = WatchedTor(
            self._reactor,
            name=name,
            command=[*command(self._tor, self._torrc_path(name)), *options],
            control_port=self._ports[f"{name}.control"],
            target_percent=target_percent,
            on_up=self._came_up,
            on_down=self._went_down,
        )
        self.tors[name] = tor
        tor.start()

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

    async def _until(self, deadline: float, stage: str, measure: Callable[[], Awaitable[Stage]]) -> None:
        last = None
        while True:
            now = await measure()
            if now != last:
                self._tell(now)
                last = now
            if now.done >= now.total:
                return
            if self._reactor.seconds() > deadline:
                raise self._too_slow(stage, now)
            await deferLater(self._reactor, POLL_S)

    def _too_slow(self, stage: str, now: Stage) -> RonError:
        words = next((f"{t.name}: {t.last_words}" for t in self.tors.values() if t.last_words), now.detail)
        return RonError(
            ErrorCode.TIMEOUT,
            f"the private Tor network did not come up in {BRING_UP_TIMEOUT_S:.0f} s (stage {stage}; {words})",
            hint=f"look at the log, or remove {self.directory} and start again",
        )

    async def _consensus_progress(self) -> Stage:
        """Done when every infrastructure tor has a consensus that lists all of them, and their descriptors.

        A relay that asked before there was a consensus has backed off by now; RELOAD makes it ask again. One that lags
        would send the first clients that choose it as a directory into a back-off of their own.
        """
        voted = [await self._is_whole(name) for name in AUTHORITIES]
        if not all(voted):
            running = sum(self.tors[name].up for name in INFRASTRUCTURE)
            detail = "authorities vote" if running == len(INFRASTRUCTURE) else f"{running} tors running"
            return Stage("consensus", sum(voted), len(INFRASTRUCTURE), detail)
        cached = [await self._is_whole(name) for name in RELAYS]
        for name, whole in zip(RELAYS, cached, strict=True):
            control = self.tors[name].control
            if not whole and control is not None and self._reactor.seconds() >= self._next_nudge:
                await within(self._reactor, ANSWER_TIMEOUT_S, control.signal("RELOAD"))
        if self._reactor.seconds() >= self._next_nudge:
            self._next_nudge = self._reactor.seconds() + NUDGE_EVERY_S
        return Stage("consensus", len(AUTHORITIES) + sum(cached), len(INFRASTRUCTURE), "relays fetch it")

    async def _is_whole(self, name: str) -> bool:
        control = self.tors[name].control
        if control is None or not self.tors[name].up:
            return False
        if await count_hsdirs(self._reactor, control) < len(INFRASTRUCTURE):
            return False
        return await ask(self._reactor, control, "status/enough-dir-info") == "1"

    async def _clients_progress(self) -> Stage:
        tors = [self.tors[name] for name in self.clients]
        slowest = min(tors, key=lambda tor: tor.progress.percent, default=None)
        if slowest is None:
            return Stage("clients", 0, 0)
        detail = "all up" if all(t.up for t in tors) else f"{slowest.name}: {slowest.progress.summary}"
        done = sum(100 if tor.up else min(tor.progress.percent, 99) for tor in tors)
        return Stage("clients", done, 100 * len(tors), detail)

    def _tor_called(self, name: str) -> WatchedTor:
        tor = self.tors.get(name)
        if tor is None:
            raise not_found(f"there is no tor {name}")
        return tor

    def _tor_facts(self, tor: WatchedTor) -> TorFacts:
        return TorFacts(
            name=tor.name,
            role=_role(tor.name),
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


def voting_offset_s(now_s: float) -> int:
    """The shift of the authorities' voting clock that gives a whole first consensus 8 s after a start at `now_s`.

    An authority that starts votes at once for the boundary ahead, with the relays it knows by then; such a partial
    consensus would stand for 20 s. So the boundary ahead is put so close that its vote is already closed, and the vote
    for the next one (6 s later, cast 4 s before it) falls 4 s after the start, when every relay is known.
    """
    return round(now_s + BOUNDARY_AHEAD_S) % FIRST_INTERVAL_S


def _role(name: str) -> str:
    if name in AUTHORITIES:
        return "authority"
    return "relay" if name in RELAYS else "client"


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
