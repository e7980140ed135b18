"""How many capabilities for keys a tenant gets (K-G3)."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import AuthFiles, Caveat
from ron.auth.caveats import expiry
from ron.auth.ceilings import Ceiling, CeilingFigures
from ron.proto.errors import ErrorCode, RonError

NOW = 1_800_000_000.0


class Ceilings(SynchronousTestCase):
    def setUp(self) -> None:
        self.now_s = NOW
        self.files = AuthFiles(None, now=lambda: self.now_s)
        self.files.ceiling = Ceiling(active=4, per_minute=2)
        self.authority = self.files.authority("ron-node")

    def mint(self, tenant: str = "core", scope: str = "kms:sign", ttl_s: float = 3600) -> str:
        caveats = [Caveat("scope", scope), Caveat("tenant", tenant), expiry(self.now_s, ttl_s)]
        return self.files.issue(self.authority, caveats).entry.cap_id

    def refused(self, **options: str) -> str:
        error = self.assertRaises(RonError, self.mint, **options)
        self.assertEqual((error.code, error.status), (ErrorCode.BACKPRESSURE, 429))
        return str(error.message)

    def test_kg3_so_many_a_minute(self) -> None:
        self.mint()
        self.mint(scope="metrics:read,kms:verify")
        self.assertIn("a minute", self.refused())
        self.mint("acme")
        self.mint(scope="mailbox:read")
        self.now_s += 61
        self.mint()

    def test_kg3_so_many_at_a_time(self) -> None:
        made = []
        for _ in range(4):
            self.now_s += 40
            made.append(self.mint())
        self.now_s += 61
        self.assertIn("at a time", self.refused())
        self.mint("acme")
        self.files.revoke(made[0])
        self.mint()
        self.now_s += 3600
        self.mint()

    def test_where_keys_are_one_for_everything_counts_too(self) -> None:
        for _ in range(5):
            self.mint(scope="*")
        self.files.ceiling.apply(active=9, per_minute=7)
        self.mint(scope="*")
        self.mint(scope="mailbox:send,*")
        self.assertIn("over 7", self.refused(scope="*"))
        self.assertIn("over 7", self.refused(scope="kms:sign"))
        self.mint("acme", scope="*")
        self.mint(scope="mailbox:*")
        self.now_s += 61
        self.mint(scope="kms:*")
        self.mint(scope="*")
        self.assertIn("more than 9", self.refused(scope="*"))

    def test_the_daemons_own_finds_room(self) -> None:
        """Whoever may mint must not be able to keep it from starting."""
        self.files.ceiling.apply(active=1, per_minute=1)
        caveats = [Caveat("scope", "*"), expiry(self.now_s, 60)]
        self.files.issue(self.authority, caveats)
        self.assertRaises(RonError, self.files.issue, self.authority, caveats)
        self.files.issue(self.authority, [Caveat("scope", "*")], own=True)

    def test_one_that_is_for_everything_is_none_of_a_tenants(self) -> None:
        """The administrator's own: minted from the files, whoever has those has the keys to it."""
        for _ in range(9):
            self.files.issue(self.authority, [])

    def test_figures(self) -> None:
        registry = CollectorRegistry()
        files = self.files
        alive = lambda: [entry for entry, revoked in files.listed() if not revoked]  # noqa: E731
        CeilingFigures(files.ceiling, alive, lambda: self.now_s).register(registry)
        self.assertEqual(registry.get_sample_value("kms_capabilities_minted_fairness_skew", {"window": "1h"}), 0)
        files.revoke(self.mint())
        self.mint()
        self.now_s += 61
        self.mint()
        self.mint()
        self.mint("acme")
        for name, tenant, count in (("active", "core", 3), ("active", "acme", 1), ("minted_total", "core", 4)):
            self.assertEqual(registry.get_sample_value(f"kms_capabilities_{name}", {"tenant": tenant}), count)
        self.assertEqual(registry.get_sample_value("kms_capabilities_minted_fairness_skew", {"window": "1h"}), 1.5)
