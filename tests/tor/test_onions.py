"""Publishing onions through a ControlPort: what is asked of tor, and when a service counts as reachable."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.tor import onions as onions_module
from ron.tor.control import Bootstrap, bootstrap, connect_control
from ron.tor.onionkeys import OnionKey, new_key
from ron.tor.onions import NoWay, OnionSpec, PortMap, TorOnions, Uploads, _UploadWatch
from tests.tor.fake_tor import KEY, SERVICE_ID, FakeTor, uploaded
from tests.web.wire import until

ADDRESS = f"{SERVICE_ID}.onion"
OTHER = new_key()
OTHER_SPEC = OnionSpec(key=OTHER, ports=(PortMap(80, "127.0.0.1:1"),))
OTHER_ID = OTHER_SPEC.address.removesuffix(".onion")
PORTS = (PortMap(80, "127.0.0.1:9080"), PortMap(9410, "127.0.0.1:9410"))
SPEC = OnionSpec(key=OnionKey(KEY), ports=PORTS)


def asked(hsdir: str, service_id: str = SERVICE_ID) -> str:
    return f"HS_DESC UPLOAD {service_id} UNKNOWN ${hsdir}~{hsdir} desc HSDIR_INDEX=00"


def failed(hsdir: str) -> str:
    return f"HS_DESC FAILED {SERVICE_ID} UNKNOWN ${hsdir}~{hsdir} desc REASON=UPLOAD_REJECTED"


class Specs(SynchronousTestCase):
    def test_what_tor_is_told(self) -> None:
        spec = OnionSpec(key=OTHER, ports=PORTS, flags=("V3Auth",), options=("ClientAuthV3=X", "MaxStreams=5"))
        self.assertEqual(
            spec.arguments(),
            "Flags=Detach,V3Auth Port=80,127.0.0.1:9080 Port=9410,127.0.0.1:9410 ClientAuthV3=X MaxStreams=5",
        )

    def test_the_digest_tells_every_difference_and_no_key(self) -> None:
        others = [
            OnionSpec(key=SPEC.key, ports=PORTS[:1]),
            OnionSpec(key=SPEC.key, ports=PORTS[::-1]),
            OnionSpec(key=SPEC.key, ports=PORTS, flags=("V3Auth",)),
            OnionSpec(key=SPEC.key, ports=PORTS, options=("MaxStreams=5",)),
        ]
        self.assertEqual(len({spec.digest() for spec in (SPEC, *others)}), 5)
        self.assertEqual(OnionSpec(key=OTHER, ports=PORTS).digest(), SPEC.digest())

    def test_the_key_is_not_shown(self) -> None:
        self.assertNotIn("ED25519-V3", repr(SPEC))

    @given(st.sampled_from("\r\n\0\x7f\u2028\t"), st.text("abc:", max_size=5))
    def test_no_target_breaks_the_line(self, bad: str, text: str) -> None:
        for spec in (
            OnionSpec(key=OTHER, ports=(PortMap(80, f"{text}{bad}{text}"),)),
            OnionSpec(key=OTHER, ports=PORTS, options=(f"x={bad}",)),
        ):
            error = self.assertRaises(RonError, spec.arguments)
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)


class Watching(SynchronousTestCase):
    """Uploads count whether they are heard of before or after somebody waits for them."""

    def heard(self, *events: str) -> _UploadWatch:
        watch = _UploadWatch()
        for event in events:
            watch.heard(event.removeprefix("HS_DESC "))
        return watch

    @given(st.permutations(["A", "B", "C", "A"]), st.integers(0, 4))
    def test_in_any_order(self, hsdirs: list[str], waiting_from: int) -> None:
        watch, done = _UploadWatch(), None
        for index, hsdir in enumerate([*hsdirs, ""]):
            if index == waiting_from:
                done = watch.first_upload(SERVICE_ID)
            if hsdir:
                watch.heard(uploaded(hsdir).removeprefix("HS_DESC "))
        assert done is not None
        self.assertEqual((done.called, watch.uploads(SERVICE_ID)), (True, 3))

    def test_what_is_no_upload_of_ours(self) -> None:
        for event in (
            asked("A"),
            failed("A"),
            f"CREATED {SERVICE_ID} UNKNOWN UNKNOWN descriptor",
            f"UPLOADED {OTHER_ID} UNKNOWN $A",
            f"UPLOADED {SERVICE_ID}",
            "UPLOADED",
            "",
        ):
            watch = self.heard(event)
            self.assertFalse(watch.first_upload(SERVICE_ID).called, event)

    def test_two_services_are_told_apart(self) -> None:
        watch = _UploadWatch()
        mine, theirs = watch.first_upload(SERVICE_ID), watch.first_upload(OTHER_ID)
        watch.heard(uploaded("A", OTHER_ID).removeprefix("HS_DESC "))
        self.assertEqual((mine.called, theirs.called), (False, True))

    def test_all_have_answered_when_none_is_left_and_one_has_it(self) -> None:
        watch = self.heard(asked("A"), asked("B"), asked("C"), uploaded("A"), failed("B"))
        done = watch.all_answered(SERVICE_ID)
        self.assertFalse(done.called)
        watch.heard(uploaded("C").removeprefix("HS_DESC "))
        self.assertTrue(done.called)
        self.assertEqual(watch.uploads(SERVICE_ID), 2)

    def test_published_anew_it_begins_anew(self) -> None:
        watch = self.heard(asked("A"), uploaded("A"))
        watch.forget(SERVICE_ID)
        self.assertFalse(watch.first_upload(SERVICE_ID).called)


class Publishing(FakeTor):
    """Against a peer that speaks the control protocol."""

    async def setUp(self) -> None:
        super().setUp()
        self.control = await connect_control(reactor, self.listen())
        self.commands.clear()
        self.onions = TorOnions(reactor, self.control)
        await self.onions.open()
        self.commands.clear()

    def publishing(self, spec: OnionSpec = SPEC) -> Deferred[Uploads]:
        return Deferred.fromCoroutine(self.onions.publish(spec))

    async def fails(self, call: Awaitable[Any]) -> RonError:
        with self.assertRaises(RonError) as caught:
            await call
        return caught.exception

    async def test_published(self) -> None:
        self.events_after = [uploaded("A")]
        uploads = await self.publishing()
        self.assertEqual(uploads.confirmed, 1)
        self.assertGreater(uploads.bringup_ms, 0)
        self.assertEqual(self.commands, [f"ADD_ONION {KEY} {SPEC.arguments()}"])

    async def test_uploads_that_were_quicker_than_the_answer(self) -> None:
        self.events_before = [asked("A"), uploaded("A"), asked("B"), uploaded("B")]
        self.assertEqual((await self.publishing()).confirmed, 2)

    async def test_it_waits_for_the_first_upload_that_succeeds(self) -> None:
        self.events_after = [asked("A"), failed("A"), uploaded("B", OTHER_ID)]
        publishing = self.publishing()
        await until(lambda: self.told("ADD_ONION"))
        self.assertNoResult(publishing)
        self.tell(uploaded("B"))
        self.assertEqual((await publishing).confirmed, 1)

    async def test_it_waits_for_the_directories_that_were_asked_too(self) -> None:
        self.events_after = [asked("A"), asked("B"), uploaded("A")]
        publishing = self.publishing()
        await until(lambda: self.told("ADD_ONION"))
        self.assertNoResult(publishing)
        self.tell(uploaded("B"))
        self.assertEqual((await publishing).confirmed, 2)

    async def test_but_not_for_ever(self) -> None:
        self.patch(onions_module, "STRAGGLERS_S", 0.05)
        self.events_after = [asked("A"), asked("B"), uploaded("A")]
        self.assertEqual((await self.publishing()).confirmed, 1)

    async def test_several_at_a_time(self) -> None:
        publishing = []
        for spec in (SPEC, OTHER_SPEC):
            self.answers["ADD_ONION"] = [f"250-ServiceID={spec.address.removesuffix('.onion')}", "250 OK"]
            publishing.append(self.publishing(spec))
            await until(lambda: len(self.told("ADD_ONION")) == len(publishing))
        self.tell(uploaded("A", OTHER_ID))
        self.assertEqual((await publishing[1]).confirmed, 1)
        self.assertNoResult(publishing[0])
        self.tell(uploaded("A"))
        self.assertEqual((await publishing[0]).confirmed, 1)

    async def test_a_line_break_never_reaches_tor(self) -> None:
        bad = OnionSpec(key=SPEC.key, ports=(PortMap(80, "127.0.0.1:9080\r\nSIGNAL SHUTDOWN"),))
        self.assertIs((await self.fails(self.publishing(bad))).code, ErrorCode.BAD_REQUEST)
        self.assertEqual(self.told("ADD_ONION") + self.told("SIGNAL"), [])

    async def test_an_answer_that_is_not_the_keys_address(self) -> None:
        for service_id in ("x" * 16, SERVICE_ID.upper(), SERVICE_ID + "a", "", OTHER_ID):
            self.answers["ADD_ONION"][0] = f"250-ServiceID={service_id}"
            self.assertIs((await self.fails(self.publishing())).code, ErrorCode.INTERNAL)
        self.answers["ADD_ONION"] = ["250 OK"]
        self.assertIs((await self.fails(self.publishing())).code, ErrorCode.INTERNAL)

    async def test_no_directory_is_asked(self) -> None:
        self.patch(onions_module, "ASKED_TIMEOUT_S", 0.05)
        error = await self.fails(self.publishing())
        self.assertIsInstance(error, NoWay)
        self.assertIs(error.code, ErrorCode.TIMEOUT)
        self.assertIn("introduction points", error.message)

    async def test_no_directory_takes_it(self) -> None:
        self.patch(onions_module, "UPLOAD_TIMEOUT_S", 0.05)
        self.events_after = [asked("A"), failed("A")]
        error = await self.fails(self.publishing())
        self.assertNotIsInstance(error, NoWay)
        self.assertIs(error.code, ErrorCode.TIMEOUT)
        self.assertIn("tornet status", str(error.hint))

    async def test_tor_says_no(self) -> None:
        for answer, said in (("512 Invalid VIRTPORT/TARGET", "error 512"), (f"550 {KEY}", "already")):
            self.answers["ADD_ONION"] = [answer]
            error = await self.fails(self.publishing())
            self.assertIn(said, error.message)
            self.assertNotIn("ED25519", error.message)

    async def test_cut_in_the_middle_of_it(self) -> None:
        """txtorcon's error quotes the command that was under way, key and all; ours does not."""
        self.answers["ADD_ONION"] = []
        publishing = self.publishing()
        await until(lambda: self.told("ADD_ONION"))
        self._hang_up()
        error = await self.fails(publishing)
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertTrue(error.__suppress_context__)
        self.assertNotIn("ED25519", str(error))

    async def test_what_is_there_already(self) -> None:
        self.assertEqual(await self.onions.detached(), frozenset())
        for answer, addresses in (
            (["250-onions/detached=", "250 OK"], set()),
            ([f"250-onions/detached={SERVICE_ID}", "250 OK"], {ADDRESS}),
            (["250+onions/detached=", SERVICE_ID, OTHER_ID, ".", "250 OK"], {ADDRESS, OTHER_SPEC.address}),
        ):
            self.answers["GETINFO onions/detached"] = answer
            self.assertEqual(await self.onions.detached(), addresses)

    async def test_withdraw(self) -> None:
        self.commands.clear()
        await self.onions.withdraw(ADDRESS)
        self.assertEqual(self.commands, [f"DEL_ONION {SERVICE_ID}"])

    async def test_withdraw_what_is_not_there(self) -> None:
        self.answers[f"DEL_ONION {SERVICE_ID}"] = ["552 Unknown Onion Service id"]
        await self.onions.withdraw(ADDRESS)
        self.answers[f"DEL_ONION {SERVICE_ID}"] = ["512 Malformed Onion Service id"]
        self.assertIs((await self.fails(self.onions.withdraw(ADDRESS))).code, ErrorCode.INTERNAL)


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
