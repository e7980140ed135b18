"""The PKCS#11 backend on a real token. Needs SoftHSM."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import msgspec
import nacl.signing
from pkcs11 import Attribute, Mechanism, ObjectClass
from pkcs11.exceptions import AttributeSensitive, NoSuchKey, PKCS11Error
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from ron.kernel.backoff import Backoff
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg
from ron.services.kms.backends import pkcs11_objects as objects
from ron.services.kms.backends.pkcs11 import Pkcs11Backend
from ron.services.kms.backends.pkcs11_records import DamagedRecordError, object_id
from ron.services.kms.backends.pkcs11_sealing import HMAC, NotOpenedError
from ron.services.kms.backends.pkcs11_sessions import Seat, Sessions, TokenAddress, pin_from_env
from tests.services.kms.backends.contract import KEM, MESSAGE, SIGNING, BackendCase, Contract, new_kid, public_of
from tests.services.kms.backends.softhsm import LABEL, MODULE, NO_SOFTHSM, PIN, SoftToken, environment, pin

ADDRESS = TokenAddress(MODULE, LABEL)


class TokenCase(BackendCase):
    """A fresh token, and a backend on it whose clock the test turns."""

    skip = NO_SOFTHSM

    def setUp(self) -> None:
        super().setUp()
        self.token = SoftToken(self.stack)
        self.clock = Clock()
        self.came_back = 0

    def build(self, **options: Any) -> Pkcs11Backend:
        """Not open."""
        sessions = Sessions(ADDRESS, pin(), now=self.clock.seconds, on_reconnect=self._back, **options)
        return Pkcs11Backend(ADDRESS, pin(), sessions=sessions)

    def opened(self, **options: Any) -> Pkcs11Backend:
        """Open until the test ends."""
        backend = self.build(**options)
        backend.open()
        self.stack.callback(backend.close)
        return backend

    def _back(self) -> None:
        self.came_back += 1


class ContractOnSoftHsm(Contract, TokenCase):
    """Everything the port promises, Ed25519 in the token and the rest sealed by it."""


class InTheToken(TokenCase):
    """Custody."""

    def test_nothing_in_the_token_can_be_read(self) -> None:
        """I-1: neither the Ed25519 key nor the key that seals the rest gives its value, nor can it be wrapped out."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        with backend._sessions.seat() as seat:
            for kind in (ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY):
                key = objects.find(seat.session, held.kid, kind)
                self.assertRaises(AttributeSensitive, key.__getitem__, Attribute.VALUE)
                self.assertEqual((key[Attribute.SENSITIVE], key[Attribute.EXTRACTABLE]), (True, False))
                self.assertTrue(key[Attribute.NEVER_EXTRACTABLE])
                self.assertRaises(PKCS11Error, key.__setitem__, Attribute.EXTRACTABLE, True)

    def test_an_ed25519_signature_is_the_token_s(self) -> None:
        """PyNaCl verifies it, and without the token's key object there is none."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        signature = backend.sign(held.kid, Alg.ED25519, MESSAGE)
        nacl.signing.VerifyKey(public_of(held, Alg.ED25519)).verify(MESSAGE, signature)
        with backend._sessions.seat() as seat:
            objects.find(seat.session, held.kid, ObjectClass.PRIVATE_KEY).destroy()
        self.refused(ErrorCode.NOT_FOUND, backend.sign, held.kid, Alg.ED25519, MESSAGE)
        self.refused(ErrorCode.NOT_FOUND, backend.attest, held.kid)
        self.assertTrue(backend._sessions.up)

    def test_without_the_sealing_key_its_blob_is_nothing(self) -> None:
        """Destroying that key in the token destroys every copy of the sealed halves."""
        backend = self.opened()
        held = backend.generate(new_kid(), (Alg.ML_DSA,))
        with backend._sessions.seat() as seat:
            objects.find(seat.session, held.kid, ObjectClass.SECRET_KEY).destroy()
        self.refused(ErrorCode.NOT_FOUND, backend.sign, held.kid, Alg.ML_DSA, MESSAGE)

    def test_i12_the_class_says_where_each_half_lives(self) -> None:
        """In the token, sealed by it, or one of each; and the evidence is what the token itself says."""
        backend = self.opened()
        classes = [
            backend.generate(new_kid(), algs).attestation_class
            for algs in ((Alg.ED25519,), (Alg.ML_DSA,), SIGNING, KEM)
        ]
        token, wrapped = "pkcs11-softhsm-v2", "pkcs11-wrapped"
        self.assertEqual(classes, [token, wrapped, f"{token}+{wrapped}", wrapped])
        held = backend.generate(new_kid(), SIGNING)
        attestation = backend.attest(held.kid)
        told = msgspec.json.decode(base64.b64decode(attestation.evidence or ""))
        self.assertEqual([half["where"] for half in told["halves"]], ["token", "aes-gcm"])
        self.assertTrue(all(half["never_extractable"] and half["local"] for half in told["halves"]))
        self.assertEqual((told["kid"], told["token"]["label"]), (str(held.kid), LABEL))
        self.assertEqual(backend.attest(None).class_, token)

    def test_a_record_that_was_changed(self) -> None:
        """Sealed halves swapped between keys, cut short, or rubbish in their place: refused, by the key's hash."""
        backend = self.opened()
        first, second = (backend.generate(new_kid(), (Alg.ML_DSA,)) for _ in range(2))
        with backend._sessions.seat() as seat:
            values = {}
            for held in (first, second):
                found = objects.data(seat.session, str(held.kid))
                values[held.kid] = bytes(found[Attribute.VALUE])
                found.destroy()
            swapped = values[second.kid].replace(second.kid.uuid.encode(), first.kid.uuid.encode())
            objects.put(seat.session, str(first.kid), swapped)
            objects.put(seat.session, str(second.kid), values[second.kid][:-1])
        backend._known.clear()
        self.assertRaises(DamagedRecordError, backend.sign, first.kid, Alg.ML_DSA, MESSAGE)
        self.assertRaises(DamagedRecordError, backend.sign, second.kid, Alg.ML_DSA, MESSAGE)
        self.assertRaises(DamagedRecordError, backend.held)
        backend.close()
        self.assertRaises(DamagedRecordError, self.build().open)

    def test_what_a_crash_left_half_done(self) -> None:
        """Keys without a record are no key; the next try clears them away and makes its own."""
        backend = self.opened()
        kid = new_kid()
        with backend._sessions.seat() as seat:
            left = objects.make_ed25519(seat.session, kid)
            HMAC.make_key(seat.session, str(kid), object_id(kid))
        self.assertEqual(backend.held(), [])
        self.refused(ErrorCode.NOT_FOUND, backend.sign, kid, Alg.ED25519, MESSAGE)
        held = backend.generate(kid, SIGNING)
        self.assertNotEqual(public_of(held, Alg.ED25519), left)
        backend.sign(kid, Alg.ML_DSA, MESSAGE)

    def test_a_key_another_host_made(self) -> None:
        """Two hosts on one token: what one makes the other finds, what one destroys is gone for the other."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        backend._known.clear()
        backend.sign(held.kid, Alg.ED25519, MESSAGE)
        with backend._sessions.seat() as seat:
            objects.clear(seat.session, held.kid)
            objects.data(seat.session, str(held.kid)).destroy()
        for alg in SIGNING:
            self.refused(ErrorCode.NOT_FOUND, backend.sign, held.kid, alg, MESSAGE)

    def test_bad_requests(self) -> None:
        """No version, a half twice (a nonce would come twice): refused before the token is asked."""
        backend = self.opened()
        self.refused(ErrorCode.BAD_REQUEST, backend.generate, new_kid(version=0), SIGNING)
        self.refused(ErrorCode.BAD_REQUEST, backend.generate, new_kid(), (Alg.ML_DSA, Alg.ML_DSA))

    def test_other_names_of_the_curve(self) -> None:
        """Tokens name it one way or the other: the second is tried, and what refuses both makes no key."""
        backend = self.opened()
        name = objects.ED25519_PARAMS[0]
        self.patch(objects, "ED25519_PARAMS", (b"\x05\x00", name))
        held = backend.generate(new_kid(), SIGNING)
        backend.sign(held.kid, Alg.ED25519, MESSAGE)
        self.patch(objects, "ED25519_PARAMS", (b"\x05\x00", b"\x05\x00"))
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.generate, new_kid(), SIGNING)

    def test_a_token_that_signs_otherwise(self) -> None:
        """A new key signs once, and is thrown away if that does not verify."""
        backend = self.opened()
        self.patch(objects, "eddsa", lambda _key, _message: bytes(64))
        kid = new_kid()
        self.refused(ErrorCode.INTERNAL, backend.generate, kid, SIGNING)
        with backend._sessions.seat() as seat:
            self.assertRaises(NoSuchKey, objects.find, seat.session, kid, ObjectClass.PRIVATE_KEY)
        self.assertEqual(backend.held(), [])

    def test_a_token_that_can_do_nothing(self) -> None:
        """Unsupported, and nothing is left behind."""
        backend = self.opened()
        backend._mechanisms = {Mechanism.RSA_PKCS}
        kid = new_kid()
        self.refused(ErrorCode.UNSUPPORTED, backend.generate, kid, SIGNING)
        backend._mechanisms = {Mechanism.EDDSA, Mechanism.EC_EDWARDS_KEY_PAIR_GEN}
        self.refused(ErrorCode.UNSUPPORTED, backend.generate, kid, SIGNING)
        self.assertEqual(backend.held(), [])
        with backend._sessions.seat() as seat:
            self.assertRaises(NoSuchKey, objects.find, seat.session, kid, ObjectClass.PRIVATE_KEY)

    def test_a_token_without_gcm(self) -> None:
        """HMAC in the token makes the key of each half; a changed blob does not open."""
        backend = self.opened()
        backend._mechanisms = {Mechanism.SHA256_HMAC, Mechanism.GENERIC_SECRET_KEY_GEN}
        held = backend.generate(new_kid(), SIGNING)
        self.assertEqual(held.attestation_class, "pkcs11-wrapped")
        for alg in SIGNING:
            backend.sign(held.kid, alg, MESSAGE)
        with backend._sessions.seat() as seat:
            key = objects.find(seat.session, held.kid, ObjectClass.SECRET_KEY)
            sealed = HMAC.seal(key, Alg.ML_DSA, bytes(32), b"bound")
            self.assertRaises(NotOpenedError, HMAC.unseal, key, Alg.ML_DSA, sealed, b"bound to another")
            self.assertRaises(NotOpenedError, HMAC.unseal, key, Alg.ED25519, sealed, b"bound")


class Coming(TokenCase):
    """The token goes away and comes back."""

    def test_away_and_back(self) -> None:
        """StoreUnavailable while it is away, not tried before the back-off says so, and then it works by itself."""
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        with self.token.away():
            self.refused(ErrorCode.STORE_UNAVAILABLE, backend.sign, held.kid, Alg.ED25519, MESSAGE)
            for call in (backend.probe, backend.held, lambda: backend.attest(None)):
                self.clock.advance(60)
                self.refused(ErrorCode.STORE_UNAVAILABLE, call)
        early = self.refused(ErrorCode.STORE_UNAVAILABLE, backend.sign, held.kid, Alg.ED25519, MESSAGE)
        self.assertGreaterEqual(early.retry_after_s or 0, 1)
        self.assertEqual(self.came_back, 0)
        self.clock.advance(60)
        backend.sign(held.kid, Alg.ED25519, MESSAGE)
        backend.sign(held.kid, Alg.ML_DSA, MESSAGE)
        self.assertEqual(self.came_back, 1)

    def test_keys_are_not_said_to_be_missing_while_the_token_is(self) -> None:
        """SoftHSM finds nothing in a directory that is gone: that is no NotFound, and no empty `held`."""
        backend = self.opened()
        backend.generate(new_kid(), SIGNING)
        with self.token.away():
            self.refused(ErrorCode.STORE_UNAVAILABLE, backend.sign, new_kid(), Alg.ED25519, MESSAGE)
            self.clock.advance(60)
            self.refused(ErrorCode.STORE_UNAVAILABLE, backend.generate, new_kid(), SIGNING)
            self.clock.advance(60)
            self.refused(ErrorCode.STORE_UNAVAILABLE, backend.destroy, new_kid())

    def test_the_waits_grow(self) -> None:
        """A token that stays away is asked more and more rarely."""
        waits: list[float] = []

        class Told(Backoff):
            def next_delay_s(self) -> float:
                waits.append(super().next_delay_s())
                return 1.0

        backend = self.opened(backoff=Told(base_s=0.1, ceiling_s=5.0))
        with self.token.away():
            for _ in range(8):
                self.refused(ErrorCode.STORE_UNAVAILABLE, backend.probe)
                self.refused(ErrorCode.STORE_UNAVAILABLE, backend.probe)
                self.clock.advance(1.0)
        self.assertEqual(len(waits), 8)
        self.assertTrue(all(0.1 <= wait <= 5.0 for wait in waits))

    def test_a_session_that_does_not_come_free(self) -> None:
        """The caller is refused after its deadline; the pool is bounded."""
        backend = self.opened(checkout_s=0.05)
        with backend._sessions.seat():
            self.refused(ErrorCode.STORE_UNAVAILABLE, backend.probe)
        backend.probe()

    def test_a_session_given_back_after_the_others_failed(self) -> None:
        """A late one of the old connection does not come into the new pool."""
        backend = self.opened(checkout_s=0.05)
        sessions = backend._sessions
        late = sessions._take()
        sessions._give_back(late, whole=False)
        self.assertFalse(sessions.up)
        self.clock.advance(60)
        backend.probe()
        sessions._out += 1
        sessions._give_back(late, whole=True)
        self.assertNotIn(late, sessions._idle)
        self.assertTrue(sessions.up)

    def test_never_connects_while_a_call_is_in_the_module(self) -> None:
        """C_Finalize under a running call is the end of the process."""
        backend = self.opened(checkout_s=0.05)
        sessions = backend._sessions
        stuck = sessions._take()
        sessions._up = False
        self.clock.advance(60)
        self.refused(ErrorCode.STORE_UNAVAILABLE, backend.probe)
        sessions._give_back(stuck, whole=None)
        backend.probe()


class Entering(TokenCase):
    """PIN, label, module."""

    def test_a_wrong_pin_is_tried_once(self) -> None:
        """A token locks itself after a few: we never ask twice with the same one."""
        sessions = Sessions(ADDRESS, pin("000000"), now=self.clock.seconds)
        tries = 0
        sit_down = sessions._sit_down

        def counted() -> list[Seat]:
            nonlocal tries
            tries += 1
            return sit_down()

        sessions._sit_down = counted  # type: ignore[method-assign]
        sessions._open = True
        for _ in range(3):
            with self.assertRaises(RonError) as caught, sessions.seat():
                pass
            self.assertIn("PIN", caught.exception.one_line())
            self.assertNotIn("000000", caught.exception.one_line())
            self.clock.advance(3600)
        self.assertEqual(tries, 1)

    def test_no_such_token(self) -> None:
        """Refused, and the next `open` is a new start."""
        sessions = Sessions(TokenAddress(MODULE, "ANOTHER"), pin(), now=self.clock.seconds)
        self.assertRaises(RonError, sessions.open)
        sessions._address = ADDRESS
        sessions.open()
        sessions.close()

    def test_no_such_module(self) -> None:
        """A path that is no library."""
        address = TokenAddress(str(Path(self.token.home) / "none.so"), LABEL)
        self.refused(ErrorCode.STORE_UNAVAILABLE, Pkcs11Backend(address, pin()).open)

    def test_the_pin_comes_from_the_variable_that_is_named(self) -> None:
        """Missing, unnamed or empty: BadRequest that names the variable and no value."""
        with environment(RON_TEST_PIN=PIN, RON_TEST_EMPTY=""):
            taken = pin_from_env("RON_TEST_PIN")
            with taken.open() as view:
                self.assertEqual(bytes(view).decode(), PIN)
            taken.close()
            for name in ("", "RON_TEST_EMPTY", "RON_TEST_NOT_SET"):
                error = self.refused(ErrorCode.BAD_REQUEST, pin_from_env, name)
                self.assertNotIn(PIN, error.one_line())

    def test_nothing_secret_is_shown(self) -> None:
        """Neither the PIN nor a kid is in the log of a failure, nor the PIN in the representation of anything here."""
        events: list[Any] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        backend = self.opened()
        held = backend.generate(new_kid(), SIGNING)
        with self.token.away():
            self.refused(ErrorCode.STORE_UNAVAILABLE, backend.sign, held.kid, Alg.ED25519, MESSAGE)
            self.clock.advance(60)
            self.refused(ErrorCode.STORE_UNAVAILABLE, backend.probe)
        self.clock.advance(60)
        backend.probe()
        names = [event["event"] for event in events if "event" in event]
        self.assertEqual(names, ["kms_backend_error", "kms_backend_error", "kms_backend_reconnected"])
        shown = repr((events, backend, backend._sessions, backend._sessions._pin, backend._sessions._all))
        for secret in (PIN, held.kid.uuid):
            self.assertNotIn(secret, shown)
