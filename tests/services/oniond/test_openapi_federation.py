"""Two nodes federate over HTTP in memory, and every word of it is held against the OpenAPI file."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure

from ron.auth import Authority, Caveat, RootKeys
from ron.crypto.schnorr import PROOF_BYTES_A_KEY, HolderKey
from ron.kernel import Metrics
from ron.proto.errors import from_envelope
from ron.services.oniond.federation.messages import (
    MAX_BODY_BYTES,
    NONCE_BYTES,
    SEALED_BYTES,
    TAG_BYTES,
    Challenge,
    FactsMessage,
    HandshakeAnswer,
    RosterListing,
    ZkHandshake,
)
from ron.services.oniond.federation.routes import operator_endpoints, peer_endpoints
from ron.services.oniond.federation.service import REFUSAL_STEP_S
from ron.web import Edge, make_site
from ron.web.site import RonSite
from tests.services.oniond.test_federation_desk import ANNA, BERT, Node
from tests.services.oniond.test_federation_desk import Case as Desks
from tests.services.oniond.test_federation_service import WALL, Wire
from tests.services.oniond.test_openapi import FILE
from tests.web.wire import request, split_response

STEP_S = 0.25
T = TypeVar("T")


def zeros(length: int) -> str:
    """So many bytes as JSON has them."""
    return base64.b64encode(bytes(length)).decode()


class HeldAgainstTheFile(Wire):
    """Calls between onions as requests to the sites in `sites`. seen: (method, path, status) of each."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.sites: dict[str, RonSite] = {}
        self.seen: Counter[tuple[str, str, int]] = Counter()

    async def challenge(self, onion: str) -> Challenge:
        return await self._asked(onion, "GET", "challenge", Challenge)

    async def roster(self, onion: str) -> RosterListing:
        return await self._asked(onion, "GET", "roster", RosterListing)

    async def handshake(self, onion: str, message: ZkHandshake) -> HandshakeAnswer:
        return await self._asked(onion, "POST", "zk_handshake", HandshakeAnswer, message)

    async def facts(self, onion: str, message: FactsMessage) -> FactsMessage:
        return await self._asked(onion, "POST", "facts", FactsMessage, message)

    async def _asked(self, onion: str, method: str, name: str, answer: type[T], message: Any = None) -> T:
        body = msgspec.json.encode(message) if message is not None else None
        status, text = await self.exchange(self.sites[onion], method, f"/federate/{name}", body, valid=True)
        if status != 200:
            raise from_envelope(text, status)
        return msgspec.json.decode(text, type=answer)

    async def exchange(
        self, site: RonSite, method: str, path: str, body: bytes | None, *, valid: bool, token: str | None = None
    ) -> tuple[int, bytes]:
        """Status and body, both as the file says. valid: what the file must say of the request's body."""
        operation = FILE.operation(method, path)
        if "requestBody" in operation:
            wrong = FILE.errors(operation["requestBody"], json.loads(body or b"null"), closed=False)
            assert (not wrong) == valid, (path, body, wrong)
        channel, transport = site.buildProtocol(None), StringTransport()
        channel.makeConnection(transport)
        headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
        channel.dataReceived(request(method, path, headers, body))
        while (whole := split_response(transport.value())) is None:
            await deferLater(self._clock, STEP_S)
        channel.connectionLost(Failure(connectionDone.value))
        status, text = whole[0].status, whole[0].body
        wrong = FILE.errors(operation["responses"][str(status)], json.loads(text), closed=True)
        assert not wrong, (path, status, wrong)
        self.seen[method, path, status] += 1
        return status, text


class Case(Desks):
    """Anna and Bert, each with a site for peers and one for its operator."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.file = self.wire = HeldAgainstTheFile(self.clock)
        self.anna = Node(self, ANNA, self.clock, self.wire)
        self.bert = Node(self, BERT, self.clock, self.wire)
        self.keys = {ANNA: HolderKey.generate(), BERT: HolderKey.generate()}
        self.authority = Authority(RootKeys.generate(), audience="ron-node", now=lambda: WALL)
        edge = Edge(authority=self.authority, metrics=Metrics(), reactor=self.clock)
        for onion, node in ((ANNA, self.anna), (BERT, self.bert)):
            self.file.sites[onion] = make_site(edge, peer_endpoints(node.desk), body_limit=MAX_BODY_BYTES)
        self.control = make_site(edge, operator_endpoints(self.anna.desk))
        self.token: str | None = self.authority.mint([Caveat("scope", "federation:*")])

    def operator(self, method: str, path: str, body: Any = None, *, valid: bool = True) -> tuple[int, Any]:
        raw = json.dumps(body).encode() if body is not None else None
        asked = self.file.exchange(self.control, method, path, raw, valid=valid, token=self.token)
        status, text = self.ran(asked)
        return status, json.loads(text)

    def peer(self, name: str, body: bytes, *, valid: bool) -> int:
        asked = self.file.exchange(self.file.sites[ANNA], "POST", f"/federate/{name}", body, valid=valid)
        status: int = self.ran(asked)[0]
        return status


class Federating(Case):
    """All six doors, done."""

    def test_a_handshake_and_what_follows(self) -> None:
        self.all_set()
        status, session = self.operator("POST", "/v1/federation/connect", {"peer": BERT})
        self.assertEqual((status, session["peer"], session["facts"]["onion"]), (200, BERT, BERT))
        status, view = self.operator("GET", "/v1/federation")
        self.assertEqual((status, [one["id"] for one in view["sessions"]]), (200, [session["id"]]))
        done = {(method, path) for method, path, status in self.file.seen if status == 200}
        of_federation = {
            (method.upper(), path)
            for path, methods in FILE.spec["paths"].items()
            for method in methods
            if path.startswith(("/v1/federation", "/federate/"))
        }
        self.assertEqual(done, of_federation)
        # the initiator's proof, and the responder's at the initiator's own onion
        self.assertEqual(self.file.seen["POST", "/federate/zk_handshake", 200], 2)

    def test_peers_need_no_capability(self) -> None:
        for path, methods in FILE.spec["paths"].items():
            for operation in methods.values():
                strange = path.startswith("/federate/")
                self.assertEqual(operation.get("security") == [], strange, path)
                self.assertEqual("401" in operation["responses"], not strange, path)


class Refusals(Case):
    """Each with a status and a body that the file names."""

    def test_who_may_not_ask(self) -> None:
        for token, status in ((None, 401), (self.authority.mint([Caveat("scope", "onion:*")]), 403)):
            self.token = token
            self.assertEqual(self.operator("GET", "/v1/federation")[0], status)
            self.assertEqual(self.operator("POST", "/v1/federation/connect", {"peer": BERT})[0], status)

    def test_a_peer_that_is_not_allowed(self) -> None:
        self.go(2)
        self.assertEqual(self.operator("POST", "/v1/federation/connect", {"peer": BERT})[0], 409)

    def test_a_peer_that_does_not_call_back(self) -> None:
        self.all_set()
        self.bert.desk.stopService()
        self.assertEqual(self.operator("POST", "/v1/federation/connect", {"peer": BERT})[0], 503)

    def test_a_proof_that_is_none(self) -> None:
        """Right by the file, and refused: with the words that say nothing."""
        self.all_set()
        message = self.proof()
        began_s = self.clock.seconds()
        outcome = Deferred.fromCoroutine(
            self.file.exchange(self.file.sites[ANNA], "POST", "/federate/zk_handshake", message, valid=True)
        )
        self.clock.pump([STEP_S] * 40)
        self.assertEqual(self.successResultOf(outcome)[0], 403)
        self.assertGreaterEqual(self.clock.seconds() - began_s, REFUSAL_STEP_S)
        facts = {"onion": BERT, "protocols": ["oap/1"]}
        told = {"session_id": "0" * 32, "sequence": 1, "facts": facts, "tag": zeros(TAG_BYTES)}
        self.assertEqual(self.peer("facts", json.dumps(told).encode(), valid=True), 403)

    def test_bodies_that_the_file_forbids(self) -> None:
        self.all_set()
        whole = json.loads(self.proof())
        for changed in (
            {"peer_onion": "x.onion"},
            {"peer_onion": BERT.upper()},
            {"more": 1},
            {"proof": None},
            {"proof": {**whole["proof"], "role": "both"}},
            {"proof": {**whole["proof"], "nonce": "AAAA"}},
            {"proof": {**whole["proof"], "time": -1}},
            {"proof": {**whole["proof"], "zk": ""}},
            {"proof": {**whole["proof"], "roster": {**whole["proof"]["roster"], "size": 0}}},
            {"proof": {**whole["proof"], "roster": {**whole["proof"]["roster"], "more": 1}}},
        ):
            body = json.dumps({**whole, **changed}).encode()
            self.assertEqual(self.peer("zk_handshake", body, valid=False), 400, changed)
        for missing in whole:
            body = json.dumps({name: value for name, value in whole.items() if name != missing}).encode()
            self.assertEqual(self.peer("zk_handshake", body, valid=False), 400, missing)

    def proof(self) -> bytes:
        """As Bert would begin, with nothing in it."""
        challenge = msgspec.to_builtins(self.ran(self.file.challenge(ANNA)))
        proof = {
            "role": "initiator",
            "nonce": challenge["nonce"],
            "own_nonce": zeros(NONCE_BYTES),
            "time": int(self.anna.wall_s()),
            "roster": challenge["roster"],
            "own_roster": challenge["roster"],
            "sealed": zeros(SEALED_BYTES),
            "zk": zeros(PROOF_BYTES_A_KEY),
        }
        return json.dumps({"peer_onion": BERT, "proof": proof}).encode()
