"""Asking tor for descriptors and giving it some, against a control port that answers late, wrongly, or never.

What a real tor and real directories make of it is in tests/live/test_descriptor.py.
"""

from __future__ import annotations

from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from ron.proto.errors import ErrorCode, RonError
from ron.tor.clientauth import service_id
from ron.tor.control import ANSWER_TIMEOUT_S, TorSilent, connect_control
from ron.tor.descriptor.exchange import FETCH_TIMEOUT_S, POST_TIMEOUT_S, Exchange, Posted
from ron.tor.descriptor.hashring import HsDir
from ron.tor.descriptor.refused import Reason, Refused
from tests.tor.descriptor.samples import recorded
from tests.tor.fake_tor import SERVICE_ID, Controller, FakeTor
from tests.web.wire import until

ONION = f"{SERVICE_ID}.onion"
FIRST, SECOND = (HsDir(fingerprint=letter * 40, identity=bytes(32)) for letter in "AB")
TEXT = recorded()[1]


class Exchanging(FakeTor):
    async def setUp(self) -> None:
        super().setUp()
        self.answers["GETINFO events/names"] = ["250-events/names=HS_DESC HS_DESC_CONTENT", "250 OK"]
        self.clock = Clock()
        self.mute: set[str] = set()
        self.data: list[str] | None = None
        self.given: list[str] = []
        self.posted: list[list[str]] = []
        self.exchange = Exchange(self.clock, await connect_control(reactor, self.listen()))
        await self.exchange.open()

    def answer(self, controller: Controller, verb: str, rest: str) -> bool:
        """The lines after +HSPOST are data until a lone dot."""
        command = f"{verb} {rest}".rstrip()
        if verb == "+HSPOST":
            self.data = []
            self.given.append(rest.partition("HSADDRESS=")[2])
            return True
        if self.data is None:
            return verb in self.mute
        if command != ".":
            self.data.append(command)
            return True
        self.posted.append(self.data)
        self.data = None
        if "+HSPOST" not in self.mute:
            controller.say(*self.answers.get("+HSPOST", ["250 OK"]))
        return True

    async def begun(self, verb: str) -> None:
        await until(lambda: self.told(verb) and self.data is None)

    async def posting(self) -> Deferred[Posted]:
        done = Deferred.fromCoroutine(self.exchange.post(ONION, {TEXT: [FIRST, SECOND]}))
        await until(lambda: self.posted)
        await self.said()
        return done

    async def said(self) -> None:
        """Whatever tor has said so far has been heard."""
        await self.exchange._control.queue_command("GETINFO version")

    async def failing(self, started: Deferred[Any]) -> Any:
        return await self.assertFailure(started, RonError)

    # posting

    async def test_all_answer(self) -> None:
        done = await self.posting()
        self.tell(f"HS_DESC UPLOADED {self.given[0]} UNKNOWN ${FIRST.fingerprint}~first")
        self.tell(f"HS_DESC FAILED {self.given[0]} UNKNOWN ${SECOND.fingerprint} x REASON=UPLOAD_REJECTED")
        self.assertEqual(await done, Posted({FIRST.fingerprint}, {SECOND.fingerprint}, frozenset()))
        self.assertEqual("\n".join(self.posted[0]), TEXT.rstrip("\n"))
        (command,) = self.told("+HSPOST")
        self.assertEqual(command, f"+HSPOST SERVER={'A' * 40} SERVER={'B' * 40} HSADDRESS={self.given[0]}")
        self.assertEqual(service_id(self.given[0] + ".onion"), self.given[0])

    async def test_events_of_others_do_not_count(self) -> None:
        done = await self.posting()
        (ours,) = self.given
        for event in (
            f"HS_DESC UPLOADED {ours}",
            f"HS_DESC UPLOADED {ours} UNKNOWN UNKNOWN",
            f"HS_DESC UPLOADED {SERVICE_ID} UNKNOWN ${FIRST.fingerprint}",
            f"HS_DESC UPLOADED {ours} UNKNOWN ${'C' * 40}",
            f"HS_DESC UPLOAD {ours} UNKNOWN ${SECOND.fingerprint}",
        ):
            self.tell(event)
        await self.said()
        self.assertFalse(done.called)
        self.clock.advance(POST_TIMEOUT_S)
        silent = {FIRST.fingerprint, SECOND.fingerprint}
        self.assertEqual(await done, Posted(frozenset(), frozenset(), silent))

    async def test_tor_refuses(self) -> None:
        self.answers["+HSPOST"] = ["554 Invalid descriptor"]
        error = await self.failing(await self.posting())
        self.assertIs(error.reason, Reason.MALFORMED)

    async def test_texts_that_would_be_commands(self) -> None:
        for text in (TEXT + ".\nSIGNAL HALT\n", TEXT.replace("\n", "\r\n"), "\u00e9", "x" * 50_001):
            started = Deferred.fromCoroutine(self.exchange.post(ONION, {text: [FIRST]}))
            await self.assertFailure(started, Refused)
        await self.failing(Deferred.fromCoroutine(self.exchange.post("SIGNAL HALT", {TEXT: [FIRST]})))
        await self.failing(Deferred.fromCoroutine(self.exchange.post(ONION, {TEXT: []})))
        halting = HsDir(fingerprint="A" * 40 + "\r\nSIGNAL HALT", identity=bytes(32))
        await self.failing(Deferred.fromCoroutine(self.exchange.fetch(ONION, halting)))
        for nothing in ({}, {TEXT: [halting]}, {TEXT: [FIRST], TEXT + "x": [SECOND, FIRST]}):
            await self.failing(Deferred.fromCoroutine(self.exchange.post(ONION, nothing)))
        self.assertEqual(self.told("+HSPOST") + self.told("HSFETCH") + self.told("SIGNAL"), [])

    async def test_distinct_descriptors_at_once(self) -> None:
        took: list[str] = []
        done = Deferred.fromCoroutine(self.exchange.post(ONION, {TEXT: [FIRST], TEXT + "x": [SECOND]}, took.append))
        await until(lambda: len(self.posted) == 2)
        first, second = self.given
        # one text's name says nothing of the other's directory
        self.tell(f"HS_DESC UPLOADED {first} UNKNOWN ${SECOND.fingerprint}")
        self.tell(f"HS_DESC UPLOADED {second} UNKNOWN ${SECOND.fingerprint}")
        await until(lambda: took == [SECOND.fingerprint])
        self.tell(f"HS_DESC UPLOADED {first} UNKNOWN ${FIRST.fingerprint}")
        self.assertEqual((await done).taken, {FIRST.fingerprint, SECOND.fingerprint})
        self.assertNotEqual(*self.posted)

    async def test_two_posts_for_the_same_directory(self) -> None:
        """A second descriptor does not wait for the first one's slow directory, and their answers are told apart."""
        older = await self.posting()
        newer = Deferred.fromCoroutine(self.exchange.post(ONION, {TEXT + "x": [FIRST]}))
        await until(lambda: len(self.posted) == 2)
        self.tell(f"HS_DESC UPLOADED {self.given[1]} UNKNOWN ${FIRST.fingerprint}")
        self.assertEqual((await newer).taken, {FIRST.fingerprint})
        self.tell(f"HS_DESC FAILED {self.given[0]} UNKNOWN ${FIRST.fingerprint} REASON=UPLOAD_REJECTED")
        self.tell(f"HS_DESC UPLOADED {self.given[0]} UNKNOWN ${SECOND.fingerprint}")
        self.assertEqual(await older, Posted({SECOND.fingerprint}, {FIRST.fingerprint}, frozenset()))
        self.tell(f"HS_DESC UPLOADED {self.given[0]} UNKNOWN ${FIRST.fingerprint}")
        await self.said()

    async def test_a_tor_that_says_nothing(self) -> None:
        self.mute = {"+HSPOST", "HSFETCH"}
        done = Deferred.fromCoroutine(self.exchange.post(ONION, {TEXT: [FIRST]}))
        await until(lambda: self.posted)
        self.clock.advance(ANSWER_TIMEOUT_S)
        await self.assertFailure(done, TorSilent)

    async def test_a_tor_that_goes(self) -> None:
        fetching = Deferred.fromCoroutine(self.exchange.fetch(ONION, SECOND))
        done = await self.posting()
        self.tell(f"HS_DESC UPLOADED {self.given[0]} UNKNOWN ${FIRST.fingerprint}")
        await self.said()
        for controller in list(self.controllers):
            controller.transport.abortConnection()
        self.assertEqual(await done, Posted({FIRST.fingerprint}, frozenset(), {SECOND.fingerprint}))
        await self.assertFailure(fetching, TorSilent)
        await self.assertFailure(Deferred.fromCoroutine(self.exchange.fetch(ONION)), TorSilent)

    # fetching

    async def test_from_any_directory_and_from_one(self) -> None:
        first = Deferred.fromCoroutine(self.exchange.fetch(ONION))
        second = Deferred.fromCoroutine(self.exchange.fetch(ONION, SECOND))
        await until(lambda: len(self.told("HSFETCH")) == 2)
        self.assertEqual(
            self.told("HSFETCH"), [f"HSFETCH {SERVICE_ID}", f"HSFETCH {SERVICE_ID} SERVER={SECOND.fingerprint}"]
        )
        self.content("", directory=SECOND)
        error = await self.failing(second)
        self.assertIs(error.code, ErrorCode.NOT_FOUND)
        self.assertFalse(first.called)
        self.content(TEXT)
        self.assertEqual(await first, TEXT.rstrip("\n") + "\n")

    async def test_several_at_once(self) -> None:
        """Each gets what its directory has, whichever answers first; who asks the same one waits in line."""
        started = [Deferred.fromCoroutine(self.exchange.fetch(ONION, at)) for at in (FIRST, SECOND, SECOND)]
        await until(lambda: len(self.told("HSFETCH")) == 3)
        self.content("second\n", directory=SECOND)
        self.content("first\n")
        self.assertEqual([await started[1], await started[0]], ["second\n", "first\n"])
        self.assertFalse(started[2].called)
        self.content("second again\n", directory=SECOND)
        self.assertEqual(await started[2], "second again\n")
        self.content("nobody asked\n", directory=SECOND)
        await self.said()

    def content(self, text: str, onion: str = SERVICE_ID, directory: HsDir = FIRST) -> None:
        for controller in self.controllers:
            lines = text.rstrip("\n").split("\n")
            controller.say(f"650+HS_DESC_CONTENT {onion} x ${directory.fingerprint}~name", *lines, ".", "650 OK")

    async def test_another_onions_content(self) -> None:
        done = Deferred.fromCoroutine(self.exchange.fetch(ONION))
        await self.begun("HSFETCH")
        self.content(TEXT, "b" * 56)
        await self.said()
        self.assertFalse(done.called)
        self.clock.advance(FETCH_TIMEOUT_S)
        error = await self.failing(done)
        self.assertIs(error.code, ErrorCode.TIMEOUT)

    async def test_the_next_goes_on_after_a_failure(self) -> None:
        self.answers[f"HSFETCH {SERVICE_ID}"] = ["513 Invalid argument"]
        await self.failing(Deferred.fromCoroutine(self.exchange.fetch(ONION)))
        del self.answers[f"HSFETCH {SERVICE_ID}"]
        done = Deferred.fromCoroutine(self.exchange.fetch(ONION))
        await until(lambda: len(self.told("HSFETCH")) == 2)
        self.content(TEXT)
        self.assertEqual(await done, TEXT.rstrip("\n") + "\n")

    async def test_news_of_a_consensus(self) -> None:
        self.answers["GETINFO events/names"] = ["250-events/names=STATUS_CLIENT", "250 OK"]
        exchange = Exchange(self.clock, await connect_control(reactor, self.listen()))
        news: list[int] = []
        await exchange.on_consensus(lambda: news.append(1))
        for event in ("NOTICE ENOUGH_DIR_INFO", "NOTICE CONSENSUS_ARRIVED", "NOTICE CIRCUIT_ESTABLISHED", ""):
            self.tell(f"STATUS_CLIENT {event}")
        await exchange._control.queue_command("GETINFO version")
        self.assertEqual(news, [1])
        key = "consensus/valid-after"
        self.answers[f"GETINFO {key}"] = [f"250-{key}=2026-11-21 17:00:00", "250 OK"]
        self.assertEqual(await exchange.consensus_time(), "2026-11-21 17:00:00")

    async def test_no_consensus_yet(self) -> None:
        key = "GETINFO dir/status-vote/current/consensus-microdesc"
        self.answers[key] = ["551 Could not open cached consensus"]
        error = await self.failing(Deferred.fromCoroutine(self.exchange.ring(testing=True)))
        self.assertIs(error.reason, Reason.MALFORMED)
