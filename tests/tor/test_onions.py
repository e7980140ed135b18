"""Publishing an onion through a ControlPort: what is asked of tor, and when it counts as reachable."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.tor import onions
from ron.tor.control import Bootstrap, bootstrap, connect_control
from ron.tor.onions import OnionKey, PortMap, Published, _UploadWatch, parse_key, publish, withdraw
from tests.tor.fake_tor import KEY, SERVICE_ID, FakeTor, uploaded
from tests.web.wire import until

OTHER_ID = "z" * 56
PORTS = [PortMap(80, "127.0.0.1:9080"), PortMap(9410, "127.0.0.1:9410")]


class Keys(SynchronousTestCase):
    def test_a_v3_key(self) -> None:
        self.assertEqual(parse_key(KEY).blob, KEY)

    def test_anything_else_is_refused_without_being_quoted(self) -> None:
        for text in (
            "",
            KEY[:-1],
            KEY + "=",
            " " + KEY,
            KEY + "\r\nDEL_ONION x",
            KEY.replace("ED25519-V3", "RSA1024"),
            KEY.replace("A", "é"),
            "NEW:BEST",
        ):
            error = self.assertRaises(RonError, parse_key, text)
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)
            self.assertNotIn("A" * 20, error.message + str(error.hint))

    def test_a_line_break_is_no_part_of_a_key(self) -> None:
        self.assertRaises(RonError, parse_key, KEY + "\n")

    def test_the_repr_hides_the_blob(self) -> None:
        for shown in (repr(OnionKey(KEY)), str(OnionKey(KEY)), repr(Published("x.onion", OnionKey(KEY), 1, 2.0))):
            self.assertNotIn("ED25519-V3", shown)
            self.assertNotIn("AAAA", shown)


class Watching(SynchronousTestCase):
    """Uploads count whether they are heard of before or after the service's own id is known."""

    def uploads(self, hsdirs: list[str], waiting_from: int) -> tuple[bool, int]:
        watch = _UploadWatch()
        done: Deferred[None] | None = None
        for index, event in enumerate([*hsdirs, ""]):
            if index == waiting_from:
                done = watch.first_upload(SERVICE_ID)
            watch.heard(event)
        assert done is not None
        return done.called, watch.uploads(SERVICE_ID)

    @given(st.permutations(["A", "B", "C", "A"]), st.integers(0, 4))
    def test_in_any_order(self, hsdirs: list[str], waiting_from: int) -> None:
        events = [uploaded(hsdir).removeprefix("HS_DESC ") for hsdir in hsdirs]
        self.assertEqual(self.uploads(events, waiting_from), (True, 3))

    def test_what_is_no_upload_of_ours(self) -> None:
        for event in (
            f"UPLOAD {SERVICE_ID} UNKNOWN $A descriptor HSDIR_INDEX=00",
            f"FAILED {SERVICE_ID} UNKNOWN $A REASON=UPLOAD_REJECTED",
            f"CREATED {SERVICE_ID} UNKNOWN UNKNOWN descriptor",
            f"UPLOADED {OTHER_ID} UNKNOWN $A",
            f"UPLOADED {SERVICE_ID}",
            "UPLOADED",
            "",
        ):
            for waiting_from in (0, 1):
                self.assertEqual(self.uploads([event], waiting_from), (False, 0), event)

    def test_two_services_are_told_apart(self) -> None:
        watch = _UploadWatch()
        mine, theirs = watch.first_upload(SERVICE_ID), watch.first_upload(OTHER_ID)
        watch.heard(uploaded("A", OTHER_ID).removeprefix("HS_DESC "))
        self.assertEqual((mine.called, theirs.called), (False, True))


class Publishing(FakeTor):
    """Against a peer that speaks the control protocol."""

    async def setUp(self) -> None:
        super().setUp()
        self.control = await connect_control(reactor, self.listen())
        self.commands.clear()

    def publishing(self, key: OnionKey | None = None, ports: Any = PORTS) -> Deferred[Published]:
        return Deferred.fromCoroutine(publish(reactor, self.control, ports, key))

    async def fails(self, call: Awaitable[Any]) -> RonError:
        with self.assertRaises(RonError) as caught:
            await call
        return caught.exception

    async def test_a_new_onion(self) -> None:
        self.events_after = [uploaded("A")]
        published = await self.publishing()
        self.assertEqual((published.onion, published.key.blob), (f"{SERVICE_ID}.onion", KEY))
        self.assertEqual(published.uploads, 1)
        self.assertGreater(published.bringup_ms, 0)
        self.assertEqual(
            self.commands,
            [
                "SETEVENTS HS_DESC",
                "ADD_ONION NEW:ED25519-V3 Port=80,127.0.0.1:9080 Port=9410,127.0.0.1:9410",
                "SETEVENTS ",
            ],
        )

    async def test_the_same_onion_again(self) -> None:
        """tor does not give the key back that it was given."""
        self.answers["ADD_ONION"] = [f"250-ServiceID={SERVICE_ID}", "250 OK"]
        self.events_after = [uploaded("A")]
        published = await self.publishing(OnionKey(KEY))
        self.assertEqual(published.key, OnionKey(KEY))
        self.assertIn(f"ADD_ONION {KEY} Port=80,127.0.0.1:9080", self.commands[1])

    async def test_an_upload_that_was_quicker_than_the_answer(self) -> None:
        self.events_before = [uploaded("A"), uploaded("B")]
        self.assertEqual((await self.publishing()).uploads, 2)

    async def test_it_waits_for_the_first_upload_that_succeeds(self) -> None:
        self.events_after = [
            f"HS_DESC UPLOAD {SERVICE_ID} UNKNOWN $A d HSDIR_INDEX=00",
            f"HS_DESC FAILED {SERVICE_ID} UNKNOWN $A d REASON=UPLOAD_REJECTED",
            uploaded("B", OTHER_ID),
        ]
        publishing = self.publishing()
        await until(lambda: self.told("ADD_ONION"))
        self.assertNoResult(publishing)
        self.tell(uploaded("B"))
        self.assertEqual((await publishing).uploads, 1)

    async def test_several_at_a_time(self) -> None:
        ids = [SERVICE_ID, OTHER_ID]
        answers = itertools.cycle([[f"250-ServiceID={i}", f"250-PrivateKey={KEY}", "250 OK"] for i in ids])
        publishing = []
        for _ in ids:
            self.answers["ADD_ONION"] = next(answers)
            publishing.append(self.publishing())
            await until(lambda: len(self.told("ADD_ONION")) == len(publishing))
        self.tell(uploaded("A", OTHER_ID))
        self.assertEqual((await publishing[1]).onion, f"{OTHER_ID}.onion")
        self.assertNoResult(publishing[0])
        self.tell(uploaded("A"))
        self.assertEqual((await publishing[0]).onion, f"{SERVICE_ID}.onion")

    async def test_a_line_break_never_reaches_tor(self) -> None:
        for ports, key in (
            ([PortMap(80, "127.0.0.1:9080\r\nSIGNAL SHUTDOWN")], None),
            (PORTS, OnionKey(KEY + "\nSIGNAL SHUTDOWN")),
        ):
            error = await self.fails(self.publishing(key, ports))
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)
        self.assertEqual(self.told("ADD_ONION") + self.told("SIGNAL"), [])
        self.assertEqual(self.commands[-1], "SETEVENTS ")

    async def test_an_answer_that_is_no_v3_address(self) -> None:
        for service_id in ("x" * 16, "X" * 56, SERVICE_ID + "a", ""):
            self.answers["ADD_ONION"][0] = f"250-ServiceID={service_id}"
            self.assertIs((await self.fails(self.publishing())).code, ErrorCode.INTERNAL)
            self.assertEqual(self.commands[-1], "SETEVENTS ")

    async def test_no_directory_takes_it(self) -> None:
        self.patch(onions, "UPLOAD_TIMEOUT_S", 0.05)
        error = await self.fails(self.publishing())
        self.assertIs(error.code, ErrorCode.TIMEOUT)
        self.assertIn("tornet status", str(error.hint))

    async def test_an_answer_without_what_was_asked_for(self) -> None:
        for answer in (["250 OK"], [f"250-ServiceID={SERVICE_ID}", "250 OK"]):
            self.answers["ADD_ONION"] = answer
            self.assertIs((await self.fails(self.publishing())).code, ErrorCode.INTERNAL)

    async def test_tor_says_no(self) -> None:
        self.answers["ADD_ONION"] = ["512 Invalid VIRTPORT/TARGET"]
        await self.fails(self.publishing())

    async def test_withdraw(self) -> None:
        await withdraw(reactor, self.control, f"{SERVICE_ID}.onion")
        self.assertEqual(self.commands, [f"DEL_ONION {SERVICE_ID}"])


class Connecting(FakeTor):
    async def test_with_the_cookie_and_then_it_can_be_asked(self) -> None:
        control = await connect_control(reactor, self.listen())
        self.assertEqual(len(self.told("AUTHCHALLENGE")), 1)
        self.assertEqual(await bootstrap(reactor, control), Bootstrap(100, "done", "Done"))

    async def test_a_tor_that_does_not_know_our_cookie_is_not_trusted(self) -> None:
        """SAFECOOKIE proves both sides: whoever else took the port cannot read the file."""
        self.cookie = b"x" * 32
        with self.assertRaises(RuntimeError):
            await connect_control(reactor, self.listen())
        self.assertEqual(self.told("AUTHENTICATE") + self.told("GETINFO"), [])

    async def test_nobody_there(self) -> None:
        with self.assertRaises(ConnectionRefusedError):
            await connect_control(reactor, 1)
