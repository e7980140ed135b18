"""The key service over OAP/1, in memory: what is refused first, then many calls under way on one connection."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel.limits import overloaded
from ron.kernel.limits_config import LimitsConfig
from ron.oap import OapServer
from ron.oap.compression import deflate
from ron.oap.frames import Flags, Frame
from ron.proto.errors import RonError
from ron.proto.kms import KeyList
from ron.proto.kmscalls import OAP_PROTOCOL, KmsCall
from ron.services.kms.door import OPERATIONS, Door, strictly
from ron.services.kms.oap import TRANSPORT, OapCalls
from tests.oap.ends import END, REQ, RESP, START, WHOLE, Peer, frame, hello
from tests.services.kms.world import B3, UNKNOWN, World, bare, op_id

BODIES: dict[KmsCall, Any] = {
    KmsCall.SIGN: {"kid_or_set": UNKNOWN, "payload_b3": B3},
    KmsCall.VERIFY: {"kid_or_set": UNKNOWN, "payload_b3": B3, "sigs": [{"alg": "ed25519", "signature_b64": ""}]},
    KmsCall.WRAP: {"kid": UNKNOWN, "size": 32},
    KmsCall.UNWRAP: {"kid": UNKNOWN, "wrapped_b64": "AAAA"},
    KmsCall.CREATE_KEY: {"tenant": "core", "purpose": "audit", "alg": "ed25519"},
    KmsCall.ROTATE: {"kid": bare(UNKNOWN)},
    KmsCall.GET_KEY: {"kid": UNKNOWN},
    KmsCall.LIST_KEYS: {"tenant": "core"},
    KmsCall.ATTEST: {"kid": UNKNOWN},
    KmsCall.DESTROY_KEY: {"kid": UNKNOWN, "proposal": "none"},
}


class Oap(World):
    """A server, a peer that says what it likes."""

    async def setUp(self) -> None:
        await super().setUp()
        self.door = Door(self.service, self.site.edge, TRANSPORT)
        limits = LimitsConfig(body_bytes=1024 * 1024)
        self.server = OapServer(reactor, OapCalls(self.door), metrics=self.metrics, limits=limits)
        self.peer = Peer(self.server)
        self.addCleanup(self.peer.lose)
        self.peer.say(hello())
        self.peer.frames.clear()

    def call(self, call: int, body: Any, number: int = 7, **fields: Any) -> Frame:
        """A whole request in one frame. body: what JSON can say, or the bytes themselves."""
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        cap = (self.token or "").encode()
        flags = fields.pop("flags", WHOLE)
        return frame(flags, number, payload, **{"app_proto_id": OAP_PROTOCOL, "code": call, "cap": cap, **fields})

    async def heard(self, count: int) -> dict[int, Frame]:
        """So many answers, by their numbers."""

        def there() -> bool:
            self.peer.hear()
            return len(self.peer.frames) >= count

        await self.until(there, "the answers")
        answers, self.peer.frames = self.peer.frames, []
        self.assertEqual(len(answers), count)
        return {one.corr_id: one for one in answers}

    async def said(self, request: Frame) -> Frame:
        """What one request is answered."""
        self.peer.say(request)
        return (await self.heard(1))[request.corr_id]

    async def turned_away(self, request: Frame, status: int, code: str) -> str:
        answer = await self.said(request)
        error = json.loads(answer.payload)["error"]
        self.assertEqual((answer.code, answer.flags, error["code"]), (status, RESP | END, code), error)
        return str(error["message"])

    async def answered(self, call: int, body: Any, number: int = 7, **fields: Any) -> Any:
        answer = await self.said(self.call(call, body, number, **fields))
        self.assertEqual((answer.code, answer.flags), (0, RESP | END), answer.payload)
        return json.loads(answer.payload)


class Bad(Oap):
    """Refused."""

    async def test_every_call_needs_its_scope(self) -> None:
        scopes = {one.call: one.scope for one in OPERATIONS}
        self.assertEqual(set(scopes), set(BODIES))
        for call, body in BODIES.items():
            self.token = None
            await self.turned_away(self.call(call, body), 401, "NoCapability")
            self.token = self.bearer(("scope", ",".join(sorted(set(scopes.values()) - {scopes[call]}))))
            self.assertIn(scopes[call], await self.turned_away(self.call(call, body), 403, "NoCapability"))

    async def test_tokens_that_are_none(self) -> None:
        good = (self.token or "").encode()
        for cap in (b"\xff\xfe", b"a" * 5000, good[:-3], b"Bearer " + good, good + b"\n"):
            await self.turned_away(self.call(KmsCall.LIST_KEYS, {}, cap=cap), 401, "NoCapability")

    async def test_a_capability_is_looked_at_before_the_payload(self) -> None:
        self.token = None
        for call in KmsCall:
            await self.turned_away(self.call(call, b"{"), 401, "NoCapability")

    async def test_a_capability_for_http_alone(self) -> None:
        for caveat in (("method", "POST"), ("path", "/v1/kms"), ("method", "RPC")):
            self.token = self.bearer(("scope", "*"), caveat)
            await self.turned_away(self.call(KmsCall.LIST_KEYS, {}), 403, "NoCapability")

    async def test_another_tenants_keys(self) -> None:
        kid = await self.create()
        self.token = self.bearer(("scope", "*"), ("tenant", "other"))
        for asked in (kid, UNKNOWN):
            for call, body in (
                (KmsCall.SIGN, {"kid_or_set": asked, "payload_b3": B3}),
                (KmsCall.GET_KEY, {"kid": asked}),
                (KmsCall.ROTATE, {"kid": bare(asked)}),
                (KmsCall.DESTROY_KEY, {"kid": asked, "proposal": "none"}),
            ):
                await self.turned_away(self.call(call, body), 403, "NoCapability")

    async def test_the_frames_tenant_gives_nobody_anything(self) -> None:
        self.token = self.bearer(("scope", "*"), ("tenant", "other"))
        request = self.call(KmsCall.LIST_KEYS, {"tenant": "core"}, tenant_id=2**128 - 1)
        await self.turned_away(request, 403, "NoCapability")

    async def test_no_such_call(self) -> None:
        for call in (0, 11, 0xFFFF):
            await self.turned_away(self.call(call, {}), 400, "BadRequest")
        await self.turned_away(self.call(KmsCall.LIST_KEYS, {}, app_proto_id=0x0201), 400, "BadRequest")
        sealed = self.call(KmsCall.LIST_KEYS, {}, flags=WHOLE | Flags.APP_E2E)
        await self.turned_away(sealed, 400, "Unsupported")

    async def test_payloads_that_are_none(self) -> None:
        for payload in (b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"kid": "\xff"}'):
            await self.turned_away(self.call(KmsCall.GET_KEY, payload), 400, "BadRequest")

    async def test_unknown_fields(self) -> None:
        for call, body in BODIES.items():
            for more in ({"x": 1}, {"corr_id": "x"}):
                message = await self.turned_away(self.call(call, {**body, **more}), 400, "BadRequest")
                self.assertIn("unknown field", message, call)

    async def test_names_that_are_there_twice(self) -> None:
        for call in BODIES:
            twice = b'{"kid": "a", "kid": "b", "op_id": null, "op_id": null}'
            await self.turned_away(self.call(call, twice), 400, "BadRequest")
        text = json.dumps({"kid_or_set": {"kid": UNKNOWN}, "payload_b3": B3})[:-1] + f', "payload_b3": "{B3}"}}'
        message = await self.turned_away(self.call(KmsCall.SIGN, text.encode()), 400, "BadRequest")
        self.assertIn("payload_b3 twice", message)

    async def test_keys_nobody_has(self) -> None:
        for call in (KmsCall.SIGN, KmsCall.VERIFY, KmsCall.WRAP, KmsCall.ROTATE, KmsCall.GET_KEY, KmsCall.ATTEST):
            await self.turned_away(self.call(call, BODIES[call]), 404, "NotFound")

    async def test_a_version_is_not_rotated(self) -> None:
        await self.turned_away(self.call(KmsCall.ROTATE, {"kid": UNKNOWN}), 400, "BadRequest")

    async def test_a_payload_over_the_limit(self) -> None:
        self.peer.say(self.call(KmsCall.SIGN, b"", flags=REQ | START))
        piece = b" " * 65536
        for _ in range(17):
            self.peer.say(frame(REQ, 7, piece, app_proto_id=OAP_PROTOCOL, code=KmsCall.SIGN))
        answer = (await self.heard(1))[7]
        self.assertEqual((answer.code, json.loads(answer.payload)["error"]["code"]), (413, "TooLarge"))

    async def test_the_backend_is_away(self) -> None:
        self.backend.away = True
        await self.turned_away(self.call(KmsCall.CREATE_KEY, BODIES[KmsCall.CREATE_KEY]), 503, "StoreUnavailable")

    async def test_a_defect_shows_nothing_of_itself(self) -> None:
        def broken(*_any: object) -> Any:
            raise KeyError("the secret detail")

        self.patch(self.service, "list", broken)
        message = await self.turned_away(self.call(KmsCall.LIST_KEYS, {}), 500, "Internal")
        self.assertNotIn("secret", message)
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)

    async def test_after_the_end(self) -> None:
        self.assertEqual(self.door.abort(), 0)
        await self.turned_away(self.call(KmsCall.LIST_KEYS, {}), 503, "StoreUnavailable")

    async def test_when_the_promise_burns_writes_go_first(self) -> None:
        class Burning:
            def __init__(self) -> None:
                self.counted: list[bool] = []

            def admit_write(self) -> None:
                raise overloaded("slo", "writes are left out")

            def count(self, *, failed: bool, elapsed_s: float) -> None:
                self.counted.append(failed)

        burning = Burning()
        self.patch(self.site.edge, "slo", burning)
        await self.turned_away(self.call(KmsCall.SIGN, BODIES[KmsCall.SIGN]), 503, "StoreUnavailable")
        await self.answered(KmsCall.LIST_KEYS, {"tenant": "core"})
        await self.turned_away(self.call(KmsCall.VERIFY, BODIES[KmsCall.VERIFY]), 404, "NotFound")
        self.assertEqual(burning.counted, [False, False])


class Good(Oap):
    """Answered."""

    async def test_every_call(self) -> None:
        made = await self.answered(KmsCall.CREATE_KEY, {**BODIES[KmsCall.CREATE_KEY], "op_id": op_id(1)})
        kid = made["kid"]
        signed = await self.answered(KmsCall.SIGN, {"kid_or_set": {"kid": kid}, "payload_b3": B3})
        bundle = {"kid_or_set": kid, "payload_b3": B3, "sigs": signed["sigs"]}
        self.assertTrue((await self.answered(KmsCall.VERIFY, bundle))["ok"])
        self.assertEqual((await self.verify(signed["sigs"], kid))["kid"], kid)
        rotated = await self.answered(KmsCall.ROTATE, {"kid": bare(kid), "op_id": op_id(2)})
        self.assertEqual(rotated["previous"], kid)
        self.assertEqual((await self.answered(KmsCall.GET_KEY, {"kid": kid}))["versions"], ["#v1", "#v2"])
        listed = await self.answered(KmsCall.LIST_KEYS, {"tenant": "core"})
        self.assertEqual(listed, await self.done("GET", "/keys?tenant=core"))
        self.assertEqual((await self.answered(KmsCall.ATTEST, b""))["backend"], "inmem")
        kem = (await self.answered(KmsCall.CREATE_KEY, {"tenant": "core", "purpose": "kem", "alg": "hybrid"}))["kid"]
        wrapped = await self.answered(KmsCall.WRAP, {"kid": kem, "size": 32})
        opened = await self.answered(KmsCall.UNWRAP, {"kid": kem, "wrapped_b64": wrapped["wrapped_b64"]})
        self.assertEqual(len(opened["plaintext_key_b64"]), 44)
        self.votes.allowed["p"] = ("destroy_key", "tenant:core", {"kid": kid})
        self.assertEqual(await self.answered(KmsCall.DESTROY_KEY, {"kid": kid, "proposal": "p"}), {"kid": kid})

    async def test_many_under_way_on_one_connection(self) -> None:
        """In one write; each answer is its own."""
        kids = [await self.create() for _ in range(3)]
        calls = [
            self.call(KmsCall.SIGN, {"kid_or_set": kids[number % 3], "payload_b3": f"{number:064x}"}, 100 + number)
            for number in range(60)
        ]
        self.peer.say(*calls)
        for number, answer in ((number - 100, one) for number, one in (await self.heard(60)).items()):
            signed = json.loads(answer.payload)
            self.assertEqual(signed["kid"], kids[number % 3])
            body = {"kid_or_set": signed["kid"], "payload_b3": f"{number:064x}", "sigs": signed["sigs"]}
            self.assertTrue((await self.done("POST", "/verify", body))["ok"], number)

    async def test_a_slow_call_holds_up_no_other(self) -> None:
        slow: Deferred[KeyList] = Deferred()
        self.patch(self.service, "list", lambda *_any: slow)
        self.peer.say(
            self.call(KmsCall.LIST_KEYS, {}, 20), self.call(KmsCall.CREATE_KEY, BODIES[KmsCall.CREATE_KEY], 21)
        )
        self.assertEqual(list(await self.heard(1)), [21])
        slow.callback(KeyList(keys=()))
        self.assertEqual(list(await self.heard(1)), [20])

    async def test_more_than_a_connection_may_have_under_way(self) -> None:
        waiting: list[Deferred[KeyList]] = []

        def later(*_any: object) -> Deferred[KeyList]:
            waiting.append(Deferred())
            return waiting[-1]

        self.patch(self.service, "list", later)
        self.peer.say(*(self.call(KmsCall.LIST_KEYS, {}, 100 + number) for number in range(65)))
        (refused,) = (await self.heard(1)).values()
        self.assertEqual((refused.corr_id, refused.code, len(waiting)), (164, 429, 64))
        for one in waiting:
            one.callback(KeyList(keys=()))
        self.assertEqual({one.code for one in (await self.heard(64)).values()}, {0})
        self.assertEqual(self.site.edge.concurrency.busy, 0)

    async def test_a_call_in_pieces_and_compressed(self) -> None:
        kid = await self.create()
        payload = json.dumps({"kid_or_set": kid, "payload_b3": B3}).encode()
        self.peer.say(self.call(KmsCall.SIGN, payload[:10], 30, flags=REQ | START))
        self.peer.say(frame(REQ | END, 30, payload[10:], app_proto_id=OAP_PROTOCOL, code=KmsCall.SIGN))
        self.assertEqual(json.loads((await self.heard(1))[30].payload)["kid"], kid)
        packed = deflate(payload + b" " * 1000)
        assert packed is not None
        answer = await self.said(self.call(KmsCall.SIGN, packed, 31, flags=WHOLE | Flags.COMP))
        # never compressed: see `OapCalls`
        self.assertEqual((answer.flags, json.loads(answer.payload)["kid"]), (RESP | END, kid))

    async def test_who_goes_away_takes_nothing_with_it(self) -> None:
        self.patch(self.service, "list", lambda *_any: Deferred())
        self.peer.say(self.call(KmsCall.LIST_KEYS, {}, 40))
        self.assertEqual(self.site.edge.concurrency.busy, 1)
        self.peer.lose()
        self.assertEqual(self.site.edge.concurrency.busy, 0)

    async def test_counted_and_in_the_log(self) -> None:
        kid = await self.create()
        before = len(self.records())
        await self.answered(KmsCall.SIGN, {"kid_or_set": kid, "payload_b3": B3})
        (record,) = self.records()[before:]
        self.assertEqual((record["op"], record["kid"]), ("sign", kid))
        counted = self.value("request_latency_seconds_count", route="/ron.kms.v1.Kms/Sign", method="OAP")
        self.assertEqual(counted, 1)

    async def test_bytes_are_charged(self) -> None:
        self.token = self.bearer(("scope", "*"), ("bytes_per_day", "1"))
        await self.answered(KmsCall.LIST_KEYS, {"tenant": "core"})
        await self.turned_away(self.call(KmsCall.LIST_KEYS, {"tenant": "core"}), 429, "Backpressure")


class Strictly(SynchronousTestCase):
    """Bad requests in words."""

    @settings(deadline=None, max_examples=100)
    @given(st.sampled_from(OPERATIONS), st.binary(max_size=100))
    def test_any_bytes(self, operation: Any, raw: bytes) -> None:
        try:
            found = strictly(lambda: msgspec.json.decode(raw, type=operation.body))
        except RonError as error:
            self.assertEqual(error.code.value, "BadRequest")
        else:
            self.assertIsInstance(found, operation.body)
