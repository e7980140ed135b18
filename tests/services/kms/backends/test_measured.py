"""Calls to backends, timed and counted."""

from __future__ import annotations

from twisted.internet.task import Clock

from ron.kernel import Metrics
from ron.proto.errors import ErrorCode
from ron.proto.kms import Alg, Kid
from ron.services.kms.backends.heads import Counting
from ron.services.kms.backends.measured import BackendMeters, Measured
from ron.services.kms.ports import Backend
from tests.services.kms.backends.contract import MESSAGE, BackendCase, Contract, new_kid
from tests.services.kms.backends.shelf import Shelf
from tests.services.kms.backends.test_contract import FolderCase


class Slow(Shelf):
    """Each signature takes a second of its clock."""

    quick = False

    def __init__(self, clock: Clock) -> None:
        super().__init__("slow")
        self.clock = clock
        self.seen: list[float] = []
        self.measured: Measured | None = None

    def sign(self, kid: Kid, alg: Alg, message: bytes) -> bytes:
        """And how old the call is by then."""
        self.clock.advance(1.0)
        if self.measured is not None:
            self.seen.append(self.measured.oldest_s())
        return super().sign(kid, alg, message)


class Metered(BackendCase):
    """What is told of a backend."""

    def setUp(self) -> None:
        super().setUp()
        self.clock, self.metrics = Clock(), Metrics()
        self.slow = Slow(self.clock)
        self.slow.measured = self.backend = Measured(self.slow, BackendMeters(self.metrics, self.clock.seconds))
        self.kid = new_kid("ed25519")
        self.slow.put(self.kid, b"1" * 32)
        self.backend.open()

    def value(self, name: str, **labels: str) -> float:
        """Of a metric, 0 where there is none."""
        return self.metrics.registry.get_sample_value(name, {"backend": "slow", **labels}) or 0.0

    def test_a_call_is_timed(self) -> None:
        """Under its name; and while it lasts its age is seen."""
        self.backend.sign(self.kid, Alg.ED25519, MESSAGE)
        self.assertEqual(self.value("kms_backend_seconds_count", op="sign"), 1)
        self.assertEqual(self.value("kms_backend_seconds_sum", op="sign"), 1.0)
        self.assertEqual(self.slow.seen, [1.0])
        self.assertEqual(self.value("kms_backend_oldest_call_seconds"), 0.0)

    def test_a_failure_is_counted_with_its_code(self) -> None:
        """And passes as it is; what is no error of ours is `Other`."""
        self.slow.up = False
        self.refused(ErrorCode.STORE_UNAVAILABLE, self.backend.probe)
        self.assertEqual(self.value("kms_backend_errors_total", op="probe", code="StoreUnavailable"), 1)
        self.slow.up = True
        self.patch(self.slow, "held", lambda: 1 // 0)
        self.assertRaises(ZeroDivisionError, self.backend.held)
        self.assertEqual(self.value("kms_backend_errors_total", op="held", code="Other"), 1)
        self.assertEqual(self.backend.oldest_s(), 0.0)

    def test_what_is_quick_is_not_timed_when_it_signs(self) -> None:
        """The operation is, and there the meter would cost more than it tells."""
        self.slow.quick = True  # type: ignore[misc]
        quick = Measured(self.slow, BackendMeters(Metrics(), self.clock.seconds))
        quick.sign(self.kid, Alg.ED25519, MESSAGE)
        self.assertEqual(self.value("kms_backend_seconds_count", op="sign"), 0)

    def test_it_counts_changes_only_where_the_backend_does(self) -> None:
        """Or the service would believe that it had been checked."""
        self.assertNotIsInstance(self.backend, Counting)
        self.slow.head = lambda: (7, b"digest")  # type: ignore[attr-defined]
        self.slow.check_head = lambda *_known: None  # type: ignore[attr-defined]
        counting = Measured(self.slow, BackendMeters(Metrics()))
        assert isinstance(counting, Counting)
        self.assertEqual(counting.head(), (7, b"digest"))
        self.assertIn("Slow", repr(counting))


class ContractMeasured(Contract, FolderCase):
    """Nothing else about it changes."""

    def setUp(self) -> None:
        self.meters = BackendMeters(Metrics())
        super().setUp()

    def build(self) -> Backend:
        """Over sealed files."""
        return Measured(self.files(), self.meters)
