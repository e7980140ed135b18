"""`ronctl service` against a real supervisor, and what `ronctl status` says of services."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.plain import plain_text
from ron.ctl.service import Service, table
from ron.ctl.status import text
from ron.kernel import HealthState, Metrics
from ron.kernel.restarts import RestartPolicy
from ron.kernel.supervisor import Supervisor
from ron.proto.errors import bad_request
from tests.ctl.with_node import WithNode


class Unit:
    """A unit that starts when `works`."""

    def __init__(self, name: str, *, works: bool) -> None:
        self.name = name
        self.works = works

    async def start(self, crashed: Callable[[str], None]) -> None:
        if not self.works:
            raise bad_request("the pack is damaged")

    async def stop(self) -> None:
        pass

    def abort(self) -> None:
        pass


class ServiceCommand(WithNode):
    """As an operator calls it."""

    async def test_list_and_release(self) -> None:
        edge, supervisor = Unit("edge", works=False), self.supervisor()
        supervisor.add(Unit("mailbox", works=True))
        supervisor.add(edge)
        await supervisor.start()
        self.assertEqual(
            (await self.done("service", "list")).lines,
            [
                "service  state        restarts  pid  last crash",
                "mailbox  up           0         -    -",
                "edge     quarantined  0         -    the pack is damaged",
            ],
        )
        refused = await self.done("service", "release", "edge", RON_CAP=self.capability("node:read"))
        self.assertEqual((refused.code, refused.out), (5, b""))
        edge.works = True
        self.assertEqual((await self.done("service", "release", "edge")).lines, ["edge: up"])
        listed = json.loads((await self.done("service", "list", "--json")).out)["services"]
        self.assertEqual([(one["name"], one["state"]) for one in listed], [("mailbox", "up"), ("edge", "up")])

    async def test_a_tor_of_a_lone_onion_runtime_is_released_as_its_reason_says(self) -> None:
        """Without --node: there is no node.json beside such a daemon, and onions.json says where it answers."""
        tor = Unit("tor.onion", works=False)
        self.supervisor().add(tor)
        (self.home / "node.json").unlink()
        missing = await self.done("service", "release", "tor.onion")
        self.assertEqual((missing.code, missing.out), (4, b""))
        (self.home / "onions.json").write_text(json.dumps({"admin_url": self.url, "socks_port": 1, "onions": []}))
        self.assertEqual((await self.done("service", "release", "tor.onion")).lines, ["tor.onion: idle"])
        (self.home / "onions.json").write_text("{")
        damaged = await self.done("service", "list")
        self.assertEqual((damaged.code, damaged.out), (4, b""))
        self.assertIn(b"onions.json", damaged.err)
        (self.home / "onions.json").unlink()
        (self.home / "kms.json").write_text(json.dumps({"admin_url": self.url, "kms_url": "x", "backend": "file"}))
        self.assertEqual((await self.done("service", "list")).code, 0)

    async def test_what_is_not_there(self) -> None:
        nobody = await self.done("service", "list")
        self.assertEqual((nobody.code, nobody.out), (8, b""))
        self.assertIn(b"nobody serves node", nobody.err)
        self.supervisor()
        unknown = await self.done("service", "release", "nonsense", "--json")
        self.assertEqual((unknown.code, unknown.err), (7, b"ronctl: there is no service nonsense\n"))
        self.assertEqual((await self.done("service", "release", "Non sense")).code, 3)

    def supervisor(self) -> Supervisor:
        """An empty one that answers on the bus."""
        supervisor = Supervisor(
            reactor, self.bus, HealthState(), Metrics(), make_policy=lambda: RestartPolicy(max_restarts=0)
        )
        self.bus.serve(
            "node",
            {
                "services": lambda _command: supervisor.status(),
                "release": lambda command: supervisor.release(command.body),
            },
        )
        return supervisor


class Rendering(SynchronousTestCase):
    """Text for people."""

    def test_what_a_crashed_program_said_cannot_move_the_cursor(self) -> None:
        said = "\x1b[2J\x1b]0;owned\x07\r\n\x9b31m\u202e ok ä"
        shown = table([Service(name="edge", state="waiting", reason=said)])
        self.assertEqual(len(shown.splitlines()), 2)
        self.assertTrue(all(character.isprintable() or character == "\n" for character in shown))
        self.assertTrue(shown.endswith(" ok ä"))
        self.assertEqual(plain_text("a\nb\x1b"), r"a\nb\x1b")

    def test_status_shows_services_only_when_one_is_not_up(self) -> None:
        shown = text(self.status(services=[{"name": "edge", "state": "up", "restarts": 2}]))
        self.assertNotIn("edge", shown)
        self.assertIn("config version 3", shown)
        shown = text(
            self.status(
                services=[
                    {"name": "mailbox", "state": "up", "restarts": 0},
                    {"name": "edge", "state": "waiting", "restarts": 2, "pid": 17, "reason": "killed"},
                ]
            )
        )
        self.assertIn("\nedge     waiting  2         17   killed\n", shown)
        self.assertIn("\nmailbox  up       0         -    -\n", shown)

    def test_status_of_a_node_whose_parts_do_not_answer(self) -> None:
        shown = text(self.status(tor=None, onions=(), queues={"mailbox": None}, packs=()))
        self.assertIn("tor      oniond does not answer", shown)
        self.assertIn("queue    mailbox: it does not answer", shown)

    def status(self, **other: Any) -> dict[str, Any]:
        """`/v1/status`, as decoded."""
        return {
            "facts": {"version": "1", "gateway_url": "u", "mailbox_url": "m", "socks_port": 1},
            "uptime_s": 5.0,
            "ready": True,
            "reasons": {},
            "tor": {"state": "up", "tors": []},
            "onions": [],
            "queues": {"mailbox": {"waiting": 1}},
            "packs": [],
            "services": [],
            "config_version": 3,
            **other,
        }
