"""Free loopback ports, chosen once and remembered."""

from __future__ import annotations

import json
import random
import socket
import stat
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.tor import ports
from ron.tor.ports import FIRST_PORT, LAST_PORT, is_free, remembered_ports

NAMES = ("auth1.or", "auth1.dir", "relay1.or", "onion.socks")


class Remembering(SynchronousTestCase):
    def setUp(self) -> None:
        folder = Path(self.mktemp()).absolute()
        folder.mkdir()
        self.path = folder / "ports.json"

    def listen(self, port: int) -> socket.socket:
        """Take `port` until the test is over."""
        taken = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.addCleanup(taken.close)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        return taken

    def check(self, chosen: dict[str, int], names: tuple[str, ...] = NAMES) -> None:
        self.assertEqual(set(chosen), set(names))
        self.assertEqual(len(set(chosen.values())), len(names))
        for port in chosen.values():
            self.assertTrue(FIRST_PORT <= port <= LAST_PORT, port)

    def test_a_port_each_below_the_ephemeral_range(self) -> None:
        self.check(remembered_ports(self.path, NAMES))
        first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        self.assertLess(LAST_PORT, max(first_ephemeral, 32768))

    def test_the_same_from_start_to_start(self) -> None:
        first = remembered_ports(self.path, NAMES, random.Random(1))
        before = self.path.stat().st_mtime_ns
        self.assertEqual(remembered_ports(self.path, NAMES, random.Random(2)), first)
        self.assertEqual(self.path.stat().st_mtime_ns, before)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_one_that_someone_else_has_taken_is_replaced_and_the_others_stay(self) -> None:
        first = remembered_ports(self.path, NAMES)
        self.listen(first["auth1.dir"])
        again = remembered_ports(self.path, NAMES)
        self.check(again)
        self.assertEqual([name for name in NAMES if again[name] != first[name]], ["auth1.dir"])
        self.assertEqual(json.loads(self.path.read_text()), again)

    def test_new_names_get_new_ports_and_old_names_are_forgotten(self) -> None:
        first = remembered_ports(self.path, NAMES[:2])
        again = remembered_ports(self.path, NAMES[1:])
        self.check(again, NAMES[1:])
        self.assertEqual(again["auth1.dir"], first["auth1.dir"])

    def test_a_damaged_file_is_made_anew(self) -> None:
        for content in (b"", b"{", b"[]", b'{"auth1.or": "x"}', b'{"auth1.or": null}', b"null"):
            self.path.write_bytes(content)
            self.check(remembered_ports(self.path, NAMES))

    def test_a_file_that_is_not_text_is_made_anew(self) -> None:
        self.path.write_bytes(b'{"auth1.\xff": 1}')
        self.check(remembered_ports(self.path, NAMES))

    def test_impossible_numbers_are_made_anew(self) -> None:
        for port in (70000, -1, 0, 80):
            self.path.write_text(json.dumps({"auth1.or": port}))
            self.check(remembered_ports(self.path, NAMES))

    def test_one_number_for_two_names_is_not_kept(self) -> None:
        port = remembered_ports(self.path, NAMES[:1])[NAMES[0]]
        self.path.write_text(json.dumps(dict.fromkeys(NAMES, port)))
        self.check(remembered_ports(self.path, NAMES))

    def test_no_port_left(self) -> None:
        taken = remembered_ports(self.path, NAMES[:1])[NAMES[0]]
        self.patch(ports, "FIRST_PORT", taken)
        self.patch(ports, "LAST_PORT", taken)
        self.listen(taken)
        self.path.unlink()
        error = self.assertRaises(RonError, remembered_ports, self.path, NAMES)
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertIn("ss -ltnp", str(error.hint))

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 2**32), st.lists(st.text(min_size=1, max_size=5), unique=True, min_size=1, max_size=10))
    def test_never_the_same_port_twice(self, seed: int, names: list[str]) -> None:
        self.path.unlink(missing_ok=True)
        self.check(remembered_ports(self.path, names, random.Random(seed)), tuple(names))

    def test_is_free(self) -> None:
        taken = self.listen(0)
        port = taken.getsockname()[1]
        self.assertFalse(is_free(port))
        taken.close()
        self.assertTrue(is_free(port))
