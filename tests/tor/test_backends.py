"""What onions can run on, told truthfully; and tor's proof of work for onions, as the real tor takes and counts it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.error import ConnectionAborted
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase, TestCase
from txtorcon import TorControlProtocol
from txtorcon.torcontrolprotocol import TorDisconnectError, TorProtocolError

from ron.proto.errors import ErrorCode, RonError
from ron.tor import backends
from ron.tor.backends import (
    MAX_POW_QUEUE,
    BackendReport,
    Capability,
    OnionFigures,
    detect,
    detect_arti,
    detect_tor,
    parse_metrics,
    pow_arguments,
    require,
)
from ron.tor.binary import find_tor
from ron.tor.control import connect_control
from ron.tor.onionkeys import OnionKey, address_of, new_key
from ron.tor.torrc import command
from tests.web.wire import until

ID = "cq3fxdy6at4z35othu3w2u52qmhaaohbbshenjkiihnrdztj6mfsljid"
MODULES = "relay: yes\ndirauth: yes\ndircache: yes\npow: yes"
OPTIONS = "ControlPort\nSocksPort\nMetricsPort\nClientOnionAuthDir"
ARTI = "Arti 2.5.0\nusing runtime: TokioNativeTlsRuntime { .. }\noptional features: <none>"
ALL = frozenset(Capability)


def gap(report: BackendReport, capability: Capability) -> str:
    return {g.capability: g.why for g in report.gaps}[capability]


class Programs(SynchronousTestCase):
    """A folder of little programs that pretend to be tor or arti."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.patch(os, "environ", {**os.environ, "PATH": f"{self.folder}:/bin:/usr/bin"})

    def program(self, name: str, script: str) -> str:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    def tor(self, version: str = "0.4.9.11", modules: str = MODULES, options: str = OPTIONS) -> BackendReport:
        self.program("tor-gencert", "exit 0")
        said = {"--version": f"Tor version {version}.", "--list-modules": modules, "--list-torrc-options": options}
        cases = "".join(f"{flag}) printf '%s\\n' '{text}';;\n" for flag, text in said.items())
        return self.whole(detect_tor(self.program("tor", f"case $1 in\n{cases}esac")))

    def whole(self, report: BackendReport) -> BackendReport:
        """Every capability is there or a gap, never both; a gap has a sentence; all of it survives JSON."""
        lacking = [g.capability for g in report.gaps]
        self.assertEqual(report.capabilities | set(lacking), ALL)
        self.assertEqual(len(report.capabilities) + len(lacking), len(ALL))
        self.assertTrue(all(g.why for g in report.gaps))
        self.assertEqual(msgspec.json.decode(msgspec.json.encode(report), type=BackendReport), report)
        return report


class Tor(Programs):
    def test_missing(self) -> None:
        report = self.whole(detect_tor("no-such-tor"))
        self.assertEqual((report.available, report.path, report.version), (False, None, None))
        self.assertIn("apt-get install tor", gap(report, Capability.ONION_V3))

    def test_too_old_or_something_else(self) -> None:
        report = self.tor("0.4.7.16")
        self.assertEqual((report.available, report.version), (False, "0.4.7.16"))
        self.assertIn("0.4.8 or newer", gap(report, Capability.CLIENT_AUTH))
        for script in ("echo GNU tar", "exit 1", "printf '\\377\\376'", "echo Tor version 0.4.9.11.; exit 1"):
            report = self.whole(detect_tor(self.program("tor", script)))
            self.assertFalse(report.available, script)

    def test_one_with_everything(self) -> None:
        report = self.tor()
        self.assertEqual((report.available, report.capabilities, report.advice), (True, ALL, ()))
        require(report, *Capability)

    def test_proof_of_work_needs_the_module_and_the_words_of_add_onion(self) -> None:
        for version, modules, words in (
            ("0.4.9.11", MODULES.replace("pow: yes", "pow: no"), "--enable-gpl"),
            ("0.4.9.11", "relay: yes\ndirauth: yes", "--enable-gpl"),
            ("0.4.8.24", MODULES, "since tor 0.4.9.2"),
            ("0.4.9.1", MODULES, "since tor 0.4.9.2"),
        ):
            report = self.tor(version, modules)
            self.assertEqual([g.capability for g in report.gaps], [Capability.ONION_POW])
            self.assertIn(words, gap(report, Capability.ONION_POW))
        self.assertIn(Capability.ONION_POW, self.tor("0.4.9.2").capabilities)

    def test_known_faults_are_told(self) -> None:
        for version, words in (
            ("0.4.9.8", ["TROVE-2026-020", "41297"]),
            ("0.4.9.10", ["41297"]),
            ("0.4.9.11", []),
            ("0.5.0.1", []),
        ):
            advice = self.tor(version).advice
            self.assertEqual(len(advice), len(words))
            self.assertTrue(all(word in said for word, said in zip(words, advice, strict=True)), advice)

    def test_a_build_that_is_a_client_only(self) -> None:
        report = self.tor(modules="relay: no\ndirauth: no\npow: yes")
        self.assertEqual([g.capability for g in report.gaps], [Capability.PRIVATE_NETWORK])
        self.assertIn("module relay", report.gaps[0].why)

    def test_without_tor_gencert(self) -> None:
        self.tor()
        (self.folder / "tor-gencert").unlink()
        self.patch(os, "environ", {**os.environ, "PATH": str(self.folder)})
        report = self.whole(detect_tor(str(self.folder / "tor")))
        self.assertIn("tor-gencert", gap(report, Capability.PRIVATE_NETWORK))

    def test_options_that_are_not_there(self) -> None:
        lacking = {g.capability for g in self.tor(options="").gaps}
        self.assertEqual(lacking, ALL - {Capability.ONION_POW, Capability.PRIVATE_NETWORK})

    def test_a_program_that_hangs_floods_or_leaves_children(self) -> None:
        self.patch(backends, "ASK_TIMEOUT_S", 0.2)
        for script in ("exec sleep 60", "sleep 60 & wait", "sleep 60 & exit 0", "exec yes", "exec >&-; exec sleep 60"):
            self.assertFalse(self.whole(detect_tor(self.program("tor", script))).available, script)

    def test_the_one_of_this_host(self) -> None:
        report = self.whole(detect()[0])
        self.assertTrue(report.available)
        self.assertLessEqual(
            {Capability.ONION_V3, Capability.CLIENT_AUTH, Capability.PRIVATE_NETWORK}, report.capabilities
        )


class Arti(Programs):
    def test_missing_or_something_else(self) -> None:
        self.assertIn("not installed", gap(self.whole(detect_arti("no-such-arti")), Capability.ONION_V3))
        for script in ("echo Arti", "exit 0", "echo arti-2; exit 0", "echo 'Arti 2.5.0'; exit 2"):
            self.assertFalse(self.whole(detect_arti(self.program("arti", script))).available)

    def test_found_and_nothing_promised(self) -> None:
        for commands, words in (
            ("  proxy  Run\n  hss    Onions", "does not drive it"),
            ("  proxy  Run", "hosts no onions"),
        ):
            script = f"case $1 in --version) echo '{ARTI}';; help) echo '{commands}';; esac"
            report = self.whole(detect_arti(self.program("arti", script)))
            self.assertEqual((report.available, report.version, report.capabilities), (True, "2.5.0", frozenset()))
            self.assertIn(words, gap(report, Capability.ONION_V3))
            self.assertIn("2.5.0", report.advice[0])

    def arti(self, version: str, commands: str = "") -> BackendReport:
        script = f"case $1 in --version) echo 'Arti {version}';; help) echo '{commands}';; esac"
        return self.whole(detect_arti(self.program("arti", script)))

    def test_what_each_arti_1_has_and_has_not(self) -> None:
        """By its own manifests and change log: what came later is not said of one that is older."""
        came = {
            Capability.ONION_V3: ("1.1.9", "1.1.10"),
            Capability.ADD_ONION_DETACHED: ("1.1.9", "1.1.10"),
            Capability.AMNESIA: ("1.1.9", "1.1.10"),
            Capability.CLIENT_AUTH: ("1.2.6", "1.2.7"),
            Capability.INTRODUCTION_STATS: ("1.4.2", "1.4.3"),
            Capability.ONION_POW: ("1.4.6", "1.5.0"),
        }
        for capability, (before, since) in came.items():
            self.assertIn(f"since {since}", gap(self.arti(before), capability), capability)
            self.assertNotIn("since", gap(self.arti(since), capability), capability)
        for version in ("1.0.0", "1.1.13", "1.4.4", "1.9.0"):
            report = self.arti(version, "hss")
            self.assertEqual((report.available, report.version, report.capabilities), (True, version, frozenset()))
        self.assertIn("restricted-discovery", gap(self.arti("1.2.7"), Capability.CLIENT_AUTH))
        self.assertIn("hosts no onions; arti does since 1.1.10", gap(self.arti("1.0.1"), Capability.CLIENT_AUTH))

    def test_an_arti_that_does_not_tell_whether_it_hosts_onions(self) -> None:
        """The command `hss` came two releases after the feature."""
        for version, commands, words in (
            ("1.1.11", "proxy", "does not tell"),
            ("1.1.12", "proxy", "this build hosts no onions"),
            ("1.1.12", "proxy hss", "does not drive it"),
            ("1.4.4", "proxy", "this build hosts no onions"),
        ):
            self.assertIn(words, gap(self.arti(version, commands), Capability.ONION_V3), version)

    def test_versions_that_are_none(self) -> None:
        for version in ("1", "1.4", "1.4.x", "1" * 5000 + ".0.0", "-1.0.0"):
            self.assertFalse(self.arti(version).available, version[:20])

    def test_each_thing_asked_of_it_is_refused_with_the_reason(self) -> None:
        script = f"case $1 in --version) echo '{ARTI}';; esac"
        report = detect_arti(self.program("arti", script))
        for capability in Capability:
            error: RonError = self.assertRaises(RonError, require, report, capability)
            self.assertIs(error.code, ErrorCode.UNSUPPORTED)
            self.assertIn(capability.value, error.message)
            self.assertEqual(error.hint, gap(report, capability))
        require(report)


class Settings(NamedTuple):
    """As an onion's config has them."""

    enabled: bool = True
    queue_rate: int = 250
    queue_burst: int = 2500


class Pow(SynchronousTestCase):
    def test_nothing_is_said_when_it_is_off(self) -> None:
        self.assertEqual(pow_arguments(Settings(enabled=False)), "")

    def test_the_words(self) -> None:
        self.assertEqual(
            pow_arguments(Settings(queue_rate=20, queue_burst=40)),
            "PoWDefensesEnabled=1 PoWQueueRate=20 PoWQueueBurst=40",
        )

    def test_numbers_that_cannot_be_meant(self) -> None:
        for rate, burst in ((-1, 5), (0, -1), (10, 9), (0, MAX_POW_QUEUE + 1), (MAX_POW_QUEUE + 1, MAX_POW_QUEUE + 1)):
            error: RonError = self.assertRaises(RonError, pow_arguments, Settings(queue_rate=rate, queue_burst=burst))
            self.assertIs(error.code, ErrorCode.BAD_REQUEST)


def written(onion: str, figures: OnionFigures) -> str:
    """As tor writes it: a counter in two lines by reason, bytes by port, a histogram with its buckets."""
    lines = ["# HELP tor_hs_x Some help", "# TYPE tor_hs_rdv_error_count counter"]
    for name, field in backends._FIGURES.items():
        value, labels = getattr(figures, field), f'onion="{onion}"'
        if name.endswith(("error_count", "req_count")):
            lines.append(f'{name}{{{labels},reason="a"}} {value // 2}')
            lines.append(f'{name}{{{labels},reason="b"}} {value - value // 2}')
        elif "_app_" in name:
            lines.append(f'{name}{{{labels},port="80"}} {value}')
        else:
            lines.append(f"{name}{{{labels}}} {value}")
    lines += [f'tor_hs_intro_circ_build_time_bucket{{onion="{onion}",le="+Inf"}} 7', 'tor_relay_flag{type="Fast"} 1']
    return "\n".join(lines) + "\n"


counted = st.builds(OnionFigures, *[st.integers(0, 2**53)] * len(OnionFigures._fields))


class Metrics(SynchronousTestCase):
    @given(st.dictionaries(st.sampled_from([ID, "a" * 56, "z" * 56]), counted))
    def test_figures_by_onion(self, figures: dict[str, OnionFigures]) -> None:
        text = "".join(written(onion, one) for onion, one in figures.items())
        self.assertEqual(parse_metrics(text), {f"{onion}.onion": one for onion, one in figures.items()})

    def test_nothing_and_nothing_of_onions(self) -> None:
        for text in ("", "\n", "# HELP x y\n", 'tor_relay_flag{type="Fast"} 1\n', 'tor_hs_intro_num_totals{a="b"} 1\n'):
            self.assertEqual(parse_metrics(text), {})

    def test_what_no_tor_writes(self) -> None:
        name = "tor_hs_intro_num_total"
        for line in (
            f"{name}",
            f"{name} 1",
            f'{name}{{port="80"}} 1',
            f'{name}{{onion="{ID}"}}',
            f'{name}{{onion="{ID}"}} one',
            f'{name}{{onion="{ID}"}} -1',
            f'{name}{{onion="{ID}"}} NaN',
            f'{name}{{onion="{ID}"}} +Inf',
            f'{name}{{onion="{ID}"}} 1e300',
            f'{name}{{onion="{ID}"}} {"9" * 5000}',
            f'{name}{{onion="{ID[1:]}"}} 1',
            f'{name}{{onion="{ID}\\n"}} 1',
            f'{name}{{onion="{ID}',
            f"{name}{{",
            f"{name}{{}} 1",
        ):
            error: RonError = self.assertRaises(RonError, parse_metrics, line + "\n")
            self.assertIs(error.code, ErrorCode.INTERNAL, line)

    def test_too_much(self) -> None:
        self.patch(backends, "MAX_METRICS_CHARS", 1000)
        error: RonError = self.assertRaises(RonError, parse_metrics, "#" * 1001)
        self.assertIs(error.code, ErrorCode.TOO_LARGE)

    @given(st.text(alphabet='tor_hs_intro_num_total{onion="}=, 1\n\\#', max_size=200))
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        try:
            parse_metrics(f"tor_hs_intro_num_total{{{text}")
        except RonError as error:
            self.assertIs(error.code, ErrorCode.INTERNAL)


class RealTor(TestCase):
    """A tor of our own that reaches nobody: no network, or only an authority that is not there."""

    timeout = 60
    torrc = "DisableNetwork 1\n"

    async def setUp(self) -> None:
        said = self.start()
        await until(lambda: said.exists() and said.read_text().endswith("\n"))
        self.control = await self.connect(int(said.read_text().rpartition(":")[2]))

    def start(self) -> Path:
        """Start it; the file in which it will say its control port."""
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir(mode=0o700)
        torrc, said = self.folder / "torrc", self.folder / "port"
        (self.folder / "empty").touch()
        torrc.write_text(
            f"{self.torrc}ClientOnly 1\nSocksPort 0\nDataDirectory {self.folder}\nCookieAuthentication 1\n"
            f"ControlPort auto\nControlPortWriteToFile {said}\nLog notice file {self.folder}/log\n"
            f"GeoIPFile {self.folder}/empty\nGeoIPv6File {self.folder}/empty\n"
        )
        self.tor = subprocess.Popen(command(find_tor(), torrc), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.addCleanup(self.end)
        return said

    def end(self) -> None:
        self.tor.kill()
        self.tor.wait()

    async def connect(self, port: int) -> TorControlProtocol:
        control = await connect_control(reactor, port)
        self.addCleanup(self.hang_up, control)
        return control

    async def hang_up(self, control: TorControlProtocol) -> None:
        gone = control.when_disconnected()
        control.transport.abortConnection()
        with contextlib.suppress(TorDisconnectError, ConnectionAborted):
            await gone

    async def add_onion(self, arguments: str, key: OnionKey | None = None) -> str:
        """Its address. Raises `TorProtocolError` when tor refuses."""
        key = key if key is not None else new_key()
        await self.control.queue_command(f"ADD_ONION {key.blob} {arguments} Port=80,127.0.0.1:1")
        return address_of(key)

    async def refused(self, arguments: str) -> int:
        """The code with which tor refuses an onion."""
        with self.assertRaises(TorProtocolError) as caught:
            await self.add_onion(arguments)
        return int(caught.exception.code)


class AgainstTor(RealTor):
    """A tor whose only authority is not there: it is not on any network, but its MetricsPort is open."""

    def start(self) -> Path:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.metrics_port = probe.getsockname()[1]
        self.torrc = (
            f"TestingTorNetwork 1\nUseDefaultFallbackDirs 0\nMetricsPort 127.0.0.1:{self.metrics_port}\n"
            f"MetricsPortPolicy accept 127.0.0.1\n"
            f"DirAuthority none orport=1 v3ident={'F' * 40} 127.0.0.1:1 {'F' * 40}\n"
        )
        return super().start()

    async def metrics(self) -> str:
        def read() -> Any:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as answer:
                return answer.read().decode()

        return str(await deferToThread(read))

    async def test_onions_with_and_without_proof_of_work(self) -> None:
        with_pow = await self.add_onion(pow_arguments(Settings(queue_rate=20, queue_burst=40)))
        at_defaults = await self.add_onion(pow_arguments(Settings()))
        without = await self.add_onion(pow_arguments(Settings(enabled=False)))
        text = await self.metrics()
        self.assertEqual(parse_metrics(text), dict.fromkeys((with_pow, at_defaults, without), OnionFigures()))
        # each figure is there because tor wrote it, and not because nothing was found
        for name in backends._FIGURES:
            self.assertIn(f'{name}{{onion="{with_pow.removesuffix(".onion")}"', text)

    async def test_the_extremes_that_we_allow(self) -> None:
        for rate, burst in ((0, 0), (0, MAX_POW_QUEUE), (MAX_POW_QUEUE, MAX_POW_QUEUE)):
            await self.add_onion(pow_arguments(Settings(queue_rate=rate, queue_burst=burst)))

    async def test_what_tor_refuses_we_do_not_say(self) -> None:
        for arguments in ("PoWDefensesEnabled=2", "PoWDefensesEnabled=1 PoWQueueRate=-1", "PoWQueueBurst=5000000000"):
            self.assertEqual(await self.refused(arguments), 512)
