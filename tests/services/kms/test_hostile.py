"""Requests of somebody who means harm: spellings, bodies, other tenants' keys. What comes back, and what is logged."""

from __future__ import annotations

import gzip
import json
import string
from typing import Any, ClassVar
from urllib.parse import quote

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import StringTransport
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from ron.kernel.logs import as_json_line, kid_hash
from ron.proto.kms import parse_kid
from tests.services.kms.world import B3, UNKNOWN, Answer, World, at, bare, op_id
from tests.web.wire import exchange, request, split_response

MIB = 1024 * 1024
SIG = {"alg": "ed25519", "signature_b64": "AA=="}
# Of the house's envelope; nothing else is in it.
FIELDS = {"code", "message", "retryable", "hint", "ts", "request_id"}
CANARY = "c4nary-in-a-request"
few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


class Hostile(World):
    """Everything that is logged meanwhile is kept."""

    async def setUp(self) -> None:
        self.logged: list[str] = []
        globalLogPublisher.addObserver(self.observe)
        self.addCleanup(globalLogPublisher.removeObserver, self.observe)
        await super().setUp()

    def observe(self, event: Any) -> None:
        self.logged.append(as_json_line(event, service="ron-kms"))

    async def sent(self, method: str, path: str, body: bytes, **headers: str) -> Answer:
        """With headers of the caller's."""
        given_headers = {"Authorization": f"Bearer {self.token}"}
        given_headers.update({name.replace("_", "-"): value for name, value in headers.items()})
        channel, transport = self.site.buildProtocol(None), StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(request(method, f"/v1/kms{path}", given_headers, body))
        response = await self._response(transport)
        channel.connectionLost(Failure(connectionDone.value))
        return Answer(response.status, json.loads(response.body), response.headers)

    def envelope(self, answer: Answer, *statuses: int) -> None:
        """It is one, and repeats nothing of what came in."""
        self.assertIn(answer.status, statuses, answer.body)
        self.assertEqual(set(answer.body), {"error"})
        self.assertLessEqual(set(answer.body["error"]), FIELDS)
        text = json.dumps(answer.body)
        for secret in (CANARY, str(self.token)):
            self.assertNotIn(secret, text)

    def nothing_logged(self, *raw: str) -> None:
        """Neither these texts nor a failure of ours."""
        for line in self.logged:
            for text in (CANARY, str(self.token), *raw):
                self.assertNotIn(text, line)
            self.assertNotIn("internal_error", line)


class Bodies(Hostile):
    """JSON that is none, or more than it says."""

    async def test_what_is_no_json(self) -> None:
        kid = await self.create()
        base = json.dumps({"kid_or_set": {"kid": kid}, "payload_b3": B3})
        for value in ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "0x10", "01", "+1", "'a'", '"\\ud800"',
                      '"\\udc00\\ud800"', "1" * 5000, '"\x01"', "tru", "[" * 5000, '{"a":' * 5000):  # fmt: skip
            for field in ("policy", "op_id", "payload_b3", "kid_or_set"):
                raw = base[:-1] + f', "{field}": {value}' + "}"
                self.envelope(await self.ask("POST", "/sign", raw.encode()), 400)
        for tail in (b"\x00", b"{}", b" x", b","):
            self.envelope(await self.ask("POST", "/sign", base.encode() + tail), 400)
        for raw in (b"\xff\xfe" + base.encode("utf-16-le"), b"\xef\xbb\xbf" + base.encode(), b'{"a":"\xed\xa0\x80"}'):
            self.envelope(await self.ask("POST", "/sign", raw), 400)
        self.nothing_logged(kid)

    async def test_a_field_twice(self) -> None:
        """None of the two counts: a reader before us may have judged the other one. Nothing is signed."""
        ours, theirs = await self.create(tenant="core"), await self.create(tenant="acme")
        self.token = self.bearer(("scope", "kms:*"), ("tenant", "core"))
        self.backend.signed.clear()
        for first, last in ((theirs, ours), (ours, theirs), (ours, ours)):
            raw = f'{{"kid_or_set":{{"kid":"{first}"}},"kid_or_set":{{"kid":"{last}"}},"payload_b3":"{B3}"}}'
            self.envelope(await self.ask("POST", "/sign", raw.encode()), 400)
        raw = f'{{"kid_or_set":"{ours}","payload_b3":"{"00" * 32}","payload_b3":"{B3}"}}'
        self.envelope(await self.ask("POST", "/sign", raw.encode()), 400)
        self.assertEqual(self.backend.signed, [])

    async def test_names_in_another_case(self) -> None:
        for name in ("KID_OR_SET", "Kid_or_set", "kid_or_set ", "kid\\u005for_set\\u0000", "__proto__", "kidOrSet"):
            raw = f'{{"{name}":"{UNKNOWN}","payload_b3":"{B3}"}}'
            self.envelope(await self.ask("POST", "/sign", raw.encode()), 400)

    async def test_a_body_that_inflates(self) -> None:
        """A thousandfold, or to more than a body may have."""
        bomb = gzip.compress(b" " * (8 * MIB))
        self.envelope(await self.sent("POST", "/sign", bomb, Content_Encoding="gzip"), 400, 413)
        twice = gzip.compress(gzip.compress(b"{}"))
        self.envelope(await self.sent("POST", "/sign", twice, Content_Encoding="gzip, gzip"), 400, 415)
        self.envelope(await self.sent("POST", "/sign", b"\x1f\x8b" + b"\xff" * 40, Content_Encoding="gzip"), 400)
        self.envelope(await self.ask("POST", "/verify", b" " * (MIB + 1)), 413)
        self.nothing_logged()

    async def test_hints_of_any_depth_and_size(self) -> None:
        """What could be stored and never shown again would hide all keys of its page."""
        await self.create()
        for depth in (*range(2, 40), *range(40, 2000, 13)):
            for opening, closing in (('{"a":', "}"), ("[", "]")):
                hints = '{"h":' + opening * depth + "1" + closing * depth + "}"
                raw = f'{{"tenant":"core","purpose":"audit","alg":"ed25519","policy_hints":{hints}}}'
                answer = await self.ask("POST", "/keys", raw.encode())
                self.assertIn(answer.status, {200, 400, 413}, (depth, answer.body))
                if answer.status == 200:
                    await self.done("GET", at(answer.body["kid"]))
            if depth > 40 and answer.status != 200:
                break
        await self.done("GET", "/keys?tenant=core")
        for value in ("9" * 400, "-0.0", "1e308", '"\\u0000"', '"\\ud83d\\ude00"'):
            raw = f'{{"tenant":"acme","purpose":"audit","alg":"ed25519","policy_hints":{{"x":{value}}}}}'
            made = await self.ask("POST", "/keys", raw.encode())
            if made.status == 200:
                self.assertEqual(
                    (await self.done("GET", at(made.body["kid"])))["policy_hints"], {"x": json.loads(value)}
                )
        self.nothing_logged()

    @few
    @given(st.binary(max_size=200) | st.text(max_size=60).map(str.encode))
    def test_any_bytes(self, raw: bytes) -> None:
        for path in ("/sign", "/unwrap"):
            sent = request("POST", f"/v1/kms{path}", {"Authorization": f"Bearer {self.token}"}, raw)
            whole = split_response(exchange(self.site, sent))
            assert whole is not None
            self.envelope(Answer(whole[0].status, whole[0].json, whole[0].headers), 400)


class Spellings(Hostile):
    """One key has one name, one hash one spelling."""

    def misspelt(self, kid: str) -> list[str]:
        key, _, version = kid.partition("#v")
        tenant, purpose, alg, uuid = key.split("/")
        return [
            kid.upper(), f"{key}#V{version}", f"{key}#v0{version}", f"{key}#v0", f"{key}#v", f"{key}#", f"{key}#v-1",
            f"{key}#v+1", f"{key}#v1.0", f"{key}#v\uff11", f"{key}#v1#v1", f"{key}%23v1", quote(kid, safe=""),
            f" {kid}", f"{kid} ", f"{kid}\n", f"{kid}\0", f"/{kid}", f"./{kid}", f"{tenant}//{purpose}/{alg}/{uuid}",
            f"{tenant}/./{purpose}/{alg}/{uuid}", f"x/../{kid}", kid.replace("/", "\\"), kid.replace("/", "\u2215"),
            kid.replace("core", "c\u043ere"), kid.replace("core", "co\u0301re"), f"\ufeff{kid}", f"{kid}\u200b",
            f"{tenant}/{purpose}/{alg}/{uuid.replace('-', '')}", f"{tenant}/{purpose}/{alg}/{{{uuid}}}",
            f"{tenant}/{purpose}/{alg}/urn:uuid:{uuid}", f"{key}#v{10**9}", f"{key}#v{2**64 + 1}",
        ]  # fmt: skip

    async def test_of_a_kid(self) -> None:
        """In a body and in a path alike: none of them is the key."""
        kid = await self.create()
        for text in self.misspelt(kid):
            for selector in (text, {"kid": text}, {"kid_set": [kid, text]}):
                body = {"kid_or_set": selector, "payload_b3": B3}
                self.envelope(await self.ask("POST", "/sign", body), 400)
                self.envelope(await self.ask("POST", "/verify", {**body, "sigs": [SIG]}), 400)
            self.envelope(await self.ask("POST", "/wrap", {"kid": text, "size": 32}), 400)
            path = "/keys/" + quote(text, safe="")
            for method, more in (("GET", ""), ("POST", "/rotate")):
                answer = await self.ask(method, path + more, {} if more else None)
                self.assertIn(answer.status, {400, 404, 405}, (text, answer.body))
        self.assertEqual([one for one in self.backend.signed if one[0].tenant == "core"], [])
        self.assertEqual((await self.done("GET", at(bare(kid))))["versions"], ["#v1"])
        self.nothing_logged(kid, bare(kid))

    async def test_of_a_path(self) -> None:
        """Percent-encoded once. What is encoded twice is no key, and a `#` that is not encoded never arrives."""
        kid = await self.create()
        self.assertEqual((await self.done("GET", "/keys/" + bare(kid)))["kid"], kid)
        self.assertEqual((await self.done("GET", at(kid).lower().replace("%2f", "/")))["kid"], kid)
        for path in (quote(at(kid)), at(kid).replace("%23", "%2523"), at(kid) + "/", at(kid) + "%00", at(kid) + "%0a",
                     "/keys/%ff", "/keys/" + "x" * 4000, "/keys/..%2f..%2fetc%2fpasswd"):  # fmt: skip
            answer = await self.ask("GET", path)
            self.assertIn(answer.status, {400, 404, 414}, path)
            self.envelope(answer, 400, 404, 414)

    async def test_of_a_hash(self) -> None:
        kid = await self.create()
        texts = ["7F" * 32, "7f" * 31, "7f" * 32 + "0", " " + "7f" * 32, "7f" * 32 + "\n", "0x" + "7f" * 31,
                 "7f" * 31 + "\uff17f", "b3:" + "7f" * 32, "f" * 64_000, "7f_" * 21 + "7", "\u0667f" * 32]  # fmt: skip
        for text in texts:
            body = {"kid_or_set": kid, "payload_b3": text}
            self.envelope(await self.ask("POST", "/sign", body), 400)
            self.envelope(await self.ask("POST", "/verify", {**body, "sigs": [SIG]}), 400)
        self.assertEqual([one for one in self.backend.signed if one[0].tenant == "core"], [])

    async def test_of_base64(self) -> None:
        """Other alphabets, no padding, padding within, white space, bits that mean nothing."""
        kid, kem = await self.create(), await self.create("hybrid", purpose="kem")
        for text in ("AB==", "AAB=", "A", "AA", "AAA", "AA=A", "A===", "====", "AA==\n", " AA==", "-_8=", "A A=",
                     "AA==AA==", "\uff21A==", "A" * 70_000, "%41A==", "AA%3D%3D"):  # fmt: skip
            sigs = [{"alg": "ed25519", "signature_b64": text}]
            body = {"kid_or_set": kid, "payload_b3": B3, "sigs": sigs}
            self.envelope(await self.ask("POST", "/verify", body), 400)
            self.envelope(await self.ask("POST", "/unwrap", {"kid": kem, "wrapped_b64": text}), 400)
            self.envelope(await self.ask("POST", "/wrap", {"kid": kem, "plaintext_key_b64": text}), 400)

    async def test_what_is_to_be_wrapped_is_nowhere(self) -> None:
        """Neither in a refusal nor in the log nor in the audit log; in the answer only sealed."""
        kem = await self.create("hybrid", purpose="kem")
        secret = "c2VjcmV0LWtleS1ieXRlcy1vZi1hLWNhbGxlci0wMDE="
        body = {"kid": kem, "plaintext_key_b64": secret}
        answers = [await self.ask("POST", "/wrap", {**body, **more})
                   for more in ({"size": 32}, {"x": CANARY}, {"kem_mode": ""}, {"kid": UNKNOWN}, {})]  # fmt: skip
        self.assertEqual([one.status for one in answers], [400, 400, 400, 404, 200])
        for answer in answers:
            self.assertNotIn(secret[:20], json.dumps(answer.body))
            self.assertNotIn(CANARY, json.dumps(answer.body))
        self.assertNotIn(secret[:20], json.dumps(self.records()))
        self.nothing_logged(secret[:20], kem)


class Tenants(Hostile):
    """A capability of one tenant, and keys of another: whether there are any, nothing tells."""

    sections: ClassVar[dict[str, Any]] = {}

    async def setUp(self) -> None:
        await super().setUp()
        self.ours = await self.create(tenant="core")
        self.theirs = await self.create(tenant="acme", op_id=op_id(1))
        self.their_kem = await self.create("hybrid", tenant="acme", purpose="kem")
        await self.sign(self.theirs, op_id=op_id(2))
        self.wrapped = (await self.done("POST", "/wrap", {"kid": self.their_kem, "size": 32}))["wrapped_b64"]
        self.sigs = (await self.sign(self.theirs))["sigs"]
        self.token = self.bearer(("scope", "kms:*"), ("tenant", "core"))
        self.backend.signed.clear()

    def asks(self, kid: str, kem: str) -> list[tuple[str, str, Any]]:
        """Every route with a key of another tenant."""
        sign = {"payload_b3": B3}
        verify = {"payload_b3": B3, "sigs": self.sigs}
        sets: list[Any] = [kid, {"kid": kid}, {"kid_set": [kid]}, {"kid_set": [self.ours, kid]}]
        sets += [{"kid_set": [kid, self.ours]}, {"kid_set": [UNKNOWN, kid]}, bare(kid)]
        found: list[tuple[str, str, Any]] = []
        for one in sets:
            found += [
                ("POST", "/sign", {**sign, "kid_or_set": one}),
                ("POST", "/verify", {**verify, "kid_or_set": one}),
            ]
            found += [("POST", "/sign", {**sign, "kid_or_set": one, "op_id": op_id(2)})]
        found += [
            ("POST", "/wrap", {"kid": kem, "size": 32}),
            ("POST", "/unwrap", {"kid": kem, "wrapped_b64": self.wrapped}),
            ("POST", "/unwrap", {"kid": bare(kem), "wrapped_b64": "AAAA"}),
            ("GET", at(kid), None),
            ("GET", at(bare(kid)), None),
            ("GET", f"/attest?kid={quote(kid, safe='')}", None),
            ("POST", at(bare(kid)) + "/rotate", {}),
            ("POST", at(bare(kid)) + "/rotate", {"op_id": op_id(1)}),
            ("DELETE", at(kid), {"proposal": "p", "op_id": op_id(1)}),
            ("GET", "/keys?tenant=acme", None),
            ("GET", f"/keys?tenant=acme&after={quote(bare(kid), safe='')}", None),
            ("POST", "/keys", {"tenant": "acme", "purpose": "audit", "alg": "ed25519", "op_id": op_id(1)}),
        ]
        return found

    async def test_a_key_that_is_there_and_one_that_is_not(self) -> None:
        """The same answer to the last letter, and no private half, lane or record of theirs was touched for it."""
        absent = parse_kid(self.theirs)._replace(uuid="00000000-0000-4000-8000-0000000000aa")
        absent_kem = parse_kid(self.their_kem)._replace(uuid="00000000-0000-4000-8000-0000000000ab")
        pairs = zip(self.asks(self.theirs, self.their_kem), self.asks(str(absent), str(absent_kem)), strict=True)
        records = len(self.records())
        for there, absent_one in pairs:
            answers = [await self.ask(*there), await self.ask(*absent_one)]
            for answer in answers:
                self.envelope(answer, 403)
                del answer.body["error"]["ts"], answer.body["error"]["request_id"]
            self.assertEqual(answers[0].body, answers[1].body, there)
            own = {"x-request-id", "x-corr-id", "date"}
            same = [{name: value for name, value in one.headers.items() if name not in own} for one in answers]
            self.assertEqual(same[0], same[1], there)
        self.assertEqual(self.backend.signed, [])
        self.assertEqual(len(self.records()), records)
        self.nothing_logged(self.theirs, bare(self.theirs))

    async def test_lists_and_tries_are_of_ones_own(self) -> None:
        after = quote(bare(self.theirs), safe="")
        for path in ("/keys", f"/keys?after={after}", "/keys?tenant=core"):
            shown = [one["kid"] for one in (await self.done("GET", path))["keys"]]
            self.assertIn(shown, ([self.ours], []))
        self.assertFalse((await self.verify(self.sigs))["ok"])
        await self.refused(403, "NoCapability", "GET", "/audit/entries")
        await self.refused(403, "NoCapability", "GET", "/attest")

    async def test_a_capability_of_two_tenants_is_of_none(self) -> None:
        self.token = self.bearer(("scope", "kms:*"), ("tenant", "core"), ("tenant", "acme"))
        for kid in (self.ours, self.theirs):
            await self.refused(403, "NoCapability", "POST", "/sign", {"kid_or_set": kid, "payload_b3": B3})

    async def test_names_that_begin_alike(self) -> None:
        self.token = self.bearer(("scope", "*"))
        near = [await self.create(tenant=name) for name in ("cor", "core.", "core-a", "core0", "CORE", "corf")]
        self.token = self.bearer(("scope", "kms:*"), ("tenant", "core"))
        self.assertEqual([one["kid"] for one in (await self.done("GET", "/keys"))["keys"]], [self.ours])
        for kid in near:
            await self.refused(403, "NoCapability", "GET", at(kid))

    async def test_a_set_is_of_one_tenant(self) -> None:
        """Else the first one's freeze, rate and phase would be asked, and the other one's key would be used."""
        self.token = self.bearer(("scope", "*"))
        absent = str(parse_kid(self.ours)._replace(uuid="00000000-0000-4000-8000-0000000000aa"))
        mixed = {"kid_set": [absent, self.theirs]}
        self.votes.freezes["acme"] = "f1"
        await self.refused(400, "BadRequest", "POST", "/sign", {"kid_or_set": mixed, "payload_b3": B3})
        self.assertEqual(self.backend.signed, [])
        self.votes.modes["acme"] = "pq_only"
        lax = {"kid_set": [self.ours, self.theirs]}
        body = {"payload_b3": B3, "sigs": self.sigs[:1], "kid_or_set": lax, "policy": {"mode": "or"}}
        await self.refused(400, "BadRequest", "POST", "/verify", body)


class Damaged(Hostile):
    """What is wrong with one tenant's file is told to everybody, and whose it is to nobody."""

    on_disk = True

    async def test_whose_file_it_is(self) -> None:
        theirs = await self.create(tenant="acme")
        await self.end()
        newest = max((self.home / "sealed").glob("*.key"), key=lambda path: path.stat().st_mtime_ns)
        newest.write_bytes(newest.read_bytes()[:-1] + b"!")
        await self.begin()
        self.token = self.bearer(("scope", "kms:*"), ("tenant", "core"))
        answer = await self.ask("POST", "/sign", {"kid_or_set": UNKNOWN, "payload_b3": B3})
        self.envelope(answer, 503)
        shown = json.dumps(answer.body) + str(self.health.snapshot())
        self.assertIn(kid_hash(theirs), shown)
        for text in ("acme", parse_kid(theirs).uuid):
            self.assertNotIn(text, shown)
        self.nothing_logged(bare(theirs))


class Replays(Hostile):
    """What was done once under an op_id."""

    async def test_another_capability_of_the_tenant_learns_nothing_by_it(self) -> None:
        """Under an op_id somebody else used: Conflict, whatever is asked for, and not his answer."""
        kid = await self.create(tenant="core")
        self.token = self.bearer(("scope", "kms:*"), ("tenant", "core"))
        body = {"kid_or_set": kid, "payload_b3": B3, "op_id": op_id(5)}
        await self.done("POST", "/sign", body)
        self.token = self.bearer(("scope", "kms:sign"), ("tenant", "core"))
        for more in ({}, {"payload_b3": "00" * 32}):
            message = await self.refused(409, "Conflict", "POST", "/sign", {**body, **more})
            self.assertNotIn(kid, message)

    async def test_what_an_op_id_is_not(self) -> None:
        kid = await self.create()
        text = op_id(9)
        for bad in ("", "x", text.upper().replace("0", "A"), text + "\n", text.replace("-", ""), f"{{{text}}}", 7,
                    [text], "\uff10" + text[1:]):  # fmt: skip
            self.envelope(await self.ask("POST", "/sign", {"kid_or_set": kid, "payload_b3": B3, "op_id": bad}), 400)

    @few
    @given(st.text(alphabet=string.printable, max_size=300), st.sampled_from(["X-Corr-ID", "Authorization"]))
    def test_headers_do_not_get_into_the_log(self, text: str, name: str) -> None:
        value = CANARY + "".join(char for char in text if char not in "\r\n\0")
        headers = {"Authorization": f"Bearer {self.token}", name: value}
        sent = request("POST", "/v1/kms/sign", headers, json.dumps({"kid_or_set": UNKNOWN, "payload_b3": B3}).encode())
        whole = split_response(exchange(self.site, sent))
        assert whole is not None
        self.envelope(Answer(whole[0].status, whole[0].json, whole[0].headers), 400, 401, 403, 404)
        self.assertNotIn(CANARY, str(whole[0].headers))
        self.nothing_logged()
