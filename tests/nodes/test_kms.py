"""The key service hosted: alone and in a node, its listener with and without TLS, its sockets, a reload."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest, mock
from uuid import UUID

import grpc
import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.threads import deferToThread
from twisted.web.resource import Resource
from twisted.web.server import Site

from ron.crypto import x509
from ron.ctl.status import kms_text
from ron.kernel import Config, Metrics
from ron.kernel.config import ConfigError, Layers
from ron.kernel.tls import ClientTls
from ron.nodes.grpc import kms_pb2
from ron.nodes.grpc.kms_pb2_grpc import KmsStub
from ron.nodes.kms import KmsDaemon, KmsFacts, KmsLayers, Options, open_kms_config
from ron.nodes.parts import PARTS, Host, PartUnit, load_part, wanted
from ron.nodes.parts import kms as hosting
from ron.nodes.parts.kms import HostedKms, KmsPart
from ron.nodes.runtime import Runtime
from ron.oap import OapClient
from ron.proto.errors import ErrorCode, RonError
from ron.proto.governance import Proposal, Statement
from ron.proto.ids import uuid7
from ron.proto.kms import CreateKeyResponse
from ron.proto.kmscalls import OAP_PROTOCOL, KmsCall
from ron.sdk import Api, direct_http, tls_http
from ron.sdk.kms import Kms
from ron.sdk.transport import connection_pool, unix_http
from ron.services.configs import SCHEMAS
from ron.services.kms.governance.signers import key_id, set_digest, sign
from ron.services.kms.ports import Backend
from ron.services.kms.readiness import KmsReadiness
from ron.services.kms.status import KmsStatus
from tests.nodes.with_runtime import WithRuntime
from tests.services.kms.governance.people import OFFICER, OWNER, key_of, public_of, the_three

B3 = "7f" * 32
KEYS = {
    "config_loaded", "listener_bound", "backend_ready", "attestation_ready", "audit_ready", "checkpoint_recent",
    "rng_ok", "clock_ok", "verify_cache_ok", "store_ready",
}  # fmt: skip


class Hosted(WithRuntime):
    """A home with a config. more: lines of it."""

    more: ClassVar[str] = ""

    def make_runtime(self) -> Runtime:
        self.path = self.home / "kms.toml"
        self.write(self.more)
        schema, check = SCHEMAS["ron-kms"]
        return Runtime(reactor, name="ron-kms", config=Config(KmsLayers(schema, check, self.path, {}, {})))

    def write(self, more: str) -> None:
        text = '[service]\nbackend = "inmem"\n[security]\nallow_unlocked = true\n'
        self.path.write_text(f"{more}\n{text}", encoding="utf-8")

    async def up(self) -> HostedKms:
        self.start()
        hosted = HostedKms(self.runtime)
        self.addCleanup(hosted.service.stopService)
        hosted.service.startService()
        await hosted.ready()
        return hosted

    def api(self, http: Any, url: str) -> Kms:
        cap = self.runtime.write_admin_capability().read_text().strip()
        return Kms(Api(reactor, http, url, cap, tries=1))

    def pool(self) -> Any:
        pool = connection_pool(reactor)
        self.addCleanup(pool.closeCachedConnections)
        return pool

    async def refused(self, call: Any) -> RonError:
        error: RonError = await self.assertFailure(Deferred.fromCoroutine(call), RonError)
        return error


class Alone(Hosted):
    async def test_it_answers_on_its_address(self) -> None:
        hosted = await self.up()
        kms = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        made = await kms.create("core", "audit")
        signed = await kms.sign(made.kid, B3)
        self.assertTrue((await kms.verify(B3, signed.sigs, kid=made.kid, mode="and")).ok)
        await hosted.service.stopService()
        with self.assertRaises(OSError), socket.socket() as client:
            client.connect(tuple(hosted.address))

    async def test_readiness_has_every_key(self) -> None:
        hosted = await self.up()
        self.assertLessEqual(KEYS, self.runtime.health._known)
        found = hosted.readiness()
        assert isinstance(found, KmsReadiness) and found.snapshot is not None
        self.assertEqual((found.ready, found.snapshot.backend, found.snapshot.pq_mode), (True, "inmem", "and"))

    async def test_administration_is_on_the_operators_socket_only(self) -> None:
        hosted = await self.up()
        site = hosted.control_site()
        listening = self.runtime.listen(hosted.where, site)

        async def stop() -> None:
            await listening.stop_accepting()
            await site.drain(0)

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        self.assertEqual(hosted.where, self.home / "run" / "kms.sock")
        private = self.api(unix_http(reactor, hosted.where, self.pool()), "http://kms")
        public = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        self.assertEqual((await private._api.fetch("GET", "/v1/caps")).status, 200)
        self.assertEqual((await self.refused(public._api.fetch("GET", "/v1/caps"))).code, ErrorCode.NOT_FOUND)
        self.assertEqual([one.kid.split("/")[0] async for one in private.all_keys()], ["ron-kms"])

    async def test_a_reload(self) -> None:
        """Policy and limits take effect at once; requests under way are none the worse (CONFIG §5)."""
        hosted = await self.up()
        kms = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        made = await kms.create("core", "audit", "ed25519")
        self.assertEqual(len((await kms.sign(made.kid, B3)).sigs), 2)
        self.write('[pq]\nproduce_hybrid = false\nverify_mode = "or"\n')
        changes = self.runtime.config.reload()
        self.assertEqual(changes.restart_needed, ())
        self.assertEqual(len((await kms.sign(made.kid, B3)).sigs), 1)
        self.write('[pq]\nverify_mode = "perhaps"\n')
        self.assertRaises(ConfigError, self.runtime.config.reload)
        self.assertEqual(len((await kms.sign(made.kid, B3)).sigs), 1)
        self.write('bind_addr = "127.0.0.1:1"\n[pq]\nproduce_hybrid = false\nverify_mode = "or"\n')
        self.assertEqual(self.runtime.config.reload().restart_needed, ("kms.bind_addr",))

    async def test_limits_of_a_reload(self) -> None:
        """What is marked as taking effect at once does: queues, idle connections, how many capabilities."""
        hosted = await self.up()
        wanted = (
            "idle_timeout = 7000\n[limits]\nmax_inflight_sign = 7\nmax_inflight_verify = 9\ntenant_share_min = 0.5\n"
        )
        self.write(wanted + "[governance]\ncapabilities_active = 3\ncapabilities_per_minute = 2\n")
        self.assertEqual(self.runtime.config.reload().restart_needed, ())
        self.assertEqual((hosted.desk._queue._capacity, hosted.desk._queue._floor), (7, 0.5))
        self.assertEqual(hosted.desk._verifying._limit, 1 + 9)
        self.assertEqual(self.runtime.edge.limits.idle_ms, 7000)
        ceiling = self.runtime.auth.ceiling
        self.assertEqual((ceiling.active, ceiling.per_minute, ceiling.keys_here), (3, 2, True))

    async def test_ids_that_do_not_tell_the_time(self) -> None:
        hosted = await self.up()
        self.assertEqual(UUID(hosted.public_site().new_corr_id()).version, 7)
        self.write('[observability]\ncorrelation_id_mode = "uuidv4"\n')
        self.assertEqual(self.runtime.config.reload().restart_needed, ("kms.observability.correlation_id_mode",))
        for site in (hosted.public_site(), hosted.control_site()):
            self.assertEqual(UUID(site.new_corr_id()).version, 4)

    async def test_the_status_of_a_key_service(self) -> None:
        hosted = await self.up()
        site = hosted.control_site()
        listening = self.runtime.listen(hosted.where, site)

        async def stop() -> None:
            await listening.stop_accepting()
            await site.drain(0)

        self.addCleanup(lambda: Deferred.fromCoroutine(stop()))
        private = self.api(unix_http(reactor, hosted.where, self.pool()), "http://kms")._api
        found = await private.call("GET", "/v1/status", KmsStatus)
        assert found.snapshot is not None
        self.assertEqual((found.service, found.ready, found.config_version), ("ron-kms", True, 1))
        self.assertEqual((found.snapshot.backend, found.kms_url), ("inmem", f"http://{hosted.address}"))
        shown = kms_text(msgspec.to_builtins(found))
        self.assertIn("ron-kms  ready, up ", shown)
        self.assertIn("keys     1 in inmem, verify mode and", shown)
        self.assertNotIn("gRPC", shown)
        public = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")._api
        self.assertEqual((await self.refused(public.call("GET", "/v1/status", KmsStatus))).code, ErrorCode.NOT_FOUND)

    async def test_what_the_bus_hears(self) -> None:
        """INTEROP §3.1, and no key in any of it."""
        heard: list[tuple[str, Any]] = []
        topics = ("kms.ready", "kms.config.updated", "kms.policy.hint", "kms.audit.checkpoint")
        self.runtime.bus.observe(lambda message: heard.append((message.topic, message.body)), *topics, name="test")
        hosted = await self.up()
        await hosted.desk.log.checkpoint()
        self.write("[pq]\nrollout_percent = 5\n")
        self.runtime.config.reload()
        await self.until(lambda: set(topics) <= {topic for topic, _body in heard}, "all of them")
        told = dict(heard)
        self.assertEqual(told["kms.policy.hint"], {"pq_mode": "and", "rollout_percent": 5})
        self.assertEqual(told["kms.ready"], {"ready": True, "missing": [], "degraded": []})
        self.assertEqual((told["kms.audit.checkpoint"]["index"], told["kms.audit.checkpoint"]["ok"]), (1, True))

    async def test_one_life_in_a_process(self) -> None:
        hosted = await self.up()
        await hosted.service.stopService()
        hosted.service.startService()
        error = await self.refused(hosted.ready())
        self.assertEqual((error.code, error.hint), (ErrorCode.STORE_UNAVAILABLE, "start the process anew"))
        await hosted.service.stopService()

    async def test_no_quorum_no_destroying(self) -> None:
        hosted = await self.up()
        kms = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        made = await kms.create("core", "audit")
        error = await self.refused(kms.destroy(made.kid, "p"))
        self.assertIn("governance.signers", str(error.hint))

    def test_a_port_that_is_taken(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            self.write(f'bind_addr = "127.0.0.1:{taken.getsockname()[1]}"')
            self.runtime.config.reload()
            error = self.assertRaises(RonError, HostedKms, self.runtime)
        self.assertIn("bind_addr", error.message)
        self.start()


class Doors(Hosted):
    """gRPC and OAP/1, where the config has them."""

    more = 'grpc_addr = "127.0.0.1:0"\noap_addr = "127.0.0.1:0"'

    async def test_they_answer_and_end_with_the_service(self) -> None:
        hosted = await self.up()
        doors = hosted.doors
        assert doors.grpc_address is not None and doors.oap_address is not None
        cap = self.runtime.write_admin_capability().read_text().strip()
        client = await OapClient.connect(reactor, TCP4ClientEndpoint(reactor, *doors.oap_address))
        made = await client.call(
            OAP_PROTOCOL,
            KmsCall.CREATE_KEY,
            b'{"tenant": "core", "purpose": "audit", "alg": "ed25519"}',
            cap=cap.encode(),
        )
        await client.close()
        kid = msgspec.json.decode(made.payload, type=CreateKeyResponse).kid
        with grpc.insecure_channel(str(doors.grpc_address), [("grpc.enable_http_proxy", 0)]) as channel:
            shown = await deferToThread(
                KmsStub(channel).GetKey,
                kms_pb2.GetKeyRequest(kid=kid),
                metadata=[("authorization", f"Bearer {cap}")],
                timeout=20,
            )
        self.assertEqual(shown.kid, kid)
        await hosted.service.stopService()
        for address in (doors.grpc_address, doors.oap_address):
            with self.assertRaises(OSError), socket.socket() as late:
                late.connect(tuple(address))


class OverTls(Hosted):
    more = '[tls]\nenabled = true\ncert_path = "kms.crt"\nkey_path = "kms.key"\n'

    def test_without_its_files(self) -> None:
        error = self.assertRaises(ConfigError, HostedKms, self.runtime)
        self.assertEqual(error.key, "tls.cert_path")
        self.issue()
        (self.home / "kms.key").chmod(0o644)
        error = self.assertRaises(ConfigError, HostedKms, self.runtime)
        self.assertEqual((error.key, error.hint), ("tls.key_path", f"chmod 600 {self.home / 'kms.key'}"))
        self.start()

    def issue(self) -> Path:
        ca = x509.init_ca("a test")
        issued = x509.issue(ca, "kms", addresses=("127.0.0.1",))
        (self.home / "ca.pem").write_bytes(x509.certificate_pem(ca.certificate))
        (self.home / "kms.crt").write_bytes(x509.certificate_pem(issued.certificate))
        (self.home / "kms.key").write_bytes(x509.key_pem(issued.key))
        (self.home / "kms.key").chmod(0o600)
        return self.home / "ca.pem"

    async def test_nothing_else_is_spoken(self) -> None:
        ca = self.issue()
        hosted = await self.up()
        tls = ClientTls(ca, None, None, "127.0.0.1")
        kms = self.api(tls_http(reactor, tls, self.pool()), f"https://{hosted.address}")
        self.assertTrue((await kms.create("core", "audit")).kid)
        plain = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        await self.refused(plain.create("core", "audit"))


class Collector(Resource):
    """An audit service. status: what it answers."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.status = 503
        self.asked: list[tuple[str, Any]] = []

    def render_POST(self, request: Any) -> bytes:
        request.setResponseCode(self.status)
        self.asked.append((str(request.getHeader("authorization")), json.loads(request.content.read())))
        return b"ok"


class Exported(Hosted):
    """Each record is at the audit service, too (K-G5)."""

    async def test_what_was_done_is_there(self) -> None:
        collector = Collector()
        port = reactor.listenTCP(0, Site(collector), interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        url = f"http://127.0.0.1:{port.getHost().port}/records"
        more = f'[audit]\nexport_url = "{url}"\nexport_token_env = "KMS_TEST_EXPORT"'
        self.write(more)
        self.runtime.config.reload()
        error = self.assertRaises(ConfigError, HostedKms, self.runtime)
        self.assertEqual(error.key, "audit.export_token_env")
        with mock.patch.dict(os.environ, {"KMS_TEST_EXPORT": "a-token"}):
            hosted = await self.up()
        await self.until(lambda: bool(collector.asked), "it is tried while nobody takes it")
        collector.status = 200
        kms = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        made = await kms.create("core", "audit")
        exporter = hosted._exporter
        assert exporter is not None
        await self.until(lambda: exporter.sent == hosted.desk.log.size, "all of it")
        told, batch = collector.asked[-1]
        self.assertEqual(told, "Bearer a-token")
        newest = json.loads(base64.b64decode(batch["entries"][-1]))
        self.assertEqual((newest["op"], newest["kid"]), ("create", made.kid))

    def test_readable_for_others(self) -> None:
        for url in ("http://example.org/x", "http://10.0.0.1/x"):
            self.write(f'[audit]\nexport_url = "{url}"')
            error = self.assertRaises(ConfigError, self.runtime.config.reload)
            self.assertEqual(error.key, "audit.export_url")
        self.start()


class OnDisk(Hosted):
    """The backend a daemon has when nobody says otherwise."""

    def write(self, more: str) -> None:
        self.path.write_text(f"{more}\n[security]\nallow_unlocked = true\n", encoding="utf-8")

    async def test_where_everything_is(self) -> None:
        hosted = await self.up()
        kms = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        await kms.create("core", "audit")
        names = {path.name for path in self.home.iterdir()}
        self.assertLessEqual({"kms", "kms-audit", "kms-sealed"}, names)
        passphrase = self.home / "kms" / "passphrase"
        self.assertEqual(passphrase.stat().st_mode & 0o777, 0o600)
        self.assertNotIn(passphrase.read_text().strip(), self.path.read_text())


class Governed(Hosted):
    """With signers: what takes a quorum can be done, and is remembered."""

    def write(self, more: str) -> None:
        (self.home / "signers.json").write_bytes(msgspec.json.encode(the_three(int(time.time()))))
        lines = '[security]\nallow_unlocked = true\n[governance]\nsigners = "signers.json"\n'
        self.path.write_text(more + lines, encoding="utf-8")

    async def decide(self, hosted: HostedKms, action: Any, change: dict[str, str], scope: str = "tenant:core") -> str:
        """Proposed and approved by two, executed: the proposal's id."""
        governance = hosted.governance
        assert governance is not None
        ledger, now = governance.ledger, int(time.time())
        proposal = Proposal(
            book=ledger.book,
            id=str(uuid7()),
            author=key_id(public_of(OWNER)),
            action=action,
            scope=scope,
            change=change,
            rationale="because",
            signer_set=set_digest(ledger.deciders()),
            created_at=now,
            expires_at=now + 3600,
        )
        case = await governance.propose(sign(proposal, key_of(OWNER)))
        for role in (OWNER, OFFICER):
            said = Statement(
                book=ledger.book,
                verb="approve",
                signer=key_id(public_of(role)),
                role=role,
                at=now,
                proposal=proposal.id,
                digest=case.digest,
            )
            await governance.state(sign(said, key_of(role)))
        if ledger.case(proposal.id).state != "executed":
            await governance.execute(proposal.id)
        return proposal.id

    async def test_destroyed_by_two(self) -> None:
        hosted = await self.up()
        kms = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        made = await kms.create("core", "audit")
        self.assertEqual((await self.refused(kms.destroy(made.kid, str(uuid7())))).code, ErrorCode.NO_CAPABILITY)
        proposal = await self.decide(hosted, "destroy_key", {"kid": made.kid})
        self.assertTrue((await kms.destroy(made.kid, proposal)).destroyed)
        self.assertEqual((await self.refused(kms.sign(made.kid, B3))).code, ErrorCode.NOT_FOUND)
        other = await kms.create("core", "audit")
        self.assertEqual((await self.refused(kms.destroy(other.kid, proposal))).code, ErrorCode.NO_CAPABILITY)

    async def test_kg7_a_weaker_config_waits_for_the_quorum(self) -> None:
        hosted = await self.up()
        kms = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        made = await kms.create("core", "audit")
        self.write('[pq]\nproduce_hybrid = false\nverify_mode = "or"\n')
        self.runtime.config.reload()
        error = await self.refused(kms.sign(made.kid, B3))
        self.assertEqual(error.code, ErrorCode.NO_CAPABILITY)
        self.assertIn("--action hybrid_off --scope global --change 'pq_mode=or'", error.message)
        await self.decide(hosted, "hybrid_off", {"pq_mode": "or"}, "global")
        await self.until(lambda: self.runtime.health.snapshot().ready, "it is looked at each second")
        await kms.sign(made.kid, B3)
        shown = hosted.exposition().decode()
        self.assertIn('kms_governance_proposals_total{status="executed"} 1.0', shown)
        self.assertIn("kms_capabilities_minted_fairness_skew", shown)

    def test_no_amnesia_over_a_book(self) -> None:
        (self.home / "kms-governance").mkdir()
        (self.home / "kms-governance" / "book.jsonl").write_bytes(b"")
        lines = '[service]\nbackend = "inmem"\namnesia = true\n[log]\nto = "memory"\n'
        self.write(lines)
        self.start()
        config = Config(KmsLayers(*SCHEMAS["ron-kms"], self.path, {}, {}))
        with mock.patch.object(self.runtime, "config", config):
            error = self.assertRaises(ConfigError, HostedKms, self.runtime)
        self.assertEqual(error.key, "service.amnesia")

    async def test_frozen_over_a_restart_and_an_older_book(self) -> None:
        hosted = await self.up()
        kms = self.api(direct_http(reactor, self.pool()), f"http://{hosted.address}")
        made = await kms.create("core", "audit")
        book = self.home / "kms-governance" / "book.jsonl"
        older = book.read_bytes()
        await self.decide(hosted, "freeze", {"freeze": "on"})
        self.assertIn("frozen", (await self.refused(kms.sign(made.kid, B3))).message)
        await hosted.service.stopService()
        for content, missing in ((None, ()), (older, ("audit_ready",))):
            if content is not None:
                book.write_bytes(content)
            again = HostedKms(self.fresh())
            self.addCleanup(again.service.stopService)
            again.service.startService()
            await again.ready()
            kms = self.api(direct_http(reactor, self.pool()), f"http://{again.address}")
            refusal = await self.refused(kms.sign(made.kid, B3))
            self.assertEqual("frozen" in refusal.message, content is None, refusal)
            self.assertEqual(self.runtime.health.snapshot().missing, missing)
            await again.service.stopService()

    def fresh(self) -> Runtime:
        """As another process: nothing is counted or remembered in memory."""
        self.runtime.metrics = Metrics()
        self.runtime.edge.metrics = self.runtime.metrics
        return self.runtime

    def test_a_signer_set_that_is_none(self) -> None:
        for content in (None, b"{}", b"x"):
            (self.home / "signers.json").unlink()
            if content is not None:
                (self.home / "signers.json").write_bytes(content)
            error = self.assertRaises(ConfigError, HostedKms, self.runtime)
            self.assertEqual(error.key, "governance.signers")
            (self.home / "signers.json").touch()
        self.start()


class Daemons(WithRuntime):
    def make_runtime(self) -> Runtime:
        options = Options()
        options.parseOptions(["--backend", "inmem", "--set", "security.allow_unlocked=true"])
        return Runtime(reactor, name="ron-kms", config=open_kms_config(options, {}))

    async def test_begin_and_end(self) -> None:
        self.start()
        said: list[str] = []
        self.patch(self.runtime, "say", said.append)
        daemon = KmsDaemon(self.runtime)
        await daemon.begin()
        facts = msgspec.json.decode((self.home / "kms.json").read_bytes(), type=KmsFacts)
        self.assertEqual((facts.backend, facts.kms_url), ("inmem", f"http://{daemon.kms.address}"))
        self.assertIn("ron-kms is up", said[0])
        self.assertEqual(self.runtime.health.snapshot().missing, ())
        await daemon.end()
        self.assertFalse((self.home / "kms.json").exists())
        self.assertFalse(daemon.kms.desk.running)


class InANode(WithRuntime):
    """As a part."""

    def make_runtime(self) -> Runtime:
        path = self.home / "node.toml"
        lines = '[kms]\nenabled = true\nservice.backend = "inmem"\nsecurity.allow_unlocked = true\n'
        path.write_text(lines, encoding="utf-8")
        return Runtime(reactor, name="node", config=Config(Layers(*SCHEMAS["ron-node"], path=path)))

    async def test_it_is_there_when_it_is_wanted(self) -> None:
        self.start()
        config = self.runtime.config.current
        self.assertIn("kms", wanted(config))
        self.assertNotIn("kms", wanted(SCHEMAS["ron-node"][0]()))
        self.assertEqual(PARTS["kms"].when, "kms.enabled")
        host = Host(runtime=self.runtime, config=config, addresses={}, sockets={}, run=self.home / "run")
        part = load_part("kms", host)
        assert isinstance(part, KmsPart)
        unit = PartUnit("kms", part)
        await unit.start(lambda _reason: None)
        self.addCleanup(lambda: Deferred.fromCoroutine(unit.stop()))
        self.assertLessEqual({f"kms.{key}" for key in KEYS}, self.runtime.health._known)
        pool = connection_pool(reactor)
        self.addCleanup(pool.closeCachedConnections)
        cap = self.runtime.write_admin_capability().read_text().strip()
        api = Api(reactor, unix_http(reactor, self.home / "run" / "kms.sock", pool), "http://kms", cap, tries=1)
        kms = Kms(api)
        made = await kms.create("core", "audit")
        self.assertEqual((await kms.get(made.kid)).kid, made.kid)


class Backends(WithRuntime):
    """Made from the config; nothing is opened, and what is not on this machine is named."""

    def make(self, lines: str) -> Backend:
        path = self.home / "node.toml"
        path.write_text(f"[kms]\nenabled = true\n{lines}\n", encoding="utf-8")
        config = Layers(*SCHEMAS["ron-node"], path=path).resolve()
        return hosting.make_backend(config.kms, self.home, "kms.")

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_a_token_whose_library_is_not_there(self) -> None:
        lines = 'service.backend = "pkcs11"\nbackends.pkcs11 = {module_path = "/none.so", pin_env = "X"}'
        error = self.assertRaises(ConfigError, self.make, lines)
        self.assertEqual(error.key, "kms.backends.pkcs11.module_path")

    def test_what_is_not_installed(self) -> None:
        for name, module, lines in (
            ("pkcs11", "pkcs11_sessions", f'backends.pkcs11 = {{module_path = "{os.__file__}", pin_env = "X"}}'),
            ("tpm", "tpm_device", ""),
            ("cloud", "cloud_key", 'backends.cloud = {key_id = "k"}'),
        ):
            hidden = mock.patch.dict(sys.modules, {f"ron.services.kms.backends.{module}": None})
            beside = ', multi_backends = ["cloud", "file"]' if name == "cloud" else ""
            with hidden:
                error = self.assertRaises(ConfigError, self.make, f'service = {{backend = "{name}"{beside}}}\n{lines}')
            self.assertEqual((error.key, error.hint), (
                "kms.service.backend", f"pip install 'rustyonions[{name}]', or choose another"))  # fmt: skip

    def test_a_variable_that_is_empty(self) -> None:
        if importlib.util.find_spec("tpm2_pytss") is None:
            raise SkipTest("tpm2-pytss is not installed")
        error = self.assertRaises(ConfigError, self.make, 'service.backend = "tpm"\nbackends.tpm.auth_env = "NOTHING"')
        self.assertEqual(error.key, "kms.backends.tpm.auth_env")

    def test_several_behind_one(self) -> None:
        self.assertEqual(self.make('service.multi_backends = ["file", "inmem"]').name, "file")
        self.assertEqual(self.make('service.backend = "inmem"').name, "inmem")

    def test_the_passphrase(self) -> None:
        """From where it is said; it is read when the store is opened, and not before."""
        for lines in ('backends.file.passphrase_env = "NOTHING"', 'backends.file.passphrase_file = "none"'):
            error = self.assertRaises(RonError, self.make(lines).open)
            self.assertTrue(error.hint)
