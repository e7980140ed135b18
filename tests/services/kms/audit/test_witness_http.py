"""A witness over HTTP as a log asks it: answers that are none, too long, late or away; and how it is configured."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from nacl.signing import SigningKey
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.client import HTTPConnectionPool
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site

from ron.crypto.notes import Kind, note_key
from ron.kernel import Metrics
from ron.kernel.config import ConfigError, convert
from ron.nodes.parts.kms_witness import BOOK, MOST_ANSWER_BYTES, KmsWitnessing, asker
from ron.proto.errors import ErrorCode, RonError
from ron.sdk.transport import direct_http
from ron.services.kms.audit import Meters
from ron.services.kms.audit.witness import Ask, parse_ask
from ron.services.kms.config import KmsAudit, KmsConfig
from ron.services.kms.rules import check_kms
from ron.services.kms.service import KmsService
from tests.services.kms.audit.test_witness import KEYS

ASK = Ask(3, (b"h" * 32,), b"a note\n")
SECRET = SigningKey(b"w" * 32)
VKEY = note_key("w.example", Kind.COSIGNATURE, bytes(SECRET.verify_key)).vkey()


class Answering(Resource):
    """Answers each request with what it is told to."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()
        self.status, self.body = 200, b"a line\n"
        self.asked: list[tuple[bytes, bytes]] = []
        self.silent = False

    def render_POST(self, request: Request) -> Any:
        self.asked.append((request.path, request.content.read()))
        if self.silent:
            return NOT_DONE_YET
        request.setResponseCode(self.status)
        return self.body


class Asked(TestCase):
    timeout = 30

    def setUp(self) -> None:
        self.there = Answering()
        self.port = reactor.listenTCP(0, Site(self.there), interface="127.0.0.1")
        self.pool = HTTPConnectionPool(reactor)
        self.url = f"http://127.0.0.1:{self.port.getHost().port}/v1/kms/witness"
        self.ask = asker(direct_http(reactor, self.pool), f"{self.url}/")

    async def tearDown(self) -> None:
        await maybeDeferred(self.port.stopListening)
        await self.pool.closeCachedConnections()

    async def refused(self, status: int, body: bytes = b"") -> RonError:
        self.there.status, self.there.body = status, body
        try:
            await self.ask(ASK)
        except RonError as error:
            return error
        raise AssertionError("it was taken")

    async def test_statuses(self) -> None:
        for status, code in (
            (400, ErrorCode.BAD_REQUEST),
            (403, ErrorCode.NO_CAPABILITY),
            (404, ErrorCode.NOT_FOUND),
            (422, ErrorCode.BAD_REQUEST),
            (429, ErrorCode.STORE_UNAVAILABLE),
            (503, ErrorCode.STORE_UNAVAILABLE),
            (301, ErrorCode.STORE_UNAVAILABLE),
        ):
            error = await self.refused(status)
            self.assertEqual((error.code, error.status), (code, status))
        error = await self.refused(409, b"40\n")
        self.assertEqual((error.code, error.hint), (ErrorCode.CONFLICT, "40"))

    async def test_more_than_an_answer_has(self) -> None:
        error = await self.refused(200, b"x" * (MOST_ANSWER_BYTES + 1))
        self.assertIn("too long", error.message)

    async def test_nobody_there(self) -> None:
        await maybeDeferred(self.port.stopListening)
        self.assertIs((await self.refused(200)).code, ErrorCode.STORE_UNAVAILABLE)

    async def test_one_that_says_nothing(self) -> None:
        self.there.silent = True
        asked = Deferred.fromCoroutine(self.ask(ASK))
        asked.addTimeout(0.2, reactor)
        await self.assertFailure(asked, Exception)

    async def test_as_it_goes_over_the_wire(self) -> None:
        self.assertEqual(await self.ask(ASK), b"a line\n")
        ((path, body),) = self.there.asked
        self.assertEqual((path, parse_ask(body)), (b"/v1/kms/witness/add-checkpoint", ASK))


class Configured(SynchronousTestCase):
    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir()

    def refused(self, **audit: Any) -> str:
        error = self.assertRaises(ConfigError, self.made, **audit)
        self.assertTrue(error.hint)
        return str(error.message)

    def made(self, **audit: Any) -> KmsWitnessing:
        wanted = convert({"audit": audit}, KmsConfig)
        check_kms(wanted)
        return KmsWitnessing(
            reactor,
            HTTPConnectionPool(reactor),
            cast(KmsService, _Service()),
            Meters(Metrics()),
            cast(KmsAudit, wanted.audit),
            home=self.home,
            folder=self.home / "kms",
        )

    def test_what_cannot_be(self) -> None:
        near = "http://127.0.0.1:9/v1/kms/witness"
        for audit, why in (
            ({"witnesses": [{"url": "http://10.0.0.1:80/x", "key": VKEY}]}, "anybody on the way"),
            ({"witnesses": [{"url": near, "key": "rubbish"}]}, "no verifier key"),
            ({"witnesses": [{"url": near, "key": KEYS.public[0].vkey()}]}, "no key of a witness"),
            ({"witnesses": [{"url": near, "key": VKEY}] * 2}, "one witness is there twice"),
            ({"witness_quorum": 1}, "there are 0 witnesses"),
            ({"witness_required": True}, "none has to sign"),
            ({"witness_for": ["gone.vkeys"]}, "cannot be read"),
        ):
            self.assertIn(why, self.refused(**audit))
        (self.home / "log.vkeys").write_text("rubbish")
        self.assertIn("verifier key", self.refused(witness_for=["log.vkeys"]))
        error = self.assertRaises(
            ConfigError,
            check_kms,
            convert({"service": {"backend": "inmem", "amnesia": True}, "audit": {"witness_for": ["a"]}}, KmsConfig),
        )
        self.assertIn("forgets what it saw", error.message)

    def test_a_book_that_is_none(self) -> None:
        (self.home / "log.vkeys").write_text("".join(f"{key.vkey()}\n" for key in KEYS.public))
        (self.home / "kms").mkdir()
        (self.home / "kms" / BOOK).write_text("rubbish")
        self.assertIn("no book of a witness", self.refused(witness_for=["log.vkeys"]))

    def test_what_it_comes_to(self) -> None:
        self.assertEqual(self.made().endpoints(), [])
        (self.home / "log.vkeys").write_text("".join(f"{key.vkey()}\n" for key in KEYS.public))
        made = self.made(
            witness_for=["log.vkeys"],
            witnesses=[{"url": "https://w.example/v1/kms/witness", "key": VKEY}],
            witness_quorum=1,
            witness_required=True,
        )
        self.assertEqual([one.path for one in made.endpoints()], ["/v1/kms/witness/add-checkpoint"])
        self.assertEqual([one.scope for one in made.endpoints()], [None])


class _Service:
    """What is looked at before it starts."""

    room: Any = None
