"""Many onions at once: how many tor is given at a time, and that a change of one is no work for the others."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from ron.kernel.backoff import Backoff
from ron.proto.onions import DeleteRequest
from ron.services.oniond import publisher
from ron.tor import onions as onions_module
from tests.services.oniond.fakes import OnionTor, create, op_id
from tests.tor.fake_tor import uploaded
from tests.web.wire import until


class AtOnce(OnionTor):
    """One at a time, and directories that answer when we say so."""

    async def setUp(self) -> None:
        super().setUp()
        self.patch(publisher, "AT_ONCE", 1)
        self.service = self.make()
        await self.up()
        self.deaf = True
        self.patch(onions_module, "STRAGGLERS_S", 60.0)
        self.before = set(self.there)

    def newcomers(self) -> list[str]:
        return [service_id for service_id in self.there if service_id not in self.before]

    async def test_the_next_one_begins_when_the_first_directory_has_it_not_the_last(self) -> None:
        views = [await self.service.create(create(number)) for number in (1, 2)]
        await until(lambda: self.newcomers())
        (first,) = self.newcomers()
        self.tell_of("onion", uploaded("A", first).replace("UPLOADED", "UPLOAD"))
        self.tell_of("onion", uploaded("B", first).replace("UPLOADED", "UPLOAD"))
        self.assertEqual(len(self.newcomers()), 1)
        self.tell_of("onion", uploaded("A", first))
        await until(lambda: len(self.newcomers()) == 2)
        self.assertFalse(any(self.service.view(self.service.find(view.id)).ready for view in views))
        self.tell_of("onion", uploaded("B", first))
        ready = f"{first}.onion"
        await until(lambda: [view.onion for view in self.service.list("chat") if view.ready] == [ready])


class NoWayThrough(OnionTor):
    """A tor that reaches no introduction points: other points, then another tor."""

    async def setUp(self) -> None:
        super().setUp()
        self.patch(onions_module, "ASKED_TIMEOUT_S", 0.05)
        self.patch(publisher, "Backoff", lambda base_s: Backoff(base_s=0.01))
        self.deaf = True

    async def test_first_it_is_added_again_and_then_the_tor_is_started_anew(self) -> None:
        self.service.startService()
        await until(lambda: self.restarted)
        self.assertEqual(self.onion_commands()[:3], ["ADD_ONION", "DEL_ONION", "ADD_ONION"])
        self.assertEqual(self.restarted, ["onion"])
        self.assertEqual(len(self.flushLoggedErrors(onions_module.NoWay)), 1)

    async def test_what_gets_through_at_the_second_attempt(self) -> None:
        self.service.startService()
        await until(lambda: "DEL_ONION" in self.onion_commands())
        self.deaf = False
        await until(lambda: self.service.status() and self.service.status()[0].published)
        self.assertEqual(self.restarted, [])

    async def test_where_another_one_is_found_the_tor_stays(self) -> None:
        self.deaf = False
        await self.up()
        self.deaf = True
        await self.service.create(create(1))
        await until(lambda: self.onion_commands().count("ADD_ONION") > 4)
        self.assertEqual(self.restarted, [])


class OfMany(OnionTor):
    """One changes; how many of the others are looked at is counted, not timed."""

    async def setUp(self) -> None:
        super().setUp()
        await self.up()
        for number in range(8):
            await self.service.create(create(number + 10, wait_s=5))
        one = self.service._hosting.publisher("onion")
        await deferLater(reactor, 0)  # whoever waits for an onion hears of it before its publisher has done with it
        await until(lambda: not one._dirty and not one._wake.called)
        self.looked_at: list[str] = []
        take_down = publisher.Publisher._take_down

        def watched(one: Any, onions: Any, address: str) -> Any:
            self.looked_at.append(address)
            return take_down(one, onions, address)

        self.patch(publisher.Publisher, "_take_down", watched)

    async def test_a_new_one(self) -> None:
        view = await self.service.create(create(1, app="new", wait_s=5))
        self.assertEqual(set(self.looked_at), {view.onion})

    async def test_a_deleted_one(self) -> None:
        gone = self.service.list("chat")[3]
        await Deferred.fromCoroutine(self.service.delete(gone.id, DeleteRequest(op_id=op_id(99))))
        self.assertEqual(set(self.looked_at), {gone.onion})
        self.assertNotIn(gone.onion.removesuffix(".onion"), self.there)
