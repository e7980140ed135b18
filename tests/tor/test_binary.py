"""Which tor this host has; what is wrong with it is said with the command that mends it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.tor.binary import MINIMUM, TorBinary, find_tor, parse_version

BANNER = """Tor version 0.4.8.10.
This build of Tor is covered by the GNU General Public License.
Tor is running on Linux with Libevent 2.1.12-stable, OpenSSL 3.0.11, Zlib 1.2.13, Liblzma 5.4.1.
"""


class Programs(SynchronousTestCase):
    """A folder of little programs that pretend to be tor."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.patch(os, "environ", {**os.environ, "PATH": str(self.folder)})

    def program(self, name: str, script: str) -> Path:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def tor(self, banner: str, *, gencert: bool = True) -> Path:
        if gencert:
            self.program("tor-gencert", "exit 0")
        return self.program("tor", f"printf '%s\\n' '{banner}'")

    def refused(self, words: str, name: str = "tor") -> RonError:
        error: RonError = self.assertRaises(RonError, find_tor, name)
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertIn(words, error.message)
        self.assertTrue(error.hint)
        return error

    def test_a_good_one(self) -> None:
        path = self.tor(BANNER)
        found = find_tor()
        self.assertEqual(found, TorBinary(str(path), (0, 4, 8, 10), str(self.folder / "tor-gencert")))
        self.assertEqual(str(found), "tor 0.4.8.10")

    def test_by_its_path(self) -> None:
        path = self.tor(BANNER)
        self.patch(os, "environ", {"PATH": "/nowhere"})
        self.assertEqual(find_tor(str(path)).path, str(path))

    def test_the_oldest_that_will_do(self) -> None:
        for version in ("0.4.8", "0.4.8.1-alpha", "0.4.9.11", "0.5.0.0", "1.0.0"):
            self.tor(f"Tor version {version}.")
            self.assertGreaterEqual(find_tor().version[:3], MINIMUM)

    def test_too_old(self) -> None:
        for version in ("0.4.7.16", "0.3.5.18", "0.4.7"):
            self.tor(f"Tor version {version}.")
            error = self.refused(f"tor {version} is too old: 0.4.8 or newer")
            self.assertIn("apt-get install tor", str(error.hint))

    def test_missing(self) -> None:
        self.assertIn("apt-get install tor", str(self.refused("no program 'tor'").hint))
        self.refused("no program '/no/such/tor'", "/no/such/tor")

    def test_there_but_not_to_be_run(self) -> None:
        self.tor(BANNER).chmod(0o644)
        self.refused("no program 'tor'")
        path = self.program("tor", "")
        path.write_text("#!/no/such/interpreter\n")
        self.refused("does not run")

    def test_something_else_of_that_name(self) -> None:
        for banner in ("", "hello", "Tor version unknown", "GNU tar 1.34"):
            self.tor(banner)
            self.refused("does not say a tor version")

    def test_one_that_fails(self) -> None:
        self.program("tor", "echo 'error while loading shared libraries' >&2; exit 127")
        self.refused("does not say a tor version")

    def test_one_that_says_no_text(self) -> None:
        self.program("tor", "printf 'Tor \\377\\376 version\\n'")
        self.refused("does not say a tor version")

    def test_without_tor_gencert(self) -> None:
        self.tor(BANNER, gencert=False)
        self.refused("tor-gencert is missing")

    def test_gencert_beside_tor_goes_before_one_on_the_path(self) -> None:
        other = self.folder / "other"
        other.mkdir()
        path = self.tor(BANNER)
        for name in ("tor", "tor-gencert"):
            shutil.copy(self.folder / name, other / name)
        self.assertEqual(find_tor(str(other / path.name)).gencert, str(other / "tor-gencert"))


class Versions(SynchronousTestCase):
    @given(st.lists(st.integers(0, 99), min_size=3, max_size=4), st.sampled_from(["", ".", "-alpha.", " (git-abc)."]))
    def test_read_from_the_first_line(self, version: list[int], end: str) -> None:
        self.assertEqual(parse_version(f"Tor version {'.'.join(map(str, version))}{end}\nmore"), tuple(version))

    @given(st.text())
    def test_anything_else_is_none_or_numbers(self, banner: str) -> None:
        version = parse_version(banner)
        self.assertTrue(version is None or len(version) in (3, 4))
