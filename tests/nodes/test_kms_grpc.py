"""`ron.kms.v1.Kms` with a real gRPC client over loopback, before a real service: refusals first, then answers, life."""

from __future__ import annotations

import base64
import uuid
from typing import Any

import grpc
import msgspec
from google.protobuf import json_format
from grpc_health.v1 import health_pb2, health_pb2_grpc
from nacl.signing import VerifyKey
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.threads import deferToThread

from ron.nodes.grpc import kms_pb2 as pb
from ron.nodes.grpc import kms_server
from ron.nodes.grpc.kms_pb2_grpc import KmsStub
from ron.proto.errors import ErrorEnvelope
from ron.proto.ids import uuid7
from ron.proto.kms import KeyList
from ron.services.kms import door, keys
from tests.nodes.kms_doors import LIMIT_BYTES, LOOPBACK, PATIENCE_S, REQUESTS, SCOPES, WithDoors, code_of, trailing
from tests.services.kms.world import B3, UNKNOWN, at, bare, op_id

Code = grpc.StatusCode


class Grpc(WithDoors):
    """The door is open."""

    async def setUp(self) -> None:
        await super().setUp()
        self.open(grpc_addr=LOOPBACK)


class Refusals(Grpc):
    """What is not answered."""

    async def test_every_call_needs_its_scope(self) -> None:
        for method, scope in SCOPES.items():
            self.token = None
            self.assertEqual((await self.rpc_refused(method)).code(), Code.UNAUTHENTICATED, method)
            others = ",".join(sorted(set(SCOPES.values()) - {scope}))
            self.token = self.bearer(("scope", others))
            refused = await self.rpc_refused(method)
            self.assertEqual((refused.code(), code_of(refused)), (Code.PERMISSION_DENIED, "NoCapability"), method)
        self.assertEqual(self.records()[1:], [])

    async def test_a_capability_is_looked_at_before_the_message(self) -> None:
        self.token = None
        for method in REQUESTS:
            with self.assertRaises(grpc.RpcError) as caught:
                await self.raw(method, b"\xff" * 50)
            self.assertEqual(caught.exception.code(), Code.UNAUTHENTICATED, method)

    async def test_a_capability_for_another_call(self) -> None:
        for caveats in (
            [("method", "POST")],
            [("path", "/v1/kms/sign")],
            [("path", "/ron.kms.v1.Kms/Verify")],
            [("app", "another")],
        ):
            self.token = self.bearer(("scope", "*"), *caveats)
            self.assertEqual((await self.rpc_refused("Sign")).code(), Code.PERMISSION_DENIED, caveats)
        self.token = self.bearer(("scope", "*"), ("method", "RPC"), ("path", "/ron.kms.v1.Kms/Sign"))
        self.assertEqual((await self.rpc_refused("Sign")).code(), Code.NOT_FOUND)

    async def test_another_tenants_keys(self) -> None:
        """403 for each, whether there is such a key or not."""
        mine = await self.create()
        self.token = self.bearer(("scope", "*"), ("tenant", "other"))
        for kid in (mine, UNKNOWN):
            for method, request in (
                ("Sign", pb.SignRequest(kid_or_set={"kid": kid}, payload_b3=B3)),
                ("Verify", pb.VerifyRequest(kid_or_set={"kid": kid}, payload_b3=B3, sigs=REQUESTS["Verify"].sigs)),
                ("Wrap", pb.WrapRequest(kid=kid, size=32)),
                ("Rotate", pb.RotateRequest(kid=bare(kid))),
                ("GetKey", pb.GetKeyRequest(kid=kid)),
                ("Attest", pb.AttestRequest(kid=kid)),
                ("DestroyKey", pb.DestroyRequest(kid=kid, proposal="none")),
            ):
                self.assertEqual((await self.rpc_refused(method, request)).code(), Code.PERMISSION_DENIED, method)
        for method in ("CreateKey", "ListKeys"):
            self.assertEqual((await self.rpc_refused(method)).code(), Code.PERMISSION_DENIED, method)
        self.assertEqual(len((await self.rpc("ListKeys", pb.ListKeysRequest())).keys), 0)

    async def test_bytes_that_are_no_message(self) -> None:
        for method, request in REQUESTS.items():
            for body in (b"\xff" * 50, request.SerializeToString() + b"\xf8\x07\x01"):
                with self.assertRaises(grpc.RpcError) as caught:
                    await self.raw(method, body)
                error: Any = caught.exception
                self.assertEqual((error.code(), code_of(error)), (Code.INVALID_ARGUMENT, "BadRequest"), method)
        with self.assertRaises(grpc.RpcError) as none:
            await self.raw("Nonsense", b"")
        self.assertEqual(none.exception.code(), Code.UNIMPLEMENTED)

    async def test_a_message_over_the_limit(self) -> None:
        over = pb.GetKeyRequest(kid="x" * LIMIT_BYTES)
        self.assertEqual((await self.rpc_refused("GetKey", over)).code(), Code.RESOURCE_EXHAUSTED)
        under = pb.GetKeyRequest(kid="x" * (LIMIT_BYTES - 100))
        self.assertEqual((await self.rpc_refused("GetKey", under)).code(), Code.INVALID_ARGUMENT)

    async def test_fields_that_are_missing_or_wrong(self) -> None:
        kid = await self.create()
        for request in (
            pb.SignRequest(),
            pb.SignRequest(payload_b3=B3),
            pb.SignRequest(kid_or_set={}, payload_b3=B3),
            pb.SignRequest(kid_or_set={"kid": kid, "kid_set": [kid]}, payload_b3=B3),
            pb.SignRequest(kid_or_set={"kid": kid}, payload_b3=B3[:-2]),
            pb.SignRequest(kid_or_set={"kid": kid}, payload_b3=B3.upper()),
            pb.SignRequest(kid_or_set={"kid": kid}, payload_b3=B3, op_id="1"),
        ):
            self.assertEqual((await self.rpc_refused("Sign", request)).code(), Code.INVALID_ARGUMENT)
        versioned = await self.rpc_refused("Rotate", pb.RotateRequest(kid=kid))
        self.assertEqual((versioned.code(), versioned.details().partition(";")[0]),
                         (Code.INVALID_ARGUMENT, "a key is rotated, not a version of it"))  # fmt: skip
        self.assertEqual([one for one in self.backend.signed if one[0].tenant == "core"], [])

    async def test_every_refusal_of_the_service_has_a_status(self) -> None:
        kid = await self.create()
        self.assertEqual((await self.rpc_refused("GetKey")).code(), Code.NOT_FOUND)
        unsupported = pb.CreateKeyRequest(tenant="core", purpose="kem", alg="ed25519")
        self.assertEqual((await self.rpc_refused("CreateKey", unsupported)).code(), Code.UNIMPLEMENTED)
        large = pb.CreateKeyRequest(tenant="core", purpose="audit", alg="ed25519", policy_hints={"a": "x" * 5000})
        self.assertEqual(code_of(await self.rpc_refused("CreateKey", large)), "TooLarge")
        first = pb.RotateRequest(kid=bare(kid), op_id=op_id(1))
        await self.rpc("Rotate", first)
        clash = pb.CreateKeyRequest(tenant="core", purpose="audit", alg="ed25519", op_id=op_id(1))
        self.assertEqual((await self.rpc_refused("CreateKey", clash)).code(), Code.FAILED_PRECONDITION)
        undecided = await self.rpc_refused("DestroyKey", pb.DestroyRequest(kid=kid, proposal="none"))
        self.assertEqual(undecided.code(), Code.PERMISSION_DENIED)
        self.backend.away = True
        away = await self.rpc_refused("CreateKey")
        self.assertEqual((away.code(), code_of(away)), (Code.UNAVAILABLE, "StoreUnavailable"))
        self.assertIn(int(trailing(away)["grpc-retry-pushback-ms"]), range(1000, 5001))

    async def test_the_whole_envelope_stands_in_the_trailers(self) -> None:
        refused = await self.rpc_refused("GetKey")
        error = msgspec.json.decode(trailing(refused)["ron-error-bin"], type=ErrorEnvelope).error
        over_http = (await self.ask("GET", at(UNKNOWN))).body["error"]
        self.assertEqual((error.code, error.message, error.retryable),
                         (over_http["code"], over_http["message"], over_http["retryable"]))  # fmt: skip
        self.assertEqual(error.request_id, trailing(refused)["x-corr-id"])

    async def test_a_defect_shows_nothing_of_itself(self) -> None:
        def broken(*_any: object) -> Any:
            raise KeyError("the secret detail")

        operation = door.OPERATIONS[0]
        self.patch(self.service, "sign", broken)
        refused = await self.rpc_refused(operation.name)
        self.assertEqual((refused.code(), code_of(refused)), (Code.INTERNAL, "Internal"))
        self.assertNotIn("secret", f"{refused.details()}{trailing(refused)}")
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)


class Answers(Grpc):
    """Every call, as HTTP answers it."""

    async def test_create_sign_verify(self) -> None:
        hints = {"rotate_days": 30, "who": ["a", None, {"b": 1.5}]}
        made = await self.rpc(
            "CreateKey", pb.CreateKeyRequest(tenant="core", purpose="audit", alg="ed25519", policy_hints=hints)
        )
        request = pb.SignRequest(kid_or_set={"kid": made.kid}, payload_b3=B3, policy={"produce_hybrid": True})
        signed = await self.rpc("Sign", request)
        self.assertEqual([one.alg for one in signed.sigs], ["ed25519", "ml-dsa"])
        self.assertEqual((signed.kid, signed.HasField("attestation")), (made.kid, False))
        key = VerifyKey(base64.b64decode(made.public.pubkey_b64))
        key.verify(bytes.fromhex(B3), base64.b64decode(signed.sigs[0].signature_b64))
        held = await self.rpc(
            "Verify",
            pb.VerifyRequest(kid_or_set={"kid": made.kid}, payload_b3=B3, sigs=signed.sigs, policy={"mode": "and"}),
        )
        self.assertEqual((held.ok, held.details.satisfied_mode, held.kid), (True, "and", made.kid))
        # over HTTP it is the same signature of the same key
        over_http = await self.verify([json_format.MessageToDict(one, preserving_proto_field_name=True)
                                       for one in signed.sigs], made.kid)  # fmt: skip
        self.assertTrue(over_http["ok"])
        other = await self.rpc(
            "Verify", pb.VerifyRequest(kid_or_set={"kid": made.kid}, payload_b3="00" * 32, sigs=signed.sigs)
        )
        self.assertEqual((other.ok, other.details.HasField("satisfied_mode")), (False, False))
        self.assertEqual((await self.done("GET", at(made.kid)))["policy_hints"], hints)

    async def test_a_key_is_shown_as_over_http(self) -> None:
        kid = await self.create("hybrid", policy_hints={"rotate_days": 30, "deep": {"er": [True, "x"]}})
        await self.rpc("Rotate", pb.RotateRequest(kid=bare(kid)))
        view = await self.rpc("GetKey", pb.GetKeyRequest(kid=kid))
        as_json = json_format.MessageToDict(view, preserving_proto_field_name=True)
        self.assertEqual(as_json, await self.done("GET", at(kid)))
        listed = await self.rpc("ListKeys", pb.ListKeysRequest(tenant="core"))
        as_json = json_format.MessageToDict(listed, preserving_proto_field_name=True)
        self.assertEqual(as_json, await self.done("GET", "/keys?tenant=core"))

    async def test_pages(self) -> None:
        self.patch(keys, "PAGE", 2)
        kids = sorted([bare(await self.create()) for _ in range(3)])
        first = await self.rpc("ListKeys")
        rest = await self.rpc("ListKeys", pb.ListKeysRequest(tenant="core", after=first.next))
        self.assertEqual([bare(one.kid) for page in (first, rest) for one in page.keys], kids)
        self.assertFalse(rest.HasField("next"))

    async def test_rotate_once(self) -> None:
        kid = await self.create()
        request = pb.RotateRequest(kid=bare(kid), op_id=op_id(7))
        first, second = await self.rpc("Rotate", request), await self.rpc("Rotate", request)
        self.assertEqual((first.kid, first.previous), (second.kid, kid))
        # and it is one act, whichever way it comes
        third = await self.done("POST", f"{at(bare(kid))}/rotate", {"op_id": op_id(7)})
        self.assertEqual(third["kid"], first.kid)

    async def test_wrap_and_unwrap(self) -> None:
        kid = await self.create("x25519", purpose="kem")
        secret = base64.b64encode(b"s" * 32).decode()
        for mode in ("hybrid", "pq"):
            wrapped = await self.rpc("Wrap", pb.WrapRequest(kid=kid, plaintext_key_b64=secret, kem_mode=mode))
            opened = await self.rpc("Unwrap", pb.UnwrapRequest(kid=bare(kid), wrapped_b64=wrapped.wrapped_b64))
            self.assertEqual((opened.plaintext_key_b64, opened.alg), (secret, wrapped.alg))
        sized = await self.rpc("Wrap", pb.WrapRequest(kid=kid, size=48))
        opened = await self.rpc("Unwrap", pb.UnwrapRequest(kid=bare(kid), wrapped_b64=sized.wrapped_b64))
        self.assertEqual(len(base64.b64decode(opened.plaintext_key_b64)), 48)

    async def test_attest_and_destroy(self) -> None:
        kid = await self.create()
        self.backend.evidence = "ZXZpZGVuY2U="
        shown = await self.rpc("Attest", pb.AttestRequest(kid=kid))
        self.assertEqual((shown.kid, shown.attestation.evidence), (kid, "ZXZpZGVuY2U="))
        self.assertFalse((await self.rpc("Attest", pb.AttestRequest())).HasField("kid"))
        self.votes.allowed["p1"] = ("destroy_key", "tenant:core", {"kid": kid})
        gone = await self.rpc("DestroyKey", pb.DestroyRequest(kid=kid, proposal="p1"))
        self.assertEqual((gone.kid, gone.destroyed), (kid, True))
        refused = await self.rpc_refused("Sign", pb.SignRequest(kid_or_set={"kid": kid}, payload_b3=B3))
        self.assertEqual(refused.code(), Code.NOT_FOUND)

    async def test_every_signature_is_in_the_log(self) -> None:
        kid = await self.create()
        before = len(self.records())
        corr_id = str(uuid7())
        await self.rpc(
            "Sign",
            pb.SignRequest(kid_or_set={"kid": kid}, payload_b3=B3),
            metadata=[*self.metadata(), ("x-corr-id", corr_id)],
        )
        (record,) = self.records()[before:]
        self.assertEqual((record["op"], record["kid"], record["corr_id"]), ("sign", kid, corr_id))

    async def test_correlation(self) -> None:
        mine = str(uuid7())
        for given in (mine, "nonsense"):
            metadata = [*self.metadata(), ("x-corr-id", given)]
            _answer, call = await deferToThread(
                KmsStub(self.connect()).ListKeys.with_call, REQUESTS["ListKeys"], metadata=metadata, timeout=PATIENCE_S
            )
            found = dict(call.trailing_metadata())["x-corr-id"]
            self.assertEqual(found == mine, given == mine)
            self.assertEqual(uuid.UUID(found).version, 7)

    async def test_counted_and_charged(self) -> None:
        self.token = self.bearer(("scope", "*"), ("bytes_per_day", "100"))
        await self.rpc("ListKeys")
        self.token = None
        await self.rpc_refused("ListKeys")
        route = {"route": "/ron.kms.v1.Kms/ListKeys", "method": "RPC"}
        self.assertEqual(self.value("request_latency_seconds_count", **route), 2)
        self.assertEqual(self.value("rejected_total", reason="unauth"), 1)
        self.token = self.bearer(("scope", "*"), ("bytes_per_day", "1"))
        await self.rpc("CreateKey")
        self.assertEqual((await self.rpc_refused("CreateKey")).code(), Code.RESOURCE_EXHAUSTED)

    async def test_many_at_once(self) -> None:
        kids = [await self.create() for _ in range(4)]
        calls = [
            Deferred.fromCoroutine(
                self.rpc("Sign", pb.SignRequest(kid_or_set={"kid": kids[number % 4]}, payload_b3=f"{number:064x}"))
            )
            for number in range(64)
        ]
        answers = await DeferredList(calls)
        self.assertEqual([answer.kid for _done, answer in answers], [kids[number % 4] for number in range(64)])

    async def test_more_than_the_process_has_places_for(self) -> None:
        """The places are those of all listeners."""
        self.process.edge.concurrency.limit = 0
        self.assertEqual((await self.rpc_refused("ListKeys")).code(), Code.UNAVAILABLE)
        self.process.edge.concurrency.limit = 1
        self.assertEqual(len((await self.rpc("ListKeys")).keys), 0)


class Probes(Grpc):
    """`grpc.health.v1`."""

    async def test_check(self) -> None:
        stub = health_pb2_grpc.HealthStub(self.connect())

        async def check(name: str) -> Any:
            request = health_pb2.HealthCheckRequest(service=name)
            return (await deferToThread(stub.Check, request, timeout=PATIENCE_S)).status

        states = health_pb2.HealthCheckResponse
        self.health.missing("backend_ready", "gone")
        self.assertEqual((await check(""), await check("ron.kms.v1.Kms")), (states.NOT_SERVING, states.SERVING))


class Ends(Grpc):
    """What is under way, at the end."""

    def hang(self) -> list[Deferred[Any]]:
        waiting: list[Deferred[Any]] = []

        def never(*_any: object) -> Deferred[Any]:
            waiting.append(Deferred())
            return waiting[-1]

        self.patch(self.service, "list", never)
        return waiting

    async def test_ours_is_the_last_deadline(self) -> None:
        self.hang()
        self.patch(door, "DEADLINE_S", 0.2)
        refused = await self.rpc_refused("ListKeys", timeout=None)
        self.assertEqual((refused.code(), code_of(refused)), (Code.DEADLINE_EXCEEDED, "Timeout"))

    async def test_the_callers_deadline(self) -> None:
        self.hang()
        self.patch(door, "DEADLINE_S", 1000.0)
        self.assertEqual((await self.rpc_refused("ListKeys", timeout=0.3)).code(), Code.DEADLINE_EXCEEDED)
        # the server gave it up as well
        await self.until(lambda: self.process.edge.concurrency.busy == 0, "the end of the call")

    async def test_calls_that_take_too_long_are_cut_off(self) -> None:
        waiting = self.hang()
        self.process.drain_s = 0.2
        call = Deferred.fromCoroutine(self.rpc_refused("ListKeys"))
        await self.until(lambda: waiting, "the call")
        assert self.doors is not None
        self.assertEqual(await self.doors.stop(), 1)
        self.assertIn((await call).code(), (Code.CANCELLED, Code.UNAVAILABLE))
        self.assertEqual(await self.doors.stop(), 0)
        self.assertFalse((self.folder / "run" / "kms-grpc.sock").exists())

    async def test_more_than_gives_places_for(self) -> None:
        assert self.doors is not None
        await self.doors.stop()
        self.patch(kms_server, "MAX_CONCURRENT", 2)
        self.open(grpc_addr=LOOPBACK)
        waiting = self.hang()
        calls = [Deferred.fromCoroutine(self.rpc("ListKeys", on=self.connect())) for _ in range(2)]
        await self.until(lambda: len(waiting) == 2, "the calls")
        refused = await self.rpc_refused("ListKeys", on=self.connect())
        self.assertEqual(refused.code(), Code.RESOURCE_EXHAUSTED)
        for one in waiting:
            one.callback(KeyList(keys=()))
        self.assertEqual([done for done, _answer in await DeferredList(calls)], [True, True])
