"""Signatures over the mesh: hostile coordinators, lying and silent signers, and how many have to be there."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from ron.crypto import group
from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.ports import ServiceRecord
from ron.services.balance.vault.cosigning import MAX_REQUESTS, SESSION_S
from ron.services.balance.vault.rates import PER_S
from ron.services.balance.vault.telemetry import HEALTH_KEY, figures
from ron.services.balance.vault.words import COMMIT, SIGN, Commit, Framed, Package
from ron.tor.descriptor.certs import expiry_h
from tests.crypto.test_frost_support import HEAD, integer, scalar
from tests.services.balance.vault.support import NOW_S, PERIOD, WEB, Cluster

Tamper = Callable[[bytes], bytes]
HOUR_S = 3600


class Signing(Cluster):
    def setUp(self) -> None:
        super().setUp()
        self.record: ServiceRecord = self.born("abcde", 3)

    def hostile(self, name: str, kind: str, tamper: Tamper) -> None:
        """`name` answers such calls with something else than it should."""
        served = self.nodes[name].mesh.handlers._served
        shape, answer = served[kind]

        async def answered(sender: str, body: object) -> Framed:
            honest = await answer(sender, body)
            assert isinstance(honest, Framed)
            return Framed(frame=tamper(honest.frame))

        served[kind] = (shape, answered)

    def asked(self, nonce: bytes = b"", **change: object) -> Commit:
        share = self.nodes["a"].share()
        assert share
        values: dict[str, object] = {
            "service": WEB,
            "epoch": share.group.digest,
            "nonce": nonce or secrets.token_bytes(32),
            "message": self.message(self.record.onion),
        }
        return Commit(**{**values, **change})  # type: ignore[arg-type]

    def call(self, sender: str, body: Commit | Package) -> Framed:
        kind = COMMIT if isinstance(body, Commit) else SIGN
        return self.done(self.nodes[sender].mesh.call("a", kind, body, Framed, deadline_s=1.0), 0.1)

    def no(self, sender: str, body: Commit | Package) -> RonError:
        kind = COMMIT if isinstance(body, Commit) else SIGN
        return self.refused(self.nodes[sender].mesh.call("a", kind, body, Framed, deadline_s=1.0), 0.1)


class HostileCoordinators(Signing):
    """`b` asks `a` for what it should not get."""

    def test_what_is_not_to_be_signed(self) -> None:
        onion = self.record.onion
        for message in (
            b"",
            b"anything",
            self.message(onion)[:-1],
            self.message(onion, PERIOD.shifted(3)),
            self.message(onion, expires_h=expiry_h(NOW_S) + 5),
            self.message(onion, expires_h=1),
        ):
            self.assertEqual(self.no("b", self.asked(message=message)).code, ErrorCode.BAD_REQUEST)
        refused = self.nodes["a"].refusals()
        self.assertEqual(
            {reason for reason in refused if reason.startswith("judged_")},
            {
                "judged_malformed",
                "judged_stranger",
                "judged_expired",
            },
        )
        self.assertEqual(self.nodes["a"].vault._cosigner._open, {})

    def test_epochs_and_services_that_are_not_here(self) -> None:
        self.assertEqual(self.no("b", self.asked(epoch=bytes(32))).code, ErrorCode.CONFLICT)
        self.assertEqual(self.no("b", self.asked(service="other")).code, ErrorCode.CONFLICT)

    def test_a_rate_above_thirty_a_minute(self) -> None:
        for _ in range(MAX_REQUESTS):
            self.call("b", self.asked())
        self.assertEqual(self.no("b", self.asked()).code, ErrorCode.BACKPRESSURE)
        # nobody else pays for it
        self.call("c", self.asked())
        self.pass_s(PER_S, 0.1)
        self.call("b", self.asked())

    def test_a_session_twice(self) -> None:
        asked = self.asked()
        self.call("b", asked)
        self.assertEqual(self.no("b", asked).code, ErrorCode.CONFLICT)
        self.assertEqual(self.nodes["a"].refusals()["repeated"], 1)

    def test_packages_that_fit_no_session(self) -> None:
        asked = self.asked()
        frame = self.call("b", asked).frame
        self.assertEqual(self.no("b", Package(nonce=bytes(32), frame=frame)).code, ErrorCode.NOT_FOUND)
        # somebody else's session
        self.assertEqual(self.no("c", Package(nonce=asked.nonce, frame=frame)).code, ErrorCode.NOT_FOUND)
        for wrong in (b"", frame[:20], b"\0" + frame[1:], frame):
            self.assertEqual(self.no("b", Package(nonce=asked.nonce, frame=wrong)).code, ErrorCode.BAD_REQUEST)
        self.assertIn("b", self.nodes["a"].vault.suspects())

    def test_a_session_that_is_left_open_loses_its_nonces(self) -> None:
        asked = self.asked()
        frame = self.call("b", asked).frame
        ((signer, _),) = self.nodes["a"].vault._cosigner._open.values()
        self.pass_s(SESSION_S + 1, 0.1)
        self.assertEqual(self.no("b", Package(nonce=asked.nonce, frame=frame)).code, ErrorCode.NOT_FOUND)
        self.assertIn("used", repr(signer._nonces))

    def test_nobody_signs_twice_with_one_pair_of_nonces(self) -> None:
        """The package of a session that was signed, once more."""
        seen: list[tuple[str, bytes]] = self.wire
        seen.clear()
        self.sign("b", self.record.onion)
        packages = [body for kind, body in seen if kind == SIGN]
        self.assertTrue(packages)
        import msgspec

        for body in packages:
            try:
                package = msgspec.msgpack.decode(body, type=Package)
            except msgspec.ValidationError:
                continue
            self.assertEqual(self.no("b", package).code, ErrorCode.NOT_FOUND)


class Liars(Signing):
    """`b` lies to `a`, which coordinates."""

    def setUp(self) -> None:
        super().setUp()
        # of the others only b and c are quick, and known to be, so that b is asked
        for name in "de":
            self.hub.latency("a", name, 0.1)
        for _ in range(3):
            self.sign("a", self.record.onion)

    def caught(self, reason: str, *, blamed: bool = True) -> None:
        """The signature comes all the same, and `b` is named."""
        self.sign("a", self.record.onion, 4)
        a = self.nodes["a"]
        self.assertEqual(a.vault.suspects(), {"b": reason} if blamed else {})
        self.assertGreaterEqual(a.refusals()[reason], 1)
        readiness = a.health.snapshot()
        self.assertTrue(readiness.ready)
        self.assertEqual(HEALTH_KEY in readiness.degraded, blamed)
        if blamed:
            self.assertIn("b was caught lying", readiness.reasons[HEALTH_KEY])
            self.assertEqual(figures(a.metrics, "balance_vault_suspects"), {(): 1.0})
            # from now on others are asked
            calls = len([kind for kind, _ in self.wire if kind == SIGN])
            self.sign("a", self.record.onion)
            self.assertEqual(len([kind for kind, _ in self.wire if kind == SIGN]) - calls, 4)
            a.vault.forgive("b")
            self.assertNotIn(HEALTH_KEY, a.health.snapshot().degraded)

    def test_a_wrong_signature_share(self) -> None:
        self.hostile("b", SIGN, lambda frame: frame[:-32] + scalar(integer(frame[-32:]) + 1))
        self.caught("bad_share")

    def test_a_signature_share_that_is_no_scalar(self) -> None:
        self.hostile("b", SIGN, lambda frame: frame[:-32] + b"\xff" * 32)
        self.caught("malformed")

    def test_a_share_for_another_package(self) -> None:
        self.hostile("b", SIGN, lambda frame: frame[:HEAD] + bytes(32) + frame[-32:])
        self.caught("bad_share")

    def test_commitments_outside_the_group(self) -> None:
        identity = b"\x01" + bytes(31)
        for point in (identity, bytes(32), b"\xee" + b"\xff" * 30 + b"\x7f", b"\x02" + bytes(31)):
            self.assertRaises(group.InvalidElementError, group.check_element, point)
            self.nodes["a"].vault.forgive("b")
            self.hostile("b", COMMIT, lambda frame, point=point: frame[:HEAD] + point + frame[HEAD + 32 :])  # type: ignore[misc]
            self.caught("malformed")

    def test_a_message_that_breaks_off_and_one_in_anothers_name(self) -> None:
        self.hostile("b", COMMIT, lambda frame: frame[:-1])
        self.caught("malformed")
        self.hostile("b", COMMIT, lambda frame: frame[: HEAD - 2] + b"\0\x01" + frame[HEAD:])
        self.caught("malformed")

    def test_a_replay_of_an_earlier_session(self) -> None:
        kept: list[bytes] = []
        self.hostile("b", COMMIT, lambda frame: kept.append(frame) or kept[0])  # type: ignore[func-returns-value]
        self.sign("a", self.record.onion, 4)
        self.caught("other_session", blamed=False)

    def test_two_liars_of_five(self) -> None:
        self.hostile("b", SIGN, lambda frame: frame[:-32] + scalar(1))
        self.hostile("c", COMMIT, lambda frame: frame[:-1])
        self.sign("a", self.record.onion, 4)
        self.assertEqual(self.nodes["a"].vault.suspects(), {"b": "bad_share", "c": "malformed"})

    def test_three_liars_of_five(self) -> None:
        for name in "bcd":
            self.hostile(name, SIGN, lambda frame: frame[:-32] + scalar(1))
        error = self.not_signed("a", self.record.onion)
        self.assertIn("needs 3 of 5 nodes, 2 are there", error.message)
        self.assertIn("b: its message is bad_share", error.message)
        self.assertEqual(figures(self.nodes["a"].metrics, "balance_vault_signatures_total")[("failed",)], 1.0)


class Silence(Signing):
    def test_two_of_five_that_are_silent(self) -> None:
        """They are not missed yet: a question to them is swallowed."""
        for at_s in (0.0, 0.001, 0.0015, 0.0025):
            self.hub.heal()
            self.pass_s(1)
            waiting = self.begin(self.sign_("a", self.record.onion))
            self.pass_s(at_s, 0.0005)
            self.hub.partition("abc", "de")
            self.pass_s(3)
            self.successResultOf(waiting)
        self.pass_s(5, 0.1)
        self.sign("b", self.record.onion)

    def test_two_of_five_dead_between_the_rounds(self) -> None:
        waiting = self.begin(self.sign_("a", self.record.onion))
        self.pass_s(0.002, 0.0005)
        self.kill("b")
        self.kill("c")
        self.pass_s(5)
        self.successResultOf(waiting)

    def test_three_of_five_silent_is_said_in_time_and_passes(self) -> None:
        self.hub.partition("ab", "cde")
        error = self.not_signed("a", self.record.onion)
        self.assertIn("needs 3 of 5 nodes", error.message)
        self.sign("c", self.record.onion)
        self.hub.heal()
        self.pass_s(1)
        self.sign("a", self.record.onion)

    def test_the_quick_are_asked_and_the_slow_are_not_waited_for(self) -> None:
        for name in "de":
            self.hub.latency("a", name, 0.6)
        for _ in range(3):
            self.sign("a", self.record.onion, 5)
        self.sign("a", self.record.onion, 0.1)
        self.pass_s(3)
        self.kill("b")
        # one slow one is needed now
        self.sign("a", self.record.onion, 3)

    def test_one_way_loss(self) -> None:
        self.hub.cut("b", "a", both=False)
        self.sign("a", self.record.onion, 3)

    def test_a_third_of_all_messages_lost(self) -> None:
        self.hub.loss = 0.3
        made = 0
        for _ in range(8):
            waiting = self.begin(self.sign_("a", self.record.onion))
            self.pass_s(12, 0.05)
            results: list[object] = []
            waiting.addBoth(results.append)
            made += isinstance(results[0], bytes)
        self.assertGreaterEqual(made, 4)
