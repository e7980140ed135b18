"""RustBalance as a program uses it, over a real socket and the real API."""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor

from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.sdk.balance import DEADLINE_S, Balance, balance_at
from ron.sdk.onions import new_op_id
from ron.services.balance.api import DEADLINE_S as SERVICE_DEADLINE_S
from tests.sdk.with_balance import WithBalance
from tests.services.balance.desk import KEY_ONION, NODES

KEY = bytes(range(64))


class BalanceCalls(WithBalance):
    """Every route."""

    async def fails(self, code: ErrorCode, call: Any) -> RonError:
        with self.assertRaises(RonError) as caught:
            await call
        self.assertIs(caught.exception.code, code, str(caught.exception))
        return caught.exception

    async def test_what_cannot_be_is_refused_before_anybody_is_asked(self) -> None:
        balance = Balance(balance_at(reactor, self.home / "nobody.sock", None))
        for call in (
            balance.promote("UPPER"),
            balance.promote("beta", for_s=0),
            balance.siege("", True),
            balance.roulette(True, for_s=8 * 24 * 3600),
            balance.publish("Shop"),
            balance.remove(""),
            balance.remove(".."),
            balance.approve(""),
            balance.rotate_token(op_id="1"),
            balance.invite("a b"),
            balance.invite("delta", ["nowhere"]),
            balance.create("Shop"),
            balance.create("shop", mode="threshold", threshold=1),
            balance.create("shop", key=b""),
            balance.create("shop", key=KEY[:32]),
            balance.refresh(""),
            balance.reshare("main", threshold=17),
        ):
            await self.fails(ErrorCode.BAD_REQUEST, call)

    async def test_what_the_node_refuses_comes_through(self) -> None:
        balance = self.balance()
        await self.fails(ErrorCode.NOT_FOUND, balance.remove("delta"))
        await self.fails(ErrorCode.NOT_FOUND, balance.approve("no/../such?node"))
        await self.fails(ErrorCode.CONFLICT, balance.create("main"))
        await self.fails(ErrorCode.BAD_REQUEST, balance.create("shop", threshold=2))
        await self.fails(ErrorCode.NO_CAPABILITY, self.balance(("scope", "balance:operate")).refresh("main"))
        self.desk.refusal = unavailable("2 of 3 are needed, 1 is there")
        error = await self.fails(ErrorCode.STORE_UNAVAILABLE, self.balance(tries=1).publish())
        self.assertEqual(error.message, "2 of 3 are needed, 1 is there")

    async def test_looking(self) -> None:
        balance = self.balance(("scope", "balance:read"))
        shown = await balance.status()
        self.assertEqual((shown.leader.name, tuple(one.name for one in shown.members)), ("alpha", NODES))
        self.assertEqual(shown.services[0].publications[0].heads, NODES)
        self.assertEqual(await balance.ghosts(), ())

    async def test_steering(self) -> None:
        balance = self.balance(("scope", "balance:operate,balance:read"))
        self.assertEqual((await balance.promote("beta", for_s=60)).name, "beta")
        await balance.promote(None)
        self.assertFalse((await balance.siege("beta", True, for_s=5)).in_descriptor)
        self.assertEqual([one.node for one in await balance.ghosts()], ["beta"])
        self.assertTrue((await balance.roulette(True)).warning)
        self.assertEqual((await balance.publish()).services, ("main",))
        self.assertEqual((await balance.publish("main")).leader, "alpha")
        self.assertEqual((await balance.rotate_token()).version, 2)
        await balance.remove("gamma")
        self.assertEqual((await balance.leave()).node, "alpha")
        self.assertEqual(
            [call[0] for call in self.desk.calls],
            ["promote", "promote", "siege", "roulette", "publish", "publish", "token", "remove", "leave"],
        )

    async def test_keys(self) -> None:
        balance = self.balance(("scope", "balance:key"))
        self.assertTrue((await balance.approve("gamma")).approved)
        self.assertIn("delta", (await balance.invite("delta", ["10.7.0.4:9470"])).bundle)
        self.assertEqual((await balance.create("shop", key=KEY)).onion, KEY_ONION)
        self.assertEqual(self.desk.calls[-1], ("create", "shop", "shared", 0, 0, (), KEY))
        made = await balance.create("club", mode="threshold", among=["alpha", "beta"])
        self.assertEqual((made.threshold, made.members), (2, 2))
        self.assertEqual((await balance.refresh("main")).epoch, 2)
        self.assertEqual((await balance.reshare("main", threshold=3, add=["beta"])).threshold, 3)

    async def test_a_try_that_failed_is_repeated_under_the_same_op_id(self) -> None:
        self.desk.failures = [unavailable("a moment")] * 2
        self.assertEqual((await self.balance().refresh("main")).epoch, 2)
        self.assertEqual([call[0] for call in self.desk.calls], ["refresh"] * 3)

    async def test_an_op_id_is_one_act(self) -> None:
        balance, one = self.balance(), new_op_id()
        first = await balance.rotate_token(op_id=one)
        self.assertEqual(await balance.rotate_token(op_id=one), first)
        await self.fails(ErrorCode.CONFLICT, balance.refresh("main", op_id=one))
        self.assertEqual((await balance.rotate_token()).version, first.version + 1)

    def test_the_client_waits_longer_than_the_node(self) -> None:
        self.assertGreater(DEADLINE_S, SERVICE_DEADLINE_S)
