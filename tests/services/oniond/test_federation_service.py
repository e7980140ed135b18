"""Two nodes at work on a clock that stands still: handshakes over a wire of JSON, sessions, facts, records."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from twisted.internet.task import Clock, deferLater
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.schnorr import HolderKey
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.services.oniond.federation.messages import (
    Challenge,
    FactsMessage,
    HandshakeAnswer,
    RosterListing,
    TransportFacts,
    ZkHandshake,
)
from ron.services.oniond.federation.protocol import Policy
from ron.services.oniond.federation.refusals import Refused
from ron.services.oniond.federation.roster import Roster, RosterBook
from ron.services.oniond.federation.service import (
    MAX_CALL_BACKS_A_PEER,
    MAX_WAITING,
    OPEN_TIMEOUT_S,
    REFUSAL_STEP_S,
    Federation,
)
from ron.services.oniond.federation.sessions import SESSION_LIFE_S
from ron.tor.onionkeys import address_of, new_key

ANNA, BERT, MALLORY = (address_of(new_key()) for _ in range(3))
ANNAS_KEY, BERTS_KEY, MALLORYS_KEY = (HolderKey.generate() for _ in range(3))
OTHER = HolderKey.generate().public
LATENCY_S = 0.5
WALL = 1_800_000_000.0
T = TypeVar("T")


class Wire:
    """Carries bodies between onions as JSON; `tap` may change every answer, `dead` onions give none."""

    def __init__(self, clock: Clock) -> None:
        self.nodes: dict[str, Federation] = {}
        self.dead: set[str] = set()
        self.handshakes: list[tuple[str, ZkHandshake]] = []
        self.tap: Callable[[str, Any], Any] = lambda onion, answer: answer
        self._clock = clock

    async def challenge(self, onion: str) -> Challenge:
        return self._carried(onion, (await self._reach(onion)).challenge())

    async def roster(self, onion: str) -> RosterListing:
        return self._carried(onion, (await self._reach(onion)).roster())

    async def handshake(self, onion: str, message: ZkHandshake) -> HandshakeAnswer:
        self.handshakes.append((onion, message))
        node = await self._reach(onion)
        return self._carried(
            onion, await node.handshake(msgspec.json.decode(msgspec.json.encode(message), type=ZkHandshake))
        )

    async def facts(self, onion: str, message: FactsMessage) -> FactsMessage:
        node = await self._reach(onion)
        return self._carried(
            onion, await node.facts(msgspec.json.decode(msgspec.json.encode(message), type=FactsMessage))
        )

    async def _reach(self, onion: str) -> Federation:
        await deferLater(self._clock, LATENCY_S)
        if onion in self.dead or onion not in self.nodes:
            raise unavailable("no such onion")
        return self.nodes[onion]

    def _carried(self, onion: str, answer: T) -> T:
        changed: T = self.tap(onion, msgspec.json.decode(msgspec.json.encode(answer), type=type(answer)))
        return changed


class Inline:
    """The pool's place: what is slow runs at once, or is refused while `full`."""

    full = False

    async def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        if self.full:
            raise RonError(ErrorCode.BACKPRESSURE, "queue full")
        return function(*args, **kwargs)


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock, self.pool = Clock(), Inline()
        self.clock.advance(1000)
        self.wire = Wire(self.clock)
        self.records: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        self.anna = self.node(ANNA, {BERT}, [BERTS_KEY.public, OTHER], {BERT: ANNAS_KEY})
        self.bert = self.node(BERT, {ANNA}, [OTHER, ANNAS_KEY.public], {ANNA: BERTS_KEY})

    def node(self, onion: str, allow: set[str], keys: list[bytes], holdings: dict[str, HolderKey]) -> Federation:
        records = self.records.setdefault(onion, [])
        node = Federation(
            self.clock,
            policy=Policy(onion=onion, allow=frozenset(allow), roster=Roster(1, keys), holdings=holdings),
            book=RosterBook(),
            peers=self.wire,
            pool=self.pool,
            audit=lambda event, /, **fields: records.append((event, fields)),
            facts=lambda: TransportFacts(onion=onion, protocols=("oap/1",), regions=(f"of-{onion[:6]}",)),
            now_s=self.clock.seconds,
            wall_s=lambda: WALL + self.clock.seconds(),
        )
        node.startService()
        self.addCleanup(node.stopService)
        self.wire.nodes[onion] = node
        return node

    def ran(self, work: Coroutine[Any, Any, T], seconds: float = 120) -> T:
        return self.successResultOf(self.started(work, seconds))

    def failed(self, work: Coroutine[Any, Any, Any], *kinds: type[BaseException], seconds: float = 120) -> Any:
        return self.failureResultOf(self.started(work, seconds), *kinds).value

    def started(self, work: Coroutine[Any, Any, T], seconds: float) -> Deferred[T]:
        outcome = Deferred.fromCoroutine(work)
        self.clock.pump([0.25] * int(seconds * 4))
        return outcome

    def events(self, onion: str) -> list[str]:
        return [event for event, _ in self.records[onion]]

    def reasons(self, onion: str, event: str) -> list[str]:
        return [fields["reason"] for name, fields in self.records[onion] if name == event]


class Federating(Case):
    """From nothing to facts."""

    def test_two_nodes_federate_and_exchange_facts(self) -> None:
        session = self.ran(self.anna.connect(BERT))
        (berts,) = self.bert.sessions
        self.assertEqual((session.peer, berts.peer, session.id), (BERT, ANNA, berts.id))
        self.assertEqual((session.role, berts.role), ("initiator", "responder"))
        facts = self.ran(self.anna.exchange(session.id))
        self.assertEqual(facts.onion, BERT)
        self.assertEqual(berts.heard, TransportFacts(onion=ANNA, protocols=("oap/1",), regions=(f"of-{ANNA[:6]}",)))
        self.assertEqual(self.ran(self.bert.exchange(berts.id)).onion, ANNA)
        self.assertEqual(self.events(ANNA), ["federation_asked", "federation_opened", "federation_facts"])
        self.assertEqual(self.events(BERT), ["federation_proved", "federation_opened", "federation_facts"])

    def test_both_begin_at_once(self) -> None:
        first, second = Deferred.fromCoroutine(self.anna.connect(BERT)), Deferred.fromCoroutine(self.bert.connect(ANNA))
        self.clock.pump([0.25] * 100)
        self.assertEqual(self.successResultOf(first).peer, BERT)
        self.assertEqual(self.successResultOf(second).peer, ANNA)
        self.assertEqual({s.id for s in self.anna.sessions}, {s.id for s in self.bert.sessions})
        self.assertEqual(len(self.anna.sessions), 2)

    def test_no_record_holds_a_secret(self) -> None:
        session = self.ran(self.anna.connect(BERT))
        self.ran(self.anna.exchange(session.id))
        text = repr(self.records) + repr(list(self.anna.sessions)) + repr(self.anna.policy)
        channel = session.channel
        secrets = [ANNAS_KEY.secret, BERTS_KEY.secret, channel._binding, channel._confirm, channel._facts]
        for secret in secrets:
            self.assertNotIn(secret.hex(), text)
            self.assertNotIn(repr(secret), text)

    def test_the_records_do_not_say_which_capability(self) -> None:
        """Nothing that differs between holders is written down."""
        self.ran(self.anna.connect(BERT))
        self.assertNotIn(ANNAS_KEY.public.hex(), repr(self.records))
        self.assertNotIn(repr(ANNAS_KEY.public), repr(self.records))


class Impostors(Case):
    """Who claims an onion that is another's, or has nothing to show."""

    def test_a_holder_who_claims_an_allowed_onion_gets_no_session(self) -> None:
        """Mallory holds one of Bert's capabilities and says she is Anna; the call back reaches the real Anna."""
        keys = [OTHER, ANNAS_KEY.public, MALLORYS_KEY.public]
        self.bert.update(dataclasses.replace(self.bert.policy, roster=Roster(2, keys)))
        mallory = self.node(MALLORY, {BERT}, [BERTS_KEY.public, OTHER], {BERT: MALLORYS_KEY})
        mallory.policy = dataclasses.replace(mallory.policy, onion=ANNA)
        self.failed(mallory.connect(BERT), DeadlineError)
        self.assertEqual(self.events(BERT), ["federation_proved", "federation_failed"])
        self.assertEqual(len(self.bert.sessions) + len(self.anna.sessions), 0)
        self.assertEqual(self.reasons(ANNA, "federation_refused"), ["nonce"])

    def test_an_onion_that_confirms_with_other_words_gets_no_session(self) -> None:
        def other_words(onion: str, answer: Any) -> Any:
            if isinstance(answer, HandshakeAnswer) and answer.confirm:
                return msgspec.structs.replace(answer, confirm=bytes(32))
            return answer

        self.wire.tap = other_words
        Deferred.fromCoroutine(self.anna.connect(BERT))
        self.clock.pump([0.25] * 40)
        self.assertEqual(self.reasons(BERT, "federation_failed"), ["tag"])
        self.assertEqual(len(self.bert.sessions), 0)

    def test_a_peer_that_does_not_allow_us_and_one_that_knows_no_such_key_answer_alike(self) -> None:
        self.bert.policy = dataclasses.replace(self.bert.policy, allow=frozenset())
        began = self.clock.seconds()
        refusals = []
        for change in (
            {"allow": frozenset()},
            {"allow": frozenset({ANNA}), "roster": Roster(2, [OTHER, ANNAS_KEY.public])},
        ):
            self.bert.policy = dataclasses.replace(self.bert.policy, **change)
            listing = self.bert.policy.roster
            if listing.ref.version == 2:
                impostor = HolderKey.generate()
                impostor.public = ANNAS_KEY.public
                self.anna.policy = dataclasses.replace(self.anna.policy, holdings={BERT: impostor})
            began = self.clock.seconds()
            outcome: list[float] = []
            connecting = Deferred.fromCoroutine(self.anna.connect(BERT))
            connecting.addBoth(lambda result, outcome=outcome: (outcome.append(self.clock.seconds()), result)[1])
            self.clock.pump([0.25] * 80)
            error = self.failureResultOf(connecting, RonError).value
            refusals.append((str(error), error.code, error.status, error.hint))
            self.assertGreaterEqual(outcome[0] - began, REFUSAL_STEP_S)
        self.assertEqual(refusals[0], refusals[1])
        self.assertEqual(self.reasons(BERT, "federation_refused"), ["not_allowed", "proof"])

    def test_refusals_leave_at_their_time_and_not_before(self) -> None:
        message = self.recorded_first()
        outcome = Deferred.fromCoroutine(self.bert.handshake(msgspec.structs.replace(message, peer_onion=MALLORY)))
        self.clock.advance(REFUSAL_STEP_S - 0.01)
        self.assertNoResult(outcome)
        self.clock.advance(0.01)
        self.failureResultOf(outcome, Refused)

    def recorded_first(self) -> ZkHandshake:
        self.ran(self.anna.connect(BERT))
        return self.wire.handshakes[0][1]

    def test_replayed_messages_open_nothing(self) -> None:
        self.recorded_first()
        for onion, message in tuple(self.wire.handshakes):
            self.failed(self.wire.nodes[onion].handshake(message), Refused)
        self.assertEqual((len(self.anna.sessions), len(self.bert.sessions)), (1, 1))


class Trouble(Case):
    """Dead peers, full queues, changed lists."""

    def test_without_allowance_or_capability_nobody_is_called(self) -> None:
        self.assertEqual(self.failed(self.anna.connect(MALLORY), RonError).code, ErrorCode.CONFLICT)
        self.anna.update(dataclasses.replace(self.anna.policy, holdings={}))
        self.assertEqual(self.failed(self.anna.connect(BERT), RonError).code, ErrorCode.CONFLICT)
        self.assertEqual(self.wire.handshakes, [])

    def test_a_dead_peer(self) -> None:
        self.wire.dead.add(BERT)
        self.assertEqual(self.failed(self.anna.connect(BERT), RonError).code, ErrorCode.STORE_UNAVAILABLE)

    def test_a_peer_that_cannot_call_back(self) -> None:
        self.wire.dead.add(ANNA)
        self.failed(self.anna.connect(BERT), DeadlineError, seconds=OPEN_TIMEOUT_S + 10)
        self.assertEqual(self.reasons(BERT, "federation_failed"), ["StoreUnavailable"])
        self.wire.dead.clear()
        self.ran(self.anna.connect(BERT))

    def test_call_backs_to_one_onion_are_bounded(self) -> None:
        """Nobody can make us call an onion over and over by claiming to be it."""
        self.wire.dead.add(ANNA)
        waiting = [Deferred.fromCoroutine(self.anna.connect(BERT)) for _ in range(MAX_CALL_BACKS_A_PEER + 3)]
        self.clock.pump([0.25] * 400)
        for outcome in waiting:
            self.failureResultOf(outcome)
        self.assertEqual(self.reasons(BERT, "federation_refused"), ["busy"] * 3)

    def test_a_full_pool_refuses_like_anything_else(self) -> None:
        connecting = Deferred.fromCoroutine(self.anna.connect(BERT))
        self.clock.pump([0.25] * 5)
        self.pool.full = True
        self.clock.pump([0.25] * 80)
        self.failureResultOf(connecting, RonError)
        self.assertEqual(self.reasons(BERT, "federation_refused"), ["busy"])

    def test_too_many_at_once_are_told_so_whoever_they_are(self) -> None:
        Deferred.fromCoroutine(self.anna.connect(BERT))
        self.clock.pump([0.25] * 20)
        message = self.wire.handshakes[0][1]
        waiting = [Deferred.fromCoroutine(self.bert.handshake(message)) for _ in range(MAX_WAITING)]
        error = self.failureResultOf(Deferred.fromCoroutine(self.bert.handshake(message)), RonError).value
        self.assertEqual(error.code, ErrorCode.BACKPRESSURE)
        self.clock.advance(REFUSAL_STEP_S)
        for outcome in waiting:
            self.failureResultOf(outcome, Refused)

    def test_a_list_that_changed_is_fetched_again_and_one_that_goes_back_is_not_taken(self) -> None:
        self.ran(self.anna.connect(BERT))
        old = self.bert.policy
        self.bert.update(dataclasses.replace(old, roster=Roster(2, [ANNAS_KEY.public, OTHER, MALLORYS_KEY.public])))
        self.ran(self.anna.connect(BERT))
        self.bert.update(old)
        self.assertEqual(self.failed(self.anna.connect(BERT), RonError).code, ErrorCode.CONFLICT)

    def test_stopping_in_the_middle_leaves_nothing(self) -> None:
        connecting = Deferred.fromCoroutine(self.anna.connect(BERT))
        self.clock.pump([0.25] * 9)
        self.bert.stopService()
        self.clock.pump([0.25] * 400)
        self.failureResultOf(connecting)
        self.bert.startService()
        self.assertEqual(len(self.bert.sessions), 0)


class Ending(Case):
    """Sessions end when they should, at once."""

    def test_after_their_time(self) -> None:
        session = self.ran(self.anna.connect(BERT))
        self.clock.pump([5.0] * int(SESSION_LIFE_S / 5 + 3))
        self.assertEqual((len(self.anna.sessions), len(self.bert.sessions)), (0, 0))
        self.assertEqual(self.reasons(BERT, "federation_ended"), ["expired"])
        self.failed(self.anna.exchange(session.id), Refused)

    def test_when_the_peer_leaves_the_allow_list(self) -> None:
        session = self.ran(self.anna.connect(BERT))
        self.bert.update(dataclasses.replace(self.bert.policy, allow=frozenset()))
        self.assertEqual(self.reasons(BERT, "federation_ended"), ["not_allowed"])
        self.assertEqual(self.failed(self.anna.exchange(session.id), RonError).code, ErrorCode.NO_CAPABILITY)
        self.assertEqual(self.reasons(ANNA, "federation_ended"), ["peer_refused"])

    def test_when_any_key_of_the_list_is_revoked_but_not_when_one_is_added(self) -> None:
        self.ran(self.anna.connect(BERT))
        keys = [OTHER, ANNAS_KEY.public]
        self.bert.update(dataclasses.replace(self.bert.policy, roster=Roster(2, [*keys, MALLORYS_KEY.public])))
        self.assertEqual(len(self.bert.sessions), 1)
        self.bert.update(dataclasses.replace(self.bert.policy, roster=Roster(3, keys[1:])))
        self.assertEqual(self.reasons(BERT, "federation_ended"), ["roster"])
        self.ran(self.anna.connect(BERT))

    def test_a_revocation_during_the_handshake_counts(self) -> None:
        before = self.bert.policy
        for change in ({"allow": frozenset({MALLORY})}, {"roster": Roster(2, [OTHER])}):
            self.bert.update(before)
            proved = self.events(BERT).count("federation_proved")
            Deferred.fromCoroutine(self.anna.connect(BERT)).addErrback(lambda _: None)
            while self.events(BERT).count("federation_proved") == proved:
                self.clock.advance(0.25)
            self.bert.update(dataclasses.replace(before, **change))
            self.clock.pump([0.25] * 300)
            self.assertEqual(len(self.bert.sessions), 0)
        self.assertEqual(self.reasons(BERT, "federation_failed"), ["not_allowed", "roster"])

    def test_a_peer_keeps_only_its_newest_sessions(self) -> None:
        ids = [self.ran(self.anna.connect(BERT)).id for _ in range(6)]
        self.assertEqual([session.id for session in self.bert.sessions], ids[-4:])
        self.assertEqual(self.reasons(BERT, "federation_ended"), ["replaced", "replaced"])


class Facts(Case):
    """Only the peer's own, only the newest."""

    def test_forged_repeated_and_reflected_facts_are_refused(self) -> None:
        session = self.ran(self.anna.connect(BERT))
        told = TransportFacts(onion=MALLORY, protocols=())
        mine = session.channel.facts_message("initiator", "ask", 5, told)
        self.ran(self.bert.facts(mine))
        bad = {
            "sequence": mine,
            "tag": msgspec.structs.replace(mine, sequence=6),
            "session": msgspec.structs.replace(mine, session_id="0" * 32),
        }
        for message in bad.values():
            self.failed(self.bert.facts(message), Refused)
        reflected = session.channel.facts_message("responder", "ask", 7, told)
        an_answer = session.channel.facts_message("initiator", "answer", 7, told)
        other_words = msgspec.structs.replace(
            session.channel.facts_message("initiator", "ask", 7, told), facts=TransportFacts(onion=ANNA, protocols=())
        )
        for message in (reflected, an_answer, other_words):
            self.failed(self.bert.facts(message), Refused)
        self.assertEqual(self.reasons(BERT, "federation_refused"), [*bad, "tag", "tag", "tag"])

    def test_an_answer_that_is_not_the_peers_closes_the_session(self) -> None:
        session = self.ran(self.anna.connect(BERT))
        self.wire.tap = lambda onion, answer: msgspec.structs.replace(answer, tag=bytes(32))
        self.assertEqual(self.failed(self.anna.exchange(session.id), RonError).code, ErrorCode.CONFLICT)
        self.assertEqual(self.reasons(ANNA, "federation_ended"), ["tag"])
