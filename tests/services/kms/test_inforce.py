"""What a change of the config takes, and what happens to one that nobody decided (K-G4, K-G7)."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.config import convert
from ron.services.kms.config import KmsConfig
from ron.services.kms.inforce import Policy, needs, policy_of
from tests.services.kms.world import B3, Votes, World

MODES = ("or", "and", "pq_only")
GOVERNED: dict[str, Any] = {"governance": {"signers": "signers.json"}}
FIRM = policy_of(convert(GOVERNED, KmsConfig))
POLICIES = st.builds(
    Policy,
    backend=st.sampled_from(["file:a", "pkcs11:b#c"]),
    attest_require=st.sampled_from(["never", "if-available", "required"]),
    verify_mode=st.sampled_from(MODES),
    min_verify_mode=st.sampled_from(MODES),
    produce_hybrid=st.booleans(),
    rollout_percent=st.integers(0, 100),
    governed=st.booleans(),
)


def but(**changes: Any) -> Policy:
    return msgspec.structs.replace(FIRM, **changes)


class Pure(SynchronousTestCase):
    def test_each_key(self) -> None:
        for changes, key, action, change in (
            ({"verify_mode": "or"}, "pq.verify_mode", "hybrid_off", {"pq_mode": "or"}),
            ({"verify_mode": "pq_only"}, "pq.verify_mode", "pq_mode", {"pq_mode": "pq_only"}),
            ({"produce_hybrid": False}, "pq.produce_hybrid", "hybrid_off", {"pq_mode": "or"}),
            ({"rollout_percent": 99}, "pq.rollout_percent", "hybrid_off", {"pq_mode": "or"}),
            ({"backend": "inmem:"}, "service.backend", "backend_change", {"backend": "inmem:"}),
            (
                {"attest_require": "required"},
                "security.attest_require",
                "attest_require",
                {"attest_require": "required"},
            ),
            ({"governed": False}, "governance.signers", "", {}),
        ):
            found = needs(FIRM, but(**changes), None)
            self.assertEqual([(one.key, one.action, one.change) for one in found], [(key, action, change)])
            self.assertIn(key, found[0].told())
        strict = but(attest_require="required", verify_mode="pq_only", min_verify_mode="and")
        self.assertEqual(
            [(one.key, one.action) for one in needs(strict, FIRM, None)],
            [
                ("security.attest_require", "attest_require"),
                ("pq.verify_mode", "rollback"),
                ("pq.min_verify_mode", "hybrid_off"),
            ],
        )

    def test_what_was_decided_is_decided(self) -> None:
        self.assertEqual(needs(FIRM, but(verify_mode="or", produce_hybrid=False), "or"), [])
        self.assertEqual(len(needs(FIRM, but(verify_mode="or"), "and")), 1)
        self.assertEqual(needs(FIRM, but(verify_mode="pq_only"), "pq_only"), [])

    @settings(deadline=None, max_examples=100)
    @given(POLICIES, POLICIES)
    def test_never_weaker_by_itself(self, before: Policy, after: Policy) -> None:
        self.assertEqual(needs(before, before, None), [])
        weaker = (
            MODES.index(after.verify_mode) < MODES.index(before.verify_mode)
            or MODES.index(after.min_verify_mode) < MODES.index(before.min_verify_mode)
            or (before.produce_hybrid and not after.produce_hybrid)
            or after.rollout_percent < before.rollout_percent
            or after.backend != before.backend
            or not after.governed
        )
        if before.governed and weaker:
            self.assertTrue(needs(before, after, None))
        if not before.governed:
            self.assertEqual(needs(before, after, None), [])

    def test_where_a_backend_is(self) -> None:
        for wished, text in (
            ({"service": {"backend": "inmem"}}, "inmem:"),
            ({"backends": {"file": {"dir": "x"}}}, "file:x"),
            ({"service": {"backend": "tpm"}, "backends": {"tpm": {"tcti": "t", "dir": "d"}}}, "tpm:t#d"),
            (
                {
                    "service": {"backend": "cloud", "multi_backends": ["cloud", "pkcs11"]},
                    "backends": {"pkcs11": {"module_path": "m"}, "cloud": {"key_id": "k", "dir": "d"}},
                },
                "cloud:k#d,pkcs11:m#RON-KMS",
            ),
        ):
            self.assertEqual(policy_of(convert(wished, KmsConfig)).backend, text)


class Deciders(Votes):
    """With permissions that can be looked for."""

    def permission(self, action: str, scope: str, change: Any) -> str | None:
        wanted = (action, scope, dict(change))
        return next((name for name, allowed in self.allowed.items() if allowed == wanted), None)


class Served(World):
    on_disk = True
    sections = GOVERNED

    async def setUp(self) -> None:
        await super().setUp()
        made = await self.done("POST", "/keys", {"tenant": "core", "purpose": "audit", "alg": "hybrid"})
        self.kid = made["kid"]

    def before_start(self) -> None:
        self.votes = getattr(self, "kept", None) or Deciders()
        self.kept = self.votes

    def wish(self, **sections: Any) -> None:
        """As a reload would."""
        old = self.wishes
        given = {"security": {"sign_rate_limit_rps": 100_000}, **GOVERNED, **sections}
        self.wishes = convert(given, KmsConfig)
        self.service.apply(old, self.wishes)

    async def may_sign(self) -> bool:
        answer = await self.ask("POST", "/sign", {"kid_or_set": self.kid, "payload_b3": B3})
        if answer.status != 200:
            self.assertEqual((answer.status, answer.code), (403, "NoCapability"), answer.body)
            self.said = answer.body["error"]["message"]
        return answer.status == 200

    def told(self) -> list[Any]:
        """What the log has of policies."""
        leaves = self.service.log.entries(0, 1000)
        return [one for one in map(msgspec.json.decode, leaves) if one["op"] == "policy"]

    async def test_kg7_a_weaker_config_signs_nothing_until_it_is_decided(self) -> None:
        self.assertTrue(await self.may_sign())
        sigs = (await self.done("POST", "/sign", {"kid_or_set": self.kid, "payload_b3": B3}))["sigs"]
        self.wish(pq={"verify_mode": "or"})
        self.assertFalse(await self.may_sign())
        self.assertIn("--action hybrid_off --scope global --change 'pq_mode=or'", self.said)
        self.assertIn("config_loaded", self.health.snapshot().missing)
        verify = {"payload_b3": B3, "sigs": sigs, "kid_or_set": self.kid}
        self.assertTrue((await self.done("POST", "/verify", verify))["ok"])
        await self.again()
        self.assertFalse(await self.may_sign(), "a restart is no decision")
        self.votes.modes[""] = "or"
        await self.service._settle()
        self.assertTrue(await self.may_sign())
        self.assertEqual([one["extra"]["verify_mode"] for one in self.told()], ["or"])

    async def test_kg7_taken_back(self) -> None:
        self.wish(pq={"verify_mode": "or"})
        self.assertFalse(await self.may_sign())
        self.wish()
        self.assertTrue(await self.may_sign())
        self.assertEqual(self.told(), [])

    async def test_kg4_another_backend(self) -> None:
        self.wish(backends={"file": {"dir": "./elsewhere"}})
        self.assertFalse(await self.may_sign())
        assert isinstance(self.votes, Deciders)
        self.votes.allowed["p"] = ("backend_change", "global", {"backend": "file:./elsewhere"})
        await self.service._settle()
        self.assertTrue(await self.may_sign())
        self.assertEqual(self.votes.allowed, {}, "it is good for once")
        await self.again()
        self.assertTrue(await self.may_sign())

    async def test_the_quorum_itself_cannot_be_left_out(self) -> None:
        self.wish(governance={"signers": ""})
        self.assertFalse(await self.may_sign())
        self.assertIn("governance.signers was taken out", self.said)


class Ungoverned(World):
    """Nobody was ever named: the config's owner decides, and that is on record."""

    on_disk = True

    async def test_it_is_on_record(self) -> None:
        made = await self.done("POST", "/keys", {"tenant": "core", "purpose": "audit", "alg": "hybrid"})
        old = self.wishes
        self.wishes = convert({"pq": {"verify_mode": "or", "produce_hybrid": False}}, KmsConfig)
        self.service.apply(old, self.wishes)
        await self.service._settle()
        await self.done("POST", "/sign", {"kid_or_set": made["kid"], "payload_b3": B3})
        told = [one for one in map(msgspec.json.decode, self.service.log.entries(0, 100)) if one["op"] == "policy"]
        self.assertEqual([one["extra"]["produce_hybrid"] for one in told], [False])
