"""Disputes in time: heard within an hour, sorted within a day, decided within another, with what is late named."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from ron.kernel import Metrics
from ron.services.kms.governance.appeals import DECIDED_S, HEARD_S, MAX_EXTENSIONS, SORTED_S, Due
from ron.services.kms.governance.meters import GovernanceMeters
from ron.services.kms.governance.views import disputes
from tests.services.kms.governance.people import AUDITOR, CUSTODIAN, DAY, HOUR, OWNER, START, World
from tests.services.kms.governance.test_quorum import BAD, CONFLICT, NO_CAPABILITY, CaseOf

SUBJECT = "request:018f3a6e"


class Late(CaseOf):
    def due(self) -> Due | None:
        return self.governance.ledger.disputes[SUBJECT].due

    def shown(self) -> tuple[str, bool]:
        (view,) = disputes(self.governance)
        return view.next, view.late

    def test_what_may_not_be_said(self) -> None:
        for verb in ("acknowledge", "triage", "extend", "resolve"):
            self.refused(CONFLICT, self.world.dispute, verb, SUBJECT)
        self.world.dispute("dispute", SUBJECT)
        for verb in ("acknowledge", "triage", "extend"):
            self.refused(BAD, self.world.dispute, verb, SUBJECT, reason="")
            self.refused(BAD, self.world.dispute, verb, "", role=OWNER)
        self.refused(NO_CAPABILITY, self.world.dispute, "resolve", SUBJECT, role=OWNER)
        self.world.dispute("resolve", SUBJECT)
        self.refused(CONFLICT, self.world.dispute, "acknowledge", SUBJECT, role=OWNER)

    def test_in_its_time(self) -> None:
        self.world.dispute("dispute", SUBJECT)
        self.assertEqual((self.due(), self.shown()), (Due("acknowledge", START + HEARD_S), ("acknowledge", False)))
        self.world.dispute("acknowledge", SUBJECT, role=OWNER)
        self.assertEqual(self.due(), Due("triage", START + SORTED_S))
        extra = self.world.events[-1].extra
        self.assertEqual((self.world.events[-1].op, extra["disputed"]), ("governance.acknowledge", True))
        self.world.pass_(2 * HOUR)
        self.world.dispute("triage", SUBJECT, role=CUSTODIAN)
        sorted_at = self.governance.ledger.disputes[SUBJECT].sorted_at
        self.assertEqual(self.due(), Due("resolve", sorted_at + DECIDED_S))
        for days in range(1, MAX_EXTENSIONS + 1):
            self.world.dispute("extend", SUBJECT, role=OWNER)
            self.assertEqual(self.due(), Due("resolve", sorted_at + (1 + days) * DECIDED_S))
        self.refused(CONFLICT, self.world.dispute, "extend", SUBJECT, role=OWNER)
        self.world.dispute("resolve", SUBJECT, "it was right")
        self.assertEqual((self.due(), self.shown()), (None, ("", False)))
        self.assertFalse(self.world.events[-1].extra["disputed"])

    def test_late(self) -> None:
        self.world.dispute("dispute", SUBJECT)
        self.world.pass_(HEARD_S + 60)
        self.assertEqual(self.shown(), ("acknowledge", True))
        # sorted is heard, and the same word again is none
        self.world.dispute("triage", SUBJECT, role=OWNER)
        records = len(self.governance.book)
        for verb in ("acknowledge", "triage"):
            self.world.dispute(verb, SUBJECT, role=AUDITOR)
        self.assertEqual(len(self.governance.book), records)
        self.assertEqual(self.shown(), ("resolve", False))
        self.world.pass_(DAY + 60)
        self.assertEqual(self.shown(), ("resolve", True))

    def test_over_a_restart_and_in_figures(self) -> None:
        self.world.governance.stop()
        self.world = World(Path(self.mktemp()) / "governance")
        self.governance = self.world.governance
        self.addCleanup(lambda: self.world.governance.stop())
        metrics = Metrics()
        meters = GovernanceMeters(metrics)
        meters.watch_disputes(lambda: self.governance.ledger.disputes.values(), self.world.now)
        self.assertEqual(self.figures(metrics.registry), (0, 0))
        self.world.dispute("dispute", SUBJECT)
        self.world.dispute("dispute", "cap:2")
        self.world.dispute("acknowledge", "cap:2", role=OWNER)
        self.world.dispute("extend", "cap:2", role=OWNER)
        before = dict(self.governance.ledger.disputes)
        self.world.pass_(HEARD_S + 600)
        self.assertEqual(self.figures(metrics.registry), (2, 615))
        self.world.restart()
        self.assertEqual(self.world.governance.ledger.disputes, before)

    def figures(self, registry: CollectorRegistry) -> tuple[float, float]:
        names = ("kms_disputes_open", "kms_dispute_late_seconds")
        first, second = (registry.get_sample_value(name) for name in names)
        return first or 0.0, second or 0.0
