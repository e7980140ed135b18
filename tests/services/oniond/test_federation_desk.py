"""Federation as it is hosted: it follows the config, the grants and the keys, on a clock that stands still."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.auth import AUDIENCE, AuthFiles, Caveat
from ron.crypto.schnorr import HolderKey
from ron.kernel.health import HealthState
from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.services.oniond.federation.desk import BLIND_ROUNDS, FACTS_EVERY_S, HEALTH_KEY, FederationDesk, Wishes
from ron.services.oniond.federation.shelf import Shelf
from ron.tor.onionkeys import address_of, new_key
from tests.services.oniond.test_federation_service import WALL, Inline, Wire

ANNA, BERT = (address_of(new_key()) for _ in range(2))


class Node:
    """One operator's desk, its files real, its onion a wire."""

    def __init__(self, case: Case, onion: str, clock: Clock, wire: Wire) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ron-desk-"))
        case.addCleanup(shutil.rmtree, self.home)
        self.onion: str | None = onion
        self.clock, self.wire = clock, wire
        self.auth = AuthFiles(self.home / "auth", self.wall_s)
        self.wishes = Wishes(allow=frozenset(), keep=(), min_holders=1, regions=())
        self.records: list[tuple[str, dict[str, Any]]] = []
        self.health = HealthState()
        self.fault: RonError | None = None
        self.start()
        case.addCleanup(lambda: self.desk.running and self.desk.stopService())

    def wall_s(self) -> float:
        return WALL + self.clock.seconds()

    def start(self) -> None:
        self.desk = FederationDesk(
            self.clock,
            wishes=lambda: self.wishes,
            onion=lambda: self.onion,
            minted=self.minted,
            shelf=Shelf(self.home / "federation"),
            peers=self.wire,
            files=Inline(),
            proofs=Inline(),
            audit=lambda event, /, **fields: self.records.append((event, fields)),
            health=self.health,
            wall_s=self.wall_s,
            now_s=self.clock.seconds,
        )
        self.desk.startService()

    def minted(self) -> Any:
        if self.fault is not None:
            raise self.fault
        return self.auth.listed()

    def grant(self, public: bytes) -> str:
        caveats = [Caveat("scope", "federation:peer"), Caveat("holder", public.hex())]
        return self.auth.issue(self.auth.authority(AUDIENCE), caveats).entry.cap_id

    def wish(self, **changes: Any) -> None:
        fields = {name: getattr(self.wishes, name) for name in ("allow", "keep", "min_holders", "regions")}
        self.wishes = Wishes(**{**fields, **changes})

    @property
    def peers(self) -> list[str]:
        return [session.peer for session in self.desk.view().sessions]

    @property
    def reasons(self) -> list[str]:
        return [fields["reason"] for event, fields in self.records if event == "federation_ended"]


class Case(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.wire = Wire(self.clock)
        self.anna = Node(self, ANNA, self.clock, self.wire)
        self.bert = Node(self, BERT, self.clock, self.wire)
        self.keys = {ANNA: HolderKey.generate(), BERT: HolderKey.generate()}

    def all_set(self) -> str:
        """Each allows the other and holds its capability. Returns the id of Bert's for Anna."""
        self.anna.grant(self.keys[BERT].public)
        cap_id = self.bert.grant(self.keys[ANNA].public)
        for node, peer in ((self.anna, BERT), (self.bert, ANNA)):
            assert node.onion is not None
            Shelf(node.home / "federation").hold(peer, self.keys[node.onion])
            node.wish(allow=frozenset({peer}))
        self.go(2)
        return cap_id

    def go(self, seconds: float) -> None:
        for node in (self.anna, self.bert):
            if node.desk.federation is not None and node.onion is not None:
                self.wire.nodes[node.onion] = node.desk.federation
        self.clock.pump([0.25] * int(seconds * 4))

    def ran(self, work: Coroutine[Any, Any, Any]) -> Any:
        outcome = Deferred.fromCoroutine(work)
        self.go(120)
        return self.successResultOf(outcome)

    def failed(self, work: Coroutine[Any, Any, Any]) -> RonError:
        outcome = Deferred.fromCoroutine(work)
        self.go(120)
        error: RonError = self.failureResultOf(outcome, RonError).value
        return error


class Following(Case):
    """What changes outside is in force within seconds."""

    def test_without_an_address_there_is_no_federation(self) -> None:
        late = Node(self, ANNA, self.clock, self.wire)
        late.desk.stopService()
        late.onion = None
        late.start()
        self.go(3)
        self.assertEqual(self.assertRaises(RonError, late.desk.view).code, ErrorCode.STORE_UNAVAILABLE)
        self.assertIn(HEALTH_KEY, late.health.snapshot().degraded)
        late.onion = ANNA
        self.go(1)
        self.assertEqual(late.desk.view().onion, ANNA)

    def test_connect_exchanges_facts(self) -> None:
        self.all_set()
        self.bert.wish(regions=("eu-1",))
        session = self.ran(self.anna.desk.connect(BERT))
        self.assertEqual((session.peer, session.facts.onion, session.facts.regions), (BERT, BERT, ("eu-1",)))
        self.assertEqual((self.anna.peers, self.bert.peers), ([BERT], [ANNA]))

    def test_a_revoked_grant_ends_the_session_within_seconds(self) -> None:
        cap_id = self.all_set()
        self.ran(self.anna.desk.connect(BERT))
        self.bert.auth.revoke(cap_id)
        self.go(2)
        self.assertEqual((self.bert.peers, self.bert.reasons), ([], ["roster"]))
        self.assertEqual(self.bert.desk.view().list.holders, 0)
        # the other side learns of it with its next facts
        self.go(FACTS_EVERY_S)
        self.assertEqual((self.anna.peers, self.anna.reasons), ([], ["peer_refused"]))

    def test_an_expired_grant_does_too(self) -> None:
        self.all_set()
        key = HolderKey.generate()
        exp = Caveat("exp", "2027-01-15T08:20:00Z")
        caveats = [Caveat("scope", "federation:peer"), Caveat("holder", key.public.hex()), exp]
        self.bert.auth.issue(self.bert.auth.authority(AUDIENCE), caveats)
        self.go(1)
        self.assertEqual(self.bert.desk.view().list.holders, 2)
        self.go(WALL + 1200 - self.bert.wall_s())
        self.assertEqual(self.bert.desk.view().list.holders, 1)

    def test_the_allow_list_is_the_configs(self) -> None:
        self.all_set()
        self.ran(self.anna.desk.connect(BERT))
        self.bert.wish(allow=frozenset({BERT}))
        self.go(2)
        view = self.bert.desk.view()
        self.assertEqual((self.bert.reasons, view.allow), (["not_allowed"], ()))
        self.assertIn("our own onion", view.trouble[0])
        error = self.failed(self.anna.desk.connect(BERT))
        self.assertEqual((error.code, error.message), (ErrorCode.CONFLICT, "the peer refused"))

    def test_a_peer_that_is_down_is_a_timeout(self) -> None:
        self.all_set()
        self.wire.dead.add(ANNA)
        self.assertEqual(self.failed(self.anna.desk.connect(BERT)).code, ErrorCode.TIMEOUT)

    def test_a_new_address_is_ours_at_once(self) -> None:
        self.all_set()
        self.bert.onion = address_of(new_key())
        self.go(2)
        self.assertEqual(self.bert.desk.view().onion, self.bert.onion)

    def test_while_nobody_can_tell_who_is_revoked_nobody_is_let_in(self) -> None:
        self.all_set()
        self.ran(self.anna.desk.connect(BERT))
        self.bert.fault = unavailable("the list of revoked capabilities is damaged")
        self.go(1)
        self.assertEqual(self.bert.peers, [ANNA])
        self.go(BLIND_ROUNDS)
        self.assertEqual(self.bert.peers, [])
        self.assertIn("damaged", self.bert.health.snapshot().reasons[HEALTH_KEY])
        self.bert.fault = None
        self.go(2)
        self.ran(self.anna.desk.connect(BERT))
        self.assertNotIn(HEALTH_KEY, self.bert.health.snapshot().degraded)

    def test_a_damaged_key_is_told_and_the_others_go_on(self) -> None:
        self.all_set()
        (self.bert.home / "federation" / "holdings" / f"{BERT}.key").write_text("?")
        self.go(2)
        view = self.bert.desk.view()
        self.assertEqual((view.issuers, len(view.trouble)), ((ANNA,), 1))


class Staying(Case):
    """What must not be forgotten, and who is to be federated at all times."""

    def test_versions_and_pins_survive_a_restart(self) -> None:
        self.all_set()
        self.ran(self.anna.desk.connect(BERT))
        before = self.anna.desk.view().list
        self.anna.desk.stopService()
        self.assertEqual(self.anna.reasons, ["stopped"])
        # while it was down, Bert's list went back: it must be noticed
        (self.bert.home / "federation" / "list.json").unlink()
        self.bert.desk.stopService()
        self.bert.wall_s = lambda: 1_000_000.0  # type: ignore[method-assign]
        self.anna.start()
        self.bert.start()
        self.go(2)
        self.assertEqual(self.anna.desk.view().list, before)
        error = self.failed(self.anna.desk.connect(BERT))
        self.assertIn("older than one seen before", error.message)

    def test_a_lost_list_is_followed_by_a_newer_one(self) -> None:
        self.all_set()
        self.ran(self.anna.desk.connect(BERT))
        version = self.bert.desk.view().list.version
        self.bert.desk.stopService()
        (self.bert.home / "federation" / "list.json").unlink()
        self.bert.start()
        self.go(2)
        self.assertGreater(self.bert.desk.view().list.version, version)
        self.ran(self.anna.desk.connect(BERT))

    def test_kept_peers_are_federated_again_and_again(self) -> None:
        self.all_set()
        self.wire.dead.add(BERT)
        self.anna.wish(keep=(BERT,))
        self.go(60)
        self.assertEqual(self.anna.peers, [])
        self.wire.dead.clear()
        self.go(400)
        self.assertEqual(self.anna.peers, [BERT])
        self.bert.desk.stopService()
        self.bert.start()
        self.go(1)
        self.go(FACTS_EVERY_S + 60)
        self.assertEqual((self.anna.peers, self.bert.peers), ([BERT], [ANNA]))

    def test_a_short_list_is_refused_where_a_minimum_is_asked_for(self) -> None:
        self.anna.desk.stopService()
        self.anna.wish(min_holders=2)
        self.anna.start()
        self.all_set()
        self.assertIn("fewer than 2 holder keys", self.failed(self.anna.desk.connect(BERT)).message)
        self.bert.grant(HolderKey.generate().public)
        self.go(2)
        self.ran(self.anna.desk.connect(BERT))
