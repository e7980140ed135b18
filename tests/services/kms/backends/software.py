"""What every software backend promises, for its test case to inherit; and what its tests need."""

from __future__ import annotations

import copy
import inspect
import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto import signing, wrapping
from ron.crypto.wrapping import Suite, info_of
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import Alg, Kid
from ron.services.kms.ports import Backend, Held

ALL = (Alg.ED25519, Alg.ML_DSA, Alg.X25519, Alg.ML_KEM)
MESSAGE = bytes(range(32))


def kid(tenant: str = "acme", version: int = 1, alg: str = "hybrid") -> Kid:
    return Kid(tenant, "audit", alg, str(uuid.uuid4()), version)


class Randomness:
    """What a backend is given as seeds, and what it was."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def __call__(self, into: memoryview) -> None:
        made = bytes((len(self.given) * 37 + at * 11 + 5) % 256 for at in range(len(into)))
        into[:] = made
        self.given.append(made)


def byte_strings(value: object) -> Iterator[bytes]:
    """Every string of bytes in an answer, however deep."""
    if isinstance(value, bytes | bytearray | memoryview):
        yield bytes(value)
    elif isinstance(value, str):
        yield value.encode()
    elif isinstance(value, msgspec.Struct):
        yield from byte_strings(msgspec.structs.astuple(value))
    elif isinstance(value, dict):
        yield from byte_strings([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple | set | frozenset):
        for one in value:
            yield from byte_strings(one)
    else:
        yield repr(value).encode()


class SoftwareContract:
    """Mixed into a trial case that sets `self.backend`, open, and `self.randomness`, which it was given."""

    backend: Any
    randomness: Randomness

    def code(self, call: Callable[..., object], *args: object) -> ErrorCode:
        assert isinstance(self, SynchronousTestCase)
        error: RonError = self.assertRaises(RonError, call, *args)
        return error.code

    def test_a_kid_without_version_is_made_of_nothing(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        self.assertEqual(self.code(self.backend.generate, kid(version=0), ALL), ErrorCode.BAD_REQUEST)
        self.assertEqual(len(self.backend.held()), 0)

    def test_no_half_and_the_same_half_twice(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        for algs in ((), (Alg.ED25519, Alg.ED25519)):
            self.assertEqual(self.code(self.backend.generate, kid(), algs), ErrorCode.BAD_REQUEST)

    def test_an_unknown_key(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        other = kid()
        self.backend.generate(other.at(2), ALL)
        for name in (kid(), other, other.at(3), other._replace(tenant="acme2")):
            self.assertEqual(self.code(self.backend.sign, name, Alg.ED25519, MESSAGE), ErrorCode.NOT_FOUND)
            self.assertEqual(self.code(self.backend.destroy, name), ErrorCode.NOT_FOUND)
            self.assertEqual(self.code(self.backend.attest, name), ErrorCode.NOT_FOUND)

    def test_a_key_is_made_once(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        name = kid()
        self.backend.generate(name, [Alg.ED25519])
        self.assertEqual(self.code(self.backend.generate, name, [Alg.ED25519]), ErrorCode.CONFLICT)

    def test_halves_that_are_not_there_or_do_not_sign(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        name = kid()
        self.backend.generate(name, [Alg.ED25519, Alg.X25519])
        for alg in (Alg.ML_DSA, Alg.X25519, Alg.ML_KEM):
            self.assertEqual(self.code(self.backend.sign, name, alg, MESSAGE), ErrorCode.UNSUPPORTED)

    def test_envelopes_that_do_not_open(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        name, made = self.hybrid()
        envelope, info = self.wrapped(name, made, Suite.HYBRID), info_of(name, Suite.HYBRID)
        changed = envelope[:-1] + bytes([envelope[-1] ^ 1])
        for bad in (b"", envelope[:-1], changed, envelope + b"\0", bytes(len(envelope))):
            self.assertEqual(self.code(self.backend.unwrap, name, Suite.HYBRID, bad, info), ErrorCode.BAD_REQUEST)
        for suite in (Suite.PQ, Suite.CLASSICAL, "rot13"):
            self.assertEqual(self.code(self.backend.unwrap, name, suite, envelope, info), ErrorCode.BAD_REQUEST)
        self.assertEqual(
            self.code(self.backend.unwrap, name, Suite.HYBRID, envelope, info + b"!"), ErrorCode.BAD_REQUEST
        )

    def test_an_envelope_of_another_version(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        name, made = self.hybrid()
        self.backend.generate(name.at(2), ALL)
        envelope = self.wrapped(name, made, Suite.HYBRID)
        info = info_of(name, Suite.HYBRID)
        self.assertEqual(
            self.code(self.backend.unwrap, name.at(2), Suite.HYBRID, envelope, info), ErrorCode.BAD_REQUEST
        )

    def test_what_it_signs_holds(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        name, made = self.hybrid()
        for half in made.halves[:2]:
            # the first one unseals, the second one is at hand
            for _ in range(2):
                signature = self.backend.sign(name, half.alg, MESSAGE)
                self.assertTrue(signing.verify(half.alg, half.public, MESSAGE, signature))

    def test_what_was_wrapped_comes_out_in_every_suite(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        name, made = self.hybrid()
        for suite in Suite:
            for _ in range(2):
                envelope = self.wrapped(name, made, suite)
                self.assertEqual(self.backend.unwrap(name, suite, envelope, info_of(name, suite)), b"k" * 32)

    def test_what_was_destroyed_is_gone_and_does_not_come_back(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        name, made = self.hybrid()
        self.backend.sign(name, Alg.ED25519, MESSAGE)
        envelope = self.wrapped(name, made, Suite.CLASSICAL)
        self.backend.unwrap(name, Suite.CLASSICAL, envelope, info_of(name, Suite.CLASSICAL))
        self.backend.destroy(name)
        self.backend.destroy(name)
        self.assertEqual(self.code(self.backend.sign, name, Alg.ED25519, MESSAGE), ErrorCode.NOT_FOUND)
        again = (name, Suite.CLASSICAL, envelope, info_of(name, Suite.CLASSICAL))
        self.assertEqual(self.code(self.backend.unwrap, *again), ErrorCode.NOT_FOUND)
        self.assertEqual(self.code(self.backend.generate, name, ALL), ErrorCode.CONFLICT)
        self.assertEqual(len(self.backend.held()), 0)

    def test_versions_and_tenants_have_keys_of_their_own(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        first = kid()
        names = (first, first.at(2), first._replace(tenant="other"), first._replace(purpose="other"))
        publics = {self.backend.generate(name, [Alg.ED25519]).halves[0].public for name in names}
        self.assertEqual(len(publics), len(names))
        self.assertEqual({held.kid for held in self.backend.held()}, set(names))

    def test_without_evidence_there_is_no_attestation(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        name, _ = self.hybrid()
        self.assertIsNone(self.backend.attest(name))
        self.assertIsNone(self.backend.attest(None))

    def test_i01_no_public_name_gives_a_private_byte(self) -> None:
        """The test made the seeds up, so it can look for them in all that is to be had."""
        assert isinstance(self, SynchronousTestCase)
        name, made = self.hybrid()
        asked = {
            "sign": (name, Alg.ED25519, MESSAGE),
            "unwrap": (name, Suite.HYBRID, self.wrapped(name, made, Suite.HYBRID), info_of(name, Suite.HYBRID)),
            "generate": (kid(), ALL),
            "attest": (name,),
            "check_head": self.backend.head() if hasattr(self.backend, "head") else (),
            "destroy": (name,),
            "sealed": (name,),
        }
        port = {member for member, _ in inspect.getmembers(Backend, inspect.isfunction) if member[0] != "_"}
        answers = []
        for member in sorted(port | {one for one in dir(self.backend) if one[0] != "_"}):
            value = getattr(self.backend, member)
            if member not in ("close", "destroy"):
                answers.append(value(*asked.get(member, ())) if callable(value) else value)
        answers.append(self.backend.destroy(*asked["destroy"]))
        self.assertEqual(len(self.randomness.given), 2 * len(ALL))
        for seed in self.randomness.given:
            for answer in byte_strings(answers):
                self.assertNotIn(seed, answer)
                self.assertNotIn(seed.hex().encode(), answer)

    def test_it_is_not_copied_stored_or_shown(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            self.assertRaises(TypeError, attempt, self.backend)
        self.assertRegex(repr(self.backend), r"^<\w+( \S+)? open>$")

    def test_closed_it_does_nothing(self) -> None:
        assert isinstance(self, SynchronousTestCase)
        name, _ = self.hybrid()
        self.backend.probe()
        self.backend.close()
        self.backend.close()
        for call in (self.backend.probe, self.backend.held, lambda: self.backend.sign(name, Alg.ED25519, MESSAGE)):
            self.assertEqual(self.code(call), ErrorCode.STORE_UNAVAILABLE)
        self.assertEqual(self.code(self.backend.generate, kid(), ALL), ErrorCode.STORE_UNAVAILABLE)
        self.assertRegex(repr(self.backend), "closed>$")

    def test_many_threads_at_once(self) -> None:
        """Few halves fit, so that some are wiped while others sign."""
        assert isinstance(self, SynchronousTestCase)
        names = [kid() for _ in range(6)]
        publics = {name: self.backend.generate(name, [Alg.ED25519]).halves[0].public for name in names}
        wrong: list[object] = []

        def work(offset: int) -> None:
            try:
                for turn in range(60):
                    name = names[(turn * 5 + offset) % len(names)]
                    message = bytes([turn]) * 32
                    signature = self.backend.sign(name, Alg.ED25519, message)
                    if not signing.verify(Alg.ED25519, publics[name], message, signature):
                        wrong.append((name, turn))
            except Exception as error:  # noqa: BLE001 - a thread's failure is the test's
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(offset,)) for offset in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(wrong, [])

    def hybrid(self) -> tuple[Kid, Held]:
        name = kid()
        return name, self.backend.generate(name, ALL)

    def wrapped(self, name: Kid, made: Held, suite: Suite) -> bytes:
        return wrapping.wrap(name, suite, dict(made.halves), b"k" * 32)
