"""What `/v1/events` tells, and to whom."""

from __future__ import annotations

import json
from typing import Any

from twisted.trial.unittest import SynchronousTestCase
from wsproto.events import AcceptConnection, CloseConnection, RejectConnection, TextMessage

from ron.proto.onions import DeleteRequest
from ron.services.oniond.events import APPS, KEPT, KEPT_OF_ALL, EventFeed, events_endpoint
from ron.services.oniond.figures import OnionEvent
from tests.services.oniond.fakes import OnionTor, create, op_id
from tests.services.oniond.memory import World
from tests.web.wire import until
from tests.web.wsclient import Client

SCOPE = ("scope", "onion:events")


class Case(SynchronousTestCase):
    """A host with an onion of alice's and one of bob's, as far as the telemetry knows."""

    def setUp(self) -> None:
        self.world = World(extra=lambda world: [events_endpoint(world.service, lambda: world.now)])
        self.addCleanup(self.world.stop)
        self.world.telemetry.tor_up("onion")
        for onion, app in (("a" * 56, "alice"), ("b" * 56, "bob")):
            self.world.telemetry.watch(onion, app)

    def happens(self, app: str, times: int = 1) -> None:
        for _ in range(times):
            self.world.telemetry.heard("onion", "HS_DESC", f"UPLOADED {app[0] * 56} UNKNOWN $A")

    def reader(self, *caveats: tuple[str, str], query: str = "") -> Client:
        client = Client(self.world.site)
        self.addCleanup(client.gone)
        events = client.connect(self.world.bearer(SCOPE, *caveats), f"/v1/events{query}")
        self.assertIsInstance(events[0], AcceptConnection)
        self.first = [json.loads(event.data) for event in events[1:]]
        return client

    def told(self, client: Client) -> list[dict[str, Any]]:
        return [json.loads(event.data) for event in client.events()]


class ToWhom(Case):
    """Each app of itself."""

    def test_an_app_hears_of_itself_only(self) -> None:
        alice, operator = self.reader(("app", "alice")), self.reader()
        self.happens("bob")
        self.happens("alice")
        self.assertEqual([event["app"] for event in self.told(operator)], ["bob", "alice"])
        (event,) = self.told(alice)
        self.assertEqual((event["app"], event["kind"], event["detail"]), ("alice", "descriptor", {"result": "ok"}))

    def test_its_numbers_tell_nothing_of_others(self) -> None:
        """Whatever happens to bob between, alice's events are numbered one after the other."""
        alice = self.reader(("app", "alice"))
        for others in (0, 3, 7):
            self.happens("bob", others)
            self.happens("alice")
        numbers = [event["seq"] for event in self.told(alice)]
        self.assertEqual([n - numbers[0] for n in numbers], [0, 1, 2])

    def test_a_busy_neighbour_pushes_nothing_out(self) -> None:
        self.happens("alice")
        self.happens("bob", KEPT_OF_ALL + 1)
        self.reader(("app", "alice"), query="?after=0")
        self.assertEqual([event.get("app") for event in self.first], ["alice"])

    def test_two_apps_at_once_hear_nothing(self) -> None:
        self.happens("alice")
        nobody = self.reader(("app", "alice"), ("app", "bob"), query="?after=0")
        self.happens("bob")
        self.assertEqual((self.first, self.told(nobody)), ([], []))

    def test_no_scope_no_events(self) -> None:
        for caveats in ([("scope", "onion:read")], [SCOPE, ("tenant", "t")]):
            client = Client(self.world.site)
            (refused, *_) = client.connect(self.world.bearer(*caveats), "/v1/events")
            self.assertEqual((type(refused), refused.status_code), (RejectConnection, 403))

    def test_an_app_takes_no_more_than_its_share_of_connections(self) -> None:
        for _ in range(16):
            self.reader(("app", "alice"))
        client = Client(self.world.site)
        self.assertEqual(client.connect(self.world.bearer(SCOPE, ("app", "alice")), "/v1/events")[0].status_code, 429)
        self.reader(("app", "bob"))

    def test_nothing_that_is_told_is_an_address(self) -> None:
        operator = self.reader()
        self.happens("alice")
        self.world.telemetry.heard("onion", "CIRC", f"5 BUILT PURPOSE=HS_SERVICE_REND REND_QUERY={'a' * 56}")
        told = json.dumps(self.told(operator))
        self.assertIn("circuit", told)
        self.assertNotIn("a" * 56, told)


class After(Case):
    """What was missed comes first."""

    def test_without_a_number_only_what_comes(self) -> None:
        self.happens("alice")
        client = self.reader(("app", "alice"))
        self.assertEqual(self.first, [])
        self.happens("alice")
        self.assertEqual(len(self.told(client)), 1)

    def test_what_came_after_a_number(self) -> None:
        first = self.reader(("app", "alice"))
        self.happens("alice", 3)
        seen = self.told(first)
        self.reader(("app", "alice"), query=f"?after={seen[0]['seq']}")
        self.assertEqual(self.first, seen[1:])
        self.reader(("app", "alice"), query=f"?after={seen[-1]['seq']}")
        self.assertEqual(self.first, [])

    def test_what_is_not_kept_any_more_is_counted(self) -> None:
        client = self.reader(("app", "alice"))
        self.happens("alice", KEPT + 5)
        first = self.told(client)[0]["seq"]
        self.reader(("app", "alice"), query=f"?after={first}")
        self.assertEqual((self.first[0], len(self.first)), ({"lagged": 4}, KEPT + 1))

    def test_numbers_of_an_earlier_life_are_smaller(self) -> None:
        client = self.reader()
        self.happens("alice", 2)
        last = self.told(client)[-1]["seq"]
        self.world.now += 60
        later = EventFeed(self.world.service, lambda: self.world.now)
        _lost, kept = later.after(None, last)
        self.assertEqual(len(kept), 2, "all that it knows, though the other life had as many")

    def test_a_wrong_parameter(self) -> None:
        token = self.world.bearer(SCOPE)
        for query in ("after=", "after=-1", "after=1&after=2", "after=1e3", "after=%D9%A3", "since=1", "after=1&x=1"):
            answer = Client(self.world.site).connect(token, f"/v1/events?{query}")
            self.assertEqual(answer[0].status_code, 400, query)

    def test_no_messages_are_taken(self) -> None:
        client = self.reader()
        (close,) = client.exchange(TextMessage("hello"))
        self.assertEqual((type(close), close.code), (CloseConnection, 1003))


class Bounded(Case):
    """Whatever happens, so much is kept and no more."""

    def test_many_apps(self) -> None:
        feed = EventFeed(self.world.service, lambda: self.world.now)
        for number in range(APPS + 10):
            feed._note(OnionEvent(seq=number, kind="descriptor", app=f"app-{number}", at=0.0))
        self.assertEqual(len(feed._lines), APPS)

    def test_who_has_gone_is_not_told(self) -> None:
        feed = EventFeed(self.world.service, lambda: self.world.now)
        heard: list[Any] = []
        undo = feed.listen("alice", heard.append)
        self.happens("alice")
        undo()
        self.happens("alice")
        self.assertEqual((len(heard), feed._listening), (1, {}))


class Readiness(OnionTor):
    """Against a peer that speaks the control protocol: an onion becomes ready, and ceases to be."""

    async def test_ready_and_not(self) -> None:
        feed = EventFeed(self.service, lambda: self.now)
        await self.up()
        view = await self.service.create(create(1, wait_s=5.0))
        heard = [event for event in feed.after("chat", 0)[1] if event.kind == "ready"]
        self.assertEqual([event.detail for event in heard], [{"id": view.id, "ready": "true"}])
        self.assertEqual([e.detail["ready"] for e in feed.after("wiki", 0)[1] if e.kind == "ready"], ["true"])
        self.hidden.add("onion")
        self._hang_up()
        await until(lambda: self.ready_of(feed)[1:] == ["false"])

    async def test_deleted(self) -> None:
        feed = EventFeed(self.service, lambda: self.now)
        await self.up()
        view = await self.service.create(create(1, wait_s=5.0))
        await self.service.delete(view.id, DeleteRequest(op_id=op_id(2)))
        self.assertEqual(self.ready_of(feed), ["true", "false"])

    def ready_of(self, feed: EventFeed) -> list[str]:
        return [event.detail["ready"] for event in feed.after("chat", 0)[1] if event.kind == "ready"]
