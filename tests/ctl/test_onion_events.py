"""`ronctl onion events`: each event once, gaps told, over the socket or TCP, whatever becomes of the daemon."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from shutil import rmtree
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.trial.unittest import SynchronousTestCase

from ron.ctl.onion_events import Following, _remote, words
from ron.kernel.unixsock import UnixListener
from ron.proto.errors import ErrorCode, RonError
from ron.proto.exitcodes import Unreachable
from ron.proto.onionevents import EventView, Lagged
from ron.sdk.events import EventStream, Told, connect
from ron.services.oniond.api import BODY_LIMIT_BYTES, endpoints
from ron.services.oniond.events import KEPT, KEPT_OF_ALL, events_endpoint
from ron.web import Edge, make_site
from tests.ctl.forkserver import RONCTL
from tests.ctl.with_node import Ronctl
from tests.sdk.with_oniond import WEB, WithOniond
from tests.web.wire import until

ONION = "a" * 56


class Lines(SynchronousTestCase):
    """An event for people."""

    def view(self, **other: Any) -> EventView:
        return EventView(**{"seq": 7, "kind": "circuit", "app": "wiki", "at": 1_800_000_000.1234, **other})

    def test_time_app_kind_and_words(self) -> None:
        shown = words(self.view(detail={"purpose": "rend", "event": "built"}))
        self.assertEqual(shown, "2027-01-15T08:00:00.123Z  wiki       circuit    built purpose=rend")
        self.assertTrue(words(self.view(kind="introduction")).endswith("  wiki       introduction"))

    def test_what_is_missing(self) -> None:
        self.assertIn(" 12 events are missing", words(Lagged(12)))

    def test_nothing_moves_the_cursor(self) -> None:
        nasty = "\x1b[2J\n\x9b0m\u2028"
        for shown in (words(self.view(app=nasty)), words(self.view(detail={nasty: nasty}))):
            self.assertTrue(shown.isprintable(), shown)

    def test_where_a_runtime_may_be_asked(self) -> None:
        for url in ("http://", "https://[::1", "ftp://x", "http://x:70000", "https://alpha.internal"):
            self.assertIs(self.assertRaises(RonError, _remote, reactor, url).code, ErrorCode.BAD_REQUEST)
        self.assertEqual(_remote(reactor, "http://127.0.0.1:9909")[1], "127.0.0.1:9909")


class WithEvents(WithOniond):
    """The runtime with its events; `happens` makes some."""

    timeout = 60

    async def listen_at(self) -> None:
        self.home = Path(tempfile.mkdtemp(prefix="ron-"))
        self.addCleanup(rmtree, self.home, True)
        self.socket = self.home / "run" / "oniond.sock"
        edge = Edge(authority=self.authority, metrics=self.metrics, reactor=reactor)
        routes = [*endpoints(self.oniond), events_endpoint(self.oniond, time.time)]
        self.site = make_site(edge, routes, body_limit=BODY_LIMIT_BYTES)
        self.oniond.telemetry.watch(ONION, "chat")
        self.oniond.telemetry.tor_up("onion")
        self.serve()

    def serve(self) -> None:
        self.listener = UnixListener(reactor, self.socket, self.site, backlog=16)
        self.listener.listen()
        self.addCleanup(until, lambda: not self.site.channels)
        self.addCleanup(self.listener.stop)

    async def goes_away(self) -> None:
        """As a daemon that is told to stop."""
        await maybeDeferred(self.listener.stop)
        await self.site.drain(deadline_s=5.0)
        await until(lambda: not self.site.channels)

    def happens(self, times: int = 1) -> None:
        for _ in range(times):
            self.oniond.telemetry.heard("onion", "HS_DESC", f"UPLOADED {ONION} UNKNOWN $A")

    @property
    def heeded(self) -> bool:
        """Does somebody follow?"""
        return any(channel._socket for channel in self.site.channels)


class Followed(WithEvents):
    """The loop, against the real site."""

    def following(self, **other: Any) -> Following:
        self.shown: list[Told] = []
        self.complaints: list[str] = []

        async def open_it(after: int | None) -> EventStream:
            endpoint = UNIXClientEndpoint(reactor, str(self.socket))
            return await connect(reactor, endpoint, self.capability(("scope", "onion:events")), after=after)

        options: dict[str, Any] = {"after": None, "wanted": lambda event: event.app == "chat", **other}
        return Following(reactor, open_it, show=self.shown.append, complain=self.complaints.append, **options)

    def begun(self, following: Following, limit: int | None = None) -> Deferred[None]:
        running = Deferred.fromCoroutine(following.follow(limit))

        def end() -> None:
            running.addErrback(lambda failure: failure.trap(CancelledError))
            running.cancel()

        self.addCleanup(end)
        return running

    async def test_nobody_there_at_first(self) -> None:
        await self.goes_away()
        await self.assertFailure(Deferred.fromCoroutine(self.following().follow(None)), Unreachable)
        self.assertEqual(self.complaints, [])

    async def test_a_daemon_that_restarts_is_waited_for_and_nothing_is_missed(self) -> None:
        running = self.begun(self.following(), 5)
        await until(lambda: self.heeded)
        self.happens(2)
        await until(lambda: len(self.shown) == 2)
        await self.goes_away()
        await until(lambda: self.complaints)
        self.happens(2)
        self.serve()
        await until(lambda: len(self.shown) == 4)
        self.happens()
        await running
        numbers = [told.seq for told in self.shown if isinstance(told, EventView)]
        self.assertEqual(len(numbers), 5)
        self.assertEqual(numbers, sorted(set(numbers)))
        self.assertEqual(len(self.complaints), 1)
        self.assertIn("waiting", self.complaints[0])

    async def test_what_is_not_wanted_is_not_counted(self) -> None:
        running = self.begun(self.following(), 2)
        await until(lambda: self.heeded)
        self.happens()
        await self.onions().create("wiki", [WEB], wait_s=5.0)
        self.happens()
        await running
        self.assertEqual({told.app for told in self.shown if isinstance(told, EventView)}, {"chat"})

    async def test_what_is_missing_is_shown_and_not_counted(self) -> None:
        self.happens(KEPT_OF_ALL + 5)
        await self.begun(self.following(after=0), 1)
        lagged, event = self.shown
        assert isinstance(lagged, Lagged) and isinstance(event, EventView)
        self.assertGreaterEqual(lagged.lagged, 5)

    async def test_a_refusal_later_ends_it(self) -> None:
        """What trying again will not mend."""
        running = self.begun(self.following())
        await until(lambda: self.heeded)
        self.patch(self, "capability", lambda *caveats: "nonsense")
        await self.goes_away()
        self.serve()
        with self.assertRaises(RonError) as caught:
            await running
        self.assertIs(caught.exception.code, ErrorCode.NO_CAPABILITY)


class EventsCommand(WithEvents):
    """As an operator calls it."""

    async def setUp(self) -> None:
        await super().setUp()
        cap = self.home / "admin.cap"
        cap.write_text(self.capability())
        cap.chmod(0o600)

    def start(self, *arguments: str, **environment: str) -> Ronctl:
        process = Ronctl()
        known = {**os.environ, "RON_HOME": str(self.home), "RON_CAP": "", "COLUMNS": "100", **environment}
        reactor.spawnProcess(process, RONCTL, [str(RONCTL), "onion", "events", *arguments], env=known)
        self.addCleanup(process.end)
        self.addCleanup(process.signal, "KILL")
        return process

    async def test_refusals(self) -> None:
        for arguments, environment, code in (
            (("--kind", "nothing"), {}, 2),
            (("-n", "0"), {}, 2),
            (("--after", "-1"), {}, 2),
            (("--control", "nonsense"), {}, 3),
            (("--control", "http://127.0.0.1:9"), {}, 4),
            ((), {"RON_HOME": str(self.home / "gone")}, 4),
            ((), {"RON_CAP": self.capability(("scope", "onion:read"))}, 5),
        ):
            process = self.start(*arguments, **environment)
            self.assertEqual((await process.end(), process.out), (code, b""), (arguments, process.err))
            self.assertTrue(process.err, arguments)

    async def test_json_of_one_app_over_tcp(self) -> None:
        self.happens(3)
        port = reactor.listenTCP(0, self.site, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        words_ = ["--control", f"http://127.0.0.1:{port.getHost().port}", "--json", "--after", "0", "-n", "2"]
        process = self.start(*words_, RON_CAP=self.capability(("scope", "onion:events"), ("app", "chat")))
        self.assertEqual((await process.end(), process.err), (0, b""))
        first, second = (json.loads(text) for text in process.lines)
        self.assertEqual(set(first), {"seq", "kind", "app", "at", "detail"})
        self.assertEqual((first["kind"], first["app"], second["seq"]), ("descriptor", "chat", first["seq"] + 1))

    async def test_what_is_missing_as_json(self) -> None:
        self.happens(KEPT + 3)
        cap = self.capability(("scope", "onion:events"), ("app", "chat"))
        process = self.start("--json", "--after", "0", "-n", "1", RON_CAP=cap)
        self.assertEqual(await process.end(), 0)
        self.assertEqual(json.loads(process.lines[0]), {"lagged": 3})

    async def test_ctrl_c_ends_it_well(self) -> None:
        process = self.start("--app", "chat", "--kind", "descriptor")
        await until(lambda: self.heeded)
        self.happens()
        await process.shows(lambda: process.lines)
        process.signal("INT")
        self.assertEqual((await process.end(), process.err), (0, b""))
        (shown,) = process.lines
        self.assertTrue(shown.endswith("chat       descriptor result=ok"), shown)
