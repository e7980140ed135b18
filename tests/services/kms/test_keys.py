"""The life of keys: what is meant, made, told and in force; what a crash leaves between; destroying with a quorum."""

from __future__ import annotations

import sqlite3
from typing import Any, ClassVar

from twisted.internet.defer import Deferred, gatherResults

from ron.crypto.notes import open_by
from ron.kernel.config import convert
from ron.kernel.units import DAY_S
from ron.proto.errors import RonError, unavailable
from ron.services.kms.acts import Acts
from ron.services.kms.config import KmsConfig
from ron.services.kms.ports import AuditEntry
from ron.store import BatchReport
from tests.services.kms.world import B3, World, at, bare, op_id


class Destroying(World):
    async def test_not_without_a_quorum(self) -> None:
        kid = await self.create()
        message = await self.refused(403, "NoCapability", "DELETE", at(kid), {"proposal": "p"})
        self.assertIn("quorum", message)
        self.votes.allowed["p"] = ("destroy_key", "tenant:core", {"kid": bare(kid)})
        await self.refused(403, "NoCapability", "DELETE", at(kid), {"proposal": "p"})
        await self.sign(kid)

    async def test_a_version(self) -> None:
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        newer = (await self.done("POST", at(bare(kid)) + "/rotate"))["kid"]
        self.votes.allowed["p"] = ("destroy_key", "tenant:core", {"kid": kid})
        body = {"proposal": "p", "op_id": op_id(1)}
        self.assertEqual(await self.done("DELETE", at(kid), body), {"kid": kid})
        await self.refused(404, "NotFound", "POST", "/sign", {"kid_or_set": {"kid": kid}, "payload_b3": B3})
        self.assertTrue((await self.verify(sigs, kid))["ok"], "what it signed verifies on")
        self.assertEqual((await self.sign(bare(kid)))["kid"], newer)
        # the same again is the same answer; another time needs another proposal
        self.assertEqual(await self.done("DELETE", at(kid), body), {"kid": kid})
        await self.refused(404, "NotFound", "DELETE", at(kid), {"proposal": "p"})
        self.assertNotIn(kid, {str(one.kid) for one in self.backend.held()})

    async def test_all_of_it(self) -> None:
        kid = await self.create()
        await self.done("POST", at(bare(kid)) + "/rotate")
        self.votes.allowed["p"] = ("destroy_key", "tenant:core", {"kid": bare(kid)})
        await self.done("DELETE", at(bare(kid)), {"proposal": "p"})
        await self.refused(404, "NotFound", "POST", "/sign", {"kid_or_set": {"kid": bare(kid)}, "payload_b3": B3})
        await self.refused(404, "NotFound", "POST", at(bare(kid)) + "/rotate")
        told = [one["kid"] for one in self.records() if one["op"] == "destroy" and one["result"] == "ok"]
        self.assertEqual(told, [kid, bare(kid) + "#v2"])

    async def test_with_the_backend_away_nothing_is_used_up(self) -> None:
        kid = await self.create()
        self.votes.allowed["p"] = ("destroy_key", "tenant:core", {"kid": kid})
        self.backend.away = True
        await self.until(lambda: "backend_ready" in self.health.snapshot().degraded, "the outage")
        await self.refused(503, "StoreUnavailable", "DELETE", at(kid), {"proposal": "p"})
        self.assertIn("p", self.votes.allowed)


class Bounded(World):
    """`limits.verify_cache_max`: public halves are never forgotten, so there are no more than fit."""

    sections: ClassVar[dict[str, Any]] = {"limits": {"verify_cache_max": 3}}

    async def test_no_more_than_fit(self) -> None:
        # the key of the log is one of them
        kid, body = await self.create(), {"tenant": "core", "purpose": "audit", "alg": "ed25519", "op_id": op_id(1)}
        await self.create()
        self.assertEqual(self.value("kms_verify_cache_size"), 3)
        self.assertIn("3 key versions", await self.refused(503, "StoreUnavailable", "POST", "/keys", body))
        await self.refused(503, "StoreUnavailable", "POST", at(bare(kid)) + "/rotate")
        self.assertTrue((await self.verify((await self.sign(kid))["sigs"], kid))["ok"])
        self.assertEqual(len((await self.done("GET", "/keys?tenant=core"))["keys"]), 2)
        self.wishes = convert({"limits": {"verify_cache_max": 4}}, KmsConfig)
        await self.done("POST", "/keys", body)
        self.assertEqual(self.value("kms_verify_cache_size"), 4)


class LongAgo(World):
    async def test_the_same_answer_after_a_fortnight(self) -> None:
        body = {"tenant": "core", "purpose": "audit", "alg": "ed25519", "op_id": op_id(1)}
        made = await self.done("POST", "/keys", body)
        # not out of what this process remembers
        self.service._keys._acts = Acts()
        self.ahead_s = 14 * DAY_S
        self.assertEqual(await self.done("POST", "/keys", body), made)
        await self.refused(409, "Conflict", "POST", "/keys", {**body, "purpose": "other"})


class Freezing(World):
    async def test_a_frozen_tenant(self) -> None:
        kid, other = await self.create(), await self.create(tenant="acme")
        sigs = (await self.sign(kid))["sigs"]
        self.votes.freezes["core"] = "f-1"
        for path, body in (("/sign", {"kid_or_set": {"kid": kid}, "payload_b3": B3}), (at(bare(kid)) + "/rotate", {})):
            self.assertIn("f-1", await self.refused(403, "NoCapability", "POST", path, body))
        self.assertTrue((await self.verify(sigs, kid))["ok"])
        await self.sign(other)
        self.assertGreaterEqual(self.value("kms_reject_total", reason="frozen"), 2)


class Races(World):
    async def test_two_rotations_at_once(self) -> None:
        """One wins, the other is told so; no version is skipped or made twice."""
        kid = await self.create()
        path = at(bare(kid)) + "/rotate"
        answers = await gatherResults([Deferred.fromCoroutine(self.ask("POST", path, {})) for _ in range(4)])
        statuses = sorted(answer.status for answer in answers)
        self.assertEqual((statuses[0], set(statuses[1:])), (200, {409}))
        self.assertEqual((await self.done("GET", at(bare(kid))))["versions"], ["#v1", "#v2"])

    async def test_one_op_id_at_once(self) -> None:
        body = {"tenant": "core", "purpose": "audit", "alg": "hybrid", "op_id": op_id(1)}
        answers = await gatherResults([Deferred.fromCoroutine(self.ask("POST", "/keys", body)) for _ in range(4)])
        self.assertEqual({answer.body.get("kid") for answer in answers}, {answers[0].body["kid"]})

    async def test_signing_while_it_is_rotated(self) -> None:
        kid = await self.create("hybrid")
        asked = [self.ask("POST", "/sign", {"kid_or_set": {"kid": bare(kid)}, "payload_b3": B3}) for _ in range(20)]
        waiting = [Deferred.fromCoroutine(one) for one in asked]
        await self.done("POST", at(bare(kid)) + "/rotate")
        for answer in await gatherResults(waiting):
            self.assertTrue((await self.verify(answer.body["sigs"], answer.body["kid"]))["ok"])


class Trouble(World):
    """What is not in the log is not answered, and is not there."""

    def fails(self, op: str) -> None:
        log: Any = self.service.log
        append = log.append

        def broken(entry: AuditEntry) -> Deferred[int]:
            if entry.op == op:
                failing: Deferred[int] = Deferred()
                failing.errback(unavailable("the disk is full"))
                return failing
            return append(entry)  # type: ignore[no-any-return]

        self.patch(log, "append", broken)

    async def test_no_record_no_signature(self) -> None:
        kid = await self.create()
        self.fails("sign")
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3, "op_id": op_id(1)}
        await self.refused(503, "StoreUnavailable", "POST", "/sign", body)

    async def test_no_record_no_key(self) -> None:
        self.fails("create")
        before = len(self.backend.held())
        body = {"tenant": "core", "purpose": "audit", "alg": "ed25519", "op_id": op_id(1)}
        await self.refused(503, "StoreUnavailable", "POST", "/keys", body)
        self.assertEqual(len(self.backend.held()), before)
        self.assertEqual((await self.done("GET", "/keys?tenant=core"))["keys"], [])

    async def test_no_record_no_version(self) -> None:
        kid = await self.create()
        log: Any = self.service.log
        append = log.append
        self.fails("rotate")
        body = {"op_id": op_id(1)}
        await self.refused(503, "StoreUnavailable", "POST", at(bare(kid)) + "/rotate", body)
        self.assertEqual((await self.sign(bare(kid)))["kid"], kid)
        # its number is used up; the same op_id is not
        self.patch(log, "append", append)
        again = await self.done("POST", at(bare(kid)) + "/rotate", body)
        self.assertEqual(again["kid"], f"{bare(kid)}#v3")
        self.assertEqual((await self.sign(bare(kid)))["kid"], again["kid"])


class Killed(World):
    """The process ends between two steps."""

    on_disk = True

    async def die(self, step: Any, name: str, work: Any) -> None:
        """Begin `work` and end the service where it calls `step.name`, which never returns."""
        never: Deferred[Any] = Deferred()
        reached: list[object] = []

        def stuck(*args: Any, **_kwargs: Any) -> Deferred[Any]:
            reached.append(args)
            return never

        patched = self.patch(step, name, stuck)
        begun = Deferred.fromCoroutine(work)
        begun.addErrback(lambda _failure: None)
        await self.until(lambda: reached, f"{name} to be reached")
        patched.restore()
        begun.cancel()
        token = self.token
        await self.again()
        self.token = token

    async def test_before_it_was_made(self) -> None:
        """Nothing is there, and the op_id may be used."""
        body = {"tenant": "core", "purpose": "audit", "alg": "ed25519", "op_id": op_id(1)}
        await self.die(self.service.room.lanes, "whole", self.ask("POST", "/keys", body))
        self.assertEqual((await self.done("GET", "/keys?tenant=core"))["keys"], [])
        made = await self.done("POST", "/keys", body)
        self.assertEqual(await self.done("POST", "/keys", body), made)

    async def test_between_making_and_telling(self) -> None:
        """It is brought to its end: the log hears of it, and whoever asks again gets its name."""
        body = {"tenant": "core", "purpose": "audit", "alg": "ed25519", "op_id": op_id(1)}
        await self.die(self.service.room.recorder, "record", self.ask("POST", "/keys", body))
        shown = (await self.done("GET", "/keys?tenant=core"))["keys"]
        made = await self.done("POST", "/keys", body)
        self.assertEqual([one["kid"] for one in shown], [made["kid"]])
        told = [one for one in self.records() if one.get("kid") == made["kid"]]
        self.assertEqual((told[0]["op"], told[0]["extra"]["recovered"]), ("create", True))
        await self.sign(made["kid"])

    async def test_between_telling_and_force(self) -> None:
        kid = await self.create()
        path, body = at(bare(kid)) + "/rotate", {"op_id": op_id(2)}
        await self.die(self.service.room.store, "finish", self.ask("POST", path, body))
        self.assertEqual(await self.done("POST", path, body), {"kid": bare(kid) + "#v2", "previous": kid})
        self.assertEqual((await self.done("GET", at(bare(kid))))["versions"], ["#v1", "#v2"])

    async def test_in_the_middle_of_destroying(self) -> None:
        kid = await self.create()
        self.votes.allowed["p"] = ("destroy_key", "tenant:core", {"kid": kid})
        await self.die(self.service.room.lanes, "whole", self.ask("DELETE", at(kid), {"proposal": "p"}))
        await self.refused(404, "NotFound", "POST", "/sign", {"kid_or_set": {"kid": kid}, "payload_b3": B3})
        self.assertNotIn(kid, {str(one.kid) for one in self.backend.held()})


class First(World):
    """The first start, and the key that signs the log."""

    on_disk = True

    async def test_without_the_backend(self) -> None:
        """There would be nobody to sign the log."""
        await self.end()
        self.home = self.home.with_name("another")
        self.patch(type(self), "before_start", lambda world: setattr(world.backend, "away", True))
        error: Any = await self.assertFailure(Deferred.fromCoroutine(self.begin()), RonError)
        self.assertIn("at the first start the backend must be there", error.message)
        await self.end()
        self.patch(type(self), "before_start", lambda _world: None)
        await self.begin()
        self.assertTrue(self.health.snapshot().ready)

    async def test_one_that_a_crash_left_on_its_way(self) -> None:
        """The log may be signed with it already: it is taken up again."""
        await self.service.log.checkpoint()
        origin = self.service._log_key.origin
        await self.end()
        with sqlite3.connect(self.home / "kms" / "kms.sqlite3") as connection:
            connection.execute("UPDATE version SET state = 'pending', halves = x'5b5d'")
        connection.close()
        await self.begin()
        self.assertEqual(self.service._log_key.origin, origin)
        self.assertTrue(self.health.snapshot().ready, self.health.snapshot())
        await self.again()
        self.assertEqual((self.service._log_key.origin, self.health.snapshot().missing), (origin, ()))

    async def test_the_key_that_signs_is_not_lost_with_its_log(self) -> None:
        note = (await self.service.log.checkpoint()).note
        text, _keys = open_by(note, self.service._log_key.key_sets())
        self.assertTrue(text.startswith(self.service._log_key.origin.encode()))


class Storing(World):
    """The metadata store in trouble."""

    async def test_nothing_is_signed_until_it_takes_writes_again(self) -> None:
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        probes: list[Any] = [unavailable("no room on the disk"), unavailable("no room on the disk")]
        store: Any = self.service.room.store
        real = store.probe

        def probe() -> Deferred[None]:
            failing: Deferred[None] = Deferred()
            if not probes:
                return real()  # type: ignore[no-any-return]
            failing.errback(probes.pop())
            return failing

        self.patch(store, "probe", probe)
        self.service._observe_store(BatchReport(1, 0.0, True, unavailable("no room on the disk"), True))
        body = {"kid_or_set": {"kid": kid}, "payload_b3": B3}
        self.assertIn("no room", await self.refused(503, "StoreUnavailable", "POST", "/sign", body))
        found = await self.verify(sigs, kid)
        self.assertTrue(found["ok"] and "cache_age_ms" in found)
        await self.until(lambda: not self.health.snapshot().degraded, "the store to be well")
        await self.sign(kid)
