"""The audit log gets another key: who may do it, what it leaves in the log, a crash between any two of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from ron.crypto.notes import KeySet
from ron.kernel.config import convert
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.proto.kms import Alg, Kid
from ron.services.kms.audit.verify import Verdict, read_keys, verify_directory
from ron.services.kms.config import KmsConfig
from ron.services.kms.logkey import WitnessKey
from ron.services.kms.ports import Held
from tests.services.kms.world import Votes, World, op_id

ROTATE = "/audit/rotate-key"


class OnDisk(World):
    on_disk = True

    def key_file(self) -> list[KeySet]:
        return read_keys((self.home / "audit" / "log.vkeys").read_text())

    def verdict(self, keys: Sequence[KeySet]) -> Verdict:
        verdict = list(verify_directory(self.home / "audit", keys))[-1].verdict
        assert verdict is not None
        return verdict

    def signs(self) -> str:
        """The version that signs the log."""
        return str(self.service._log_key.present.kid).rpartition("#")[2]

    async def well(self) -> None:
        await self.until(lambda: self.health.snapshot().ready, "all to be well")


class Refused(OnDisk):
    async def test_who_may_not(self) -> None:
        for token in (
            None,
            self.bearer(("scope", "kms:audit")),
            self.bearer(("scope", "kms:rotate"), ("tenant", "core")),
            self.bearer(("scope", "kms:rotate"), ("tenant", "ron-kms")),
        ):
            self.token = token
            self.assertIn((await self.ask("POST", ROTATE, {})).status, {401, 403})
        self.assertEqual(self.signs(), "v1")

    async def test_what_is_malformed(self) -> None:
        bodies: list[Any] = [{"proposal": "x" * 37}, {"op_id": "x"}, {"kid": "x"}, []]
        for body in bodies:
            await self.refused(400, "BadRequest", "POST", ROTATE, body)
        await self.refused(400, "BadRequest", "POST", ROTATE, {"proposal": "p"})

    async def test_while_something_is_away(self) -> None:
        self.backend.away = True
        await self.until(lambda: "backend_ready" in self.health.snapshot().degraded, "the outage")
        await self.refused(503, "StoreUnavailable", "POST", ROTATE, {})
        self.backend.away = False
        await self.until(lambda: not self.health.snapshot().degraded, "the backend to be back")
        self.assertEqual((await self.done("POST", ROTATE, {}))["previous"][-3:], "#v1")

    async def test_a_key_that_cannot_be_made(self) -> None:
        generate = self.backend.generate
        self.backend.generate = _away  # type: ignore[method-assign, assignment]
        await self.refused(503, "StoreUnavailable", "POST", ROTATE, {})
        self.assertEqual(self.service._log_key.pending(), [])
        self.backend.generate = generate  # type: ignore[method-assign]
        await self.done("POST", ROTATE, {})
        self.assertEqual(self.signs(), "v2")


class Deciding(Votes):
    """A quorum that can be asked what it allowed."""

    def permission(self, action: str, scope: str, change: Mapping[str, str]) -> str | None:
        found = [name for name, one in self.allowed.items() if one == (action, scope, dict(change))]
        return found[0] if found else None


class Governed(OnDisk):
    async def setUp(self) -> None:
        await super().setUp()
        self.votes = Deciding()
        await self.again()

    async def test_only_with_its_decision(self) -> None:
        await self.refused(403, "NoCapability", "POST", ROTATE, {})
        await self.refused(403, "NoCapability", "POST", ROTATE, {"proposal": "p"})
        self.votes.allowed["p"] = ("root_rotation", "global", {"root": "another"})
        await self.refused(403, "NoCapability", "POST", ROTATE, {"proposal": "p"})
        for number, body in enumerate(({"proposal": "q"}, {}), 2):
            self.votes.allowed["q"] = ("root_rotation", "global", {"root": "audit-log"})
            await self.done("POST", ROTATE, body)
            self.assertEqual(self.signs(), f"v{number}")
            self.assertNotIn("q", self.votes.allowed)
        told = [one["extra"]["proposal"] for one in self.records() if one["op"] == "rotate"]
        self.assertEqual(told, ["q", "q"])
        await self.refused(403, "NoCapability", "POST", ROTATE, {})


class Rotated(OnDisk):
    async def test_auditors_can_follow(self) -> None:
        first = self.key_file()
        kid = await self.create()
        for number in range(2, 5):
            made = await self.done("POST", ROTATE, {"op_id": op_id(number)})
            self.assertEqual(made["kid"].rpartition("#")[2], f"v{number}")
            self.assertEqual(made["previous"].rpartition("#")[2], f"v{number - 1}")
            await self.sign(kid)
        await self.end()
        verdict = self.verdict(first)
        self.assertEqual((verdict.broken, verdict.others, verdict.signed), (None, 0, verdict.records))
        newest = read_keys("\n".join(made["vkeys"]))
        self.assertEqual(self.key_file()[0], newest[0])
        alone = self.verdict(newest)
        self.assertIsNone(alone.broken)
        self.assertGreater(alone.others, 0)
        self.assertEqual(self.verdict(self.key_file()).broken, None)
        await self.begin()
        self.assertTrue(self.service.log.writable)
        self.assertEqual(self.signs(), "v4")
        await self.sign(kid)

    async def test_the_same_again_is_one(self) -> None:
        body = {"op_id": op_id(1)}
        made = await self.done("POST", ROTATE, body)
        self.assertEqual(await self.done("POST", ROTATE, body), made)
        await self.again()
        self.assertEqual(await self.done("POST", ROTATE, body), made)
        self.assertEqual(self.signs(), "v2")

    async def test_one_at_a_time(self) -> None:
        asked = [Deferred.fromCoroutine(self.ask("POST", ROTATE, {})) for _ in range(4)]
        answers = [await one for one in asked]
        self.assertEqual(sorted(answer.status for answer in answers), [200, 409, 409, 409])
        self.assertEqual(self.signs(), "v2")

    async def test_no_request_signs_with_it(self) -> None:
        made = await self.done("POST", ROTATE, {})
        body = {"kid_or_set": {"kid": made["kid"]}, "payload_b3": "7f" * 32}
        await self.refused(403, "NoCapability", "POST", "/sign", body)


class Killed(OnDisk):
    """As after `kill -9`: the store, the backend and the log stand as they did, and the service starts again."""

    async def stopped_at(self, step: str) -> None:
        """It stops right after `step`, and starts again."""
        service, store = self.service, self.service.room.store
        places: dict[str, tuple[Any, str]] = {
            "meant": (store, "begin"),
            "made": (service.room.lanes, "whole"),
            "told": (service.room.recorder, "record"),
            "in force": (store, "finish"),
        }
        where, name = places[step]
        call, hangs = getattr(where, name), Deferred[None]()

        async def then_hang(*args: Any, **kwargs: Any) -> Any:
            found = call(*args, **kwargs)
            result = await found
            if name != "whole" or isinstance(result, Held):
                reached.append(step)
                await hangs
            return result

        reached: list[str] = []
        setattr(where, name, then_hang)
        answers: list[Any] = []
        asked = Deferred.fromCoroutine(self.ask("POST", ROTATE, {}))
        asked.addBoth(answers.append)
        await self.until(lambda: reached or answers, f"the step {step!r}")
        self.assertEqual((reached, answers), ([step], []))
        setattr(where, name, call)
        asked.cancel()
        await self.again()
        await self.well()

    async def test_at_every_step(self) -> None:
        first = self.key_file()
        kid = await self.create()
        # a number that a backend has seen is not given again
        for step, version, made in (("meant", 1, 1), ("made", 1, 1), ("told", 3, 3), ("in force", 4, 4)):
            await self.stopped_at(step)
            await self.until(lambda: not self.service._log_key.pending(), "it to be settled")
            self.assertEqual(self.signs(), f"v{version}", step)
            await self.sign(kid)
            checkpoint = await self.service.log.checkpoint()
            self.assertEqual(checkpoint.size, self.service.log.size)
            self.assertIsNone(self.service.log.trouble)
            held = [one.kid.version for one in self.backend.held() if one.kid.purpose == "audit-log"]
            self.assertEqual(max(held), made, step)
        await self.end()
        verdict = self.verdict(first)
        self.assertEqual((verdict.broken, verdict.others), (None, 0))
        await self.begin()

    async def test_while_the_backend_is_away_after_it(self) -> None:
        """It is brought to an end once that is back; until then the old key signs."""
        service = self.service
        record, hangs = service.room.recorder.record, Deferred[None]()
        reached: list[int] = []

        async def then_hang(entry: Any) -> int:
            reached.append(await record(entry))
            await hangs
            return 0

        service.room.recorder.record = then_hang  # type: ignore[method-assign]
        asked = Deferred.fromCoroutine(self.ask("POST", ROTATE, {})).addErrback(lambda _failure: None)
        await self.until(lambda: reached, "the record")
        asked.cancel()
        await self.end()
        self.away_at_first = True
        await self.begin()
        self.assertEqual((self.signs(), len(self.service._log_key.pending())), ("v1", 1))
        self.backend.away = False
        await self.until(lambda: self.signs() == "v2", "the new key")

    away_at_first = False

    def before_start(self) -> None:
        self.backend.away = self.away_at_first


class Sealed(World):
    """`audit.sealing = "attested"` with a backend that gives evidence, or does not."""

    evidence = "cXVvdGU="

    def before_start(self) -> None:
        self.wishes = convert({"audit": {"sealing": "attested"}}, KmsConfig)
        self.backend.evidence = self.evidence

    def proofs(self) -> list[Mapping[str, Any]]:
        return [one for one in self.records() if "log_evidence_b3" in one.get("extra", {})]

    async def test_the_evidence_is_in_the_log(self) -> None:
        (proof,) = self.proofs()
        self.assertEqual((proof["op"], proof["extra"]["log_evidence"]), ("attest", self.evidence))
        self.assertIn("/audit-log/", proof["kid"])
        before = self.records().index(dict(proof))
        kid = await self.create()
        await self.sign(kid)
        ops = [one["op"] for one in self.records()]
        self.assertLess(before, ops.index("sign"))
        await self.done("POST", ROTATE, {})
        await self.until(lambda: len(self.proofs()) == 2, "the new key's")
        self.assertEqual(self.proofs()[1]["kid"][-3:], "#v2")

    async def test_without_it_nothing_is_signed(self) -> None:
        kid = await self.create()
        sigs = (await self.sign(kid))["sigs"]
        self.backend.evidence = None
        await self.done("POST", ROTATE, {})
        await self.until(lambda: "log_attested" in self.health.snapshot().missing, "readiness")
        body = {"kid_or_set": {"kid": kid}, "payload_b3": "7f" * 32}
        await self.refused(403, "AttestationMissing", "POST", "/sign", body)
        self.assertTrue((await self.verify(sigs, kid))["ok"])
        # what mends it is not kept from it
        self.backend.evidence = self.evidence
        await self.done("POST", ROTATE, {})
        await self.until(lambda: self.health.snapshot().ready, "all to be well")
        await self.sign(kid)

    async def test_software_asks_for_nothing(self) -> None:
        self.backend.evidence = None
        await self.done("POST", ROTATE, {})
        await self.until(lambda: "log_attested" in self.health.snapshot().missing, "readiness")
        self.wishes = convert({}, KmsConfig)
        await self.until(lambda: self.health.snapshot().ready, "all to be well")


class LongEvidence(Sealed):
    evidence = "QUFB" * 10_000

    async def test_the_evidence_is_in_the_log(self) -> None:
        (proof,) = self.proofs()
        self.assertNotIn("log_evidence", proof["extra"])
        self.assertEqual(len(proof["extra"]["log_evidence_b3"]), 64)


class Witnessing(OnDisk):
    """The key that cosigns other logs."""

    async def test_made_once_and_told(self) -> None:
        key = WitnessKey(self.service.room)
        self.backend.away = True
        with self.assertRaises(RonError) as caught:
            await key.begin()
        self.assertIs(caught.exception.code, ErrorCode.STORE_UNAVAILABLE)
        self.backend.away = False
        await self.until(lambda: not self.health.snapshot().degraded, "the backend to be back")
        await key.begin()
        await key.begin()
        public = key.public
        self.assertEqual(len([one for one in self.records() if "/audit-witness/" in one.get("kid", "")]), 1)
        await self.again()
        again = WitnessKey(self.service.room)
        await again.begin()
        self.assertEqual(again.public, public)
        self.assertEqual(len(again.sign(b"text")), 64)
        body = {"kid_or_set": {"kid": str(again.required().usable.kid)}, "payload_b3": "7f" * 32}
        await self.refused(403, "NoCapability", "POST", "/sign", body)


def _away(_kid: Kid, _algs: Sequence[Alg]) -> Held:
    raise unavailable("the backend is away")
