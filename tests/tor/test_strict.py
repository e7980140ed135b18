"""TorStrict: whatever is not a client's never passes, however it is spelled; and tor reads what we have read."""

from __future__ import annotations

import subprocess
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase

from ron.proto.errors import ErrorCode, RonError
from ron.tor import strict, torrc
from ron.tor.binary import TorBinary, find_tor
from ron.tor.strict import TorStrictError, check_effective, check_public_torrc, check_running, check_with_tor
from ron.tor.torrc import no_defaults, render
from tests.tor.test_backends import RealTor

MINIMAL = "ClientOnly 1\nORPort 0\nExitPolicy reject *:*\n"
FULL = (
    MINIMAL
    + """
# a comment, with punctuation: ! $ % & ' ( ) * + , - . / : ; < = > ? @ [ ] ^ _ ` { | } ~
  # another
DirPort 0
  SocksPort   127.0.0.1:20001 IsolateSOCKSAuth NoIPv6Traffic
SocksPort unix:/run/ron/socks SessionGroup=3
socksport [::1]:20005
SocksPort 0
SOCKSPOLICY accept 127.0.0.1
SocksPolicy reject *
ControlPort auto
ControlSocket /run/ron/control
CookieAuthentication 1
CookieAuthFile /run/ron/a path/cookie
MetricsPort 127.0.0.1:20003
MetricsPortPolicy accept 127.0.0.1
DataDirectory /var/lib/ron/tor
Log notice file /var/log/ron/tor.log
Log err syslog
HiddenServiceDir /var/lib/ron/onion
HiddenServicePort 80 127.0.0.1:8080
HiddenServicePort 81 unix:/run/ron/app
HiddenServicePoWDefensesEnabled 1
MaxCircuitDirtiness 10 minutes
VanguardsLiteEnabled auto
"""
)
KNOWN = tuple(
    subprocess.run(["tor", "--list-torrc-options"], capture_output=True, text=True, check=True).stdout.split()
)
FORBIDDEN = tuple(name for name in KNOWN if name.lower() not in strict._ALLOWED)
RELAY = (
    "ORPort 9001",
    "ORPort auto",
    "ORPort 127.0.0.1:9001 NoAdvertise",
    "DirPort 9030",
    "ExitPolicy accept *:*",
    "ExitPolicy reject *:25",
    "ExitPolicy reject *:*,accept *:80",
    "ExitPolicy reject6 *:*",
    "ExitRelay 1",
    "ExitRelay auto",
    "BridgeRelay 1",
    "PublishServerDescriptor 1",
    "PublishServerDescriptor bridge",
    "PublishServerDescriptor",
    "DirCache 1",
    "ClientOnly 0",
    "ClientOnly",
    "Nickname x",
    "ContactInfo x",
    "MyFamily $A",
    "RelayBandwidthRate 1 MB",
    "AssumeReachable 1",
    "ExtORPort auto",
    "ServerTransportPlugin obfs4 exec /bin/obfs4proxy",
    "AuthoritativeDirectory 1",
    "V3AuthoritativeDirectory 1",
    "V3AuthVotingInterval 20",
    "DirAuthority x 127.0.0.1:1 A",
    "DirServer x 127.0.0.1:1 A",
    "AlternateDirAuthority x 127.0.0.1:1 A",
    "FallbackDir 127.0.0.1:1",
    "TestingTorNetwork 1",
    "HidServDirectoryV2 1",
    "ReducedExitPolicy 1",
    "IPv6Exit 1",
    "%include /etc/tor/torrc.d",
    "HiddenServiceNonAnonymousMode 1",
    "HiddenServiceSingleHopMode 1",
    "SafeLogging 0",
    "ClientTransportPlugin x exec /bin/sh",
)
OPEN = (
    "SocksPort 0.0.0.0:9050",
    "SocksPort [::]:9050",
    "SocksPort *:9050",
    "SocksPort 10.0.0.1:9050",
    "SocksPort localhost:9050",
    "SocksPort 127.0.0.1.example.org:9050",
    "SocksPort 127.0.0.1",
    "SocksPort 9050 WorldWritable",
    "SocksPort unix:/x WorldWritable",
    "SocksPort unix:/x RelaxDirModeCheck",
    "SocksPolicy accept *",
    "ControlPort 0.0.0.0:9051",
    "ControlPort 192.168.0.1:9051",
    "ControlPort unix:/x WorldWritable",
    "ControlSocket x",
    "CookieAuthentication 0",
    "CookieAuthFileGroupReadable 1",
    "HashedControlPassword 16:A",
    "MetricsPort 0.0.0.0:9035",
    "MetricsPortPolicy accept *",
    "HiddenServicePort 80 10.0.0.1:80",
    "HiddenServicePort 80 example.org:80",
    "Log debug stdout",
    "Log notice file x",
    "DNSPort 53",
    "TransPort 9040",
    "HTTPTunnelPort 0.0.0.0:8118",
    "DataDirectory relative/path",
)


def inserted(line: str, at: int, into: str = FULL) -> str:
    """`into` with `line` before its line `at`, or at the end."""
    lines = into.split("\n")
    return "\n".join(lines[:at] + [line] + lines[at:])


def cased(name: str, choices: list[bool]) -> str:
    return "".join(c.upper() if up else c.lower() for c, up in zip(name, choices * len(name), strict=False))


class Static(SynchronousTestCase):
    def refused(self, text: str) -> TorStrictError:
        error: TorStrictError = self.assertRaises(TorStrictError, check_public_torrc, text)
        self.assertIs(error.code, ErrorCode.BAD_REQUEST)
        self.assertTrue(error.hint)
        return error

    def test_each_option_of_a_relay_and_each_open_listener(self) -> None:
        for line in (*RELAY, *OPEN):
            error = self.refused(FULL + line + "\n")
            self.assertEqual((error.line, error.option), (FULL.count("\n") + 1, line.split()[0]), line)
            self.assertIn(f"line {error.line}: {error.option} ", error.message)

    def test_tor_knows_every_relay_option_that_is_named_here(self) -> None:
        """So that the list above is about tor as it is, besides what it knew once."""
        names = {line.split()[0].lower() for line in (*RELAY, *OPEN)}
        self.assertLess(len(names - {name.lower() for name in KNOWN}), 4)

    def test_our_list_is_of_options_that_tor_knows(self) -> None:
        self.assertEqual(set(strict._RULES) - set(KNOWN), set())

    @given(st.sampled_from(FORBIDDEN), st.lists(st.booleans(), min_size=1), st.integers(0, 40), st.data())
    def test_a_forbidden_option_in_any_spelling_anywhere(
        self, name: str, choices: list[bool], at: int, data: st.DataObject
    ) -> None:
        spelled = cased(name, choices)
        cut = data.draw(st.integers(1, len(name)))
        short = spelled[:cut]
        forms = [f"{spelled} 0", spelled, f"  {spelled}  1", f"+{spelled} 1", f"/{spelled}", f"\t{spelled} 1"]
        forms += [f"{spelled}\t1", f'{spelled} "1"', f"{spelled[:cut]}\\\n{spelled[cut:]} 1", f"# x \\\n{spelled} 1"]
        forms += [f"Log notice stdout \\\n{spelled} 1", f"Log notice stdout\r{spelled} 1", f"\x0b{spelled} 1"]
        forms += [f"#\r\n{spelled} 1", f"{spelled}#x", f"\ufeff{spelled} 1"]
        if short.lower() not in strict._ALLOWED:
            forms.append(f"{short} 0")
        self.refused(inserted(data.draw(st.sampled_from(forms)), at))

    @given(st.sampled_from(RELAY), st.lists(st.booleans(), min_size=1), st.integers(0, 40))
    def test_a_forbidden_value_in_any_case_anywhere(self, line: str, choices: list[bool], at: int) -> None:
        name, _, value = line.partition(" ")
        self.refused(inserted(f"{cased(name, choices)} {value}", at))

    def test_tricks_of_the_parser(self) -> None:
        for line in (
            'SocksPort "127.0.0.1:9050"',
            'Log notice file "/x\\nORPort 9001"',
            "Log notice stdout # harmless",
            "PidFile /x # harmless",
            "PidFile /x#y",
            'PidFile /x"y',
            "PidFile /x\\y",
            "PidFile /x\\\nCookieAuthentication 1",
            "PidFile /x \\\n# a comment",
            "# a comment \\\nCookieAuthentication 1",
            "+SocksPort 9050",
            "+ClientOnly 1",
            "/ExitPolicy",
            "/ORPort 0",
            "__ORPort 0",
            "ClientOnly 1\x00ORPort 9001",
            "Log notice file /x\x85ORPort 9001",
            "Log notice file /x\u2028ORPort 9001",
            "ClientOnly\u00a01",
            "\u212aeepalivePeriod 5",
            "ClientOnly 1\r",
            "Log notice stdout\x0c",
            "%INCLUDE /x",
            "#\x00",
            "# caf\u00e9",
        ):
            self.refused(MINIMAL + line + "\n")

    def test_the_value_is_not_told(self) -> None:
        error = self.refused(MINIMAL + "HashedControlPassword 16:SECRET\n")
        self.assertNotIn("SECRET", error.one_line())
        error = self.refused(MINIMAL + "\x1b[31m" + "x" * 500 + " SECRET\n")
        self.assertTrue(error.message.isprintable())
        self.assertLess(len(error.message), 200)

    def test_what_must_be_said(self) -> None:
        for left_out in MINIMAL.splitlines():
            error = self.refused(MINIMAL.replace(left_out + "\n", ""))
            self.assertEqual((error.line, error.option), (0, left_out.split()[0]))
            self.refused(MINIMAL.replace(left_out, "# " + left_out))
        self.refused("")

    def test_too_long(self) -> None:
        self.refused(MINIMAL + "\n" * strict.MAX_TORRC_CHARS)

    def test_a_clients_passes(self) -> None:
        for text in (MINIMAL, FULL, MINIMAL.upper().replace("REJECT", "reject"), MINIMAL.removesuffix("\n")):
            check_public_torrc(text)

    @given(st.text(max_size=300))
    def test_any_text_is_judged(self, text: str) -> None:
        for judge in (check_public_torrc, check_effective):
            self.assertRaises(TorStrictError, judge, text)


class WithTor(SynchronousTestCase):
    """The real tor has the last word on what a file says."""

    def setUp(self) -> None:
        self.tor = find_tor()
        self.folder = Path(self.mktemp()).absolute()
        (self.folder / "data").mkdir(mode=0o700, parents=True)
        self.path = self.folder / "torrc"
        self.patch(torrc, "ROLE_TEMPLATES", {**torrc.ROLE_TEMPLATES, "public": ("public",)})
        values = {"socks_port": 20001, "control_port": 20002, "data_directory": self.folder / "data"}
        self.text = render("public", {**values, "no_defaults": no_defaults()})

    def judge(self, text: str) -> None:
        self.path.write_text(text)
        check_with_tor(self.tor, self.path)

    def read_by_tor(self, text: str) -> str | None:
        """What tor reads in `text`, though we would refuse it; None when tor refuses it too."""
        self.path.write_text(text, newline="")
        command = [self.tor.path, "-f", str(self.path), "--defaults-torrc", str(no_defaults()), "--dump-config"]
        done = subprocess.run([*command, "short"], capture_output=True, text=True, check=False)
        return done.stdout if done.returncode == 0 else None

    def test_our_template_passes(self) -> None:
        check_public_torrc(self.text)
        self.judge(self.text)

    def test_the_private_networks_do_not(self) -> None:
        for role in ("client", "relay", "authority"):
            names = ("nickname", "control_port", "or_port", "dir_port", "socks_port", "dir_authorities")
            values = {**dict.fromkeys(names, "1"), "data_directory": "/x", "no_defaults": "/x"}
            self.assertRaises(TorStrictError, check_public_torrc, render(role, values))

    def test_everything_a_client_may_say(self) -> None:
        text = self.text + "".join(
            f"{line}\n"
            for line in (
                "MetricsPort 127.0.0.1:20003",
                "MetricsPortPolicy accept 127.0.0.1",
                f"CacheDirectory {self.folder}/data",
                f"HiddenServiceDir {self.folder}/data/onion",
                "HiddenServicePort 80 127.0.0.1:8080",
                "HiddenServicePoWDefensesEnabled 1",
                "HiddenServicePoWQueueRate 20",
                f"ClientOnionAuthDir {self.folder}/data",
                "MaxCircuitDirtiness 10 minutes",
                "SocksPort [::1]:20004 SessionGroup=2",
            )
        )
        self.judge(text)

    def test_tor_is_not_asked_of_what_we_refuse(self) -> None:
        self.assertRaises(TorStrictError, self.judge, self.text + "ORPort 9001\n")
        asked = TorBinary("/bin/false", (0, 4, 9), "")
        self.path.write_text(self.text)
        error: RonError = self.assertRaises(RonError, check_with_tor, asked, self.path)
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)

    def test_a_tor_that_reads_something_else(self) -> None:
        """Should there ever be a way past our reading, what tor read is judged as well."""
        program = self.folder / "tor"
        program.write_text("#!/bin/sh\ncase $* in *--dump-config*) cat $0.read;; esac\n")
        program.chmod(0o755)
        self.path.write_text(self.text)
        for read, passes in ((MINIMAL, True), (MINIMAL + "Nickname x\n", False), ("ClientOnly 1\n", False)):
            program.with_suffix(".read").write_text(read)
            asked = TorBinary(str(program), (0, 4, 9), "")
            if passes:
                check_with_tor(asked, self.path)
            else:
                self.assertRaises(TorStrictError, check_with_tor, asked, self.path)

    def test_what_tor_refuses_is_refused(self) -> None:
        error: RonError = self.assertRaises(RonError, self.judge, self.text + "HiddenServicePort 80\n")
        self.assertIs(error.code, ErrorCode.STORE_UNAVAILABLE)

    def test_a_file_that_is_no_text(self) -> None:
        self.path.write_bytes(MINIMAL.encode() + b"\xff\xfe\n")
        self.assertRaises(TorStrictError, check_with_tor, self.tor, self.path)

    def test_tricks_that_tor_falls_for_are_seen_in_what_it_read(self) -> None:
        """Each makes tor read an option of a relay, and is refused before tor as well as after."""
        seen = 0
        for trick in (
            "ORPor 9001",
            "orport 9001",
            "+ORPort 9001",
            "Nickna\\\nme x",
            "Log notice stdout\nContactInfo x",
            'Nickname "x"',
            "\x0bNickname x",
            "\rNickname x",
            "DirServer x orport=1 v3ident=" + "F" * 40 + " 127.0.0.1:1 " + "F" * 40,
            f"%include {self.folder}/included",
            "RelayBandwidthR 100 KB",
        ):
            (self.folder / "included").write_text("Nickname x\n")
            text = self.text.replace("ORPort 0\n", "ClientOnly 1\n") + trick + "\n"
            self.assertRaises(TorStrictError, check_public_torrc, self.text + trick + "\n")
            effective = self.read_by_tor(text)
            if effective is not None:
                seen += 1
                self.assertRaises(TorStrictError, check_effective, effective + "ORPort 0\n")
        self.assertGreater(seen, 5)

    @settings(max_examples=25, deadline=None)
    @given(
        st.lists(
            st.tuples(
                st.integers(0, 30),
                st.sampled_from(["Log notice stdout", "SafeSocks 1", "#", "Nick", "ORPort", "NumCPUs 1", ""]),
                st.text(alphabet=' \t#\\"\n\r+/%x19-0', max_size=6),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def test_tor_reads_nothing_else_in_what_we_accept(self, changes: list[tuple[int, str, str]]) -> None:
        text = self.text
        for at, line, tail in changes:
            text = inserted(line + tail, at, text)
        try:
            check_public_torrc(text)
        except TorStrictError:
            return
        effective = self.read_by_tor(text)
        if effective is not None:
            check_effective(effective)


class Running(RealTor):
    torrc = "DisableNetwork 1\nORPort 0\nExitPolicy reject *:*\n"

    async def test_as_it_runs_and_after_somebody_has_changed_it(self) -> None:
        await check_running(reactor, self.control)
        for change, option in (
            ("Nickname=somebody", "Nickname"),
            ("ContactInfo=somebody", "ContactInfo"),
            ('DirAuthority="x orport=1 127.0.0.1:1 ' + "F" * 40 + '"', "DirAuthority"),
            ("SafeLogging=0", "SafeLogging"),
        ):
            await self.control.queue_command(f"SETCONF {change}")
            with self.assertRaises(TorStrictError) as caught:
                await check_running(reactor, self.control)
            self.assertEqual(caught.exception.option, option)
            await self.control.queue_command(f"RESETCONF {option}")
            await check_running(reactor, self.control)
