"""How onions leave a tor, command by command, against a peer that speaks the control protocol."""

from __future__ import annotations

from twisted.internet import reactor

from ron.proto.errors import ErrorCode, RonError
from ron.tor.control import TorSilent, connect_control
from ron.tor.onionkeys import OnionKey
from ron.tor.onions import OnionSpec, PortMap
from ron.tor.unlisted import mute, prefer_guards, unlist
from tests.tor.fake_tor import KEY, SERVICE_ID, Controller, FakeTor

SPEC = OnionSpec(key=OnionKey(KEY), ports=(PortMap(80, "127.0.0.1:8080"),))
ADD = f"ADD_ONION {KEY} Flags=Detach Port=80,127.0.0.1:8080"
DEL = f"DEL_ONION {SERVICE_ID}"
RELAY = "A" * 40


class UnlistTests(FakeTor):
    def setUp(self) -> None:
        super().setUp()
        self.there = True
        # lines that had come already when each command was looked at
        self.waiting: list[int] = []
        self.refuse_adds = 0

    def answer(self, controller: Controller, verb: str, rest: str) -> bool:
        if verb not in {"ADD_ONION", "DEL_ONION"}:
            return False
        self.waiting.append(controller._buffer.count(b"\r\n"))
        if verb == "DEL_ONION":
            controller.say("250 OK" if self.there else "552 Unknown Onion Service id")
            self.there = False
        elif self.refuse_adds:
            self.refuse_adds -= 1
            controller.say("550 Onion address collision")
        else:
            self.there = True
            controller.say(f"250-ServiceID={SERVICE_ID}", "250 OK")
        return True

    async def test_gone_and_there_again_in_one_go(self) -> None:
        """All of it has come before the first is answered."""
        await unlist(reactor, self.listen(), [SPEC, SPEC])
        self.assertEqual([c for c in self.commands if "_ONION" in c], [DEL, ADD] * 2)
        self.assertEqual(self.waiting, [3, 2, 1, 0])

    async def test_it_was_gone_already(self) -> None:
        """Tried again after an answer that did not come."""
        self.there = False
        await unlist(reactor, self.listen(), [SPEC])
        self.assertTrue(self.there)

    async def test_refused_without_a_word_of_the_key(self) -> None:
        self.refuse_adds = 1
        with self.assertRaises(RonError) as caught:
            await unlist(reactor, self.listen(), [SPEC])
        self.assertIs(caught.exception.code, ErrorCode.INTERNAL)
        self.assertNotIn(KEY[11:30], str(caught.exception))

    async def test_its_connections_end(self) -> None:
        control = await connect_control(reactor, self.listen())
        port = control.transport.getPeer().port
        await unlist(reactor, port, [SPEC])
        await mute(reactor, control, muted=True)  # by when the others have hung up
        self.assertEqual(len(self.controllers), 1)


class MuteTests(FakeTor):
    async def test_said_and_unsaid(self) -> None:
        control = await connect_control(reactor, self.listen())
        await mute(reactor, control, muted=True)
        await mute(reactor, control, muted=False)
        self.assertEqual(self.told("SETCONF"), [f"SETCONF PublishHidServDescriptors={n}" for n in (0, 1)])

    async def test_a_connection_that_has_gone(self) -> None:
        control = await connect_control(reactor, self.listen())
        self._hang_up()
        with self.assertRaises(TorSilent):
            await mute(reactor, control, muted=True)


class GuardTests(FakeTor):
    async def chosen(self, *fingerprints: str) -> tuple[str, ...]:
        status = f"250+ns/id/{RELAY}="
        self.answers[f"GETINFO ns/id/{RELAY}"] = [status, "r x", "s Fast Guard Running", ".", "250 OK"]
        unknown = "B" * 40
        self.answers[f"GETINFO ns/id/{unknown}"] = ["552 Unrecognized key"]
        control = await connect_control(reactor, self.listen())
        return await prefer_guards(reactor, control, fingerprints)

    async def test_those_that_run(self) -> None:
        self.assertEqual(await self.chosen(RELAY, "B" * 40), (RELAY,))
        self.assertEqual(self.told("SETCONF"), [f'SETCONF EntryNodes="${RELAY}" StrictNodes=0'])

    async def test_none_does(self) -> None:
        self.assertEqual(await self.chosen("B" * 40), ())
        self.assertEqual(self.told("RESETCONF"), ["RESETCONF EntryNodes StrictNodes"])

    async def test_what_is_no_fingerprint_does_not_reach_tor(self) -> None:
        self.assertEqual(await self.chosen('x"\r\nSIGNAL HALT', "{us}", "A" * 39), ())
        self.assertEqual(self.told("SIGNAL") + self.told("GETINFO ns/id"), [])
