"""The host's clock is set by an hour, either way and back: nothing ends early, nothing is done twice, nobody is let in.

The other half, tor under such clocks, is in `tests/live/test_clock_jump.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import RonError, unavailable
from ron.proto.onions import Client, CreateRequest, DrainRequest, Port, RotateRequest
from ron.services.oniond import model
from ron.services.oniond.audit import FileAudit, verify
from ron.services.oniond.registry import ACTS_KEPT_S
from ron.tor.clientauth import generate
from ron.tor.onionkeys import new_key
from tests.services.oniond.fakes import op_id
from tests.services.oniond.memory import NOW_S, World

HOUR_S = 3600.0
PORTS = (Port(onion_port=80, local="127.0.0.1:8080"),)
JUMPS = st.lists(st.sampled_from([HOUR_S, -HOUR_S, 24 * HOUR_S, -24 * HOUR_S]), min_size=1, max_size=4)


class Jumping(SynchronousTestCase):
    """A host whose clock we set; time itself passes only when we say so."""

    def setUp(self) -> None:
        self.begin()
        self.addCleanup(lambda: self.world.stop())

    def begin(self) -> None:
        self.world = World()
        self.service = self.world.service
        self.made = self.settle(self.service.create(self.creation(1)))

    def creation(self, number: int) -> CreateRequest:
        key = generate().public.base32
        return CreateRequest(
            op_id=op_id(number), app="chat", ports=PORTS, client_auth=(Client(name="bob", public_key=key),)
        )

    def settle(self, coroutine: Any) -> Any:
        return self.world.settle(Deferred.fromCoroutine(coroutine))

    def jump(self, by_s: float) -> None:
        """Somebody sets the clock."""
        self.world.now += by_s
        self.world.jumped += by_s

    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds
        self.look()

    def look(self) -> None:
        self.settle(self.service._upkeep.look())

    def view(self) -> Any:
        return self.service.view(self.service.find(self.made.id))

    def rotate(self, number: int, grace_s: float) -> Any:
        return self.settle(self.service.rotate(self.made.id, RotateRequest(op_id=op_id(number), grace_s=grace_s)))


class Graces(Jumping):
    @settings(max_examples=40, deadline=None)
    @given(JUMPS, st.booleans())
    def test_the_old_address_has_all_of_its_time(self, jumps: list[float], looked_between: bool) -> None:
        self.world.stop()
        self.begin()
        self.rotate(2, 600.0)
        for by_s in jumps:
            self.jump(by_s)
            if looked_between:
                self.look()
        self.pass_time(599.0)
        self.assertIsNotNone(self.view().previous)
        self.pass_time(2.0)
        self.assertIsNone(self.view().previous)

    def test_until_is_told_by_the_clock_as_it_is_now(self) -> None:
        before = self.rotate(2, 600.0).previous
        self.jump(HOUR_S)
        self.look()
        after = self.view().previous
        self.assertEqual((before.until, after.until), ("2027-01-15T08:10:00Z", "2027-01-15T09:10:00Z"))

    def test_rotated_right_after_it_before_anybody_looked(self) -> None:
        for number, by_s in enumerate((-HOUR_S, HOUR_S)):
            self.jump(by_s)
            self.rotate(10 + number, 600.0)
            self.pass_time(599.0)
            self.assertIsNotNone(self.view().previous, by_s)
            self.pass_time(2.0)
            self.assertIsNone(self.view().previous, by_s)

    def test_what_cannot_be_kept_is_tried_again_and_not_done_twice(self) -> None:
        self.rotate(2, 600.0)
        put, trouble = self.service._store.put, [unavailable("no room on the disk")]

        def refusing(*given_: Any) -> Any:
            if trouble:
                raise trouble.pop()
            return put(*given_)

        self.patch(self.service._store, "put", refusing)
        self.jump(HOUR_S)
        with self.assertRaises(RonError):
            self.look()
        self.assertIsNotNone(self.view().previous, "not ended meanwhile")
        self.look()
        self.look()
        self.assertEqual(self.view().previous.until, "2027-01-15T09:10:00Z")

    def test_small_steps_are_left_alone(self) -> None:
        """What NTP slews, and a look that comes late."""
        until = self.rotate(2, 600.0).previous.until
        self.jump(20.0)
        self.look()
        self.assertEqual(self.view().previous.until, until)


class Drains(Jumping):
    def test_it_is_cut_off_after_its_time_and_not_before_or_an_hour_later(self) -> None:
        for by_s in (HOUR_S, -HOUR_S):
            onion = self.service.find(self.made.id)
            drained = model.drain(onion, now_s=self.world.now, deadline_s=60)
            self.assertEqual(model.put_off(drained, by_s).drain_until_s, self.world.now + 60 + by_s)
        self.settle(self.service.drain(self.made.id, DrainRequest(op_id=op_id(3), deadline_s=60)))
        self.visit()
        self.jump(HOUR_S)
        self.pass_time(50.0)
        self.assertEqual(self.view().state, "draining")
        self.jump(-2 * HOUR_S)
        self.pass_time(11.0)
        self.assertEqual(self.view().state, "drained")

    def visit(self) -> None:
        address = self.made.onion.removesuffix(".onion")
        self.world.telemetry.tor_up("onion")
        self.world.telemetry.heard("onion", "CIRC", f"1 BUILT PURPOSE=HS_SERVICE_REND REND_QUERY={address}")

    def test_others_have_no_end_to_move(self) -> None:
        onion = model.create(self.creation(9), new_key(), now_s=NOW_S, isolation="shared")
        self.assertEqual(model.put_off(onion, HOUR_S), onion)
        self.assertEqual(model.put_off(model.drained(onion), HOUR_S), model.drained(onion))


class Acts(Jumping):
    def test_the_same_op_id_is_the_same_act_on_either_side(self) -> None:
        first = self.creation(7)
        made = self.settle(self.service.create(first))
        for by_s in (HOUR_S, -HOUR_S, -HOUR_S, HOUR_S):
            self.jump(by_s)
            self.settle(self.service._registry.forget_old_acts())
            self.assertEqual(self.settle(self.service.create(first)).id, made.id)

    def test_they_are_forgotten_in_the_end(self) -> None:
        self.jump(-HOUR_S)
        self.world.now += ACTS_KEPT_S + HOUR_S + 1
        self.settle(self.service._registry.forget_old_acts())
        self.assertEqual(self.service._registry._acts, {})

    def test_who_may_find_it_may_do_so_on(self) -> None:
        for by_s in (HOUR_S, -2 * HOUR_S):
            self.jump(by_s)
            self.look()
            (client,) = self.view().clients
            self.assertEqual(client.name, "bob")


class Capabilities(Jumping):
    def test_they_end_by_the_clock_and_only_by_it(self) -> None:
        """An `exp` is a date: set forward beyond it the capability is refused, set back it is good again."""
        token = self.world.bearer(("scope", "onion:*"), ("exp", "2027-01-15T08:30:00Z"))
        for by_s, status in ((0.0, 200), (HOUR_S, 401), (-HOUR_S, 200), (-HOUR_S, 200), (2 * HOUR_S, 401)):
            self.jump(by_s)
            self.assertEqual(self.world.ask(token, "GET", "/v1/onions").status, status, by_s)

    def test_an_allowance_does_not_stand_still_for_an_hour(self) -> None:
        token = self.world.bearer(("scope", "onion:*"), ("rps", "1"))
        self.jump(-HOUR_S)
        self.assertEqual(self.world.ask(token, "GET", "/v1/onions").status, 200)
        while self.world.ask(token, "GET", "/v1/onions").status == 200:
            pass
        self.jump(-HOUR_S)
        self.assertEqual(self.world.ask(token, "GET", "/v1/onions").status, 429)
        self.world.now += 1.5
        self.assertEqual(self.world.ask(token, "GET", "/v1/onions").status, 200)


class Audits(SynchronousTestCase):
    def test_the_chain_holds_though_its_times_go_back(self) -> None:
        now = [NOW_S]
        path = Path(self.mktemp()) / "oniond.jsonl"
        sink = FileAudit(path, lambda: now[0])
        for by_s in (0.0, -HOUR_S, HOUR_S, 2 * HOUR_S):
            now[0] += by_s
            sink.append("onion_exported", {"app": "chat"})
        self.assertEqual([record.seq for record in sink.recent()], [1, 2, 3, 4])
        sink.close()
        again = FileAudit(path, lambda: now[0] - HOUR_S)
        self.assertEqual(again.append("onion_exported", {"app": "chat"}).seq, 5)
        self.addCleanup(again.close)
        verdict = verify(path)
        self.assertIsNone(verdict.broken)
        self.assertEqual(verdict.records, 5)
