"""The doors of the key service beside HTTP: which there are, who may reach them, and OAP/1 over a real socket."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, cast

import grpc
import msgspec
from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ClientEndpoint, wrapClientTLS

from ron.crypto import x509
from ron.kernel.config import ConfigError
from ron.kernel.tls import ClientTls
from ron.oap import ALPN, OapClient
from ron.proto.errors import ErrorCode, RonError
from ron.proto.kms import CreateKeyResponse, KeyList, SignResponse
from ron.proto.kmscalls import OAP_PROTOCOL, KmsCall
from tests.nodes.kms_doors import LOOPBACK, WithDoors
from tests.services.kms.world import B3

FOR_OTHERS = "0.0.0.0:0"


class Doors(WithDoors):
    """Made, opened, closed."""

    async def test_none_unless_asked_for(self) -> None:
        doors = self.open()
        self.assertEqual((doors.grpc_address, doors.oap_address), (None, None))
        self.assertEqual(await doors.stop(), 0)

    async def test_an_address_for_others_needs_tls(self) -> None:
        for key in ("grpc_addr", "oap_addr"):
            error = self.assertRaises(ConfigError, self.make, **{key: FOR_OTHERS, "prefix": "kms."})
            self.assertEqual(error.key, f"kms.{key}")
            self.assertRaises(ConfigError, self.make, **{key: "nowhere"})

    async def test_a_taken_port(self) -> None:
        taken = str(self.open(grpc_addr=LOOPBACK).grpc_address)
        for key in ("grpc_addr", "oap_addr"):
            error = self.assertRaises(RonError, self.make, **{key: taken})
            self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
            self.assertIn(key, error.message)

    async def test_one_that_cannot_be_leaves_the_other_free(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.assertRaises(ConfigError, self.make, grpc_addr=address, oap_addr=FOR_OTHERS)
        self.assertEqual(str(self.open(grpc_addr=address).grpc_address), address)

    async def test_never_started(self) -> None:
        doors = self.make(grpc_addr=LOOPBACK, oap_addr=LOOPBACK)
        self.assertEqual(await doors.stop(), 0)


class Tls(WithDoors):
    """The certificate of the HTTP listener."""

    def files(self) -> tuple[Path, Path]:
        self.authority_of_tests = x509.init_ca("test CA")
        issued = x509.issue(self.authority_of_tests, "alpha", dns=["localhost"])
        certificate, key = self.folder / "alpha.pem", self.folder / "alpha.key"
        certificate.write_bytes(x509.certificate_pem(issued.certificate))
        key.touch(mode=0o600)
        key.write_bytes(x509.key_pem(issued.key))
        (self.folder / "ca.pem").write_bytes(x509.certificate_pem(self.authority_of_tests.certificate))
        return certificate, key

    async def test_grpc(self) -> None:
        self.open(grpc_addr=LOOPBACK, tls=self.files())
        trusted = grpc.ssl_channel_credentials((self.folder / "ca.pem").read_bytes())
        channel = self.connect(f"localhost:{self.grpc_address.port}", trusted)
        self.assertEqual(len((await self.rpc("ListKeys", on=channel)).keys), 0)
        plain = await self.rpc_refused("ListKeys", on=self.connect())
        self.assertEqual(plain.code(), grpc.StatusCode.UNAVAILABLE)
        self.assertEqual(list(self.process.watched), ["kms-grpc"])

    async def test_oap(self) -> None:
        doors = self.open(oap_addr=LOOPBACK, tls=self.files())
        assert doors.oap_address is not None
        tls = ClientTls(self.folder / "ca.pem", None, None, "localhost", alpn=ALPN)
        endpoint = wrapClientTLS(cast(Any, tls), TCP4ClientEndpoint(reactor, "127.0.0.1", doors.oap_address.port))
        client = await OapClient.connect(reactor, endpoint)
        try:
            token = (self.token or "").encode()
            answer = await client.call(OAP_PROTOCOL, KmsCall.LIST_KEYS, b'{"tenant": "core"}', cap=token)
        finally:
            await client.close()
        self.assertEqual(msgspec.json.decode(answer.payload, type=KeyList), KeyList(keys=()))


class OapSocket(WithDoors):
    """OAP/1 over a real socket."""

    async def setUp(self) -> None:
        await super().setUp()
        doors = self.open(oap_addr=LOOPBACK)
        assert doors.oap_address is not None
        self.address = doors.oap_address

    async def dial(self) -> OapClient:
        endpoint = TCP4ClientEndpoint(reactor, self.address.host, self.address.port)
        return await OapClient.connect(reactor, endpoint)

    async def call(self, client: OapClient, call: KmsCall, body: Any) -> bytes:
        token = (self.token or "").encode()
        return (await client.call(OAP_PROTOCOL, call, msgspec.json.encode(body), cap=token)).payload

    async def test_a_key_made_and_used_many_times_at_once(self) -> None:
        client = await self.dial()
        try:
            raw = await self.call(client, KmsCall.CREATE_KEY, {"tenant": "core", "purpose": "audit", "alg": "ed25519"})
            made = msgspec.json.decode(raw, type=CreateKeyResponse)
            signing = [
                Deferred.fromCoroutine(
                    self.call(client, KmsCall.SIGN, {"kid_or_set": made.kid, "payload_b3": f"{number:064x}"})
                )
                for number in range(60)
            ]
            signed = [msgspec.json.decode(raw, type=SignResponse) for _done, raw in await DeferredList(signing)]
            for number, one in enumerate(signed):
                sigs = [msgspec.to_builtins(sig) for sig in one.sigs]
                body = {"kid_or_set": {"kid": one.kid}, "payload_b3": f"{number:064x}", "sigs": sigs}
                self.assertTrue((await self.done("POST", "/verify", body))["ok"], number)
        finally:
            await client.close()

    async def test_a_refusal_is_the_one_of_http(self) -> None:
        client = await self.dial()
        try:
            self.token = self.bearer(("scope", "*"), ("tenant", "other"))
            body = {"tenant": "core", "purpose": "audit", "alg": "ed25519"}
            error = await self.assertFailure(
                Deferred.fromCoroutine(self.call(client, KmsCall.CREATE_KEY, body)), RonError
            )
            over_http = await self.ask("POST", "/keys", body)
            self.assertEqual((error.code, error.status), (ErrorCode.NO_CAPABILITY, over_http.status))
            self.assertEqual(error.message, over_http.body["error"]["message"])
        finally:
            await client.close()

    async def test_the_end_waits_for_what_is_under_way(self) -> None:
        waiting: list[Deferred[Any]] = []

        def later(*_any: object) -> Deferred[Any]:
            waiting.append(Deferred())
            return waiting[-1]

        self.patch(self.service, "list", later)
        client = await self.dial()
        call = Deferred.fromCoroutine(self.call(client, KmsCall.LIST_KEYS, {}))
        await self.until(lambda: waiting, "the call")
        assert self.doors is not None
        ending = Deferred.fromCoroutine(self.doors.stop())
        self.assertNoResult(ending)
        waiting[0].callback(KeyList(keys=()))
        self.assertEqual(await call, msgspec.json.encode(KeyList(keys=())))
        self.assertEqual(await ending, 0)
        await client.close()

    async def test_the_end_comes_all_the_same(self) -> None:
        self.process.drain_s = 0.2
        self.patch(self.service, "list", lambda *_any: Deferred())
        client = await self.dial()
        call = Deferred.fromCoroutine(self.call(client, KmsCall.LIST_KEYS, {"tenant": "core", "x": B3}))
        error = await self.assertFailure(call, RonError)
        self.assertIs(error.code, ErrorCode.BAD_REQUEST)
        hanging = Deferred.fromCoroutine(self.call(client, KmsCall.LIST_KEYS, {}))
        await self.until(lambda: self.process.edge.concurrency.busy == 1, "the call")
        assert self.doors is not None
        self.assertEqual(await self.doors.stop(), 1)
        await self.assertFailure(hanging, RonError)
        self.assertEqual(self.process.edge.concurrency.busy, 0)
