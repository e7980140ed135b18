"""What every backend promises through the port, whatever it is made of: mixed into one test case for each of them.

Signatures and envelopes are judged by the software primitives with nothing but the public halves.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import signing, wrapping
from ron.crypto.wrapping import Suite
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg, Kid
from ron.services.kms.ports import Backend, Held

MESSAGE = bytes(range(32))
SIGNING = (Alg.ED25519, Alg.ML_DSA)
KEM = (Alg.X25519, Alg.ML_KEM)


def new_kid(alg: str = "hybrid", purpose: str = "signing", version: int = 1) -> Kid:
    """A key nobody has."""
    return Kid("acme", purpose, alg, str(uuid.uuid4()), version)


def public_of(held: Held, alg: Alg) -> bytes:
    """The public bytes of one half."""
    return next(half.public for half in held.halves if half.alg == alg)


def envelope_for(held: Held, suite: Suite, secret: bytes) -> bytes:
    """As the service wraps, with the public halves alone."""
    return wrapping.wrap(held.kid, suite, {half.alg: half.public for half in held.halves}, secret)


class BackendCase(SynchronousTestCase):
    """stack: what is let go of when the test ends, last things first."""

    def setUp(self) -> None:
        self.stack = ExitStack()
        self.addCleanup(self.stack.close)

    def refused(self, code: ErrorCode, call: Callable[..., Any], *args: Any, **options: Any) -> RonError:
        """The error, which has that code and names no key."""
        error = self.assertRaises(RonError, call, *args, **options)
        self.assertEqual((error.code, "acme" in error.one_line()), (code, False), error.one_line())
        return error


class KemContract:
    """Of a backend that at least wraps. Mixed into a `BackendCase`.

    build: of the case; one that is not open, and finds what the one before left.
    keeps: False for one that forgets everything when it is closed.
    """

    keeps = True
    build: Callable[[], Backend]

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        self.backend = self._opened()

    def _opened(self: Any) -> Backend:
        backend = self.build()
        backend.open()
        self.stack.callback(backend.close)
        return backend

    def test_what_software_wraps_it_opens(self: Any) -> None:
        """In all three suites."""
        held = self.backend.generate(new_kid(purpose="wrap"), KEM)
        for suite in Suite:
            secret = secrets.token_bytes(48)
            opened = self.backend.unwrap(
                held.kid, suite.value, envelope_for(held, suite, secret), wrapping.info_of(held.kid, suite)
            )
            self.assertEqual(opened, secret)

    def test_bad_envelopes(self: Any) -> None:
        """One bit anywhere, a wrong end, another suite, another version's binding: BadRequest, and nothing else."""
        held = self.backend.generate(new_kid(purpose="wrap"), KEM)
        good, info = envelope_for(held, Suite.HYBRID, b"k" * 32), wrapping.info_of(held.kid, Suite.HYBRID)
        at = (0, 1, 8, len(good) // 2, len(good) - 1)
        flipped = [good[:i] + bytes((good[i] ^ 1,)) + good[i + 1 :] for i in at]
        for bad in (b"", good[:-1], good + b"\0", good[:7], *flipped):
            self.refused(ErrorCode.BAD_REQUEST, self.backend.unwrap, held.kid, Suite.HYBRID.value, bad, info)
        other = wrapping.info_of(held.kid.at(2), Suite.HYBRID)
        self.refused(ErrorCode.BAD_REQUEST, self.backend.unwrap, held.kid, Suite.HYBRID.value, good, other)
        self.refused(ErrorCode.BAD_REQUEST, self.backend.unwrap, held.kid, Suite.PQ.value, good, info)
        self.assertEqual(self.backend.unwrap(held.kid, Suite.HYBRID.value, good, info), b"k" * 32)

    def test_wrapping_keys_come_and_go(self: Any) -> None:
        """Found again as they were made, opened again; destroyed for good, and a second time nothing happens."""
        kept = self.backend.generate(new_kid(purpose="wrap"), KEM)
        gone = self.backend.generate(new_kid(purpose="wrap"), (Alg.X25519,))
        self.refused(ErrorCode.CONFLICT, self.backend.generate, kept.kid, KEM)
        self.assertEqual(set(self.backend.held()), {kept, gone})
        self.backend.destroy(gone.kid)
        self.backend.destroy(gone.kid)
        backend = self.backend
        if self.keeps:
            self.backend.close()
            backend = self._opened()
        self.assertEqual(set(backend.held()), {kept})
        for held, answer in ((kept, None), (gone, ErrorCode.NOT_FOUND)):
            envelope = envelope_for(held, Suite.CLASSICAL, b"k" * 32)
            call = (held.kid, Suite.CLASSICAL.value, envelope, wrapping.info_of(held.kid, Suite.CLASSICAL))
            if answer is None:
                self.assertEqual(backend.unwrap(*call), b"k" * 32)
            else:
                self.refused(answer, backend.unwrap, *call)

    def test_no_such_suite(self: Any) -> None:
        """BadRequest, before any key is touched."""
        held = self.backend.generate(new_kid(purpose="wrap"), KEM)
        envelope = envelope_for(held, Suite.HYBRID, b"k" * 32)
        self.refused(ErrorCode.BAD_REQUEST, self.backend.unwrap, held.kid, "rsa", envelope, b"")


class Contract(KemContract):
    """Of a backend that signs too."""

    def test_unknown_kid(self: Any) -> None:
        """Nothing is signed, opened or shown in the name of a key that is not there, nor of another version."""
        held = self.backend.generate(new_kid(), SIGNING)
        for kid in (new_kid(), held.kid.at(2), held.kid._replace(tenant="other")):
            self.refused(ErrorCode.NOT_FOUND, self.backend.sign, kid, Alg.ED25519, MESSAGE)
        wrapped = self.backend.generate(new_kid(purpose="wrap"), KEM)
        envelope = envelope_for(wrapped, Suite.HYBRID, b"k" * 32)
        info = wrapping.info_of(wrapped.kid, Suite.HYBRID)
        self.refused(ErrorCode.NOT_FOUND, self.backend.unwrap, new_kid(), Suite.HYBRID.value, envelope, info)

    def test_a_kid_that_exists_is_a_conflict(self: Any) -> None:
        """And the key is the one that it was."""
        held = self.backend.generate(new_kid(), (Alg.ED25519,))
        self.refused(ErrorCode.CONFLICT, self.backend.generate, held.kid, (Alg.ED25519,))
        signature = self.backend.sign(held.kid, Alg.ED25519, MESSAGE)
        self.assertTrue(signing.verify(Alg.ED25519, public_of(held, Alg.ED25519), MESSAGE, signature))

    def test_a_half_the_key_has_not(self: Any) -> None:
        """Unsupported, as is signing with what does not sign."""
        held = self.backend.generate(new_kid(), (Alg.ED25519,))
        self.refused(ErrorCode.UNSUPPORTED, self.backend.sign, held.kid, Alg.ML_DSA, MESSAGE)
        wrapped = self.backend.generate(new_kid(purpose="wrap"), (Alg.X25519,))
        self.refused(ErrorCode.UNSUPPORTED, self.backend.sign, wrapped.kid, Alg.X25519, MESSAGE)
        info = wrapping.info_of(wrapped.kid, Suite.PQ)
        other = self.backend.generate(new_kid(purpose="wrap"), KEM)
        envelope = envelope_for(other, Suite.PQ, b"k" * 32)
        self.refused(ErrorCode.UNSUPPORTED, self.backend.unwrap, wrapped.kid, Suite.PQ.value, envelope, info)

    def test_what_it_signs_verifies_in_software(self: Any) -> None:
        """With each half, by the public bytes alone; and another message does not."""
        held = self.backend.generate(new_kid(), SIGNING)
        for alg in SIGNING:
            signature = self.backend.sign(held.kid, alg, MESSAGE)
            public = public_of(held, alg)
            self.assertEqual(len(signature), signing.SIGNATURE_BYTES[alg])
            self.assertTrue(signing.verify(alg, public, MESSAGE, signature))
            self.assertFalse(signing.verify(alg, public, MESSAGE[::-1], signature))

    def test_versions_are_keys_of_their_own(self: Any) -> None:
        """And what one destroys, the other keeps."""
        first = self.backend.generate(new_kid(), (Alg.ED25519,))
        second = self.backend.generate(first.kid.at(2), (Alg.ED25519,))
        self.assertNotEqual(public_of(first, Alg.ED25519), public_of(second, Alg.ED25519))
        self.backend.destroy(first.kid)
        self.refused(ErrorCode.NOT_FOUND, self.backend.sign, first.kid, Alg.ED25519, MESSAGE)
        signature = self.backend.sign(second.kid, Alg.ED25519, MESSAGE)
        self.assertTrue(signing.verify(Alg.ED25519, public_of(second, Alg.ED25519), MESSAGE, signature))

    def test_destroyed_is_gone_for_good(self: Any) -> None:
        """After a restart too, and a second time nothing happens."""
        held = self.backend.generate(new_kid(), SIGNING)
        for alg in SIGNING:
            self.backend.sign(held.kid, alg, MESSAGE)
        self.backend.destroy(held.kid)
        self.backend.destroy(held.kid)
        for alg in SIGNING:
            self.refused(ErrorCode.NOT_FOUND, self.backend.sign, held.kid, alg, MESSAGE)
        self.assertNotIn(held.kid, [one.kid for one in self.backend.held()])
        if self.keeps:
            self.backend.close()
            again = self._opened()
            self.assertNotIn(held.kid, [one.kid for one in again.held()])
            self.refused(ErrorCode.NOT_FOUND, again.sign, held.kid, Alg.ED25519, MESSAGE)

    def test_it_has_what_it_had(self: Any) -> None:
        """`held` tells what `generate` told, after a restart too, and the keys still work."""
        made = {self.backend.generate(new_kid(), SIGNING), self.backend.generate(new_kid(purpose="wrap"), KEM)}
        self.assertEqual(set(self.backend.held()), made)
        if not self.keeps:
            return
        self.backend.close()
        again = self._opened()
        self.assertEqual(set(again.held()), made)
        for held in made:
            if held.kid.purpose != "wrap":
                signature = again.sign(held.kid, Alg.ML_DSA, MESSAGE)
                self.assertTrue(signing.verify(Alg.ML_DSA, public_of(held, Alg.ML_DSA), MESSAGE, signature))

    def test_from_many_threads(self: Any) -> None:
        """Each caller gets its own signature."""
        held = self.backend.generate(new_kid(), SIGNING)
        messages = [i.to_bytes(32, "big") for i in range(40)]
        algs = [SIGNING[i % 2] for i in range(40)]

        def signed(alg: Alg, message: bytes) -> bool:
            return signing.verify(alg, public_of(held, alg), message, self.backend.sign(held.kid, alg, message))

        with ThreadPoolExecutor(8) as pool:
            self.assertTrue(all(pool.map(signed, algs, messages)))

    def test_attestation_names_the_class(self: Any) -> None:
        """The one that `held` says; or there is none."""
        held = self.backend.generate(new_kid(), SIGNING)
        attestation = self.backend.attest(held.kid)
        if attestation is not None:
            self.assertEqual(attestation.class_, held.attestation_class)
        self.assertTrue(held.attestation_class)
        self.backend.attest(None)

    def test_a_closed_one_does_nothing(self: Any) -> None:
        """Closing twice is fine; a call is an error of the port, and no crash."""
        held = self.backend.generate(new_kid(), (Alg.ED25519,))
        self.backend.close()
        self.backend.close()
        self.assertRaises(RonError, self.backend.sign, held.kid, Alg.ED25519, MESSAGE)
        self.assertRaises(RonError, self.backend.probe)
