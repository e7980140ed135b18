"""Owner and workers together: what changes is in force everywhere before its author hears of it, and no record is lost
or made up."""

from __future__ import annotations

import base64
import json
import time
from typing import Any, ClassVar

import msgspec
from nacl.signing import VerifyKey
from twisted.internet.defer import Deferred

from ron.proto.errors import RonError
from ron.proto.kms import DestroyRequest, SignRequest, parse_kid
from ron.services.kms.model import Caller
from ron.services.kms.ports import AuditEntry
from ron.services.kms.workers import crew
from ron.services.kms.workers.frames import Ask, Batch, Go, Kept, Keys, Who
from tests.services.kms.workers.ship import Crewman, Ship
from tests.services.kms.world import B3, at, bare, op_id


class Signing(Ship):
    async def test_a_worker_signs_and_the_owner_has_it_on_record(self) -> None:
        kid = await self.create()
        signed = await self.sign(kid)
        public = (await self.done("GET", at(kid)))["public"]["pubkey_b64"]
        VerifyKey(base64.b64decode(public)).verify(
            bytes.fromhex(B3), base64.b64decode(signed["sigs"][0]["signature_b64"])
        )
        ours = [one for one in self.records() if one["op"] == "sign"]
        self.assertEqual([(one["kid"], one["result"]) for one in ours], [(kid, "ok")])
        mark = self.service.room.recorder.mark
        self.assertEqual(ours[0]["extra"]["store"], mark.counter, "it says where the owner's store stands")

    async def test_hybrid_wrap_and_unwrap_and_verify(self) -> None:
        kid = await self.create("hybrid")
        signed = await self.sign(kid)
        self.assertEqual([one["alg"] for one in signed["sigs"]], ["ed25519", "ml-dsa"])
        self.assertTrue((await self.verify(signed["sigs"], kid))["ok"])
        wraps = await self.create("hybrid", purpose="wrap")
        wrapped = await self.done("POST", "/wrap", {"kid": wraps, "size": 32})
        opened = await self.done("POST", "/unwrap", {"kid": wraps, "wrapped_b64": wrapped["wrapped_b64"]})
        self.assertEqual(len(base64.b64decode(opened["plaintext_key_b64"])), 32)
        ops = {one["op"] for one in self.records()}
        self.assertLessEqual({"sign", "verify", "wrap", "unwrap"}, ops)

    async def test_not_answered_before_the_owner_has_it(self) -> None:
        kid = await self.create()
        man = self.men[0]
        man.dumb = True
        asked: Deferred[Any] = Deferred.fromCoroutine(man.service.sign(Caller(), _request(kid)))
        await self.until(lambda: man._up, "a record on its way")
        self.assertFalse(asked.called)
        man.flush()
        self.assertEqual((await asked).kid, kid)

    async def test_another_tenants_key(self) -> None:
        kid = await self.create()
        self.token = self.bearer(("scope", "*"), ("tenant", "other"))
        await self.refused(403, "NoCapability", "POST", "/sign", {"kid_or_set": kid, "payload_b3": B3})
        for method, path, body in (
            ("POST", at(bare(kid)) + "/rotate", None),
            ("GET", at(kid), None),
            ("DELETE", at(kid), {"proposal": "p"}),
            ("POST", "/sign", {"kid_or_set": kid, "payload_b3": B3, "op_id": op_id(1)}),
            ("GET", "/keys?tenant=core", None),
            ("GET", "/attest", None),
        ):
            await self.refused(403, "NoCapability", method, path, body)

    async def test_op_ids_hold_for_all_workers(self) -> None:
        kid = await self.create()
        first = await self.sign(kid, op_id=op_id(1))
        self.use(self.men[1])
        self.assertEqual(await self.sign(kid, op_id=op_id(1)), first)
        self.assertEqual(sum(1 for one in self.records() if one["op"] == "sign"), 1)


class Turns(Ship):
    """Without a second half a signature is made at once."""

    sections: ClassVar[dict[str, Any]] = {"pq": {"produce_hybrid": False, "verify_mode": "or"}}

    async def test_one_batch_for_a_turn(self) -> None:
        kid = await self.create()
        man = self.men[0]
        # the first one asks for evidence of where the key lives
        await man.service.sign(Caller(), _request(kid))
        before = len(man.said)
        many: list[Deferred[Any]] = [
            Deferred.fromCoroutine(man.service.sign(Caller(), _request(kid))) for _ in range(50)
        ]
        for one in many:
            await one
        batches = [frame for frame in man.said[before:] if isinstance(frame, Batch)]
        self.assertEqual([len(one.entries) for one in batches], [50])
        seqs = [one["kid_seq"] for one in self.records() if one["op"] == "sign"]
        self.assertEqual(seqs, list(range(seqs[0], seqs[0] + 51)))


class Changing(Ship):
    async def test_a_new_key_and_a_new_version_are_known_to_all(self) -> None:
        kid = await self.create()
        newer = (await self.done("POST", at(bare(kid)) + "/rotate"))["kid"]
        for man in self.men:
            self.use(man)
            self.assertEqual((await self.sign(bare(kid)))["kid"], newer)
            self.assertEqual((await self.sign(kid))["kid"], kid)

    async def test_a_destroyed_one_is_gone_from_all(self) -> None:
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        self.votes.allowed["p"] = ("destroy_key", "tenant:core", {"kid": kid})
        await self.done("DELETE", at(kid), {"proposal": "p"})
        for man in self.men:
            self.use(man)
            await self.refused(404, "NotFound", "POST", "/sign", {"kid_or_set": kid, "payload_b3": B3})
            self.assertNotIn(parse_kid(kid), {one.kid for one in man.service.room.backend.held()})
            self.assertTrue((await self.verify(sigs, kid))["ok"], "what it signed verifies on")

    async def test_a_worker_that_has_not_heard_yet_answers_nothing(self) -> None:
        """It signs, for it knows no better; the owner takes no record of it, and so nobody gets the signature."""
        kid = await self.create()
        man = self.men[0]
        man.deaf = True
        asked: Deferred[Any] = Deferred.fromCoroutine(man.service.sign(Caller(), _request(kid)))
        man.dumb = True
        self.votes.allowed["p"] = ("destroy_key", "tenant:core", {"kid": kid})
        await self.service.destroy(Caller(), parse_kid(kid), DestroyRequest(proposal="p"))
        man.flush()
        error = await self.assertFailure(asked, RonError)
        self.assertEqual(error.code.value, "NotFound")
        self.assertEqual([one for one in self.records() if one["op"] == "sign" and one["result"] == "ok"], [])

    async def test_a_freeze_holds_at_once(self) -> None:
        kid = await self.create()
        man = self.men[0]
        man.deaf = True
        self.votes.freezes["core"] = "f1"
        error = await self.assertFailure(Deferred.fromCoroutine(self._in_time(man, kid)), RonError)
        self.assertIn("frozen", error.message)
        await self.settled()
        await self.refused(403, "NoCapability", "POST", "/sign", {"kid_or_set": kid, "payload_b3": B3})
        del self.votes.freezes["core"]
        await self.settled()
        await self.sign(kid)

    async def _in_time(self, man: Any, kid: str) -> Any:
        asked: Deferred[Any] = Deferred.fromCoroutine(man.service.sign(Caller(), _request(kid)))
        await self.until(lambda: any(isinstance(one, Batch) for one in man.said), "its batch")
        man.flush()
        return await asked

    async def test_a_decided_phase_holds_for_all(self) -> None:
        kid = await self.create()
        self.assertEqual(len((await self.sign(kid, policy={"produce_hybrid": True}))["sigs"]), 2)
        self.votes.modes["core"] = "pq_only"
        await self.settled()
        for man in self.men:
            self.use(man)
            asked = {"kid_or_set": kid, "payload_b3": B3, "policy": {"produce_hybrid": False}}
            await self.refused(400, "Unsupported", "POST", "/sign", asked)

    async def test_another_config_holds_for_all(self) -> None:
        kid = await self.create("ml-dsa")
        self.wishes = _allowing(self.wishes, ("ed25519",))
        await self.settled()
        for man in self.men:
            self.use(man)
            await self.refused(400, "Unsupported", "POST", "/sign", {"kid_or_set": kid, "payload_b3": B3})

    async def test_trouble_stops_all_of_them_and_verifying_goes_on(self) -> None:
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        self.service.distrust("an older copy of the store")
        await self.until(lambda: self.men[1].service.room.guard.why_not("audit_ready"), "the alarm")
        for man in self.men:
            self.use(man)
            await self.refused(503, "StoreUnavailable", "POST", "/sign", {"kid_or_set": kid, "payload_b3": B3})
            self.assertTrue((await self.verify(sigs, kid))["ok"])

    async def test_whoever_does_not_follow_is_killed_and_waited_for(self) -> None:
        self.patch(crew, "APPLY_S", 0.1)
        stuck = self.men[1]
        stuck.deaf = True
        kid = await self.create()
        self.assertTrue(stuck.killed)
        self.assertTrue(stuck.seat.gone, "nobody is told before its process is gone")
        self.assertEqual(self.manned[-1], 1)
        self.assertFalse(self.felt[stuck.name].ready)
        await self.sign(kid)


class Ending(Ship):
    async def test_one_whose_pair_is_over_may_end_by_itself(self) -> None:
        man = self.men[1]
        self.crew.lost(man.seat)
        self.crew.lost(man.seat)
        self.assertFalse(man.killed)
        man.kill()
        await self.until(lambda: man.seat.gone, "its end")
        self.assertEqual(self.crew.live, 1)

    async def test_one_that_does_not_is_killed(self) -> None:
        self.patch(crew, "LINGER_S", 0.05)
        man = self.men[1]
        self.crew.lost(man.seat)
        await self.until(lambda: man.seat.gone, "its end")
        self.assertTrue(man.killed)


class Bounds(Ship):
    rate = 5
    sections: ClassVar[dict[str, Any]] = {"security": {"sign_rate_limit_rps": rate}}

    async def test_the_rate_is_of_all_workers_together(self) -> None:
        kid = await self.create()
        done = refused = 0
        began_s = time.monotonic()
        for number in range(60):
            man = self.men[number % 2]
            try:
                await man.service.sign(Caller(), _request(kid))
                done += 1
            except RonError as error:
                self.assertEqual(error.status, 429)
                refused += 1
        # a burst of a second's worth, and what is dealt out while it lasts
        self.assertLessEqual(done, self.rate * (time.monotonic() - began_s + 1) + 1)
        self.assertGreaterEqual(done, self.rate)
        self.assertGreater(refused, 0)
        self.assertEqual(sum(1 for one in self.records() if one["op"] == "sign" and one["result"] == "ok"), done)


class Distrust(Ship):
    """The owner believes no worker more than it must."""

    async def tell(self, *entries: AuditEntry) -> Kept:
        man = self.men[0]
        before = len(man.told)
        # a number that the worker's own batches do not reach
        number = 1_000_000 + before
        man.service._log._under_way[number] = ([*entries], [_swallowed() for _ in entries])
        man._send(Batch(number, entries, ()))
        found: list[Kept] = []

        def kept() -> bool:
            found[:] = [one for one in man.told[before:] if isinstance(one, Kept) and one.number == number]
            return bool(found)

        await self.until(kept, "an answer to the batch")
        return found[0]

    async def test_records_that_are_not_a_workers_to_make(self) -> None:
        kid = await self.create()
        size = self.service.log.size
        told = await self.tell(
            _entry("create", kid),
            _entry("governance.propose", kid),
            _entry("sign", kid, result="Internal"),
            _entry("sign", "no kid at all"),
            _entry("sign", bare(kid).replace("core", "other") + "#v1"),
        )
        self.assertEqual(sorted(told.refused), [0, 1, 2, 3, 4])
        self.assertEqual(self.service.log.size, size)

    async def test_a_good_one_among_bad_ones_is_kept(self) -> None:
        kid = await self.create()
        told = await self.tell(_entry("create", kid), _entry("sign", kid))
        self.assertEqual(list(told.refused), [0])
        self.assertEqual(told.at[1], self.service.log.size - 1)

    async def test_calls_that_are_none(self) -> None:
        man = self.men[0]
        for operation, body in (("Nothing", b"{}"), ("Sign", b"{"), ("Sign", b'{"x": 1}')):
            with self.assertRaises(RonError) as caught:
                await _raw(man.service, operation, body)
            self.assertEqual(caught.exception.code.value, "BadRequest")


class Late(Ship):
    """A worker that comes when there is much to tell already."""

    async def test_it_hears_of_every_key_before_it_listens(self) -> None:
        self.patch(crew, "KEYS_PER_FRAME", 2)
        kids = [await self.create() for _ in range(7)]
        self.votes.allowed["p"] = ("destroy_key", "tenant:core", {"kid": kids[0]})
        await self.done("DELETE", at(kids[0]), {"proposal": "p"})
        late = Crewman(self, "kms-worker.3", 3)
        self.men.append(late)
        newer = str((await self.done("POST", at(bare(kids[6])) + "/rotate"))["kid"])
        await self.until(lambda: late.listens, "it to listen")
        before = late.told[: [type(frame) for frame in late.told].index(Go)]
        lent = [len(frame.keys) for frame in before if isinstance(frame, Keys)]
        self.assertEqual(max(lent), 2, "a few in each")
        self.assertGreaterEqual(sum(lent), 1 + len(kids), "and the service's own")
        for kid in (*kids[1:6], newer):
            self.assertEqual((await late.service.sign(Caller(), _request(kid))).kid, kid)
        error = await self.assertFailure(
            Deferred.fromCoroutine(late.service.sign(Caller(), _request(kids[0]))), RonError
        )
        self.assertEqual(error.code.value, "NotFound")

    async def test_the_services_own_keys_are_lent_to_nobody(self) -> None:
        await self.create()
        words = [word for frame in self.men[0].told if isinstance(frame, Keys) for word in frame.keys]
        own = [word for word in words if word.kid.startswith("ron-kms/")]
        self.assertTrue(own)
        self.assertEqual([word for word in own if word.blob], [])


class WithoutALog(Ship):
    async def test_nothing_is_answered(self) -> None:
        kid = await self.create()
        body = {"kid_or_set": kid, "payload_b3": B3}
        recorder = self.service.room.recorder
        log, recorder.log = recorder.log, None
        await self.refused(503, "StoreUnavailable", "POST", "/sign", body)
        recorder.log = log
        await self.sign(kid)
        await self.service.log.close()
        await self.refused(503, "StoreUnavailable", "POST", "/sign", body)


class Counting(Ship):
    async def test_what_the_dead_have_counted_stays(self) -> None:
        kid = await self.create()
        for man in self.men:
            await man.service.sign(Caller(), _request(kid))

        async def signed() -> float:
            families = await self.crew.families()
            return sum(
                sample.value
                for one in families.values()
                for family in one
                if family.name == "kms_ops"
                for sample in family.samples
                if sample.labels["op"] == "sign" and sample.labels["alg"] == "ed25519"
            )

        self.assertEqual(await signed(), 2)
        self.men[0].kill()
        await self.until(lambda: self.crew.live == 1, "its end")
        self.assertEqual(await signed(), 2)
        self.men[1].dumb = True
        self.patch(crew, "COUNT_S", 0.05)
        self.assertEqual(await signed(), 2, "one that does not answer has what it said last")


def _request(kid: str) -> SignRequest:
    raw = json.dumps({"kid_or_set": {"kid": kid}, "payload_b3": B3})
    return msgspec.json.decode(raw, type=SignRequest)


def _allowing(wishes: Any, algs: Any) -> Any:
    return msgspec.structs.replace(wishes, service=msgspec.structs.replace(wishes.service, allowed_algs=algs))


def _entry(op: str, kid: str, *, result: str = "ok") -> AuditEntry:
    return AuditEntry(op=op, result=result, ts="2026-01-01T00:00:00Z", kid=kid, tenant="core")


def _swallowed() -> Deferred[int]:
    waiter: Deferred[int] = Deferred()
    waiter.addErrback(lambda _failure: None)
    return waiter


async def _raw(service: Any, operation: str, body: bytes) -> Any:
    """Ask the owner past what a worker would ask."""
    service._number += 1
    waiter: Deferred[bytes] = Deferred()
    service._asked[service._number] = waiter
    service._send(Ask(service._number, operation, Who("", (), ""), body))
    return await waiter
