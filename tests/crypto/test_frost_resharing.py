"""The key stays, the shares change: refresh, other members, other thresholds; shares of two epochs do not mix."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import VerifyKey
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import group
from ron.crypto.frost import dealing, resharing, signing, wire
from ron.crypto.frost.errors import InvalidGroupError, Reason, Refused
from ron.crypto.frost.keys import KeyShare
from ron.crypto.frost.plan import Plan, Purpose
from ron.crypto.frost.wire import Kind
from tests.crypto.test_frost_support import (
    HEAD,
    Network,
    Signing,
    Tamper,
    born,
    integer,
    kind,
    nonce,
    scalar,
    secret_from,
    signed,
    some_shares,
    subsets,
    with_wrong_share,
)

Shares = Mapping[int, KeyShare]


def refresh_network(shares: Shares, tamper: Tamper = lambda _s, _r, raw: raw) -> Network:
    plan = resharing.refresh_plan(nonce(), next(iter(shares.values())).group)
    return Network({i: resharing.refresh(plan, share) for i, share in shares.items()}, tamper)


def reshare_network(
    shares: Shares,
    threshold: int,
    receivers: Sequence[int],
    tamper: Tamper = lambda _s, _r, raw: raw,
) -> Network:
    key = next(iter(shares.values())).group
    plan = resharing.reshare_plan(nonce(), key, dealers=list(shares), threshold=threshold, receivers=receivers)
    parts = {i: resharing.reshare_from(plan, share) for i, share in shares.items()}
    newcomers = {i: resharing.reshare_to(plan, i) for i in receivers if i not in parts}
    return Network({**parts, **newcomers}, tamper)


def all_sign(case: SynchronousTestCase, shares: Shares, public: bytes) -> None:
    key = next(iter(shares.values())).group
    case.assertEqual(key.public, public)
    for chosen in subsets(shares, key.threshold):
        VerifyKey(public).verify(b"m", signed(chosen))


class Refresh(SynchronousTestCase):
    def test_the_key_stays_and_every_share_changes(self) -> None:
        for old in (born(2, 3), born(3, 5)):
            network = refresh_network(old).run()
            self.assertEqual((network.states, network.refused), ({"done"}, []))
            all_sign(self, network.results, old[1].group.public)
            for member, share in network.results.items():
                self.assertNotEqual(share.secret, old[member].secret)
                self.assertNotEqual(share.group.digest, old[member].group.digest)

    def test_seizing_one_member_before_and_another_after_gives_nothing_away(self) -> None:
        old = born(3, 5)
        new = refresh_network(old).run().results
        public = old[1].group.public
        for chosen in itertools.combinations(range(1, 6), 3):
            for seized_before in range(1, 3):
                mixed = [old[i] for i in chosen[:seized_before]] + [new[i] for i in chosen[seized_before:]]
                self.assertNotEqual(group.public_of(scalar(secret_from(mixed))), public)

    def test_epochs_do_not_sign_together(self) -> None:
        old = born(2, 3)
        new = refresh_network(old).run().results
        refused = self.assertRaises(Refused, Signing({1: new[1], 2: old[2]}, key=new[1].group).commit)
        self.assertEqual((refused.reason, refused.members), (Reason.OTHER_SESSION, (2,)))

    def test_a_member_who_signs_with_its_old_share_is_named(self) -> None:
        old = born(2, 3)
        new = refresh_network(old).run().results
        chosen = {i: new[i] for i in (1, 2)}
        nonces = {i: signing.commit(share) for i, share in chosen.items()}
        listed = [one.commitment for one in nonces.values()]
        chosen[2]._secret[:] = old[2].secret
        made = {i: signing.sign_share(chosen[i], nonces[i], listed, b"m") for i in chosen}
        refused = self.assertRaises(Refused, signing.aggregate, new[1].group, made, listed, b"m")
        self.assertEqual((refused.reason, refused.members), (Reason.BAD_SHARE, (2,)))

    def test_who_deals_something_else_than_zero_is_named_by_all(self) -> None:
        """All its shares are too large by 5: the key would move to one that only the dealer knows the way to."""

        def tamper(sender: int, _to: int, raw: bytes) -> bytes:
            at = {Kind.SHARE: HEAD, Kind.JUSTIFICATION: HEAD + 2}.get(kind(raw), 0)
            if sender != 2 or not at:
                return raw
            return raw[:at] + scalar(integer(raw[at : at + 32]) + 5) + raw[at + 32 :]

        network = refresh_network(born(2, 3), tamper).run()
        failures = {member: why for member, why in network.failures().items() if member != 2}
        self.assertEqual(failures, dict.fromkeys((1, 3), ("unjustified", (2,))))
        self.assertEqual(network.results, {})

    def test_a_wrong_share_is_made_good(self) -> None:
        network = refresh_network(born(2, 3), with_wrong_share(3, 1)).run()
        self.assertEqual([refused.members for _, refused in network.refused], [(3,)])
        all_sign(self, network.results, born(2, 3)[1].group.public)

    def test_everybody_and_the_right_epoch_or_nothing(self) -> None:
        old = born(2, 3)
        plan = resharing.refresh_plan(nonce(), old[1].group)
        self.assertRaises(InvalidGroupError, resharing.refresh, plan, some_shares(2, 3)[1])
        self.assertRaises(InvalidGroupError, resharing.reshare_from, plan, old[1])
        self.assertRaises(InvalidGroupError, resharing.reshare_to, plan, 1)
        values = {"purpose": Purpose.REFRESH, "nonce": nonce(), "public": old[1].group.public}
        for change in (
            {"threshold": 3},
            {"dealers": (1, 2), "receivers": (1, 2)},
            {"receivers": (1, 2, 4)},
            {"previous": None},
            {"public": group.GENERATOR},
            {"previous": some_shares(2, 3)[1].group},
        ):
            whole = {"threshold": 2, "dealers": (1, 2, 3), "receivers": (1, 2, 3), "previous": old[1].group}
            self.assertRaises(InvalidGroupError, Plan, **{**values, **whole, **change})

    def test_yesterdays_refresh_is_not_todays(self) -> None:
        yesterday = refresh_network(born(2, 3)).run()
        today = refresh_network(yesterday.results)
        for sender, receiver, raw in yesterday.seen:
            today.deliver(sender, receiver, raw)
        self.assertEqual({refused.reason for _, refused in today.refused}, {Reason.OTHER_SESSION})
        all_sign(self, today.run().results, born(2, 3)[1].group.public)

    def test_the_old_share_is_wiped_by_its_owner(self) -> None:
        shares = refresh_network(born(2, 3)).run().results
        secret = shares[1]._secret
        shares[1].wipe()
        self.assertEqual(bytes(secret), b"")
        for attempt in (lambda: shares[1].secret, shares[1].encode, lambda: signing.commit(shares[1])):
            self.assertRaises(InvalidGroupError, attempt)


class Reshare(SynchronousTestCase):
    def test_other_members_and_other_thresholds(self) -> None:
        old = born(3, 5)
        public = old[1].group.public
        for dealers, threshold, receivers in (
            ((1, 3, 5), 3, (1, 3, 5, 6, 7)),  # two leave, two come
            ((1, 2, 3, 4, 5), 2, (2, 3, 4)),  # fewer, and a lower threshold
            ((2, 4, 5), 4, (10, 11, 12, 13, 14, 15)),  # nobody stays
            ((1, 2, 3), 3, (1, 2, 3)),  # exactly those who are left
        ):
            network = reshare_network({i: old[i] for i in dealers}, threshold, receivers).run()
            self.assertEqual((network.states, network.refused), ({"done"}, []))
            self.assertEqual(sorted(network.results), list(receivers))
            for member in set(dealers) - set(receivers):
                self.assertIsNone(network.ceremonies[member].pending)
            chosen = {i: network.results[i] for i in receivers[-threshold:]}
            VerifyKey(public).verify(b"m", signed(chosen))
            fewer = [network.results[i] for i in receivers[: threshold - 1]]
            self.assertNotEqual(group.public_of(scalar(secret_from(fewer))), public)

    def test_a_share_of_one_who_left_does_not_fit_the_new_ones(self) -> None:
        old = born(2, 3)
        new = reshare_network({i: old[i] for i in (1, 2)}, 2, (1, 2, 4)).run().results
        for member in new:
            if member != 3:
                self.assertNotEqual(group.public_of(scalar(secret_from([old[3], new[member]]))), old[1].group.public)
        refused = self.assertRaises(Refused, Signing({1: new[1], 2: old[2]}, key=new[1].group).commit)
        self.assertEqual(refused.members, (2,))

    def test_a_threshold_of_old_shares_that_nobody_wiped_is_still_the_key(self) -> None:
        """Not a promise but its limit, which docs/threshold.rst tells operators."""
        old = born(2, 3)
        reshare_network({i: old[i] for i in (1, 2)}, 2, (1, 2, 4)).run()
        self.assertEqual(group.public_of(scalar(secret_from([old[2], old[3]]))), old[1].group.public)

    def test_who_deals_something_else_than_its_share_is_named(self) -> None:
        old = born(2, 3)
        key = old[1].group
        plan = resharing.reshare_plan(nonce(), key, dealers=[1, 2], threshold=2, receivers=[1, 2, 4])
        for constant in (scalar(5), old[2].secret, scalar(integer(old[2].secret) + 1)):
            _, cheat = dealing.deal(plan, 2, constant)
            raw = wire.frame(Kind.DEALING, plan.digest, 2, cheat.encode())
            for honest in (resharing.reshare_from(plan, old[1]), resharing.reshare_to(plan, 4)):
                refused = self.assertRaises(Refused, honest.receive, 2, raw)
                self.assertEqual((refused.reason, refused.members), (Reason.BAD_PROOF, (2,)))

    def test_a_wrong_share_is_made_good(self) -> None:
        old = born(3, 5)
        network = reshare_network({i: old[i] for i in (1, 2, 3)}, 2, (3, 8, 9), with_wrong_share(1, 9)).run()
        self.assertEqual([(who, refused.members) for who, refused in network.refused], [(9, (1,))])
        all_sign(self, network.results, old[1].group.public)

    def test_two_stories_to_newcomers_are_found_out(self) -> None:
        old = born(2, 3)
        key = old[1].group
        plan = resharing.reshare_plan(nonce(), key, dealers=[1, 2], threshold=2, receivers=[4, 5])
        (other,) = resharing.reshare_from(plan, old[2]).outgoing()

        def tamper(sender: int, to: int, raw: bytes) -> bytes:
            return other.body if (sender, to, kind(raw)) == (2, 5, Kind.DEALING) else raw

        dealers = {i: resharing.reshare_from(plan, old[i]) for i in (1, 2)}
        network = Network({**dealers, 4: resharing.reshare_to(plan, 4), 5: resharing.reshare_to(plan, 5)}, tamper).run()
        self.assertEqual(network.failures()[5][0], "disputed")
        self.assertIn(2, network.failures()[5][1])
        self.assertEqual(network.results, {})

    def test_plans_that_cannot_be_carried_out(self) -> None:
        key = born(3, 5)[1].group
        for dealers, threshold, receivers in (
            ((1, 2), 2, (1, 2)),
            ((1, 2, 6), 2, (1, 2)),
            ((1, 1, 2), 2, (1, 2)),
            ((1, 2, 3), 1, (1, 2)),
            ((1, 2, 3), 3, (1, 2)),
            ((1, 2, 3), 2, (0, 1)),
            ((1, 2, 3), 2, tuple(range(1, 18))),
        ):
            with self.assertRaises(InvalidGroupError):
                resharing.reshare_plan(nonce(), key, dealers=dealers, threshold=threshold, receivers=receivers)

    @settings(max_examples=6, deadline=None)
    @given(data=st.data())
    def test_whatever_happens_the_address_stays(self, data: st.DataObject) -> None:
        shares: Shares = born(2, 3)
        public = shares[1].group.public
        for _ in range(3):
            key = next(iter(shares.values())).group
            if data.draw(st.booleans()):
                shares = refresh_network(shares).run().results
            else:
                dealers = data.draw(st.permutations(key.members))[: key.threshold]
                receivers = sorted(data.draw(st.sets(st.integers(1, 40), min_size=2, max_size=4)))
                threshold = data.draw(st.integers(2, len(receivers)))
                network = reshare_network({i: shares[i] for i in sorted(dealers)}, threshold, receivers)
                shares = network.run().results
            key = next(iter(shares.values())).group
            chosen = {i: shares[i] for i in data.draw(st.permutations(key.members))[: key.threshold]}
            VerifyKey(public).verify(b"m", signed(chosen))
            fewer = list(chosen.values())[:-1]
            self.assertNotEqual(group.public_of(scalar(secret_from(fewer))), public)
