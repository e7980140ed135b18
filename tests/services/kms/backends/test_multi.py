"""Several backends behind one: who may sign (I-20), who is read."""

from __future__ import annotations

from typing import NamedTuple

import nacl.signing
from hypothesis import given, settings
from hypothesis import strategies as st

from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.proto.kms import Alg
from ron.services.kms.backends.errors import LockedError
from ron.services.kms.backends.multi import MultiBackend
from ron.services.kms.ports import Half, Held
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

    def test_the_head_is_the_first_one_s(self) -> None:
        """There where it has one: a service that finds none looks for none."""
        self.assertFalse(hasattr(self.multi, "head") or hasattr(self.multi, "check_head"))
        checked: list[tuple[int, bytes]] = []
        self.first.head = lambda: (7, b"digest")  # type: ignore[attr-defined]
        self.first.check_head = lambda *known: checked.append(known)  # type: ignore[attr-defined]
        multi = MultiBackend([self.first, self.second])
        self.assertEqual(multi.head(), (7, b"digest"))
        multi.check_head(6, b"older")
        self.assertEqual(checked, [(6, b"older")])
        self.assertFalse(hasattr(MultiBackend([self.second, self.first]), "head"))

    def test_quick_only_if_who_may_sign_is(self) -> None:
        """The reactor is not blocked by a fallback."""
        self.second.quick = False  # type: ignore[misc]
        self.assertTrue(MultiBackend([self.first, self.second]).quick)
        self.assertFalse(MultiBackend([self.first, self.second], allow_sign_fallback=True).quick)
