"""The head as the rest of RustBalance sees it (`ports.Head`): serving, ghost, under siege, or down, and its descriptor.

In: a tor that somebody else runs, master addresses, targets; `serve` and `ghost`. Out: `report`, `descriptor`, and
`on_change` when either says something new. It looks at everything once a second, and when tor tells of an upload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import Counter, Gauge
from twisted.internet.defer import CancelledError, Deferred, DeferredLock, gatherResults
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from txtorcon import TorControlProtocol

from ron.kernel import HealthState, Metrics
from ron.kernel.aio import within
from ron.proto.balance import HeadDescriptor, HeadMode, HeadReport, ServiceName
from ron.proto.errors import RonError
from ron.services.balance.config import BalanceConfig
from ron.services.balance.heads.door import Door
from ron.services.balance.heads.generations import Wanted
from ron.services.balance.heads.onions import HeadOnions, digest, listen
from ron.services.balance.heads.sensor import Sensor
from ron.services.balance.heads.siege import SHORT_S, Siege
from ron.services.balance.heads.visits import Visits
from ron.tor.attached import AttachedTor, TorHost
from ron.tor.backendonion import read_circuit, set_guards, vanguards_lite

EVERY_S = 1.0
# Uploads come in tens.
SOON_S = 0.05
STOP_S = 5.0
# After tor refused something: not again at once.
REST_S = 5.0
HEALTH_KEY = "balance.head"
_log = Logger(namespace="ron.balance")


class TorHead:
    """A node's head. `start` once, `stop` once; `serve` is what it does until told otherwise.

    host, tor: who runs the tor, and its name there; the tor is this head's alone: no other onions from folders, no
    RELOAD. folder: for keys and sockets, ours alone, readable by tor. masters: addresses to answer for. services: their
    ports as in `[balance]`, by name. socks_port: of a tor through which targets that are onions are reached. config: as
    it is now. keep_key: the throw-away address is the same in each run. Raises `RonError` for ports that cannot be.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        host: TorHost,
        tor: str,
        folder: Path,
        masters: Sequence[str],
        services: Mapping[ServiceName, Sequence[str]],
        config: Callable[[], BalanceConfig],
        metrics: Metrics,
        health: HealthState,
        socks_port: Callable[[], int] | None = None,
        keep_key: bool = False,
    ) -> None:
        self._reactor = reactor
        self._config = config
        self._health = health
        self._masters = _sorted(masters)
        self._serving = True
        self._observers: list[Callable[[], None]] = []
        self._visits = Visits()
        self._siege = Siege()
        self._sensor = Sensor(reactor, self._visits)
        self._figures = _Figures(metrics)
        self._door = Door(
            reactor,
            folder=folder,
            services=services,
            socks_port=socks_port,
            told=self._tell,
            refused=self._figures.proxy_refused.inc,
        )
        self._onions = HeadOnions(
            reactor, folder=folder, ports=self._door.lines, visits=self._visits, keep_key=keep_key
        )
        self._attached = AttachedTor(reactor, name=tor, host=host, on_up=self._came_up, on_down=self._went_down)
        self._guards: tuple[tuple[str, ...], tuple[str, ...]] | None = None
        self._lite: str | None = None
        self._up = False
        self._was_up = False
        self._rest_until_s = 0.0
        self._one = DeferredLock()
        self._looking = LoopingCall(self._look)
        self._looking.clock = reactor
        self._soon: Any = None
        self._told: HeadReport | None = None

    # Life

    async def start(self) -> None:
        """Listen for the targets, and look for the tor. Raises what listening does."""
        self._health.missing(HEALTH_KEY, "the head has no descriptor yet")
        await self._onions.open()
        await self._door.open()
        self._attached.start()
        self._looking.start(EVERY_S, now=False).addErrback(_broken)

    async def stop(self) -> None:
        """The onions are gone, visitors with them."""
        if self._looking.running:
            self._looking.stop()
        if self._soon is not None and self._soon.active():
            self._soon.cancel()
        await self._one.acquire()
        try:
            await within(self._reactor, STOP_S, Deferred.fromCoroutine(self._onions.close()))
        except Exception as error:  # noqa: BLE001 - a tor that does not answer any more has none of ours for long
            _log.debug("the head's onions were not taken down: {error}", error=str(error))
        finally:
            self._one.release()
        self._up = False
        self._attached.stop()
        await gatherResults(
            [Deferred.fromCoroutine(self._sensor.close()), Deferred.fromCoroutine(self._door.close())],
            consumeErrors=True,
        )
        self._health.forget(HEALTH_KEY)

    # ports.Head

    def report(self) -> HeadReport:
        """As it stands."""
        shown = self._onions.shown
        return HeadReport(
            mode=self._mode(),
            onion=shown.onion if shown is not None else "",
            descriptor=digest(self.descriptor()),
            healthy=self._up and self._door.healthy is True,
            failing=self._door.failing() if self._up else (),
            under_siege=self._siege.on,
            introductions_per_s=round(self._siege.rates.over(SHORT_S, self._reactor.seconds()), 2),
            sessions=self._onions.sessions() if self._up else 0,
            attacks=self._visits.attacks,
        )

    def descriptor(self) -> HeadDescriptor | None:
        """Its own newest descriptor; None while tor is away, or nobody new gets in."""
        return self._onions.descriptor() if self._up else None

    def serve(self) -> None:
        """Take visitors. Within `ghost_grace_s` of `ghost` with the same onion, later with a new one."""
        if not self._serving:
            self._serving = True
            self._changed()

    def ghost(self) -> None:
        """Keep the visitors there are; `ghost_grace_s` from now on, let nobody new in."""
        if self._serving:
            self._serving = False
            self._changed()

    def on_change(self, heard: Callable[[], None]) -> None:
        """Call `heard` when the report changed in anything but its figures, or the descriptor did."""
        self._observers.append(heard)

    # Further

    def set_masters(self, masters: Sequence[str]) -> None:
        """Answer for these from now on, by a new onion; the old one serves until the new one has its descriptor."""
        if _sorted(masters) != self._masters:
            self._masters = _sorted(masters)
            self._changed()

    async def set_guards(self, layer2: Sequence[str], layer3: Sequence[str]) -> None:
        """Fingerprints of the relays that may be second and third hop; empty: tor chooses. Kept over tor's restarts.
        Raises BadRequest, `TorSilent`, and `RonError` when tor refuses."""
        self._guards = (tuple(layer2), tuple(layer3))
        if self._attached.control is not None and self._up:
            await self._pin(self._attached.control)

    async def _pin(self, control: TorControlProtocol) -> None:
        if self._guards is not None:
            if self._lite is None:
                self._lite = await vanguards_lite(self._reactor, control)
            await set_guards(self._reactor, control, *self._guards, otherwise=self._lite)

    # What tor tells

    async def _came_up(self, control: TorControlProtocol) -> None:
        circuit = {"CIRC": self._circuit, "CIRC_MINOR": self._circuit}
        await self._one.acquire()
        try:
            await listen(self._reactor, control, {**circuit, "HS_DESC": self._uploaded})
            await self._onions.attach(control)
            await self._sensor.open(control)
            await self._pin(control)
            self._up = True
        finally:
            self._one.release()
        _log.info("the head's tor is there", event="balance_head_up")
        self._changed()

    def _went_down(self) -> None:
        self._up = False
        self._onions.detach()
        _log.warn("the head's tor has gone", event="balance_head_down")
        self._tell()

    def _circuit(self, text: str) -> None:
        line = read_circuit(text)
        if line is None:
            return
        before = self._visits.attacks
        unwanted = self._visits.heard(line)
        self._figures.attacks.inc(self._visits.attacks - before)
        if unwanted is not None:
            self._onions.close_circuit(unwanted)

    def _uploaded(self, text: str) -> None:
        """`UPLOAD <address> …`: its descriptor is new, or as good as new."""
        words = text.split()
        if len(words) > 1 and words[0] == "UPLOAD" and f"{words[1]}.onion" in self._onions.addresses:
            self._changed()

    # What is done about it

    def _changed(self) -> None:
        """Look at everything soon, and tell now."""
        if self._looking.running and (self._soon is None or not self._soon.active()):
            self._soon = self._reactor.callLater(SOON_S, self._look)
        self._tell()

    def _look(self) -> Deferred[None]:
        looking = Deferred.fromCoroutine(self._look_once())
        looking.addErrback(self._not_looked)
        return looking

    async def _look_once(self) -> None:
        await self._one.acquire()
        try:
            now_s, config = self._reactor.seconds(), self._config()
            if self._up:
                self._siege.rates.add(await self._sensor.new(self._onions.addresses), now_s)
            self._siege.judge(now_s, limit_per_s=config.siege_introductions_per_s, quiet_s=float(config.quiet_s))
            if self._up and now_s >= self._rest_until_s:
                await self._onions.step(now_s, Wanted(self._serving, self._masters, float(config.ghost_grace_s)))
                await self._onions.look()
        finally:
            self._one.release()
            self._tell()

    def _not_looked(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        self._rest_until_s = self._reactor.seconds() + REST_S
        if failure.check(RonError):
            _log.warn(
                "the head waits a little: {reason}", event="balance_head_refused", reason=failure.getErrorMessage()
            )
        else:
            _log.failure("the head could not be looked after", failure, event="balance_head_failed")

    def _mode(self) -> HeadMode:
        if not self._up:
            return "down" if self._was_up else "starting"
        if not self._serving:
            return "ghost"
        return "serving" if self.descriptor() is not None else "starting"

    def _tell(self) -> None:
        self._was_up = self._was_up or self._up
        report = self.report()
        self._figures.show(report, self._onions.number, self._door.ports())
        before, self._told = self._told, report
        if before is not None and _without_figures(before) == _without_figures(report):
            return
        self._show_health(report)
        for heard in self._observers:
            heard()

    def _show_health(self, report: HeadReport) -> None:
        if report.mode == "down":
            self._health.degraded(HEALTH_KEY, "its tor has gone")
        elif report.mode in ("serving", "ghost"):
            dead = "; ".join(f"{each.service}: {each.target}" for each in report.failing)
            if dead:
                self._health.degraded(HEALTH_KEY, dead)
            else:
                self._health.ok(HEALTH_KEY)


class _Figures:
    """What the head shows of itself."""

    def __init__(self, metrics: Metrics) -> None:
        registry = metrics.registry
        self.attacks = Counter(
            "balance_ghost_attacks_total", "Introductions at an onion that nobody should know", registry=registry
        )
        self.proxy_refused = Counter(
            "balance_proxy_refused_total", "Connections to a target onion beyond the bound", registry=registry
        )
        self._sessions = Gauge("balance_head_sessions", "Visitors' circuits at this node's head", registry=registry)
        self._rate = Gauge("balance_head_introductions", "Introductions a second at this head", registry=registry)
        self._siege = Gauge("balance_head_under_siege", "1 while this head is under siege", registry=registry)
        self._onions = Gauge("balance_head_onions", "Onions of this head, shut ones included", registry=registry)
        self._targets = Gauge(
            "balance_target_up",
            "1 while the target of a service's port answers this node",
            ["service", "port"],
            registry=registry,
        )

    def show(self, report: HeadReport, onions: int, ports: Mapping[tuple[ServiceName, int], bool]) -> None:
        """As it is now."""
        self._sessions.set(report.sessions)
        self._rate.set(report.introductions_per_s)
        self._siege.set(report.under_siege)
        self._onions.set(onions)
        for (service, port), answers in ports.items():
            self._targets.labels(service, str(port)).set(answers)


def _without_figures(report: HeadReport) -> tuple[object, ...]:
    return report.mode, report.onion, report.descriptor, report.healthy, report.failing, report.under_siege


def _sorted(masters: Sequence[str]) -> tuple[str, ...]:
    return tuple(sorted(set(masters)))


def _broken(failure: Failure) -> None:
    _log.failure("the head is looked after no more", failure, event="balance_head_broken")
