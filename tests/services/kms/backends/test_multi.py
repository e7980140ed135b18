"""Several backends behind one: who may sign (I-20), who is read."""

from __future__ import annotations

import os
from typing import NamedTuple

import nacl.signing
from hypothesis import given, settings
from hypothesis import strategies as st

from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.proto.kms import Alg
from ron.services.kms.backends import heads
from ron.services.kms.backends.errors import LockedError, RolledBackError
from ron.services.kms.backends.multi import MultiBackend
from ron.services.kms.ports import Half, Held
from ron.services.kms.split import SplitBackend
from tests.services.kms.backends.contract import MESSAGE, BackendCase, new_kid
from tests.services.kms.backends.shelf import Shelf

OURS, THEIRS = b"\1" * 32, b"\2" * 32


class World(NamedTuple):
    """allowed: allow_sign_fallback. first_up: when it signs; it was up before. copy_seed: None for no copy.

    same_class, same_version: of the copy's own story. liar: the copy says that it is the first's own key.
    """

    allowed: bool
    first_holds: bool
    first_up: bool
    copy_up: bool
    copy_seed: bytes | None
    same_class: bool
    same_version: bool
    liar: bool


WORLDS = st.builds(
    World,
    allowed=st.booleans(),
    first_holds=st.booleans(),
    first_up=st.booleans(),
    copy_up=st.booleans(),
    copy_seed=st.sampled_from([None, OURS, THEIRS]),
    same_class=st.booleans(),
    same_version=st.booleans(),
    liar=st.booleans(),
)


def may_sign(world: World) -> bool:
    """I-20 in one sentence: the first, or a copy that is the same key while the first is away and the policy allows."""
    if world.first_up:
        return world.first_holds
    same = world.copy_seed == OURS and world.same_version and (world.same_class or world.liar)
    return world.allowed and world.first_holds and world.copy_up and same


class Signing(BackendCase):
    """Who signs."""

    @settings(deadline=None, max_examples=100)
    @given(WORLDS)
    def test_i20_only_the_first_signs_or_its_own_key_elsewhere(self, world: World) -> None:
        """In every world: a signature of the first's own key, or none."""
        kid = new_kid("ed25519")
        first, copy = Shelf("first"), Shelf("copy", attestation_class="paper" if world.same_class else "stone")
        truth = Held(kid, (Half(Alg.ED25519, bytes(nacl.signing.SigningKey(OURS).verify_key)),), "paper")
        if world.first_holds:
            first.put(kid, OURS)
        if world.copy_seed is not None:
            claimed = truth if world.liar and world.same_version else None
            copy.put(kid if world.same_version else kid.at(2), world.copy_seed, claimed=claimed)
        multi = MultiBackend([first, copy], allow_sign_fallback=world.allowed)
        multi.open()
        multi.held()
        first.up, copy.up = world.first_up, world.copy_up
        if may_sign(world):
            signature = multi.sign(kid, Alg.ED25519, MESSAGE)
            nacl.signing.SigningKey(OURS).verify_key.verify(MESSAGE, signature)
        else:
            self.assertRaises(RonError, multi.sign, kid, Alg.ED25519, MESSAGE)

    def test_i20_nobody_signs_for_a_key_that_the_first_says_it_has_not(self) -> None:
        """It may have been destroyed there. Unsupported with the way out, not NotFound: another one does hold it."""
        kid = new_kid("ed25519")
        first, copy = Shelf("first"), Shelf("copy")
        first.put(kid, OURS)
        copy.put(kid, OURS)
        multi = MultiBackend([first, copy], allow_sign_fallback=True)
        multi.open()
        multi.held()
        first.destroy(kid)
        error = self.refused(ErrorCode.UNSUPPORTED, multi.sign, kid, Alg.ED25519, MESSAGE)
        self.assertIn("multi_backends", error.hint or "")
        self.refused(ErrorCode.NOT_FOUND, multi.sign, new_kid(), Alg.ED25519, MESSAGE)

    def test_i20_never_before_the_first_was_seen(self) -> None:
        """Who never saw the first one's key cannot prove that another's is the same."""
        kid = new_kid("ed25519")
        first, copy = Shelf("first"), Shelf("copy")
        first.put(kid, OURS)
        copy.put(kid, OURS)
        multi = MultiBackend([first, copy], allow_sign_fallback=True)
        multi.open()
        first.up = False
        multi.held()
        self.refused(ErrorCode.STORE_UNAVAILABLE, multi.sign, kid, Alg.ED25519, MESSAGE)

    def test_other_troubles_are_the_callers(self) -> None:
        """A bad request, a damaged or a locked store: no other backend is asked."""
        kid = new_kid("ed25519")
        first, copy = Shelf("first"), Shelf("copy")
        first.put(kid, OURS)
        copy.put(kid, OURS)
        multi = MultiBackend([first, copy], allow_sign_fallback=True)
        multi.open()
        multi.held()
        for trouble in (bad_request("no"), LockedError("locked", hint="unlock it")):
            first.trouble = trouble
            self.refused(trouble.code, multi.sign, kid, Alg.ED25519, MESSAGE)

    def test_a_half_nobody_has(self) -> None:
        """The first is away and the key has no such half: as if there were no copy."""
        kid = new_kid("ed25519")
        first, copy = Shelf("first"), Shelf("copy")
        first.put(kid, OURS)
        copy.put(kid, OURS)
        multi = MultiBackend([first, copy], allow_sign_fallback=True)
        multi.open()
        multi.held()
        first.up = False
        self.refused(ErrorCode.STORE_UNAVAILABLE, multi.sign, kid, Alg.ML_DSA, MESSAGE)
        copy.trouble = bad_request("no")
        self.refused(ErrorCode.STORE_UNAVAILABLE, multi.sign, kid, Alg.ED25519, MESSAGE)


class Reading(BackendCase):
    """All are read, in order."""

    def setUp(self) -> None:
        super().setUp()
        self.kid, self.old = new_kid(), new_kid()
        self.first, self.second = Shelf("first"), Shelf("second")
        self.first.put(self.kid, OURS)
        self.second.put(self.old, THEIRS)
        self.multi = MultiBackend([self.first, self.second])
        self.multi.open()

    def test_all_keys_are_seen(self) -> None:
        """The first one's word counts where two hold a kid; one that is away does not hide the others."""
        self.second.put(self.kid, THEIRS)
        held = {one.kid: one for one in self.multi.held()}
        self.assertEqual(set(held), {self.kid, self.old})
        self.assertEqual(held[self.kid], self.first.claims[self.kid])
        self.first.up = False
        self.assertEqual({one.kid for one in self.multi.held()}, {self.kid, self.old})
        self.second.up = False
        self.refused(ErrorCode.STORE_UNAVAILABLE, self.multi.held)
        self.second.trouble = LockedError("locked", hint="unlock it")
        self.assertRaises(LockedError, self.multi.held)

    def test_unwrap_by_whoever_holds_it(self) -> None:
        """An old key in the second opens; while the first is away, only if that is known not to hold it."""
        self.assertEqual(self.multi.unwrap(self.old, "x", b"!", b""), b"second!")
        self.assertEqual(self.multi.unwrap(self.kid, "x", b"!", b""), b"first!")
        self.first.up = False
        self.refused(ErrorCode.STORE_UNAVAILABLE, self.multi.unwrap, self.old, "x", b"!", b"")
        self.first.up = True
        self.multi.held()
        self.first.up = False
        self.assertEqual(self.multi.unwrap(self.old, "x", b"!", b""), b"second!")
        self.refused(ErrorCode.STORE_UNAVAILABLE, self.multi.unwrap, self.kid, "x", b"!", b"")
        self.first.up = True
        self.refused(ErrorCode.NOT_FOUND, self.multi.unwrap, new_kid(), "x", b"!", b"")

    def test_new_keys_are_made_by_the_first(self) -> None:
        """And not under a name that another one has."""
        self.multi.held()
        made = self.multi.generate(new_kid("ed25519"), (Alg.ED25519,))
        self.assertIn(made.kid, self.first.keys)
        self.assertNotIn(made.kid, self.second.keys)
        self.refused(ErrorCode.CONFLICT, self.multi.generate, self.old, (Alg.ED25519,))
        self.refused(ErrorCode.CONFLICT, self.multi.generate, self.kid, (Alg.ED25519,))

    def test_destroyed_everywhere_or_not_done(self) -> None:
        """A copy that could not be asked keeps it from being done; the same call finishes it."""
        self.second.put(self.kid, OURS)
        self.multi.held()
        self.second.up = False
        self.refused(ErrorCode.STORE_UNAVAILABLE, self.multi.destroy, self.kid)
        self.second.up = True
        self.multi.destroy(self.kid)
        self.assertEqual((list(self.first.keys), list(self.second.keys)), ([], [self.old]))
        self.refused(ErrorCode.NOT_FOUND, self.multi.destroy, self.kid)

    def test_attestation_of_who_holds_it(self) -> None:
        """The key's own backend; the signing one for the whole."""
        for kid, name in ((self.kid, "first"), (self.old, "second"), (None, "first")):
            attestation = self.multi.attest(kid)
            assert attestation is not None
            self.assertEqual(attestation.class_, name)
        self.refused(ErrorCode.NOT_FOUND, self.multi.attest, new_kid())

    def test_opened_when_it_can_be(self) -> None:
        """A second that is away at the start is opened by the probe; a first that is, or a locked one, is an error."""
        self.multi.close()
        self.second.up = False
        self.multi.open()
        self.assertEqual(self.multi.away(), ("second",))
        self.multi.probe()
        self.second.up = True
        self.multi.probe()
        self.multi.probe()
        self.assertEqual((self.multi.away(), self.second.opened), ((), 2))
        self.multi.close()
        self.first.up = False
        self.refused(ErrorCode.STORE_UNAVAILABLE, self.multi.open)
        self.refused(ErrorCode.STORE_UNAVAILABLE, self.multi.probe)
        self.assertEqual(self.multi.away(), ("first", "second"))
        self.first.up = True
        self.second.trouble = LockedError("locked", hint="unlock it")
        self.assertRaises(LockedError, self.multi.open)

    def test_one_that_counts_nothing_seems_to_count_nothing(self) -> None:
        """A service that finds no head looks for none."""
        self.assertFalse(hasattr(self.multi, "head") or hasattr(self.multi, "check_head"))

    def test_quick_only_if_who_may_sign_is(self) -> None:
        """The reactor is not blocked by a fallback."""
        self.second.quick = False  # type: ignore[misc]
        self.assertTrue(MultiBackend([self.first, self.second]).quick)
        self.assertFalse(MultiBackend([self.first, self.second], allow_sign_fallback=True).quick)


class Counted(Shelf):
    """Says where it stands. passed: the digests that it has had."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.passed: list[bytes] = [bytes(32)]

    def change(self) -> None:
        """One more."""
        self.passed.append(os.urandom(32))

    def head(self) -> tuple[int, bytes]:
        """As `Counting`."""
        self._reach()
        return heads.told(self.name, len(self.passed) - 1, self.passed[-1])

    def check_head(self, counter: int, digest: bytes) -> None:
        """As `Counting`."""
        known = heads.own(self.name, counter, digest)
        if known is not None and self.passed[known.counter : known.counter + 1] != [known.digest]:
            raise heads.older(self.name, len(self.passed) - 1, known.counter)


class Rollback(BackendCase):
    """I-6 of each of several stores."""

    def setUp(self) -> None:
        super().setUp()
        self.members = [Counted("file"), Counted("tpm"), Counted("pkcs11")]
        self.multi = self.opened()

    def opened(self) -> MultiBackend:
        """All of them behind one, as after a start."""
        multi = MultiBackend([*self.members, Shelf("inmem")])
        multi.open()
        return multi

    def test_i6_an_older_copy_of_any_one(self) -> None:
        """Whichever was put back, it is named, and the others are not."""
        for member in self.members:
            member.change()
        known = self.multi.head()
        self.opened().check_head(*known)
        for member in self.members:
            taken = member.passed.pop()
            error = self.assertRaises(RolledBackError, self.opened().check_head, *known)
            self.assertIn(f"backend {member.name} ", error.message)
            member.passed.append(taken)
        for member in self.members:
            member.change()
        self.opened().check_head(*known)
        self.assertEqual(self.multi.head()[0], 6)

    def test_one_that_is_away_stands_where_it_was_seen(self) -> None:
        """And is looked at once it is there: until then the others work."""
        self.members[1].change()
        known = self.multi.head()
        self.members[1].up = False
        self.assertEqual(self.multi.head(), known)
        multi = self.opened()
        multi.check_head(*known)
        self.assertEqual(multi.head(), known)
        self.members[1].up = True
        self.members[1].passed.pop()
        for _ in range(2):
            self.assertRaises(RolledBackError, multi.probe)
        self.assertEqual(multi.head(), known)
        self.members[1].passed = [bytes(32), heads.own("tpm", *known).digest]  # type: ignore[union-attr]
        multi.probe()
        self.assertEqual(multi.head(), known)

    def test_another_config_than_the_log_remembers(self) -> None:
        """What was said of others is nothing to compare with; what was said of one that is still there, is."""
        file, tpm, token = self.members
        for member in self.members:
            member.change()
        of_three, of_file = self.multi.head(), file.head()
        self.multi.check_head(*of_file)
        MultiBackend([token]).check_head(*of_file)
        one = MultiBackend([token])
        one.open()
        one.check_head(*of_three)
        token.passed.pop()
        self.assertRaises(RolledBackError, one.check_head, *of_three)
        MultiBackend([file, tpm]).check_head(*of_three)

    def test_what_nobody_said(self) -> None:
        """A digest that this program did not write: told, and not taken for nothing."""
        for digest in (b"", b"\xc1", b"x" * 31, b"\x81\xa4file\x92\xff\xc4\x00"):
            self.assertRaises(RolledBackError, self.multi.check_head, 1, digest)

    @settings(deadline=None, max_examples=50)
    @given(
        st.dictionaries(
            st.sampled_from(["file", "tpm", "cloud"]), st.tuples(st.integers(0, 9), st.binary(min_size=32, max_size=32))
        )
    )
    def test_joined_heads_come_apart_again(self, each: dict[str, tuple[int, bytes]]) -> None:
        """Each one's own, whatever the others are."""
        counter, digest = heads.joined(heads.told(name, *head) for name, head in each.items())
        self.assertEqual(counter, sum(head[0] for head in each.values()))
        for name in ("file", "tpm", "cloud"):
            self.assertEqual(heads.own(name, counter, digest), each.get(name))

    def test_i6_beside_each_other(self) -> None:
        """A cloud that wraps and a store that signs: either of them, put back, is found out."""
        signing, cloud = Counted("file"), Counted("cloud")
        split = SplitBackend(cloud, signing)
        for one in (signing, cloud):
            one.change()
        known = split.head()
        split.check_head(*known)
        for one in (signing, cloud):
            taken = one.passed.pop()
            self.assertRaises(RolledBackError, split.check_head, *known)
            one.passed.append(taken)
