"""Mode `shared`: who gets the whole key, and what it takes; bad requests first."""

from __future__ import annotations

import ron.crypto.secrets
from ron.crypto.frost.dkg import secret_of
from ron.crypto.hpke import PrivateKey, Suite
from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.ports import ServiceRecord
from ron.services.balance.vault.keyring import new_expanded
from ron.services.balance.vault.telemetry import HEALTH_KEY, figures
from ron.services.balance.vault.words import ASK, Approval, Ask, Given, run_digest
from ron.tor.descriptor.blinding import blind, identity_of, verify
from ron.tor.onionkeys import onion_address
from tests.services.balance.vault.support import NOW_S, PERIOD, WEB, Cluster, Mode, spellings


class Refusals(Cluster):
    """`a` holds the key."""

    def setUp(self) -> None:
        super().setUp()
        self.a, self.b, self.c = self.start("abc")
        self.record = self.a.vault.found(WEB)

    def test_who_was_not_approved_gets_nothing_and_is_shown_as_waiting(self) -> None:
        self.pass_s(10)
        self.assertEqual(self.b.vault.holds() | self.c.vault.holds(), frozenset())
        self.assertEqual(self.a.vault.pending(), ("b", "c"))
        error = self.ask("b")
        self.assertEqual(
            (error.code, error.hint), (ErrorCode.NO_CAPABILITY, "ronctl balance approve b, at a node that holds web")
        )

    def test_nobody_approves_itself_or_a_friend_without_the_key(self) -> None:
        self.pass_s(3)
        self.b.vault.approve("b")
        self.b.vault.approve("c")
        self.c.vault.approve("b")
        self.pass_s(10)
        self.assertEqual(self.b.vault.holds() | self.c.vault.holds(), frozenset())
        self.assertEqual(self.a.vault.pending(), ("b", "c"))

    def test_the_votes_of_another_approval_are_worth_nothing(self) -> None:
        self.pass_s(3)
        self.a.vault.approve("c")
        self.pass_s(3)
        theirs = self.a.mesh.book.get("approved/c", Approval)
        assert theirs
        run = run_digest(self.b.seal.public.raw)
        self.b.mesh.book.put("approved/b", Approval(run=run, by="a", at_ms=theirs.at_ms, votes=theirs.votes))
        self.pass_s(5)
        self.assertEqual(self.b.vault.holds(), frozenset())

    def test_an_approval_is_for_one_run(self) -> None:
        self.a.vault.approve("b")
        self.pass_s(5)
        self.assertEqual(self.b.vault.holds(), {WEB})
        self.kill("b")
        (again,) = self.start("b")
        self.pass_s(10)
        self.assertEqual(again.vault.holds(), frozenset())
        self.assertEqual(self.a.vault.pending(), ("b", "c"))
        self.a.vault.approve("b")
        self.pass_s(3)
        self.assertEqual(again.vault.holds(), {WEB})

    def test_who_says_it_is_another_run_than_it_is_gets_nothing(self) -> None:
        self.a.vault.approve("b")
        error = self.ask("b", run=bytes(32))
        self.assertEqual(error.code, ErrorCode.CONFLICT)

    def test_what_is_sealed_to_another_run_does_not_open(self) -> None:
        """The key that `a` seals is to the seal key that the mesh told it; this run has another."""
        self.c.vault._handover._seal = PrivateKey.generate(Suite.PQ)
        self.a.vault.approve("c")
        self.pass_s(5)
        self.assertEqual(self.c.vault.holds(), frozenset())
        self.assertGreater(self.c.refusals()["sealed"], 0)

    def test_a_holder_that_gives_another_key_is_not_believed(self) -> None:
        self.a.vault._ring.drop(WEB)
        self.a.vault._ring.take_whole(WEB, new_expanded())
        self.a.vault.approve("b")
        self.pass_s(5)
        self.assertEqual(self.b.vault.holds(), frozenset())
        self.assertGreater(self.b.refusals()["other_key"], 0)

    def test_orders_that_make_no_sense(self) -> None:
        self.pass_s(0.1)
        for node in (self.a, self.b):
            self.assertEqual(self.assertRaises(RonError, node.vault.found, WEB).code, ErrorCode.CONFLICT)
        for wrong in (bytearray(64), bytearray(63), bytearray(b"\xff" * 64)):
            error = self.assertRaises(RonError, self.a.vault.found, "other", key=wrong)
            self.assertEqual(error.code, ErrorCode.BAD_REQUEST)
            self.assertEqual(bytes(wrong), bytes(len(wrong)))
        self.assertEqual(self.assertRaises(RonError, self.a.vault.approve, "z").code, ErrorCode.NOT_FOUND)
        self.assertEqual(self.assertRaises(RonError, self.b.vault.signer, WEB).code, ErrorCode.STORE_UNAVAILABLE)
        for order in (self.a.vault.refresh(WEB), self.a.vault.reshare(WEB)):
            self.assertEqual(self.refused(order).code, ErrorCode.CONFLICT)

    def ask(self, name: str, run: bytes | None = None) -> RonError:
        node = self.nodes[name]
        run = run_digest(node.seal.public.raw) if run is None else run
        return self.refused(node.mesh.call("a", ASK, Ask(service=WEB, run=run), Given, deadline_s=1.0))


class Handover(Cluster):
    def test_an_approved_node_signs_alone(self) -> None:
        a, b, _ = self.start("abc")
        record = a.vault.found(WEB)
        self.assertEqual(record, ServiceRecord(onion=record.onion, mode="shared", made_ms=NOW_S * 1000))
        self.pass_s(0.1)
        a.vault.approve("b")
        self.pass_s(3)
        self.assertEqual(b.vault.holds(), {WEB})
        self.assertEqual(figures(a.metrics, "balance_vault_keys_handed_total"), {(): 1.0})
        self.kill("a")
        self.sign("b", record.onion)

    def test_whoever_got_it_passes_it_on(self) -> None:
        a, b, c = self.start("abc")
        record = a.vault.found(WEB)
        self.pass_s(0.1)
        a.vault.approve("b")
        self.pass_s(3)
        self.kill("a")
        b.vault.approve("c")
        self.pass_s(3)
        self.assertEqual(c.vault.holds(), {WEB})
        self.sign("c", record.onion)

    def test_who_was_approved_before_there_was_a_key_gets_it(self) -> None:
        a, b, _ = self.start("abc")
        self.pass_s(0.1)
        a.vault.approve("b")
        self.pass_s(1)
        a.vault.found(WEB)
        self.pass_s(3)
        self.assertEqual((b.vault.holds(), a.vault.pending()), ({WEB}, ("c",)))

    def test_two_operators_at_once_take_nothing_from_each_other(self) -> None:
        a, b, c = self.start("abc")
        a.vault.found(WEB)
        b.vault.found("other")
        self.pass_s(0.1)
        a.vault.approve("c")
        b.vault.approve("c")
        self.pass_s(3)
        self.assertEqual(c.vault.holds(), {WEB, "other"})

    def test_a_key_of_an_operator(self) -> None:
        a, _ = self.start("ab")
        key = new_expanded()
        copy = bytearray(key)
        record = a.vault.found(WEB, key=key)
        self.assertEqual(bytes(key), bytes(64))
        from ron.crypto.group import public_of

        self.assertEqual(record.onion, onion_address(public_of(secret_of(copy))))
        # all nodes lose power, and the offline copy comes back
        self.kill("a")
        (again,) = self.start("a")
        wrong = self.assertRaises(RonError, again.vault.bring_back, WEB, new_expanded())
        self.assertEqual((wrong.code, again.vault.holds()), (ErrorCode.CONFLICT, frozenset()))
        again.vault.bring_back(WEB, copy)
        self.assertEqual(bytes(copy), bytes(64))
        self.sign("a", record.onion)

    def test_a_signer_of_a_key_that_was_forgotten_says_so(self) -> None:
        (a,) = self.start("a")
        record = a.vault.found(WEB)
        signer = a.vault.signer(WEB)
        self.assertEqual(signer.identity, identity_of(record.onion))
        made = self.done(signer.sign(PERIOD, b"anything"))
        self.assertTrue(verify(blind(signer.identity, PERIOD).public, b"anything", made))
        a.vault.forget(WEB)
        self.assertEqual(self.refused(signer.sign(PERIOD, b"m")).code, ErrorCode.STORE_UNAVAILABLE)

    def test_the_key_is_nowhere_but_in_memory(self) -> None:
        a, b = self.start("ab")
        a.vault.found(WEB)
        self.pass_s(0.1)
        a.vault.approve("b")
        self.pass_s(3)
        self.assertEqual(b.vault.holds(), {WEB})
        secret = bytes(a.vault._ring.whole[WEB].copy())
        told = [body for _, body in self.wire] + [
            entry.value for node in self.nodes.values() for entry in node.mesh.book.entries
        ]
        for part in (secret[:32], secret[32:], a.vault._ring.whole[WEB].scalar()):
            for spelling in spellings(part):
                self.assertFalse([body for body in told if spelling in body])
        self.assertTrue(b.health.snapshot().ready)
        self.assertNotIn(HEALTH_KEY, b.health.snapshot().degraded)


class Unlocked(Cluster):
    """The system gives no locked memory."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(ron.crypto.secrets, "_lock", lambda *_: "not permitted")

    def test_no_secret_is_taken(self) -> None:
        (a,) = self.start("a")
        key = new_expanded()
        error = self.assertRaises(RonError, a.vault.found, WEB, key=key)
        self.assertEqual((error.code, bytes(key)), (ErrorCode.UNSUPPORTED, bytes(64)))
        self.assertIn("LimitMEMLOCK", error.one_line())
        self.assertEqual(a.vault.holds(), frozenset())

    def test_who_allows_it_is_degraded(self) -> None:
        (a,) = self.start("a")
        a.vault._ring.allow_unlocked = True
        a.vault.found(WEB)
        readiness = a.health.snapshot()
        self.assertTrue(readiness.ready)
        self.assertIn("swapped", readiness.reasons[HEALTH_KEY])

    def test_no_ceremony_ends_without_it(self) -> None:
        a, *_ = self.start("abc")
        self.pass_s(0.1)
        self.approve_all("a", "bc")
        error = self.refused(a.vault.share(WEB, threshold=2, among=["a", "b", "c"]), 20)
        self.assertEqual(error.code, ErrorCode.UNSUPPORTED)
        self.assertEqual({node.vault.holds() for node in self.nodes.values()}, {frozenset()})


class WithTheToken(Cluster):
    approval: Mode = "token"

    def test_any_member_gets_the_key(self) -> None:
        a, b = self.start("ab")
        record = a.vault.found(WEB)
        self.pass_s(3)
        self.assertEqual(b.vault.holds(), {WEB})
        self.sign("b", record.onion)

    def test_a_removed_one_does_not(self) -> None:
        a, b = self.start("ab")
        self.hub.removed.add("b")
        a.vault.found(WEB)
        self.hub.removed.discard("b")
        a.mesh.members = lambda: {"a": a.mesh.me}  # type: ignore[method-assign]
        self.pass_s(5)
        self.assertEqual(b.vault.holds(), frozenset())
