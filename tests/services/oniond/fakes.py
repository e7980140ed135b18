"""An `OniondService` whose tor is the tests' control port: what it asks of tor is real, tor is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred

from ron.kernel import HealthState, Metrics
from ron.proto.errors import RonError, not_found, unavailable
from ron.proto.onions import CreateRequest, Port
from ron.services.oniond.config import OnionConfig
from ron.services.oniond.service import OniondService
from ron.services.oniond.telemetry import Telemetry
from ron.tor import attached as attached_module
from ron.tor import onions as onions_module
from tests.tor.fake_tor import Controller, FakeTor, uploaded
from tests.web.wire import until

WIKI = (Port(onion_port=80, local="127.0.0.1:8080"),)


def op_id(number: int) -> str:
    """A UUID of the test's own."""
    return f"00000000-0000-4000-8000-{number:012}"


def create(number: int, app: str = "chat", **more: Any) -> CreateRequest:
    """A request for an onion of `app`."""
    return CreateRequest(op_id=op_id(number), app=app, ports=WIKI, **more)


class FakeAudit:
    """What was recorded; refuses when told to."""

    def __init__(self) -> None:
        self.records: list[tuple[str, dict[str, Any]]] = []
        self.trouble: RonError | None = None

    async def record(self, event: str, /, **fields: Any) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.records.append((event, fields))


class OnionTor(FakeTor):
    """Tors that publish whatever they are asked to, unless `deaf`; `there` is what the first one has.

    by_role: what each of them has. acts: role and verb of each ADD and DEL, in order.
    """

    def setUp(self) -> None:
        super().setUp()
        self.patch(attached_module, "CEILING_S", 0.02)
        self.patch(onions_module, "STRAGGLERS_S", 0.02)
        self.there: dict[str, str] = {}
        self.by_role = {"onion": self.there}
        self.acts: list[tuple[str, str]] = []
        self.listeners: list[Controller] = []
        self.consensus: dict[str, str] = {}
        self.consensus_of("12:00:00")
        self.deaf: bool | set[str] = False
        self.refuses = False
        self.directory: Path | None = Path(self.mktemp()).absolute()
        self.ports = {"onion": self.listen()}
        self.hidden: set[str] = set()
        self.added: list[str] = []
        self.removed: list[str] = []
        self.restarted: list[str] = []
        # what the config says meanwhile
        self.wished: OnionConfig | None = None
        self.health = HealthState()
        self.audit = FakeAudit()
        self.now = 1_800_000_000.0
        # how much of it is the clock having been set, not time having passed
        self.jumped = 0.0
        self.service = self.make()

    # the tors, as `Hosting` sees them

    async def control_port(self, name: str) -> int:
        if name in self.hidden or name not in self.ports:
            raise unavailable("not up")
        return self.ports[name]

    async def restart(self, name: str) -> None:
        self.restarted.append(name)

    async def socks_port(self, name: str) -> int:
        if name not in self.ports:
            raise not_found("no such role")
        return 9050 + sorted(self.ports).index(name)

    async def names(self) -> tuple[str, ...]:
        return tuple(self.ports)

    async def add(self, name: str) -> None:
        if name not in self.ports:
            self.added.append(name)
            self.ports[name] = self.listen()

    async def remove(self, name: str) -> None:
        self.removed.append(name)
        self.ports.pop(name, None)
        self.by_role.pop(name, None)

    # the service

    def make(self, config: OnionConfig | None = None, **apps: Any) -> OniondService:
        config = config or OnionConfig(max_onions=20, max_per_app=8)
        service = OniondService(
            reactor,
            config,
            directory=self.directory,
            tors=self,
            health=self.health,
            audit=self.audit,
            telemetry=Telemetry(Metrics(), reactor, lambda: self.now),
            now=lambda: self.now,
            even=lambda: self.now - self.jumped,
            wishes=lambda: self.wished or config,
        )
        for app, ports in (apps or {"wiki": WIKI}).items():
            service.add_app(app, ports)
        self.addCleanup(lambda: service.stopService() if service.running else None)
        return service

    async def up(self, service: OniondService | None = None) -> OniondService:
        service = service or self.service
        service.startService()
        await service.bring_up()
        return service

    async def kill(self, service: OniondService | None = None) -> None:
        """End it as kill -9 does: nothing is said to tor."""
        service = service or self.service
        for publisher in service._hosting._publishers.values():
            publisher.let_go()
        service._upkeep.stop()
        service._scaling.stop()
        service.running = False
        await service._store.stop()
        await until(lambda: not self.controllers)
        self.commands.clear()

    # the control port

    def answer(self, controller: Controller, verb: str, rest: str) -> bool:
        """Answers itself what is about onions."""
        if verb == "SETEVENTS":
            self.listeners.append(controller)
        role = self.role_at(controller)
        there = self.by_role.setdefault(role, {})
        if verb in {"ADD_ONION", "DEL_ONION"}:
            self.acts.append((role, verb))
        if verb == "ADD_ONION" and not self.refuses:
            self._add(controller, rest, role)
        elif verb == "DEL_ONION":
            known = there.pop(rest, None)
            controller.say("250 OK" if known is not None else "552 Unknown Onion Service id")
        elif f"{verb} {rest}" == "GETINFO onions/detached":
            controller.say("250+onions/detached=", *there, ".", "250 OK")
        elif f"{verb} {rest}" in self.consensus:
            controller.say(f"250-{rest}={self.consensus[f'{verb} {rest}']}", "250 OK")
        elif f"{verb} {rest}" == "GETINFO circuit-status":
            controller.say("250-circuit-status=", "250 OK")
        else:
            return False
        return True

    def consensus_of(self, time: str) -> None:
        """What the tors have is from now on one of this time of a day, on a network that votes every 20 s."""
        until = f"{time[:-2]}{int(time[-2:]) + 20:02}"
        for name, at in (("valid-after", time), ("fresh-until", until)):
            self.consensus[f"GETINFO consensus/{name}"] = f"2026-11-21 {at}"

    def role_at(self, controller: Controller) -> str:
        """Which of the tors it is that `controller` talks to."""
        port = controller.transport.getHost().port
        return next((role for role, one in self.ports.items() if one == port), "gone")

    def tell_of(self, role: str, event: str) -> None:
        """Something that happened at `role`, for those who listen."""
        for controller in self.controllers:
            if controller in self.listeners and self.role_at(controller) == role:
                controller.say(f"650 {event}")

    def _add(self, controller: Controller, rest: str, role: str) -> None:
        from ron.tor.onionkeys import OnionKey, address_of

        blob, _, arguments = rest.partition(" ")
        service_id = address_of(OnionKey(blob)).removesuffix(".onion")
        if service_id in self.by_role[role]:
            controller.say("550 Onion address collision")
            return
        self.by_role[role][service_id] = arguments
        controller.say(f"250-ServiceID={service_id}", "250 OK")
        if self.deaf is not True and role not in (self.deaf or ()):
            self.tell_of(role, uploaded("A", service_id))

    def onion_commands(self) -> list[str]:
        """ADD and DEL, in order."""
        return [command.split()[0] for command in self.commands if "_ONION" in command.split()[0]]

    async def taken_down(self, service: OniondService | None = None) -> None:
        await Deferred.fromCoroutine((service or self.service)._end())
