"""Nodes that die, come back or are cut off while shares are made: whatever happens, those who are left sign."""

from __future__ import annotations

from ron.crypto.frost.plan import Purpose
from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.ports import ServiceRecord
from ron.services.balance.vault.telemetry import figures
from tests.services.balance.vault.support import WEB, Cluster


class Deaths(Cluster):
    def test_a_node_that_lost_its_memory_gets_a_new_share(self) -> None:
        for names, threshold in (("abc", 2), ("abcde", 3)):
            record = self.born(names, threshold)
            last = names[-1]
            self.kill(last)
            self.pass_s(5, 0.1)
            (again,) = self.start(last)
            self.pass_s(10, 0.05)
            self.assertEqual(again.vault.holds(), frozenset())
            self.assertEqual(self.nodes["a"].vault.pending(), (last,))
            for name in names[:threshold]:
                self.nodes[name].vault.approve(last)
                self.pass_s(0.5)
            self.pass_s(20, 0.05)
            self.assertEqual(again.vault.holds(), {WEB})
            self.assertEqual(len(self.secrets_of(names)), len(names))
            self.sign(last, record.onion)
            for name in names:
                self.kill(name)
            super().setUp()

    def test_two_that_come_back_one_after_the_other(self) -> None:
        record = self.born("abcde", 3)
        for name in "de":
            self.kill(name)
        self.pass_s(5, 0.1)
        for last in "de":
            (again,) = self.start(last)
            for name in "abc":
                self.nodes[name].vault.approve(last)
                self.pass_s(0.5)
            self.pass_s(20, 0.05)
            self.assertEqual(again.vault.holds(), {WEB})
        self.assertEqual(len(self.secrets_of("abcde")), 5)
        self.kill("a")
        self.kill("b")
        self.sign("e", record.onion, 3)

    def test_death_in_each_phase_leaves_the_old_shares(self) -> None:
        """Whatever of the refresh was done, those who are left sign."""
        phases: set[str] = set()
        moments = (0.0005, 0.0025, 0.0045, 0.0065, 0.0085, 0.0095, 0.0105, 0.0115, 0.0125)
        for names, threshold, when in (("abc", 2, moments), ("abcde", 3, moments[3::2])):
            for dies_at_s in when:
                record = self.born(names, threshold)
                last = names[-1]
                waiting = self.begin(self.nodes["a"].vault.refresh(WEB))
                waiting.addErrback(lambda failure: failure.trap(RonError))
                self.pass_s(dies_at_s, 0.0005)
                phases.add(self.phase(last))
                self.kill(last)
                self.pass_s(60, 0.25)
                self.assertEqual(len(self.secrets_of(names[:-1])), len(names) - 1)
                self.sign("a", record.onion, 5)
                self.sign(names[-2], record.onion, 5)
                # and whatever it was, a new share can be dealt afterwards
                (again,) = self.start(last)
                for name in names[:-1]:
                    self.nodes[name].vault.approve(last)
                    self.pass_s(0.5)
                self.pass_s(40, 0.25)
                self.assertEqual(again.vault.holds(), {WEB}, (names, dies_at_s))
                self.sign(last, record.onion, 5)
                for name in names:
                    self.kill(name)
                super().setUp()

        self.assertEqual(phases, {"unasked", "agreed", "dealing", "sharing", "confirming", "done"})

    def phase(self, name: str) -> str:
        """How far the refresh has come at this node."""
        for running in self.nodes[name].vault._ceremonies._known.values():
            if running.proposal.purpose is Purpose.REFRESH:
                parts = [part.state for part in running._parts.values()]
                return parts[0] if parts else running.state
        return "unasked"

    def test_a_confirmation_that_reached_one_only(self) -> None:
        """`a` has finished, `b` cannot know it: it keeps both shares, and whoever asks gets a signature."""
        record = self.born("abc", 2)
        a, b = self.nodes["a"], self.nodes["b"]
        waiting = self.begin(a.vault.refresh(WEB))
        while self.phase("c") != "confirming":
            self.pass_s(0.0005, 0.0005)
        self.hub.cut("c", "b", both=False)
        self.pass_s(0.01, 0.0005)
        self.kill("c")
        self.pass_s(20, 0.1)
        self.successResultOf(waiting)
        holding = b.vault._ring.holding(WEB)
        assert holding.current and holding.pending
        self.assertEqual((self.phase("a"), b.vault._ceremonies.under_way(WEB)), ("done", False))
        self.sign("a", record.onion)
        self.sign("b", record.onion)
        self.assertEqual(figures(b.metrics, "balance_vault_ceremonies_total")[("refresh", "open")], 1.0)
        # nothing is lost by going on from here, at either of them
        self.hub.heal()
        self.start("c")
        self.pass_s(3)
        a.vault.approve("c")
        b.vault.approve("c")
        self.pass_s(30, 0.1)
        self.assertEqual(len(self.secrets_of("abc")), 3)
        self.assertIsNone(b.vault._ring.holding(WEB).pending)
        for name in "abc":
            self.sign(name, record.onion)

    def test_death_during_a_birth_leaves_nothing_half_done(self) -> None:
        ends = set()
        for dies_at_s in (0.0005, 0.0025, 0.0045, 0.0065, 0.0075, 0.0085, 0.0105):
            a, *_ = self.start("abc")
            self.pass_s(0.1)
            self.approve_all("a", "bc")
            waiting = self.begin(a.vault.share(WEB, threshold=2, among=["a", "b", "c"]))
            self.pass_s(dies_at_s, 0.0005)
            self.kill("c")
            self.pass_s(60, 0.25)
            came: list[object] = []
            waiting.addBoth(lambda result, came=came: came.append(getattr(result, "value", result)))
            record = came[0]
            ends.add(type(record).__name__)
            if isinstance(record, RonError):
                self.assertIn("c", record.message)
                self.assertIsNone(a.mesh.book.get(f"service/{WEB}", ServiceRecord))
                # the name is free for those who are left
                record = self.done(a.vault.share(WEB, threshold=2, among=["a", "b"]), 5)
            assert isinstance(record, ServiceRecord)
            self.sign("b", record.onion)
            for name in "ab":
                self.kill(name)
            super().setUp()
        self.assertEqual(ends, {"RonError", "ServiceRecord"})

    def test_a_partition_during_a_refresh_leaves_one_epoch_in_the_end(self) -> None:
        for cut_at_s in (0.0025, 0.0055, 0.0085, 0.0095, 0.0105, 0.0115):
            record = self.born("abcde", 3)
            waiting = self.begin(self.nodes["a"].vault.refresh(WEB))
            waiting.addErrback(lambda failure: failure.trap(RonError))
            self.pass_s(cut_at_s, 0.0005)
            self.hub.partition("abc", "de")
            self.pass_s(30, 0.1)
            self.sign("a", record.onion, 8)
            self.not_signed("d", record.onion)
            self.hub.heal()
            self.pass_s(60, 0.1)
            for name in "abcde":
                self.sign(name, record.onion, 5)
            self.done(self.nodes["e"].vault.refresh(WEB), 5)
            shares = [node.share() for node in self.nodes.values()]
            self.assertEqual(len({share.group.digest for share in shares if share}), 1)
            for name in "abcde":
                self.kill(name)
            super().setUp()

    def test_a_mesh_that_loses_messages(self) -> None:
        self.start("abc")
        self.pass_s(0.1)
        self.approve_all("a", "bc")
        self.pass_s(3)
        record = self.done(self.nodes["a"].vault.share(WEB, threshold=2, among=["a", "b", "c"]), 5)
        for seed_loss in (0.1, 0.2, 0.3):
            self.hub.loss = seed_loss
            waiting = self.begin(self.nodes["a"].vault.refresh(WEB))
            waiting.addErrback(lambda failure: failure.trap(RonError))
            self.pass_s(60, 0.1)
            self.hub.loss = 0.0
            self.pass_s(30, 0.1)
            for name in "abc":
                self.sign(name, record.onion, 5)

    def test_three_of_five_dead_is_said(self) -> None:
        record = self.born("abcde", 3)
        self.kill("d")
        self.kill("e")
        self.sign("a", record.onion, 3)
        self.kill("c")
        error = self.not_signed("a", record.onion)
        self.assertIn("needs 3 of 5 nodes, 2 are there", error.message)
        self.assertEqual(self.refused(self.nodes["a"].vault.reshare(WEB)).code, ErrorCode.STORE_UNAVAILABLE)
