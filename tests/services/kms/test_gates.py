"""Acceptance gates no other test holds by itself (specs/ron-kms.md, IDB §4): G-10 in simulated time, G-14, G-15."""

from __future__ import annotations

import base64
import heapq
import random
from collections import Counter
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import sealing
from ron.kernel.limits import Refused
from ron.services.kms.fairness import FairQueue
from ron.services.kms.keeper import WallClock
from ron.services.kms.service import THREADS
from tests.services.kms.world import World, at, bare

CALL_S = 0.008
TENANTS = ("a", "b", "c", "d")
# Together half of what two threads do in a second.
NORMAL_RPS = 0.5 * THREADS / CALL_S / len(TENANTS)
SECONDS = 60
CAPACITY = 512


def waited(rps: dict[str, float], *, seed: int = 42) -> dict[str, float]:
    """The 95th percentile in seconds from asking to having, by tenant: arrivals at random, calls of one length."""
    draw = random.Random(seed)
    arrivals: list[tuple[float, str]] = []
    for tenant in sorted(rps):
        at_s = 0.0
        while (at_s := at_s + draw.expovariate(rps[tenant])) < SECONDS:
            arrivals.append((at_s, tenant))
    queue: FairQueue[float] = FairQueue(capacity=CAPACITY, floor=0.05)
    took: dict[str, list[float]] = {tenant: [] for tenant in rps}
    free_s = [0.0] * THREADS

    def serve(until_s: float) -> None:
        while len(queue) and free_s[0] <= until_s:
            found = queue.take()
            assert found is not None
            tenant, asked_s = found
            ends_s = max(free_s[0], asked_s) + CALL_S
            heapq.heapreplace(free_s, ends_s)
            took[tenant].append(ends_s - asked_s)

    for at_s, tenant in sorted(arrivals):
        serve(at_s)
        # who finds a free thread does not wait for one that came before him to be free
        free_s[:] = [max(one, at_s) if not len(queue) else one for one in free_s]
        heapq.heapify(free_s)
        try:
            queue.put(tenant, at_s)
        except Refused:
            continue
        serve(at_s)
    return {tenant: sorted(times)[int(0.95 * len(times))] for tenant, times in took.items()}


class Isolation(SynchronousTestCase):
    """G-10: a tenant at ten times its load does not push another one's p95 over twice what it was."""

    def test_ten_times_as_much(self) -> None:
        usual = waited(dict.fromkeys(TENANTS, NORMAL_RPS))
        flooded = waited({**dict.fromkeys(TENANTS, NORMAL_RPS), "a": 10 * NORMAL_RPS})
        for tenant in TENANTS[1:]:
            self.assertLessEqual(flooded[tenant], 2 * usual[tenant], (usual, flooded))
        # it is its own work that waits
        self.assertGreater(flooded["a"], 10 * usual["a"])


class Skew(SynchronousTestCase):
    """G-14: a clock within the tolerance is no trouble; beyond it, by how much it is off is said, with its sign."""

    @settings(max_examples=100, deadline=None)
    @given(st.integers(1, 3_600_000), st.floats(-1e6, 1e6))
    def test_any_jump(self, tolerance_ms: int, jump_s: float) -> None:
        steady, ahead_s, tolerance_s = Clock(), [0.0], tolerance_ms / 1000
        assume(abs(abs(jump_s) - tolerance_s) > 1e-6)
        wall = WallClock(lambda: 1.7e9 + steady.seconds() + ahead_s[0], steady.seconds)
        steady.advance(1)
        self.assertEqual(wall.jumped_s(tolerance_s), 0.0)
        ahead_s[0] = jump_s
        steady.advance(1)
        found_s = wall.jumped_s(tolerance_s)
        self.assertAlmostEqual(found_s, jump_s if abs(jump_s) > tolerance_s else 0.0, places=3)


class Nonces(World):
    """G-15: no AEAD key ever seals under a nonce twice, over keys, versions, ends and starts."""

    on_disk = True

    async def setUp(self) -> None:
        self.sealed: Counter[tuple[bytes, bytes]] = Counter()
        self.record("ChaCha20Poly1305")
        self.record("AESGCM")
        await super().setUp()

    def record(self, name: str) -> None:
        """Every encryption is counted, and done."""
        real, sealed = getattr(sealing, name), self.sealed

        class Recorded:
            def __init__(self, key: Any) -> None:
                self.key, self.engine = bytes(key), real(key)

            def encrypt(self, nonce: bytes, *more: Any) -> bytes:
                sealed[self.key, bytes(nonce)] += 1
                return bytes(self.engine.encrypt(nonce, *more))

            def __getattr__(self, other: str) -> Any:
                return getattr(self.engine, other)

        self.patch(sealing, name, Recorded)

    async def test_sealed_files(self) -> None:
        kids = [await self.create("hybrid") for _ in range(3)]
        for _ in range(3):
            for kid in kids:
                await self.done("POST", at(bare(kid)) + "/rotate")
            await self.again()
        self.assertGreater(len(self.sealed), 30)
        self.assertEqual(self.sealed.most_common(1)[0][1], 1)

    async def test_wrapped_keys(self) -> None:
        """Each envelope has a key of its own: the same secret for the same version never looks the same twice."""
        kid = await self.create("hybrid", purpose="kem")
        secret = base64.b64encode(bytes(32)).decode()
        for mode in ("hybrid", "pq"):
            made = [(await self.done("POST", "/wrap", {"kid": kid, "plaintext_key_b64": secret, "kem_mode": mode}))
                    for _ in range(40)]  # fmt: skip
            raws = [base64.b64decode(one["wrapped_b64"]) for one in made]
            # 32 bytes and their tag are what was sealed; before them, what the key came from
            for part in ({raw[-48:] for raw in raws}, {raw[:-48] for raw in raws}):
                self.assertEqual(len(part), 40)
