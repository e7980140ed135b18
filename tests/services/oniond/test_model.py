"""What an onion is and may become: plain calls, and a model test over any sequence of acts."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.proto.onions import Client, CreateRequest, Limits, Port, Pow
from ron.services.oniond import model
from ron.services.oniond.model import Onion
from ron.services.oniond.roles import HOST_ROLE, role_of
from ron.tor import clientauth
from ron.tor.onionkeys import new_key

NOW = 1_800_000_000.0
PORTS = (Port(onion_port=80, local="127.0.0.1:8080"), Port(onion_port=443, local="unix:/run/app.sock"))
KEYS = [new_key() for _ in range(8)]
CLIENTS = [Client(name=f"c{n}", public_key=clientauth.generate().public.base32) for n in range(4)]


def made(**more: Any) -> Onion:
    request = CreateRequest(op_id="x" * 36, app="wiki", ports=PORTS, **more)
    return model.create(request, KEYS[0], now_s=NOW, isolation="shared")


class Making(SynchronousTestCase):
    def test_ids_and_secrets_are_nobodys_guess(self) -> None:
        onions = [made() for _ in range(50)]
        self.assertEqual(len({onion.id for onion in onions}), 50)
        self.assertEqual(len({onion.socks_secret for onion in onions}), 50)

    def test_the_repr_shows_no_secret(self) -> None:
        onion = made()
        for shown in (repr(onion), str(onion), f"{onion}"):
            self.assertNotIn(onion.key, shown)
            self.assertNotIn(onion.socks_secret, shown)

    def test_what_tor_is_told(self) -> None:
        onion = made(client_auth=(CLIENTS[0],), pow=Pow(queue_rate=5, queue_burst=50), limits=Limits(streams=7))
        (spec,) = onion.specs()
        self.assertEqual(
            spec.arguments(),
            "Flags=Detach,V3Auth,MaxStreamsCloseCircuit Port=80,127.0.0.1:8080 Port=443,unix:/run/app.sock "
            f"ClientAuthV3={CLIENTS[0].public_key} PoWDefensesEnabled=1 PoWQueueRate=5 PoWQueueBurst=50 MaxStreams=7",
        )

    def test_proof_of_work_switched_off(self) -> None:
        self.assertNotIn("PoW", made(pow=Pow(enabled=False)).specs()[0].arguments())

    def test_a_tor_for_all_or_one_of_its_own(self) -> None:
        self.assertEqual(role_of(made()), HOST_ROLE)
        own = made(isolation="process")
        self.assertRegex(role_of(own), r"^own-[0-9a-f]{12}$")

    def test_a_document_of_it_is_it(self) -> None:
        onion = model.rotate(made(client_auth=tuple(CLIENTS)), KEYS[1], now_s=NOW, grace_s=60)
        self.assertEqual(msgspec.json.decode(msgspec.json.encode(onion), type=Onion), onion)

    def test_clients_that_are_one(self) -> None:
        twice = Client(name="other", public_key=CLIENTS[0].public_key)
        for clients in ((CLIENTS[0], twice), (CLIENTS[0], CLIENTS[0])):
            error = self.assertRaises(RonError, made, client_auth=clients)
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)


class Life(RuleBasedStateMachine):
    """Any acts in any order: it never becomes public by itself, and never serves what it should not."""

    def __init__(self) -> None:
        super().__init__()
        self.now = NOW
        self.onion = made(client_auth=(CLIENTS[0],))
        self.keys = list(KEYS[1:])

    def attempt(self, act: Any) -> None:
        try:
            self.onion = act(self.onion)
        except RonError as error:
            assert error.code in {ErrorCode.CONFLICT, ErrorCode.NOT_FOUND, ErrorCode.BAD_REQUEST}

    @rule(seconds=st.integers(0, 100))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.onion = model.end_grace(self.onion, self.now)

    @precondition(lambda self: self.keys)
    @rule(grace_s=st.sampled_from([0, 10, 50]))
    def rotate(self, grace_s: int) -> None:
        before = self.onion
        self.attempt(lambda onion: model.rotate(onion, self.keys[-1], now_s=self.now, grace_s=grace_s))
        if self.onion is not before:
            self.keys.pop()
            assert self.onion.key != before.key
            assert (self.onion.previous is None) == (grace_s == 0)

    @rule()
    def drain(self) -> None:
        self.attempt(lambda onion: model.drain(onion, now_s=self.now, deadline_s=30))

    @rule()
    def drained(self) -> None:
        self.onion = model.drained(self.onion)

    @rule(count=st.integers(1, 2))
    def bind(self, count: int) -> None:
        self.onion = model.bind(self.onion, PORTS[:count])

    @rule(client=st.sampled_from(CLIENTS))
    def add(self, client: Client) -> None:
        self.attempt(lambda onion: model.add_client(onion, client))

    @rule(client=st.sampled_from(CLIENTS))
    def remove(self, client: Client) -> None:
        self.attempt(lambda onion: model.remove_client(onion, client.name))

    @invariant()
    def restricted_for_good(self) -> None:
        assert self.onion.clients
        assert all("V3Auth" in spec.flags for spec in self.onion.specs())

    @invariant()
    def served_only_while_active(self) -> None:
        specs = self.onion.specs()
        assert bool(specs) == (self.onion.state == "active")
        if specs:
            assert specs[0].address == self.onion.address
            assert len({spec.address for spec in specs}) == len(specs) <= 2
        assert set(model.addresses(self.onion)) >= {spec.address for spec in specs}

    @invariant()
    def no_previous_key_beyond_its_time(self) -> None:
        assert self.onion.previous is None or self.onion.previous.until_s > self.now


class Lives(SynchronousTestCase):
    def test_any_life(self) -> None:
        run_state_machine_as_test(Life, settings=settings(max_examples=60, stateful_step_count=25, deadline=None))
