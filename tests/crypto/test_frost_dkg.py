"""Key generation and import: a key nobody has, or no longer has, whatever order the messages come in."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import VerifyKey
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import group
from ron.crypto.frost import ceremony, dealing, dkg, shamir, wire
from ron.crypto.frost.ceremony import TRANSITIONS, machine
from ron.crypto.frost.dealing import Dealing
from ron.crypto.frost.errors import InvalidGroupError, Reason, Refused
from ron.crypto.frost.plan import Plan, Purpose
from ron.crypto.frost.shamir import Polynomial
from ron.crypto.frost.wire import Kind
from tests.crypto.test_frost_support import (
    Network,
    Tamper,
    born,
    few,
    flipped,
    keygen_network,
    kind,
    nonce,
    scalar,
    secret_from,
    signed,
    subsets,
    unhex,
    vectors,
    with_wrong_share,
)

ROOT = Path(__file__).parents[2]


class Born(SynchronousTestCase):
    def test_any_threshold_of_the_members_signs(self) -> None:
        for threshold, count in ((2, 3), (3, 5)):
            shares = born(threshold, count)
            self.assertEqual(len(shares), count)
            self.assertEqual(len({share.group.digest for share in shares.values()}), 1)
            public = shares[1].group.public
            for chosen in subsets(shares, threshold):
                VerifyKey(public).verify(b"m", signed(chosen, b"m"))
            for chosen in subsets(shares, threshold - 1):
                self.assertNotEqual(group.public_of(scalar(secret_from(chosen.values()))), public)

    def test_the_largest_group(self) -> None:
        network = keygen_network(2, range(1, 17)).run()
        self.assertEqual(network.states, {"done"})
        chosen = {member: network.results[member] for member in (7, 16)}
        VerifyKey(chosen[7].group.public).verify(b"m", signed(chosen))

    def test_only_shares_are_private_and_no_message_shows_the_key_or_a_result(self) -> None:
        network = keygen_network(2, [1, 2, 3]).run()
        private = [raw for secret, (_, _, raw) in zip(network.private, network.seen, strict=True) if secret]
        self.assertEqual({kind(raw) for raw in private}, {Kind.SHARE})
        self.assertEqual(len(private), 6)
        everything = b"".join(raw for _, _, raw in network.seen)
        key = scalar(secret_from(list(network.results.values())[:2]))
        for secret in (key, *(share.secret for share in network.results.values())):
            self.assertNotIn(secret, everything)

    @few
    @given(random=st.randoms(use_true_random=False))
    def test_messages_may_come_in_any_order(self, random: Random) -> None:
        network = keygen_network(2, [1, 2, 3]).run(random.randrange)
        self.assertEqual((network.states, network.refused), ({"done"}, []))

    def test_the_arithmetic_of_another_implementation(self) -> None:
        vector = vectors("zf-dkg.json")
        members = {int(member): values for member, values in vector["members"].items()}
        polynomials = {i: Polynomial([unhex(one) for one in values["coefficients"]]) for i, values in members.items()}
        plan = dkg.keygen_plan(nonce(), vector["threshold"], list(members))
        dealings = [Dealing(dealer=i, commitments=one.commitments(), proof=b"") for i, one in polynomials.items()]
        made = dealing.resulting_group(plan, dealings)
        self.assertEqual(made.public.hex(), vector["verifying_key"])
        for i, values in members.items():
            self.assertEqual([one.hex() for one in polynomials[i].commitments()], values["commitments"])
            for j, share in values["received"].items():
                self.assertEqual(polynomials[int(j)].at(i).hex(), share)
            self.assertEqual(made.shares[i].hex(), values["verifying_share"])
            total = shamir.scalar_total(one.at(i) for one in polynomials.values())
            self.assertEqual(group.public_of(total).hex(), values["verifying_share"])
            self.assertEqual(total.hex(), values.get("signing_share", total.hex()))


class Plans(SynchronousTestCase):
    def test_what_cannot_be_carried_out(self) -> None:
        for threshold, members in (
            (1, [1, 2]),
            (3, [1, 2]),
            (2, [1]),
            (2, []),
            (2, [1, 1]),
            (2, [0, 1]),
            (2, [1, 65_536]),
            (2, list(range(1, 18))),
        ):
            self.assertRaises(InvalidGroupError, dkg.keygen_plan, nonce(), threshold, members)
        self.assertRaises(InvalidGroupError, dkg.keygen_plan, bytes(31), 2, [1, 2])
        for values in (
            {"dealers": (1, 2)},
            {"public": group.GENERATOR},
            {"previous": born(2, 3)[1].group},
        ):
            whole = {"dealers": (1, 2, 3), "receivers": (1, 2, 3), **values}
            self.assertRaises(InvalidGroupError, Plan, purpose=Purpose.KEYGEN, nonce=nonce(), threshold=2, **whole)

    def test_parts_that_are_not_in_the_plan(self) -> None:
        plan = dkg.keygen_plan(nonce(), 2, [1, 2, 3])
        self.assertRaises(InvalidGroupError, dkg.keygen, plan, 4)
        self.assertRaises(InvalidGroupError, dkg.import_member, plan, 1)
        self.assertRaises(InvalidGroupError, ceremony.Ceremony, plan, 1)

    def test_every_part_of_a_plan_is_in_its_name(self) -> None:
        fresh = nonce()
        plans = [
            dkg.keygen_plan(fresh, 2, [1, 2, 3]),
            dkg.keygen_plan(nonce(), 2, [1, 2, 3]),
            dkg.keygen_plan(fresh, 3, [1, 2, 3]),
            dkg.keygen_plan(fresh, 2, [1, 2, 4]),
            dkg.import_plan(fresh, 2, [1, 2, 3], group.GENERATOR),
            dkg.import_plan(fresh, 2, [1, 2, 3], group.public_of(scalar(5))),
        ]
        self.assertEqual(len({plan.digest for plan in plans}), len(plans))


class Erasure(SynchronousTestCase):
    def test_polynomials_and_shares_are_wiped_when_it_is_over(self) -> None:
        for tamper in (lambda _s, _r, raw: raw, lambda s, _r, raw: flipped(raw, 300) if s == 3 else raw):
            network = keygen_network(2, [1, 2, 3])
            kept = {i: list(one._polynomial._coefficients) for i, one in network.ceremonies.items() if one._polynomial}
            network.tamper = tamper
            network.run()
            for i in kept:
                one = network.ceremonies[i]
                one.give_up()
                self.assertTrue(all(bytes(coefficient) == bytes(32) for coefficient in kept[i]))
                self.assertTrue(all(bytes(share) == bytes(32) for share in one._shares.values()))


class Imports(SynchronousTestCase):
    """Shares of a key that tor has had: the owner deals, and forgets."""

    def setUp(self) -> None:
        case = vectors("tor-blinding.json")["period"]
        self.expanded, self.public = unhex(case["expanded"]), unhex(case["public"])
        self.plan = dkg.import_plan(nonce(), 2, [1, 2, 3], self.public)

    def network(self, tamper: Tamper = lambda _s, _r, raw: raw) -> Network:
        secret = bytearray(self.expanded)
        owner = dkg.import_owner(self.plan, secret)
        self.assertEqual(bytes(secret), bytes(64))
        members = {member: dkg.import_member(self.plan, member) for member in self.plan.receivers}
        return Network({0: owner, **members}, tamper)

    def test_the_address_stays(self) -> None:
        network = self.network().run()
        self.assertEqual((network.states, sorted(network.results)), ({"done"}, [1, 2, 3]))
        for chosen in subsets(network.results, 2):
            VerifyKey(self.public).verify(b"m", signed(chosen))

    def test_an_owner_who_deals_wrongly_is_named(self) -> None:
        network = self.network(with_wrong_share(0, 2)).run()
        self.assertEqual([(who, refused.members) for who, refused in network.refused], [(2, (0,))])
        self.assertEqual(network.states, {"done"})

    def test_another_key_than_the_plans_is_not_dealt_nor_taken(self) -> None:
        other = dkg.import_plan(self.plan.nonce, 2, [1, 2, 3], group.GENERATOR)
        secret = bytearray(self.expanded)
        self.assertRaises(InvalidGroupError, dkg.import_owner, other, secret)
        self.assertEqual(bytes(secret), bytes(64))
        _, cheat = dealing.deal(self.plan, 0, scalar(secrets.randbelow(2**250) + 1))
        raw = wire.frame(Kind.DEALING, self.plan.digest, 0, cheat.encode())
        refused = self.assertRaises(Refused, dkg.import_member(self.plan, 1).receive, 0, raw)
        self.assertEqual((refused.reason, refused.members), (Reason.BAD_PROOF, (0,)))

    def test_what_is_no_expanded_secret(self) -> None:
        clamped = self.expanded
        for raw in (b"", clamped[:63], clamped + b"\0", bytes(64), b"\x01" + clamped[1:], clamped[:31] + b"\xff" * 33):
            secret = bytearray(raw)
            self.assertRaises(InvalidGroupError, dkg.import_owner, self.plan, secret)
            self.assertEqual(bytes(secret), bytes(len(raw)))


class Drawing(SynchronousTestCase):
    def test_the_machine_is_the_table(self) -> None:
        real = {
            (before.name, event): after.name
            for before, event, after, _out in machine.__automat_automaton__.allTransitions()
        }
        self.assertEqual(real, TRANSITIONS)

    def test_the_table_in_the_docs_is_the_machine(self) -> None:
        text = (ROOT / "docs" / "threshold.rst").read_text()
        table = text.partition(".. ceremony-states begin")[2].partition(".. ceremony-states end")[0]
        rows = re.findall(r"^   \* - (\w+)\n     - (\w+)\n     - (\w+)$", table, re.MULTILINE)
        self.assertEqual({(a, b): c for a, b, c in rows if a != "state"}, TRANSITIONS)
