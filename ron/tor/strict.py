"""TorStrict: on the public network a tor of ours is a client and hosts onions: no relay, bridge, exit or authority.

In: a torrc, or what tor made of it. Out: nothing, or `TorStrictError` naming the line. Only options known to be a
client's pass, with values that keep listeners on this host; what is not listed here is refused, whatever it does. The
text must be plain enough for tor to read no other option in it, and then tor itself is asked what it has read.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from txtorcon import TorControlProtocol

from ron.proto.errors import ErrorCode, RonError, unavailable
from ron.tor.binary import TorBinary
from ron.tor.control import ask
from ron.tor.torrc import no_defaults

MAX_TORRC_CHARS = 64 * 1024
TOR_TIMEOUT_S = 20.0
_HINT = "ron/tor/templates/public.torrc is a torrc that passes; docs/backends.rst lists what is allowed"

_NUMBER = r"\d{1,10}"
_SWITCH = r"[01]"
_MAYBE = r"0|1|auto"
_AMOUNT = r"\d{1,10}( [A-Za-z]{1,12})?"
_PATH = r"/.*"
_LOCAL = r"(127\.0\.0\.1:|\[::1\]:)?([1-9]\d{0,4}|auto)|unix:/\S+"
_SOCKS_FLAG = (
    r"(No)?(IsolateSOCKSAuth|IsolateClientAddr|IsolateClientProtocol|IsolateDestAddr|IsolateDestPort|OnionTrafficOnly"
    r"|IPv4Traffic|IPv6Traffic|PreferIPv6|DNSRequest|OnionTraffic|ExtendedErrors|KeepAliveIsolateSOCKSAuth)"
    r"|SessionGroup=\d{1,9}"
)

_RULES: dict[str, str] = {
    # what makes it no relay: these values and no others
    "ClientOnly": "1",
    "ORPort": "0",
    "DirPort": "0",
    "ExitPolicy": r"reject \*:\*",
    "ExitRelay": "0",
    "BridgeRelay": "0",
    "PublishServerDescriptor": "0",
    "DirCache": "0",
    # listeners: on this host
    "SocksPort": rf"0|({_LOCAL})( ({_SOCKS_FLAG}))*",
    "SocksPolicy": r"accept (127\.0\.0\.1|\[::1\])|reject \*",
    "ControlPort": rf"0|{_LOCAL}",
    "ControlSocket": rf"0|{_PATH}",
    "ControlPortWriteToFile": _PATH,
    "ControlPortFileGroupReadable": "0",
    "ControlSocketsGroupWritable": "0",
    "UnixSocksGroupWritable": "0",
    "CookieAuthentication": "1",
    "CookieAuthFile": _PATH,
    "CookieAuthFileGroupReadable": "0",
    "MetricsPort": rf"0|{_LOCAL}",
    "MetricsPortPolicy": r"accept (127\.0\.0\.1|\[::1\])|reject \*",
    # onions, anonymous ones, answered by programs on this host
    "HiddenServiceDir": _PATH,
    "HiddenServiceDirGroupReadable": "0",
    "HiddenServiceVersion": "3",
    "HiddenServicePort": rf"\d{{1,5}}( ({_LOCAL}))?",
    "HiddenServiceAllowUnknownPorts": _SWITCH,
    "HiddenServiceMaxStreams": _NUMBER,
    "HiddenServiceMaxStreamsCloseCircuit": _SWITCH,
    "HiddenServiceNumIntroductionPoints": _NUMBER,
    "HiddenServiceEnableIntroDoSDefense": _SWITCH,
    "HiddenServiceEnableIntroDoSRatePerSec": _NUMBER,
    "HiddenServiceEnableIntroDoSBurstPerSec": _NUMBER,
    "HiddenServicePoWDefensesEnabled": _SWITCH,
    "HiddenServicePoWQueueRate": _NUMBER,
    "HiddenServicePoWQueueBurst": _NUMBER,
    "HiddenServiceOnionBalanceInstance": _SWITCH,
    "HiddenServiceSingleHopMode": "0",
    "HiddenServiceNonAnonymousMode": "0",
    "ClientOnionAuthDir": _PATH,
    # the process
    "DataDirectory": _PATH,
    "DataDirectoryGroupReadable": "0",
    "CacheDirectory": _PATH,
    "CacheDirectoryGroupReadable": "0",
    "PidFile": _PATH,
    "GeoIPFile": _PATH,
    "GeoIPv6File": _PATH,
    "Log": r"(notice|warn|err) (stdout|stderr|syslog|file /.*)",
    "LogTimeGranularity": _AMOUNT,
    "TruncateLogFile": _SWITCH,
    "SafeLogging": "1",
    "ProtocolWarnings": _SWITCH,
    "RunAsDaemon": "0",
    "ShutdownWaitLength": _AMOUNT,
    "HeartbeatPeriod": _AMOUNT,
    "AvoidDiskWrites": _SWITCH,
    "DisableAllSwap": _SWITCH,
    "DisableDebuggerAttachment": "1",
    "DisableNetwork": _SWITCH,
    "HardwareAccel": _SWITCH,
    "MaxMemInQueues": _AMOUNT,
    "NoExec": _SWITCH,
    "NumCPUs": _NUMBER,
    "Sandbox": _SWITCH,
    # a client's circuits; nothing that weakens the choice of guards and paths
    "BandwidthRate": _AMOUNT,
    "BandwidthBurst": _AMOUNT,
    "CircuitBuildTimeout": _AMOUNT,
    "CircuitPadding": "1",
    "CircuitStreamTimeout": _AMOUNT,
    "ClientPreferIPv6ORPort": _MAYBE,
    "ClientUseIPv4": _SWITCH,
    "ClientUseIPv6": _SWITCH,
    "AddressDisableIPv6": _SWITCH,
    "ConnectionPadding": r"1|auto",
    "DormantCanceledByStartup": _SWITCH,
    "DormantClientTimeout": _AMOUNT,
    "DormantOnFirstStartup": _SWITCH,
    "DormantTimeoutEnabled": _SWITCH,
    "DownloadExtraInfo": "0",
    "KeepalivePeriod": _AMOUNT,
    "LearnCircuitBuildTimeout": _SWITCH,
    "MaxCircuitDirtiness": _AMOUNT,
    "MaxClientCircuitsPending": _NUMBER,
    "SafeSocks": _SWITCH,
    "SocksTimeout": _AMOUNT,
    "TestSocks": _SWITCH,
    "UseEntryGuards": "1",
    "VanguardsLiteEnabled": r"1|auto",
}
_ALLOWED = {name.lower(): re.compile(rule) for name, rule in _RULES.items()}
_REQUIRED = ("ClientOnly", "ORPort", "ExitPolicy")
# A running tor tells these too; they are ours, from its command line.
_OURS = re.compile(r"__(OwningControllerProcess|ReloadTorrcOnSIGHUP) \d+")
_PLAIN = re.compile(r"[ !$-\[\]-~]*")
"""Printable ASCII without the quote, the hash and the backslash, on which tor's reading of a line turns."""
_COMMENT = re.compile(r" *#[ -\[\]-~]*")


class TorStrictError(RonError):
    """A torrc that is not a client's. `line` counts from 1, 0 is the file as a whole; `option` as it is spelled."""

    def __init__(self, line: int, option: str, why: str) -> None:
        self.line = line
        self.option = re.sub(r"[^ -~]", "?", option)[:64]
        place = f"line {line}: " if line else ""
        super().__init__(ErrorCode.BAD_REQUEST, f"{place}{self.option} {why}".strip(), hint=_HINT)


class _Option(NamedTuple):
    """One line's option. Values are never shown: they may be secrets."""

    line: int
    name: str
    value: str


def check_public_torrc(text: str) -> None:
    """Raises `TorStrictError` unless `text` makes a client and host of onions, and can be read in that way only.

    Refused are, besides other options and values: quotes, backslashes (continued lines), control characters, tabs,
    carriage returns, anything but ASCII, a hash behind a value, `%include`, `+Option`, `/Option`, and abbreviations.
    """
    if len(text) > MAX_TORRC_CHARS:
        raise TorStrictError(0, "", f"the torrc is longer than {MAX_TORRC_CHARS} characters")
    options = tuple(_plain_options(text))
    _judge(options)
    _complete(options)


def check_effective(text: str) -> None:
    """The same for what tor says it has read: `tor --dump-config short`, or `GETINFO config-text`.

    tor writes paths and values without quotes here; a value that holds what a torrc must not is refused likewise.
    """
    options = tuple(_plain_options(line if not _OURS.fullmatch(line) else "" for line in text.split("\n")))
    _judge(options)
    _complete(options)


def check_with_tor(tor: TorBinary, path: Path) -> None:
    """Judge the file at `path`, let tor verify it, and judge what tor has read. Blocks, up to 40 s.

    Raises `TorStrictError`, or `RonError` (Unavailable) when tor refuses the file or does not answer.
    """
    check_public_torrc(path.read_text("ascii", errors="replace"))
    _run(tor, path, "--verify-config")
    check_effective(_run(tor, path, "--dump-config", "short"))


async def check_running(reactor: Any, control: TorControlProtocol) -> None:
    """Judge the tor behind `control` as it runs now, whoever may have reconfigured it. Raises `TorStrictError`."""
    check_effective(await ask(reactor, control, "config-text"))


def _plain_options(text: str | Iterable[str]) -> Iterator[_Option]:
    lines = text.split("\n") if isinstance(text, str) else text
    for number, line in enumerate(lines, 1):
        if _COMMENT.fullmatch(line):
            continue
        name, _, value = line.strip(" ").partition(" ")
        if not _PLAIN.fullmatch(line):
            raise TorStrictError(number, name, "stands in a line with a quote, #, backslash or control character")
        if name:
            yield _Option(number, name, value.strip(" "))


def _judge(options: Iterable[_Option]) -> None:
    for option in options:
        rule = _ALLOWED.get(option.name.lower())
        if rule is None:
            raise TorStrictError(option.line, option.name, "is not allowed on the public network")
        if not rule.fullmatch(re.sub(" +", " ", option.value)):
            raise TorStrictError(option.line, option.name, "has a value that is not allowed on the public network")


def _complete(options: Iterable[_Option]) -> None:
    """tor's defaults would do as well today; said in so many words they hold tomorrow."""
    said = {option.name.lower() for option in options}
    for name in _REQUIRED:
        if name.lower() not in said:
            raise TorStrictError(0, name, "is missing; the public network wants it said")


def _run(tor: TorBinary, path: Path, *asked: str) -> str:
    command = [tor.path, "-f", str(path), "--defaults-torrc", str(no_defaults()), *asked]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TOR_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        raise unavailable(f"tor did not judge {path} in {TOR_TIMEOUT_S:.0f} s", hint="try again") from None
    if done.returncode != 0:
        raise unavailable(f"tor refuses {path} ({' '.join(asked)})", hint=f"see why: {tor.path} -f {path} {asked[0]}")
    return done.stdout
