"""torrc files: every role rendered, and judged by the real tor before it is used."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.tor import torrc
from ron.tor.binary import TorBinary, find_tor
from ron.tor.torrc import ROLE_TEMPLATES, command, no_defaults, render, write_verified

FINGERPRINT = "A" * 40
AUTHORITY = f"DirAuthority auth1 orport=20001 v3ident={'B' * 40} 127.0.0.1:20002 {FINGERPRINT}"


def values(folder: Path, **changes: Any) -> dict[str, object]:
    """Everything any role needs."""
    return {
        "dir_authorities": AUTHORITY,
        "data_directory": folder / "data",
        "no_defaults": no_defaults(),
        "nickname": "auth1",
        "control_port": 20003,
        "or_port": 20004,
        "dir_port": 20005,
        "socks_port": 20006,
        "snippet": f"TestingTorNetwork 1\nUseDefaultFallbackDirs 0\n{AUTHORITY}",
        **changes,
    }


def options(text: str) -> dict[str, str]:
    """Option names and values of a torrc; the last one counts."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return dict(line.split(" ", 1) for line in lines)


class Folder(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()


class Rendering(Folder):
    def test_every_role_is_whole(self) -> None:
        for role in ROLE_TEMPLATES:
            text = render(role, values(self.folder))
            self.assertNotIn("$", text)
            self.assertEqual(AUTHORITY in text, role != "public")
            self.assertEqual(options(text)["ControlPort"], "127.0.0.1:20003")

    def test_nothing_listens_beyond_loopback(self) -> None:
        for role in ROLE_TEMPLATES:
            given = options(render(role, values(self.folder)))
            for name in ("ControlPort", "ORPort", "DirPort", "SocksPort"):
                self.assertRegex(given.get(name, "0"), r"^(0$|127\.0\.0\.1:)", (role, name))

    def test_no_role_exits_and_only_one_uses_the_public_network(self) -> None:
        for role in ROLE_TEMPLATES:
            given = options(render(role, values(self.folder)))
            self.assertEqual(given["ExitPolicy"], "reject *:*")
            self.assertEqual(given["CookieAuthentication"], "1")
            ours = None if role == "public" else "1"
            self.assertEqual(given.get("TestingTorNetwork"), ours)
            self.assertEqual(given.get("UseDefaultFallbackDirs"), "0" if ours else None)

    def test_a_client_is_never_a_relay(self) -> None:
        given = options(render("client", values(self.folder)))
        self.assertEqual((given["ClientOnly"], given["ORPort"], given["DirPort"]), ("1", "0", "0"))
        self.assertNotIn("AuthoritativeDirectory", given)

    def test_a_relay_is_no_authority(self) -> None:
        self.assertNotIn("AuthoritativeDirectory", options(render("relay", values(self.folder))))
        self.assertEqual(options(render("authority", values(self.folder)))["V3AuthoritativeDirectory"], "1")

    def test_a_missing_value_is_named(self) -> None:
        needed = {"authority": "dir_port", "relay": "or_port", "client": "socks_port"}
        for role, name in needed.items():
            given = values(self.folder)
            del given[name]
            error = self.assertRaises(KeyError, render, role, given)
            self.assertEqual(error.args, (name,))

    def test_an_unknown_role(self) -> None:
        self.assertRaises(KeyError, render, "exit", values(self.folder))


class Commands(SynchronousTestCase):
    def test_nothing_of_the_systems_tor_comes_in_and_tor_ends_with_us(self) -> None:
        words = command(TorBinary("/bin/tor", (0, 4, 8), "/bin/tor-gencert"), Path("/x/torrc"))
        self.assertEqual(words[:3], ["/bin/tor", "-f", "/x/torrc"])
        self.assertEqual(words[words.index("--defaults-torrc") + 1], str(no_defaults()))
        self.assertEqual(words[words.index("--__OwningControllerProcess") + 1], str(os.getpid()))

    def test_the_defaults_are_empty(self) -> None:
        self.assertEqual(options(no_defaults().read_text()), {})


class Verified(Folder):
    """With the real tor."""

    def setUp(self) -> None:
        super().setUp()
        try:
            self.tor = find_tor()
        except RonError as error:
            raise SkipTest(f"needs tor: {error.message}") from None
        self.path = self.folder / "node.torrc"

    def refused(self, text: str, words: str) -> None:
        error = self.assertRaises(RonError, write_verified, self.tor, self.path, text)
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)
        self.assertIn(words, error.message)
        self.assertNotIn("[warn]", error.message)
        self.assertFalse(self.path.exists())

    def test_tor_accepts_what_we_render_for_every_role(self) -> None:
        (self.folder / "data").mkdir(mode=0o700)
        for role in ROLE_TEMPLATES:
            text = render(role, values(self.folder))
            write_verified(self.tor, self.path, text)
            self.assertEqual(self.path.read_text(), text)
            self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_what_it_refuses_is_told_in_its_own_words(self) -> None:
        good = render("client", values(self.folder))
        self.refused(good + "\nNoSuchOption 1\n", "NoSuchOption")
        self.refused(render("client", values(self.folder, socks_port="eighty")), "eighty")

    def test_the_word_that_counts_is_told_too(self) -> None:
        """tor warns of every DirAuthority of ours before it comes to what is wrong."""
        text = render("client", values(self.folder, dir_authorities="DirAuthority nonsense"))
        self.refused(text, "arguments to DirAuthority")

    def test_a_refused_text_leaves_no_file_of_before_in_use(self) -> None:
        write_verified(self.tor, self.path, render("client", values(self.folder)))
        self.refused("NoSuchOption 1\n", "NoSuchOption")


class Remembered(Folder):
    """With a program in tor's place that says how often it was asked."""

    def setUp(self) -> None:
        super().setUp()
        self.path = self.folder / "node.torrc"

    def tor(self, script: str) -> TorBinary:
        program = self.folder / "tor"
        program.write_text(f"#!/bin/sh\necho asked >> {self.folder}/asked\n{script}\n")
        program.chmod(0o755)
        return TorBinary(str(program), (0, 4, 8), "")

    def asked(self) -> int:
        path = self.folder / "asked"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def test_the_same_text_is_checked_once(self) -> None:
        tor = self.tor("exit 0")
        for text, times in (("A 1\n", 1), ("A 1\n", 1), ("A 2\n", 2), ("A 1\n", 3)):
            write_verified(tor, self.path, text)
            self.assertEqual(self.asked(), times)

    def test_a_refusal_without_words(self) -> None:
        error = self.assertRaises(RonError, write_verified, self.tor("exit 1"), self.path, "A 1\n")
        self.assertIn("no reason given", error.message)

    def test_what_lies_in_place_has_been_checked(self) -> None:
        """A crash while tor judges leaves nothing where the next start would trust it."""
        write_verified(self.tor(f"[ ! -e {self.path} ]"), self.path, "A 1\n")
        write_verified(self.tor(f"[ ! -e {self.path} ]"), self.path, "A 2\n")
        self.assertRaises(RonError, write_verified, self.tor("exit 1"), self.path, "A 3\n")
        self.assertEqual(
            [p.name for p in self.folder.glob("*torrc*")] + [p.name for p in self.folder.glob(".*torrc*")], []
        )

    def test_a_tor_that_does_not_answer(self) -> None:
        self.patch(torrc, "VERIFY_TIMEOUT_S", 0.1)
        self.assertRaises(RonError, write_verified, self.tor("exec sleep 5"), self.path, "A 1\n")
        self.assertFalse(self.path.exists())
