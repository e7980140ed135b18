"""`ronctl federation`: keys as private files, grants in the register, and how sessions are shown."""

from __future__ import annotations

import json
import stat

from click.testing import CliRunner
from twisted.trial.unittest import SynchronousTestCase

from ron.crypto.schnorr import HolderKey
from ron.ctl.federation import _text, federation
from ron.ctl.main import ronctl
from ron.proto.errors import ErrorCode
from ron.proto.exitcodes import Unreachable
from ron.services.oniond.federation.grants import holders
from ron.services.oniond.federation.messages import TransportFacts
from ron.services.oniond.federation.routes import FederationView, OwnList, SessionView
from ron.services.oniond.federation.shelf import Shelf, read_holder
from ron.tor.onionkeys import address_of, new_key
from tests.ctl.with_home import WithHome

PEER = address_of(new_key())


class Keys(WithHome):
    """What an operator does before two nodes meet."""

    command = federation

    def test_a_new_key_is_a_private_file_and_its_public_part_is_on_stdout(self) -> None:
        path = self.home / "bert.key"
        result = self.ran("new-holder", "--out", str(path))
        key = read_holder(path)
        self.assertEqual(result.stdout.strip(), key.public.hex())
        self.assertNotIn(key.secret.hex(), result.output)
        self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600)
        shown = json.loads(self.ran("new-holder", "--out", str(self.home / "b.key"), "--json").stdout)
        self.assertEqual(set(shown), {"public", "file"})

    def test_no_key_is_overwritten(self) -> None:
        path = self.home / "bert.key"
        path.write_text("precious")
        self.assertEqual(self.refused("new-holder", "--out", str(path)).code, ErrorCode.CONFLICT)
        self.assertEqual(path.read_text(), "precious")

    def test_a_grant_is_a_capability_that_names_the_key_and_nothing_else(self) -> None:
        public = HolderKey.generate().public
        answer = json.loads(self.ran("grant", public.hex(), "--label", "bert", "--ttl", "7d", "--json").stdout)
        caveats = [c for c in answer["caveats"] if not c.startswith(("exp", "aud"))]
        self.assertEqual(caveats, ["scope = federation:peer", f"holder = {public.hex()}"])
        ((entry, _revoked),) = self.files.listed()
        self.assertEqual((entry.label, entry.cap_id), ("bert", answer["cap_id"]))
        self.assertEqual(holders(self.files.listed()), (public,))
        self.files.revoke(answer["cap_id"])
        self.assertEqual(holders(self.files.listed()), ())

    def test_what_is_no_key_is_granted_nothing(self) -> None:
        for text in ("", "x", "00" * 32, "01" + "00" * 31, HolderKey.generate().public.hex().upper()):
            self.assertEqual(self.refused("grant", text).code, ErrorCode.BAD_REQUEST)
        self.assertEqual(self.files.listed(), ())

    def test_holding(self) -> None:
        path = self.home / "bert.key"
        self.ran("new-holder", "--out", str(path))
        self.ran("hold", PEER, str(path))
        held, wrong = Shelf(self.home / "federation").holdings()
        self.assertEqual(
            ({issuer: key.secret for issuer, key in held.items()}, wrong), ({PEER: read_holder(path).secret}, [])
        )

    def test_holding_what_is_no_key_or_for_what_is_no_onion(self) -> None:
        path = self.home / "bert.key"
        self.ran("new-holder", "--out", str(path))
        for issuer in ("x.onion", PEER.upper(), "../../x"):
            self.assertEqual(self.refused("hold", issuer, str(path)).code, ErrorCode.BAD_REQUEST)
        path.chmod(0o644)
        self.assertIn("others may read it", self.refused("hold", PEER, str(path)).message)
        path.write_text("{}")
        path.chmod(0o600)
        self.assertIn("no holder key", self.refused("hold", PEER, str(path)).message)

    def test_without_a_daemon(self) -> None:
        for arguments in (("sessions",), ("connect", PEER)):
            self.assertIsInstance(self.refused(*arguments), Unreachable)
        self.assertEqual(self.refused("connect", "x.onion").code, ErrorCode.BAD_REQUEST)


class Showing(SynchronousTestCase):
    """One line each."""

    def test_sessions(self) -> None:
        facts = TransportFacts(onion=PEER, protocols=("ron-federation/1",), regions=("eu", "eu-1"), load="high")
        told, silent = (
            SessionView(id="0" * 32, peer=PEER, role="initiator", roster_version=3, expires_in_s=60, facts=one)
            for one in (facts, None)
        )
        listed = OwnList(version=3, digest=b"\xab" * 32, size=1, holders=0)
        view = FederationView(
            onion=PEER, allow=(), issuers=(), list=listed, sessions=(told, silent), trouble=("a key is damaged",)
        )
        lines = _text(view).splitlines()
        self.assertIn("version 3, 0 holders, digest " + "ab" * 32, lines[1])
        self.assertEqual(lines[2:5], ["allowed  nobody", "holds    nothing", "trouble  a key is damaged"])
        self.assertTrue(lines[5].endswith("initiator, 60 s left, load high, eu, eu-1"))
        self.assertTrue(lines[6].endswith("no facts yet"))

    def test_help(self) -> None:
        self.assertIn("federation", CliRunner().invoke(ronctl, ["--help"]).output)
        for command in ("new-holder", "grant", "hold", "connect", "sessions"):
            text = CliRunner().invoke(federation, [command, "--help"]).output
            self.assertIn("Example", text, command)
