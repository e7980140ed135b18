"""Clients of networks that others run: what they are told, what they refuse to be told, what they keep."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.kernel import HealthState, Metrics
from ron.proto.errors import ErrorCode, RonError
from ron.tor.binary import find_tor
from ron.tor.clients import JoinedClients, PublicClients, read_snippet
from tests.web.wire import until

AUTHORITY = "DirAuthority a orport=5000 v3ident=" + "A" * 40 + " 10.77.0.1:7000 " + "B" * 40
SNIPPET = f"# Private Tor network\nTestingTorNetwork 1\nUseDefaultFallbackDirs 0\n{AUTHORITY}\n"


class Offline(PublicClients):
    """Every rule of the public network, and never on it: tor is told to stay off."""

    client_target = 0
    more = "DisableNetwork 1\n"

    def _torrc(self, name: str, values: dict[str, object]) -> str:
        return super()._torrc(name, values) + self.more


class Snippets(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp()).absolute()

    def read(self, text: str | bytes) -> str:
        self.path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_snippet(self.path)

    def refused(self, text: str | bytes) -> RonError:
        error = self.assertRaises(RonError, self.read, text)
        self.assertIs(error.code, ErrorCode.BAD_REQUEST)
        return error

    def test_the_operators_lines(self) -> None:
        self.assertEqual(self.read(SNIPPET).splitlines()[-1], AUTHORITY)

    def test_whatever_else_a_tor_could_be_told(self) -> None:
        for line in (
            "ORPort 9001",
            "ExitRelay 1",
            "%include /etc/passwd",
            "ClientTransportPlugin x exec /bin/sh",
            "Log debug",
        ):
            self.assertIn(line.split()[0], self.refused(SNIPPET + line).message)
        for line in ("TestingTorNetwork 1 \\", "+DirAuthority x", "/DirAuthority"):
            self.refused(SNIPPET + line)

    def test_no_authority_no_file_too_much(self) -> None:
        self.refused("TestingTorNetwork 1\n")
        self.refused("")
        self.refused(SNIPPET * 1000)
        self.refused(SNIPPET.encode() + b"\xff")
        self.path.unlink()
        self.assertRaises(RonError, read_snippet, self.path)

    @given(st.text(max_size=30))
    def test_any_line(self, line: str) -> None:
        try:
            text = self.read(f"{AUTHORITY}\n{line}")
        except RonError:
            return
        self.assertNotIn("\r", text)
        self.assertTrue(text.isascii())


class RealTor(TestCase):
    timeout = 60
    skip = None if shutil.which("tor") else "tor is not installed; make test installs it"

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).absolute()
        self.health = HealthState()
        self.ups: list[str] = []

    def made(self, kind: Any, **more: Any) -> Any:
        fleet = kind(
            reactor,
            directory=self.directory,
            tor=find_tor(),
            clients=("onion",),
            health=self.health,
            metrics=Metrics(),
            on_client_up=lambda tor: self.ups.append(tor.name),
            **more,
        )
        self.addCleanup(fleet.take_down)
        return fleet

    async def test_public_clients_come_up_and_keep_their_guards(self) -> None:
        fleet = self.made(Offline)
        await fleet.bring_up()
        await until(lambda: self.ups)
        torrc = (self.directory / "onion.torrc").read_text()
        for line in ("ClientOnly 1", "ORPort 0", "ExitPolicy reject *:*"):
            self.assertIn(line, torrc.splitlines())
        self.assertNotIn("DirAuthority", torrc)
        await fleet.take_down()
        self.assertTrue((self.directory / "onion" / "state").exists())
        again = self.made(Offline)
        await again.bring_up()
        self.assertTrue((self.directory / "onion" / "state").exists())

    async def test_one_more_and_one_less_while_it_runs(self) -> None:
        fleet = self.made(Offline)
        await fleet.bring_up()
        await fleet.add_client("own-1")
        await fleet.add_client("own-1")
        self.assertEqual(sorted(fleet.pids()), ["onion", "own-1"])
        self.assertNotEqual(fleet.socks_port("own-1"), fleet.socks_port("onion"))
        await fleet.remove_client("own-1")
        await fleet.remove_client("own-1")
        self.assertEqual(sorted(fleet.pids()), ["onion"])
        self.assertFalse((self.directory / "own-1").exists())
        for name in ("", "../x", "A", "x" * 40):
            with self.assertRaises(RonError):
                await fleet.add_client(name)

    async def test_a_relay_is_never_started(self) -> None:
        for more in ("ORPort 9001\n", "ExitRelay 1\n", "BridgeRelay 1\n"):
            fleet = self.made(type("Relay", (Offline,), {"more": more}))
            with self.assertRaises(RonError):  # ours, or tor's own where the line contradicts the others
                await fleet.bring_up()
            self.assertEqual(fleet.pids(), {})
            await fleet.take_down()

    async def test_tor_takes_a_joined_client(self) -> None:
        snippet = self.directory.with_name("snippet.torrc")
        snippet.write_text(SNIPPET)
        fleet = self.made(type("Offline", (JoinedClients,), {"client_target": 0}), snippet=snippet)
        await fleet.bring_up()
        await until(lambda: self.ups)
        self.assertIn(AUTHORITY, (self.directory / "onion.torrc").read_text())
