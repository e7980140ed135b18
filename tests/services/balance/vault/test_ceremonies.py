"""Ceremonies over the mesh: birth, import, refresh, resharing; nodes that die, come back, or order the same at once."""

from __future__ import annotations

from ron.crypto.frost.keys import GroupKey
from ron.crypto.group import public_of
from ron.proto.errors import ErrorCode
from ron.services.balance.ports import ServiceRecord
from ron.services.balance.vault.keyring import WholeKey, new_expanded
from ron.services.balance.vault.telemetry import figures
from ron.tor.descriptor.blinding import identity_of
from ron.tor.onionkeys import onion_address
from tests.services.balance.vault.support import PERIODS, WEB, Cluster, Mode, spellings


class Refusals(Cluster):
    def test_without_an_approval_nothing_is_born(self) -> None:
        a, *_ = self.start("abc")
        self.pass_s(0.1)
        error = self.refused(a.vault.share(WEB, threshold=2, among=["a", "b", "c"]))
        self.assertEqual(
            (error.code, error.hint and error.hint[:25]), (ErrorCode.NO_CAPABILITY, "ronctl balance approve b,")
        )
        a.vault.approve("b")
        self.nodes["b"].vault.approve("c")
        # an approval of somebody else's operator does not do for what is ordered here
        self.pass_s(1)
        error = self.refused(a.vault.share(WEB, threshold=2, among=["a", "b", "c"]))
        self.assertEqual((error.code, error.message), (ErrorCode.NO_CAPABILITY, "a has no approval of c for web"))
        self.assertEqual({node.vault.holds() for node in self.nodes.values()}, {frozenset()})

    def test_numbers_that_make_no_group(self) -> None:
        a, *_ = self.start("abc")
        self.approve_all("a", "bc")
        for threshold, among in ((4, "abc"), (2, "a"), (2, "abb"), (1, "abc")):
            waiting = self.begin(a.vault.share(WEB, threshold=threshold, among=list(among)))
            self.pass_s(0.5)
            self.failureResultOf(waiting)
        self.assertEqual(self.refused(a.vault.share(WEB, threshold=2, among=["a", "z"])).code, ErrorCode.NOT_FOUND)

    def test_the_key_to_import_is_overwritten_whatever_happens(self) -> None:
        a, *_ = self.start("ab")
        for key in (new_expanded(), bytearray(64)):
            self.refused(a.vault.share(WEB, threshold=2, among=["a", "b"], key=key))
            self.assertEqual(bytes(key), bytes(64))

    def test_who_has_no_share_orders_nothing(self) -> None:
        self.born("abc", 2)
        (d,) = self.start("d")
        self.pass_s(2)
        for order in (d.vault.refresh(WEB), d.vault.reshare(WEB, add=["d"])):
            self.assertEqual(self.refused(order).code, ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(self.refused(self.nodes["a"].vault.reshare(WEB, add=["z"])).code, ErrorCode.NOT_FOUND)
        again = self.nodes["a"].vault.share(WEB, threshold=2, among=["a", "b", "c"])
        self.assertEqual(self.refused(again).code, ErrorCode.CONFLICT)

    def test_a_newcomer_needs_as_many_votes_as_sign(self) -> None:
        record = self.born("abc", 2)
        a, b = self.nodes["a"], self.nodes["b"]
        (d,) = self.start("d")
        self.pass_s(3)
        a.vault.approve("d")
        # one cannot vote for two
        d.vault.approve("d")
        self.pass_s(1)
        error = self.refused(a.vault.reshare(WEB, add=["d"]))
        self.assertEqual(error.code, ErrorCode.NO_CAPABILITY)
        b.vault.approve("d")
        self.pass_s(1)
        after = self.done(a.vault.reshare(WEB, add=["d"]), 3)
        self.assertEqual(after.onion, record.onion)
        self.assertEqual(len(GroupKey.decode(after.group).members), 4)
        self.sign("d", record.onion)

    def test_fewer_signers_are_for_every_nodes_own_config_to_allow(self) -> None:
        record = self.born("abcde", 3)
        a = self.nodes["a"]
        a.floors[WEB] = 2
        self.assertEqual(self.refused(a.vault.reshare(WEB, threshold=2)).code, ErrorCode.NO_CAPABILITY)
        for name in "bcde":
            self.nodes[name].floors[WEB] = 2
        self.assertEqual(self.done(a.vault.reshare(WEB, threshold=2), 3).threshold, 2)
        self.sign("e", record.onion)
        self.assertEqual(self.done(a.vault.reshare(WEB, threshold=4), 3).threshold, 4)
        self.sign("e", record.onion)


class Life(Cluster):
    """2 of 3 and 3 of 5."""

    def test_birth(self) -> None:
        for names, threshold in (("abc", 2), ("abcde", 3)):
            record = self.born(names, threshold)
            self.assertEqual((record.mode, record.threshold, record.epoch), ("threshold", threshold, 1))
            secret = self.secret(names[:threshold])
            self.assertEqual(public_of(secret), identity_of(record.onion))
            for name in names:
                self.assertEqual(self.nodes[name].mesh.book.get(f"service/{WEB}", ServiceRecord), record)
                share = self.nodes[name].share()
                assert share
                self.assertTrue(share.locked)
                self.sign(name, record.onion)
            for period in PERIODS:
                self.sign("a", record.onion, period=period)
            self.nothing_told(secret, names)
            for name in names:
                self.kill(name)
            super().setUp()

    def nothing_told(self, secret: bytes, names: str) -> None:
        """Neither the key nor a share is in the book, or in clear in what was sent."""
        entries = [entry.value for node in self.nodes.values() for entry in node.mesh.book.entries]
        told = [body for _, body in self.wire] + entries
        share = self.nodes["a"].share()
        assert share
        # the search finds what is there
        self.assertTrue(any(spellings(share.group.public)[0] in body for body in told))
        for one in [secret, *self.secrets_of(names)]:
            for spelling in spellings(one):
                self.assertFalse([body for body in told if spelling in body])

    def test_import_by_an_owner_who_is_a_member(self) -> None:
        for names, threshold in (("abc", 2), ("abcde", 3)):
            key = new_expanded()
            whole = WholeKey(bytearray(key))
            record = self.born(names, threshold, key=key)
            self.assertEqual((record.onion, bytes(key)), (whole.onion, bytes(64)))
            self.assertEqual(self.secret(names[-threshold:]), whole.scalar())
            self.nothing_told(whole.scalar(), names)
            self.sign(names[-1], record.onion)
            for name in names:
                self.kill(name)
            super().setUp()

    def test_import_by_an_owner_who_gets_no_share(self) -> None:
        self.start("abcd")
        self.pass_s(0.1)
        self.approve_all("d", "abc")
        key = new_expanded()
        onion = WholeKey(bytearray(key)).onion
        record = self.done(self.nodes["d"].vault.share(WEB, threshold=2, among=["a", "b", "c"], key=key), 5)
        self.assertEqual(record.onion, onion)
        self.assertEqual(self.nodes["d"].vault.holds(), frozenset())
        self.sign("b", record.onion)

    def test_refresh(self) -> None:
        for names, threshold in (("abc", 2), ("abcde", 3)):
            record = self.born(names, threshold)
            before = self.secrets_of(names)
            olds = [self.nodes[name].share() for name in names]
            after = self.done(self.nodes[names[-1]].vault.refresh(WEB), 5)
            self.assertEqual((after.onion, after.made_ms), (record.onion, record.made_ms))
            self.assertNotEqual(after.group, record.group)
            self.assertEqual(after.epoch, 2)
            self.assertFalse(set(before) & set(self.secrets_of(names)))
            for old in olds:
                # the old one was wiped
                assert old
                self.assertRaises(ValueError, lambda share=old: share.secret)
            self.sign("a", record.onion)
            for name in names:
                self.kill(name)
            super().setUp()

    def test_a_removed_member_has_nothing_and_does_not_come_back_by_itself(self) -> None:
        record = self.born("abcde", 3)
        a = self.nodes["a"]
        after = self.done(a.vault.reshare(WEB, remove=["e"]), 5)
        self.assertEqual(len(GroupKey.decode(after.group).members), 4)
        self.assertEqual(self.nodes["e"].vault.holds(), frozenset())
        self.pass_s(60, 0.1)
        self.assertEqual(self.nodes["e"].vault.holds(), frozenset())
        self.sign("d", record.onion)

    def test_without_a_node_that_was_cut_off_before(self) -> None:
        """As the runbook for a seized node has it: first it is removed from the cluster, then from the group."""
        record = self.born("abcd", 2)
        a = self.nodes["a"]
        a.mesh.book.put("removed/d", a.mesh.me)
        self.hub.removed.add("d")
        self.hub.partition("abc", "d")
        after = self.done(a.vault.reshare(WEB, remove=["d"]), 5)
        self.assertEqual(len(GroupKey.decode(after.group).members), 3)
        self.assertEqual(after.epoch, 2)
        self.sign("b", record.onion)
        self.hub.removed.discard("d")

    def test_nobody_is_removed_by_a_slip_of_the_hand(self) -> None:
        self.born("abc", 2)
        a = self.nodes["a"]
        a.mesh.book.put("removed/bob", a.mesh.me)
        self.assertEqual(self.refused(a.vault.reshare(WEB, remove=["bo"])).code, ErrorCode.NOT_FOUND)

    def test_a_member_that_was_removed_while_away_forgets_its_share(self) -> None:
        self.born("abcde", 3)
        self.hub.partition("abcd", "e")
        self.pass_s(4, 0.1)
        self.done(self.nodes["a"].vault.reshare(WEB, remove=["e"]), 5)
        self.assertEqual(self.nodes["e"].vault.holds(), {WEB})
        self.hub.heal()
        self.pass_s(60, 0.1)
        self.assertEqual(self.nodes["e"].vault.holds(), frozenset())

    def test_a_forged_record_makes_nobody_forget_its_share(self) -> None:
        record = self.born("abc", 2)
        (d,) = self.start("d")
        self.pass_s(2)
        forged = ServiceRecord(onion=onion_address(bytes(32)), mode="threshold", threshold=2, group=b"forged")
        d.mesh.book.put(f"service/{WEB}", forged)
        self.pass_s(60, 0.1)
        self.assertEqual(len(self.secrets_of("abc")), 3)
        self.sign("a", record.onion)


class AtOnce(Cluster):
    def test_two_orders_at_once_have_one_winner(self) -> None:
        record = self.born("abc", 2)
        orders = [self.begin(self.nodes[name].vault.refresh(WEB)) for name in "abc"]
        self.pass_s(10)
        results: list[object] = []
        for order in orders:
            order.addBoth(results.append)
        won = [result for result in results if isinstance(result, ServiceRecord)]
        self.assertEqual(len(won), 1, results)
        self.assertEqual({share.group.encode() for n in self.nodes.values() if (share := n.share())}, {won[0].group})
        self.sign("b", record.onion)
        self.done(self.nodes["c"].vault.refresh(WEB), 8)

    def test_one_after_the_other(self) -> None:
        record = self.born("abc", 2)
        for name in "abcabc":
            self.done(self.nodes[name].vault.refresh(WEB), 1)
        self.sign("b", record.onion)
        ended = figures(self.nodes["a"].metrics, "balance_vault_ceremonies_total")
        self.assertEqual(ended, {("keygen", "done"): 1.0, ("refresh", "done"): 6.0})


class WithTheToken(Cluster):
    approval: Mode = "token"

    def test_members_need_nobody(self) -> None:
        a, *_ = self.start("abc")
        self.pass_s(0.1)
        record = self.done(a.vault.share(WEB, threshold=2, among=["a", "b", "c"]), 5)
        self.kill("c")
        self.pass_s(5, 0.1)
        (c,) = self.start("c")
        self.pass_s(20, 0.1)
        self.assertEqual(c.vault.holds(), {WEB})
        self.sign("c", record.onion)
