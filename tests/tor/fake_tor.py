"""A tor as its ControlPort shows it: speaks the control protocol on loopback, and does nothing else.

It stands in for the program, not for our code: txtorcon and everything above it is real.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

from twisted.internet import reactor
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineReceiver
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

# the smallest scalar that is clamped, and the address that tor publishes it under
KEY = "ED25519-V3:CAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="
SERVICE_ID = "zgdx37i4zwtdsoqvv3mkxidhtbcwpgbvl4vj3jhbql7m2qbjaflzmjid"
DONE = 'NOTICE BOOTSTRAP PROGRESS=100 TAG=done SUMMARY="Done"'


def uploaded(hsdir: str, service_id: str = SERVICE_ID) -> str:
    """The event of a directory that has taken a descriptor."""
    return f"HS_DESC UPLOADED {service_id} UNKNOWN ${hsdir}~{hsdir}"


class FakeTor(TestCase):
    """A test with a control port: `port`, what it was told in `commands`, what it says in `answers`."""

    timeout = 20

    def setUp(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        self.cookie_path = folder / "control_auth_cookie"
        self.cookie = os.urandom(32)
        self.cookie_path.write_bytes(self.cookie)
        self.commands: list[str] = []
        self.controllers: list[Controller] = []
        self.answers: dict[str, list[str]] = {
            "GETINFO signal/names": ["250-signal/names=RELOAD", "250 OK"],
            "GETINFO version": ["250-version=0.4.9.11", "250 OK"],
            "GETINFO events/names": ["250-events/names=HS_DESC CIRC CIRC_MINOR CIRC_BW STREAM", "250 OK"],
            "GETINFO status/bootstrap-phase": [f"250-status/bootstrap-phase={DONE}", "250 OK"],
            "ADD_ONION": [f"250-ServiceID={SERVICE_ID}", "250 OK"],
            "GETINFO onions/detached": ["551 No onion services owned by this connection"],
        }
        # events sent around the answer to ADD_ONION
        self.events_before: list[str] = []
        self.events_after: list[str] = []

    def listen(self, port: int = 0) -> int:
        """Open the control port."""
        factory = Factory.forProtocol(lambda: Controller(self))
        listening = reactor.listenTCP(port, factory, interface="127.0.0.1")
        self.addCleanup(self._hang_up)
        self.addCleanup(listening.stopListening)
        return int(listening.getHost().port)

    def answer(self, controller: Controller, verb: str, rest: str) -> bool:
        """For subclasses: True when the command was answered."""
        return False

    def tell(self, event: str) -> None:
        """Send an asynchronous event to every controller."""
        for controller in self.controllers:
            controller.say(f"650 {event}")

    def told(self, verb: str) -> list[str]:
        """The commands that began with `verb`."""
        return [command for command in self.commands if command.split(" ")[0] == verb]

    def _hang_up(self) -> None:
        for controller in self.controllers:
            controller.transport.abortConnection()


class Controller(LineReceiver):
    """One connection to the fake's control port; SAFECOOKIE as in control-spec §3.24."""

    delimiter = b"\r\n"

    def __init__(self, tor: FakeTor) -> None:
        self._tor = tor
        self._expected = ""
        self._authenticated = False

    def connectionMade(self) -> None:
        self._tor.controllers.append(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self._tor.controllers.remove(self)

    def say(self, *lines: str) -> None:
        for line in lines:
            self.sendLine(line.encode())

    def lineReceived(self, line: bytes) -> None:
        command = line.decode()
        verb, _, rest = command.partition(" ")
        self._tor.commands.append(command)
        if verb == "PROTOCOLINFO":
            self.say(
                "250-PROTOCOLINFO 1",
                f'250-AUTH METHODS=COOKIE,SAFECOOKIE COOKIEFILE="{self._tor.cookie_path}"',
                '250-VERSION Tor="0.4.9.11"',
                "250 OK",
            )
        elif verb == "AUTHCHALLENGE":
            self._challenge(bytes.fromhex(rest.removeprefix("SAFECOOKIE ")))
        elif verb == "AUTHENTICATE":
            self._authenticated = rest.lower() == self._expected.lower()
            self.say("250 OK" if self._authenticated else "515 Authentication failed")
        elif not self._authenticated:
            self.say("514 Authentication required.")
        elif self._tor.answer(self, verb, rest):
            pass
        elif verb == "ADD_ONION":
            for event in self._tor.events_before:
                self._tor.tell(event)
            self.say(*self._tor.answers["ADD_ONION"])
            for event in self._tor.events_after:
                self._tor.tell(event)
        else:
            self.say(*self._tor.answers.get(command, ["250 OK"]))

    def _challenge(self, client_nonce: bytes) -> None:
        cookie, nonce = self._tor.cookie, os.urandom(32)
        known = cookie + client_nonce + nonce
        server = hmac.new(b"Tor safe cookie authentication server-to-controller hash", known, hashlib.sha256)
        client = hmac.new(b"Tor safe cookie authentication controller-to-server hash", known, hashlib.sha256)
        self._expected = client.hexdigest()
        self.say(f"250 AUTHCHALLENGE SERVERHASH={server.hexdigest().upper()} SERVERNONCE={nonce.hex().upper()}")
