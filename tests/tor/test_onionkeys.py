"""Onion keys are made by us, kept strictly, and belong to the address that tor will say."""

from __future__ import annotations

import base64
import hashlib
import shutil
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from ron.kernel.processes import spawn, stop
from ron.proto.errors import ErrorCode, RonError
from ron.tor.control import connect_control
from ron.tor.onionkeys import OnionKey, address_of, new_key, onion_address, parse_key, public_key
from ron.tor.ports import remembered_ports
from ron.tor.process import TorProcess
from tests.tor.fake_tor import KEY, SERVICE_ID
from tests.web.wire import until


class Keys(SynchronousTestCase):
    def test_a_v3_key(self) -> None:
        self.assertEqual(parse_key(KEY).blob, KEY)

    def test_anything_else_is_refused_without_being_quoted(self) -> None:
        unclamped = "ED25519-V3:" + "A" * 86 + "=="
        for text in (
            "",
            KEY[:-1],
            KEY + "=",
            KEY + "\n",
            " " + KEY,
            KEY + "\r\nDEL_ONION x",
            KEY.replace("ED25519-V3", "RSA1024"),
            KEY.replace("A", "\u00e9"),
            KEY * 1000,
            unclamped,
            "NEW:BEST",
        ):
            error = self.assertRaises(RonError, parse_key, text)
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)
            self.assertNotIn("A" * 20, error.message + str(error.hint))

    def test_the_repr_hides_the_blob(self) -> None:
        for shown in (repr(OnionKey(KEY)), str(OnionKey(KEY))):
            self.assertNotIn("ED25519-V3", shown)

    def test_new_ones_are_new_and_are_taken_back(self) -> None:
        keys = {new_key() for _ in range(50)}
        self.assertEqual(len({address_of(key) for key in keys}), 50)
        self.assertEqual({parse_key(key.blob) for key in keys}, keys)

    @given(st.binary(min_size=32, max_size=32))
    def test_the_public_key_is_the_one_of_rfc_8032(self, seed: bytes) -> None:
        expanded = bytearray(hashlib.sha512(seed).digest())
        expanded[0] &= 248
        expanded[31] = expanded[31] & 63 | 64
        key = OnionKey("ED25519-V3:" + base64.b64encode(expanded).decode())
        self.assertEqual(public_key(key), bytes(SigningKey(seed).verify_key))

    def test_a_known_address(self) -> None:
        """The Tor Project's own (its checksum is the proof of ours)."""
        onion = "2gzyxa5ihm7nsggfxnu52rck2vv4rvmdlkiu3zzui5du4xyclen53wid.onion"
        public = base64.b32decode(onion.removesuffix(".onion").upper())[:32]
        self.assertEqual(onion_address(public), onion)
        self.assertEqual(address_of(OnionKey(KEY)), f"{SERVICE_ID}.onion")


class AgainstTor(TestCase):
    """A real tor that stays off every network agrees about the address."""

    timeout = 60
    skip = None if shutil.which("tor") else "tor is not installed; make test installs it"

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(mode=0o700)

    async def test_tor_publishes_our_key_where_we_say(self) -> None:
        folder = self.folder
        port = remembered_ports(folder / "ports.json", ["control"])["control"]
        torrc = folder / "torrc"
        torrc.write_text(
            f"DataDirectory {folder}\nControlPort {port}\nCookieAuthentication 1\nSocksPort 0\nDisableNetwork 1\n"
        )
        process = spawn(reactor, TorProcess(), ["tor", "-f", str(torrc), "--defaults-torrc", "/dev/null"])
        self.addCleanup(lambda: Deferred.fromCoroutine(stop(reactor, process)))
        await until(lambda: any("Bootstrapped 0%" in line for line in process.lines))
        control = await connect_control(reactor, port)
        self.addCleanup(control.transport.loseConnection)
        key = new_key()
        answer = await control.queue_command(f"ADD_ONION {key.blob} Flags=Detach Port=80,127.0.0.1:1")
        self.assertIn(f"ServiceID={address_of(key).removesuffix('.onion')}", answer.splitlines())
