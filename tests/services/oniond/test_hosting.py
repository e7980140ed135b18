"""Where onions are put: names of tors, places, what is found again; and by which relays a tor of their own enters."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import ConfigError
from ron.proto.onions import Hints
from ron.services.oniond.config import OnionConfig
from ron.services.oniond.model import Onion
from ron.services.oniond.roles import Placement, empty_out, even_out, find_again, pool_number, pool_role
from ron.tor.onionkeys import new_key
from tests.services.configtables import check
from tests.services.oniond.fakes import WIKI, OnionTor, create

LOADS = st.dictionaries(
    st.sampled_from([pool_role(n) for n in range(1, 5)]),
    st.dictionaries(st.text(alphabet="abcdef", min_size=1, max_size=4), st.integers(1, 50), max_size=8),
    min_size=2,
)


def onion(**more: Any) -> Onion:
    """One that shares."""
    key = new_key().blob
    return Onion(id=f"id-{key[11:20]}", app="chat", key=key, ports=WIKI, created_s=0, socks_secret="s", **more)


class Roles(SynchronousTestCase):
    """Names and places."""

    def test_names(self) -> None:
        self.assertEqual([pool_role(n) for n in (1, 2, 12)], ["onion", "onion-2", "onion-12"])
        self.assertEqual([pool_number(pool_role(n)) for n in (1, 2, 12)], [1, 2, 12])
        for other in (
            "onion-0",
            "onion-02",
            "own-0123456789ab",
            "client",
            "onion-",
            "onion-x",
            "onion-100",
            "onion-2\n",
        ):
            self.assertIsNone(pool_number(other), other)

    def test_a_new_one_goes_where_there_is_least(self) -> None:
        placement = Placement()
        placement.pool = ["onion", "onion-2"]
        load = {"onion": 3, "onion-2": 1}
        one = onion()
        self.assertEqual(placement.place(one, load.__getitem__), "onion-2")
        load["onion-2"] = 9
        self.assertEqual(placement.place(one, load.__getitem__), "onion-2", "it stays there")
        own = onion(isolation="process")
        self.assertEqual(placement.place(own, load.__getitem__)[:4], "own-")
        self.assertEqual((placement.on("onion-2"), placement.on("onion")), ([one.id], []))

    def test_two_tors_have_one_that_moves(self) -> None:
        placement, one = Placement(), onion()
        placement.put(one.id, "onion")
        placement.move(one.id, "onion-2", {})
        self.assertEqual(placement.roles(one), ("onion-2", "onion"))
        placement.put(one.id, "onion-2")
        self.assertEqual(placement.roles(one), ("onion-2",))
        placement.forget(one.id)
        self.assertEqual(placement.roles(one), ())

    @given(LOADS, st.integers(0, 20))
    def test_each_move_makes_the_two_more_alike(self, loads: dict[str, dict[str, int]], most: int) -> None:
        target = min(loads)
        sums = {role: sum(onions.values()) for role, onions in loads.items()}
        moves = even_out(loads, [target], most)
        self.assertLessEqual(len(moves), most)
        for move in moves:
            self.assertEqual(move.target, target)
            weight, gap = loads[move.source][move.onion], sums[move.source] - sums[target]
            sums[move.source] -= weight
            sums[target] += weight
            self.assertLess(abs(sums[move.source] - sums[target]), gap)

    @given(LOADS)
    def test_all_go(self, loads: dict[str, dict[str, int]]) -> None:
        source = max(loads)
        moves = empty_out(loads, source)
        self.assertEqual({move.onion for move in moves}, set(loads[source]))
        self.assertNotIn(source, {move.target for move in moves})

    def test_found_where_it_was(self) -> None:
        first, second, moving, lost = onion(), onion(), onion(), onion()
        applied = {
            ("onion", first.address): "d",
            ("onion-2", second.address): "d",
            ("onion-2", moving.address): "d",
            ("onion", moving.address): "",
            ("onion-3", lost.address): "d",
            ("own-0123456789ab", "x.onion"): "d",
        }
        found = find_again([first, second, moving, lost], applied, ["onion", "onion-2", "client"])
        self.assertEqual(found.at, {first.id: "onion", second.id: "onion-2", moving.id: "onion-2"})
        self.assertEqual(found.unsure, {("onion-2", moving.address)})
        self.assertEqual(set(found.stale), {("onion-3", lost.address), ("onion", moving.address)})


class Config(SynchronousTestCase):
    """What of the config cannot work."""

    def refused(self, key: str, **onion: Any) -> None:
        for daemon in ("ron-node", "ron-oniond"):
            error: ConfigError = self.assertRaises(ConfigError, check, daemon, {"onion": onion})
            self.assertTrue((error.key or "").startswith(key), error.one_line())
            self.assertTrue(error.hint or error.message)

    def test_limits(self) -> None:
        self.refused("onion.scale_min", scale_min=2)
        self.refused("onion.scale_min", scale_min=0)
        self.refused("onion.scale_max", scale_max=33)
        self.refused("onion.autoscale", scale_max=2, autoscale={"circuits_p95": 9})
        check("ron-node", {"onion": {"scale_min": 2, "scale_max": 2}})

    def test_labels(self) -> None:
        relay = "A" * 40
        for labels in ({relay.lower(): "eu"}, {relay: "EU"}, {relay: ""}, {relay[1:]: "eu"}, {f"{relay}\n": "eu"}):
            self.refused("onion.relay_labels", relay_labels=labels)
        self.refused("onion.relay_labels", relay_labels={relay: "eu"}, network="public")
        check("ron-oniond", {"onion": {"relay_labels": {relay: "eu-west"}}})


class Regions(OnionTor):
    """Hints, for onions with a tor of their own."""

    EU, US = "A" * 40, "B" * 40

    async def wish(self, *regions: str, isolation: str = "process") -> list[str]:
        self.wished = OnionConfig(relay_labels={self.EU: "eu-west", self.US: "us"})
        for relay, flags in ((self.EU, "Fast Guard Running Valid"), (self.US, "Fast Guard Valid")):
            self.answers[f"GETINFO ns/id/{relay}"] = [f"250+ns/id/{relay}=", "r x", f"s {flags}", ".", "250 OK"]
        await self.up()
        view = await self.service.create(create(1, isolation=isolation, hints=Hints(regions=regions), wait_s=5))
        self.assertEqual((view.ready, view.hints.regions), (True, regions))
        return [c for c in self.commands if "EntryNodes" in c]

    async def test_its_tor_enters_by_the_wished_relay(self) -> None:
        self.assertEqual(await self.wish("mars", "eu"), [f'SETCONF EntryNodes="${self.EU}" StrictNodes=0'])

    async def test_a_relay_that_does_not_run_is_no_reason_to_be_unreachable(self) -> None:
        self.assertEqual(await self.wish("us"), ["RESETCONF EntryNodes StrictNodes"])

    async def test_no_such_region(self) -> None:
        self.assertEqual(await self.wish("mars"), [])

    async def test_one_that_shares_has_no_guards_of_its_own(self) -> None:
        self.assertEqual(await self.wish("eu", isolation="shared"), [])
