"""The listener behind the federation onion: four doors, bounds, and nothing else."""

from __future__ import annotations

import os
import secrets
import time
from typing import Any

import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults

from ron.auth import Caveat
from ron.crypto.schnorr import HolderKey
from ron.kernel import Config, HealthState
from ron.kernel.config import Layers
from ron.kernel.threads import BoundedPool
from ron.nodes.parts.federation import CONNECTIONS, FOLDER, REQUESTS_PER_S, HostedFederation
from ron.nodes.parts.oniond import FEDERATION_POW, hosted_federation, onion_runtime
from ron.nodes.runtime import Runtime
from ron.proto.errors import ErrorCode, RonError
from ron.proto.onions import Port, Pow
from ron.sdk import Api
from ron.sdk.transport import connection_pool, unix_http
from ron.services.configs import SCHEMAS
from ron.services.oniond.audit import Auditor, MemoryAudit
from ron.services.oniond.config import FEDERATION_APP
from ron.services.oniond.federation.messages import (
    MAX_BODY_BYTES,
    PROTOCOL,
    SEALED_BYTES,
    Challenge,
    HandshakeAnswer,
    InitiatorProof,
    RosterListing,
    RosterRef,
    TransportFacts,
    ZkHandshake,
)
from ron.services.oniond.federation.routes import ConnectRequest, FederationView, SessionView
from ron.services.oniond.federation.shelf import Shelf
from ron.tor.onionkeys import address_of, new_key
from tests.nodes.with_runtime import WithRuntime

OURS, PEER = (address_of(new_key()) for _ in range(2))


class Doors(WithRuntime):
    """Over the Unix socket that tor connects to."""

    def make_runtime(self) -> Runtime:
        path = self.home / "node.toml"
        path.write_text(f'[federation]\nenabled = true\nallow = ["{PEER}"]\n')
        return Runtime(reactor, name="node", config=Config(Layers(*SCHEMAS["ron-node"], path=path)))

    def setUp(self) -> Deferred[None]:
        super().setUp()
        self.pool = connection_pool(reactor)
        self.addCleanup(self.pool.closeCachedConnections)
        self.start()
        pool = BoundedPool(reactor, name="audit", threads=1)
        pool.start()
        self.runtime.at_exit(pool.stop)
        self.sink = MemoryAudit(time.time)
        metrics, health = self.runtime.metrics, HealthState()
        self.audit = Auditor(self.sink, pool, clock=reactor, metrics=metrics, health=health)
        hosted = hosted_federation(self.runtime, lambda app: OURS if app == "federation" else None, self.audit)
        assert hosted is not None
        self.hosted: HostedFederation = hosted
        hosted.start()
        self.listen(hosted.where, hosted.site())
        control = self.home / "run" / "oniond.sock"
        self.listen(control, self.runtime.site(hosted.endpoints()))
        self.peer = Api(reactor, unix_http(reactor, hosted.where, self.pool), "http://onion", tries=1)
        cap = self.runtime.write_admin_capability().read_text().strip()
        self.operator = Api(reactor, unix_http(reactor, control, self.pool), "http://oniond", cap, tries=1)
        return Deferred.fromCoroutine(self.until(lambda: hosted.desk.federation is not None, "federation"))

    def listen(self, where: Any, site: Any) -> None:
        listening = self.runtime.listen(where, site)

        async def stop() -> None:
            await listening.stop_accepting()
            await site.drain(0)

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))

    async def refused(self, call: Any) -> RonError:
        error: RonError = await self.assertFailure(Deferred.fromCoroutine(call), RonError)
        return error

    def handshake(self, claimed: str, challenge: Challenge) -> ZkHandshake:
        proof = InitiatorProof(
            nonce=challenge.nonce,
            own_nonce=secrets.token_bytes(32),
            time=int(time.time()),
            roster=challenge.roster,
            own_roster=RosterRef(version=1, digest=bytes(32), size=1),
            sealed=secrets.token_bytes(SEALED_BYTES),
            zk=secrets.token_bytes(64),
        )
        return ZkHandshake(peer_onion=claimed, proof=proof)

    def test_its_onion_asks_for_work_when_more_come_than_the_listener_takes(self) -> None:
        """And no other app's does, for which nobody has asked."""
        self.assertEqual(FEDERATION_POW, Pow(queue_rate=REQUESTS_PER_S, queue_burst=CONNECTIONS))
        apps = {"wiki": [Port(onion_port=80, local="127.0.0.1:8080")], **self.hosted.apps()}
        service = onion_runtime(self.runtime, self.runtime.config.current.onion, apps, self.audit)
        self.assertEqual(service._pows, {FEDERATION_APP: FEDERATION_POW})

    async def test_challenge_and_list(self) -> None:
        challenge = await self.peer.call("GET", "/federate/challenge", Challenge)
        listing = await self.peer.call("GET", "/federate/roster", RosterListing)
        self.assertEqual((challenge.protocol, challenge.onion, listing.onion), (PROTOCOL, OURS, OURS))
        self.assertEqual((challenge.roster.version, len(listing.keys)), (listing.version, 1))

    async def test_a_stranger_and_an_allowed_onion_with_a_bad_proof_are_told_the_same(self) -> None:
        errors = []
        Shelf(self.home / FOLDER).hold(PEER, HolderKey.generate())
        await self.until(lambda: self.hosted.desk.view().issuers == (PEER,), "the key that is held")
        for claimed in (address_of(new_key()), PEER):
            challenge = await self.peer.call("GET", "/federate/challenge", Challenge)
            body = self.handshake(claimed, challenge)
            errors.append(await self.refused(self.peer.call("POST", "/federate/zk_handshake", HandshakeAnswer, body)))
        first, second = ((e.status, e.code, e.message, e.hint, e.headers) for e in errors)
        self.assertEqual(first, second)
        self.assertEqual(first[:2], (403, ErrorCode.NO_CAPABILITY))
        await self.until(lambda: len(self.sink.recent()) == 2, "the records")
        self.assertEqual([r.fields["reason"] for r in self.sink.recent()], ["not_allowed", "channel"])

    async def test_bodies_of_another_shape_and_size(self) -> None:
        post = ("POST", "/federate/zk_handshake")
        for raw in (b"", b"{}", b"[]", b'{"peer_onion":"x.onion","proof":{"role":"initiator"}}', b"\xff"):
            self.assertEqual((await self.refused(self.peer.fetch(*post, raw))).status, 400, raw)
        whole = msgspec.to_builtins(self.handshake(PEER, await self.peer.call("GET", "/federate/challenge", Challenge)))
        more = msgspec.json.encode({**whole, "more": 1})
        self.assertEqual((await self.refused(self.peer.fetch(*post, more))).status, 400)
        big = b'{"peer_onion":"' + b"x" * MAX_BODY_BYTES + b'"}'
        self.assertEqual((await self.refused(self.peer.fetch(*post, big))).status, 413)

    async def test_nothing_else_is_there(self) -> None:
        cap = self.runtime.write_admin_capability().read_text().strip()
        api = Api(reactor, unix_http(reactor, self.hosted.where, self.pool), "http://onion", cap, tries=1)
        for path in ("/", "/readyz", "/healthz", "/metrics", "/version", "/v1/federation", "/v1/caps", "/federate"):
            self.assertEqual((await self.refused(api.fetch("GET", path))).status, 404, path)
        self.assertEqual((await self.refused(api.fetch("GET", "/federate/zk_handshake"))).status, 405)

    async def test_a_flood_is_turned_away_before_any_work(self) -> None:
        calls = [
            Deferred.fromCoroutine(self.peer.fetch("GET", "/federate/challenge")).addErrback(lambda f: f.value.status)
            for _ in range(3 * REQUESTS_PER_S)
        ]
        outcomes = await gatherResults(calls)
        self.assertIn(429, outcomes)

    async def test_the_operators_own(self) -> None:
        view = await self.operator.call("GET", "/v1/federation", FederationView)
        self.assertEqual((view.onion, view.allow, view.list.holders, view.sessions), (OURS, (PEER,), 0, ()))
        body = ConnectRequest(peer=PEER)
        error = await self.refused(self.operator.call("POST", "/v1/federation/connect", SessionView, body))
        self.assertIn("ask its operator", str(error.hint))
        nobody = Api(
            reactor, unix_http(reactor, self.home / "run" / "oniond.sock", self.pool), "http://oniond", tries=1
        )
        self.assertEqual((await self.refused(nobody.fetch("GET", "/v1/federation"))).status, 401)

    async def test_the_config_is_followed_without_a_restart(self) -> None:
        path = self.home / "node.toml"
        path.write_text(
            f'[federation]\nenabled = true\nregions = ["eu"]\npeer = [{{ onion = "{PEER}", socks = "127.0.0.1:9" }}]\n'
        )
        self.runtime.config.reload()
        await self.until(lambda: not self.hosted.desk.view().allow, "the allow list")
        self.assertEqual(await self.hosted._socks(PEER), 9)
        facts: TransportFacts = self.hosted.desk._facts()
        self.assertEqual((facts.regions, facts.load), (("eu",), "normal"))

    async def test_grants_in_the_register_are_on_the_list(self) -> None:
        key = HolderKey.generate().public
        caveats = [Caveat("scope", "federation:peer"), Caveat("holder", key.hex())]
        self.runtime.auth.issue(self.runtime.authority, caveats)
        await self.until(lambda: self.hosted.desk.view().list.holders == 1, "the grant")
        self.assertEqual((await self.peer.call("GET", "/federate/roster", RosterListing)).keys, (key,))


class Homes(WithRuntime):
    """Where there can be none, that is said."""

    def test_off_by_default(self) -> None:
        self.assertIsNone(hosted_federation(self.runtime, lambda _app: None, None))  # type: ignore[arg-type]

    def test_a_home_that_tor_cannot_be_told_of(self) -> None:
        odd = self.home / "a b"
        self.patch(os, "environ", {**os.environ, "RON_HOME": str(odd)})
        runtime = self.make_runtime()
        hosted = HostedFederation(runtime, lambda _app: None, None)  # type: ignore[arg-type]
        self.addCleanup(runtime.stop)
        self.assertIn("tor cannot be told", self.assertRaises(RonError, hosted.apps).message)
