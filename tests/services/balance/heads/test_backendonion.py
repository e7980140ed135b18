"""What a backend onion is made of, before any tor sees it."""

from __future__ import annotations

from pathlib import Path

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ron.kernel import HealthState, Metrics
from ron.proto.errors import ErrorCode, RonError
from ron.services.balance.config import BalanceConfig
from ron.services.balance.heads.head import TorHead
from ron.tor.backendonion import BackendOnion, address_in, count_points, edition, prepare

ONION = "a" * 56 + ".onion"


class BackendOnionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp())

    def test_masters_that_are_none(self) -> None:
        for masters in ([], ["example.org"], [ONION, ONION.upper()], [f"{ONION}\nMasterOnionAddress x"]):
            error = self.assertRaises(RonError, prepare, self.folder, masters)
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)
        self.assertFalse(self.folder.exists())

    def test_a_private_folder_with_a_line_for_each_master(self) -> None:
        prepare(self.folder, [ONION, "b" * 56 + ".onion"])
        self.assertEqual(self.folder.stat().st_mode & 0o777, 0o700)
        text = (self.folder / "ob_config").read_text()
        self.assertEqual(text, f"MasterOnionAddress {ONION}\nMasterOnionAddress {'b' * 56}.onion\n")

    def test_no_onion_has_been_made(self) -> None:
        prepare(self.folder, [ONION])
        self.assertIs(self.assertRaises(RonError, address_in, self.folder).code, ErrorCode.INTERNAL)
        (self.folder / "hostname").write_text("nonsense\n")
        self.assertRaises(RonError, address_in, self.folder)
        (self.folder / "hostname").write_text(f"{ONION}\n")
        self.assertEqual(address_in(self.folder), ONION)

    def test_nothing_breaks_out_of_the_line(self) -> None:
        for folder in ('/tmp/a" HiddenServiceDir="/etc', "/tmp/a\nQUIT", "/tmp/a\\"):
            self.assertRaises(RonError, BackendOnion(folder=Path(folder), ports=()).options)
        onion = BackendOnion(folder=Path("/f"), ports=("80 127.0.0.1:1", "81 unix:/s"))
        self.assertEqual(
            onion.options(),
            'HiddenServiceDir="/f" HiddenServiceOnionBalanceInstance=1 '
            'HiddenServicePort="80 127.0.0.1:1" HiddenServicePort="81 unix:/s"',
        )

    def test_an_edition_is_what_is_before_the_encrypted_part(self) -> None:
        head = "hs-descriptor 3\nrevision-counter 7\n"
        self.assertEqual(edition(f"{head}superencrypted\nAAAA"), edition(f"{head}superencrypted\nBBBB"))
        self.assertNotEqual(edition(f"{head}superencrypted"), edition("revision-counter 8\nsuperencrypted"))

    def test_what_is_no_descriptor_has_no_points(self) -> None:
        for text in ("", "hs-descriptor 3\n", "x" * 60_000):
            self.assertEqual(count_points(text, ONION), 0)


class TorHeadTests(SynchronousTestCase):
    def made(self, *ports: str) -> TorHead:
        return TorHead(
            Clock(),
            host=None,  # type: ignore[arg-type] - it is never started
            tor="head",
            folder=Path(self.mktemp()),
            masters=[ONION],
            services={"main": ports},
            config=BalanceConfig,
            metrics=Metrics(),
            health=HealthState(),
        )

    def test_ports_that_cannot_be(self) -> None:
        for ports, code in (
            (("80:nowhere",), ErrorCode.BAD_REQUEST),
            (("80:127.0.0.1:1", "80:127.0.0.1:2"), ErrorCode.CONFLICT),
            ((f"80:{ONION}:80",), ErrorCode.BAD_REQUEST),  # no SOCKS port
        ):
            self.assertIs(self.assertRaises(RonError, self.made, *ports).code, code)

    def test_before_its_tor_is_there(self) -> None:
        head = self.made("80:127.0.0.1:1")
        report = head.report()
        self.assertEqual((report.mode, report.onion, report.descriptor, report.healthy), ("starting", "", "", False))
        self.assertIsNone(head.descriptor())

    def test_asked_twice_it_tells_once(self) -> None:
        head, told = self.made("80:127.0.0.1:1"), list[str]()
        head.on_change(lambda: told.append(head.report().mode))
        for _ in range(3):
            head.ghost()
            head.set_masters([ONION, ONION])
        self.assertEqual(told, ["starting"])
