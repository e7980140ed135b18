"""The hello: what it proves, and that none of it is of use in another place."""

from __future__ import annotations

import dataclasses

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey
from twisted.trial.unittest import SynchronousTestCase

from ron.services.balance.mesh.codec import decode, encode
from ron.services.balance.mesh.handshake import (
    Claim,
    Dialling,
    Greeting,
    Listening,
    Met,
    Own,
    Reply,
    Said,
    Turned,
    is_run_proved,
    prove_run,
    refuse,
    welcome,
)
from ron.services.balance.mesh.tokens import Token, new_token
from ron.services.balance.mesh.wire import Refused

CLUSTER, BINDING = b"c" * 16, b"binding"
TOKEN = Token(version=1, secret=b"t" * 32)


def own(name: str, *, token: Token | None = TOKEN, binding: bytes = BINDING) -> Own:
    signing = SigningKey(name.encode() * 32)
    claim = Claim(name, bytes(signing.verify_key), 1, b"boot8888", 7, 1, b"", ("h:1",))
    return Own(CLUSTER, claim, signing, token, binding)


def hello(dialler: Own, listener: Own) -> tuple[Met, Met]:
    """Whom each has met: the dialler, the listener."""
    dialling, listening = Dialling(dialler), Listening(listener)
    reply, met = dialling.greeted(listening.opened(dialling.opened()))
    return met, listening.replied(reply)


class Hello(SynchronousTestCase):
    """Two ends."""

    def refused(self, reason: str, act: object, *arguments: object) -> None:
        self.assertEqual(reason, self.assertRaises(Refused, act, *arguments).reason)

    def test_both_know_the_token(self) -> None:
        listener, dialler = hello(own("d"), own("l"))
        self.assertEqual(("l", "d"), (listener.claim.name, dialler.claim.name))
        self.assertTrue(listener.proved and dialler.proved)

    def test_one_does_not(self) -> None:
        for token in (None, new_token()):
            for ends in ((own("d", token=token), own("l")), (own("d"), own("l", token=token))):
                self.assertEqual([False, False], [met.proved for met in hello(*ends)])

    def test_carried_to_another_connection(self) -> None:
        self.refused("bad_signature", hello, own("d"), own("l", binding=b"another"))

    def test_recorded_and_said_again(self) -> None:
        dialling, listening, later = Dialling(own("d")), Listening(own("l")), Listening(own("l"))
        opening = dialling.opened()
        greeting = listening.opened(opening)
        reply, _met = dialling.greeted(greeting)
        later.opened(opening)
        self.refused("bad_signature", later.replied, reply)
        self.refused("bad_signature", Dialling(own("d")).greeted, greeting)

    def test_altered(self) -> None:
        dialling, listening = Dialling(own("d")), Listening(own("l"))
        said = decode(listening.opened(dialling.opened()), Said)
        assert said.greeting is not None
        for change in ({"run": 2}, {"seq": 0}, {"seal_key": b"x"}, {"addresses": ("evil:1",)}, {"boot": b"????????"}):
            claim = msgspec.structs.replace(said.greeting.claim, **change)
            greeting = msgspec.structs.replace(said.greeting, claim=claim)
            self.refused("bad_signature", dialling.greeted, encode(Said(greeting=greeting)))
        reply = decode(dialling.greeted(encode(said))[0], Reply)
        other = msgspec.structs.replace(reply.claim, name="other")
        self.refused("stranger", listening.replied, encode(msgspec.structs.replace(reply, claim=other)))

    def test_a_reflection(self) -> None:
        """The listener's own words are no reply, and its proof is not the dialler's."""
        dialling, listening = Dialling(own("l")), Listening(own("l"))
        greeting = decode(listening.opened(dialling.opened()), Said).greeting
        assert greeting is not None
        self.refused(
            "bad_signature", listening.replied, encode(Reply(greeting.claim, greeting.proof, greeting.signature))
        )

    def test_out_of_order(self) -> None:
        reply = Reply(own("d").claim, b"", bytes(64))
        self.refused("malformed", Listening(own("l")).replied, encode(reply))
        self.refused("malformed", Dialling(own("d")).greeted, welcome())
        greeting = Greeting(bytes(32), own("l").claim, b"", bytes(64))
        self.refused("malformed", Dialling(own("d")).answered, encode(Said(greeting=greeting)))

    def test_another_cluster_or_version(self) -> None:
        other = dataclasses.replace(own("d"), cluster=b"?" * 16)
        self.refused("other_cluster", Listening(own("l")).opened, Dialling(other).opened())
        opening = msgspec.msgpack.decode(Dialling(own("d")).opened())
        self.refused("malformed", Listening(own("l")).opened, msgspec.msgpack.encode([2, *opening[1:]]))

    def test_turned_away(self) -> None:
        dialling = Dialling(own("d"))
        for hear in (dialling.greeted, dialling.answered):
            turned = self.assertRaises(Turned, hear, refuse("removed", "d"))
            self.assertEqual(("removed", "d", dialling.opening.nonce), (turned.reason, turned.detail, turned.nonce))

    @given(st.binary(max_size=400))
    @settings(max_examples=50)
    def test_noise(self, noise: bytes) -> None:
        self.assertRaises(Refused, Listening(own("l")).opened, noise)
        self.assertRaises(Refused, Dialling(own("d")).greeted, noise)


class Lives(SynchronousTestCase):
    """That a run is alive."""

    def test_for_one_nonce_of_one_name_in_one_cluster(self) -> None:
        key = SigningKey(b"k" * 32)
        public, nonce = bytes(key.verify_key), b"n" * 32
        proof = prove_run(key, CLUSTER, "a", 5, b"boot8888", nonce)
        self.assertTrue(is_run_proved(proof, public, CLUSTER, "a", nonce))
        self.assertFalse(is_run_proved(proof, public, CLUSTER, "a", b"m" * 32))
        self.assertFalse(is_run_proved(proof, public, CLUSTER, "b", nonce))
        self.assertFalse(is_run_proved(proof, public, b"d" * 16, "a", nonce))
        self.assertFalse(is_run_proved(proof, bytes(SigningKey.generate().verify_key), CLUSTER, "a", nonce))
        older = msgspec.structs.replace(proof, run=4)
        self.assertFalse(is_run_proved(older, public, CLUSTER, "a", nonce))
