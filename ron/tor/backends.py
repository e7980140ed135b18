"""What onions can run on: which tor or arti this host has, what each can do for us, and what it cannot and why.

In: program names. Out: a `BackendReport` each, complete: every `Capability` is there or is a gap with its reason. Then
the one capability that needs words of its own, tor's proof of work for onions: how ADD_ONION asks for it, and what
tor's MetricsPort tells of it.
"""

from __future__ import annotations

import contextlib
import enum
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from ron.proto.errors import ErrorCode, RonError, bad_request, too_large
from ron.tor.binary import MINIMUM, parse_version

ASK_TIMEOUT_S = 10.0
MAX_ANSWER_BYTES = 256 * 1024
MAX_METRICS_CHARS = 16 * 1024 * 1024
"""About 2 500 onions of tor's 6 kB each."""
MAX_POW_QUEUE = 1_000_000
POW_VERSION = (0, 4, 9, 2)
POW_SOUND_VERSION = (0, 4, 9, 9)


class Capability(enum.StrEnum):
    """What the onion runtime may need of a backend."""

    ONION_V3 = "onion_v3"
    ADD_ONION_DETACHED = "add_onion_detached"
    """Onions come and go while it runs, and outlive the connection that made them."""
    CLIENT_AUTH = "client_auth"
    ONION_POW = "onion_pow"
    PRIVATE_NETWORK = "private_network"
    """It can be authority, relay and client of a network of our own."""
    CONTROL_EVENTS = "control_events"
    """Descriptor uploads and circuits are told as they happen."""
    INTRODUCTION_STATS = "introduction_stats"
    """Introductions, rendezvous and bytes are counted per onion."""
    AMNESIA = "amnesia"
    """Onion keys are never written to a disk."""
    PER_APP_ISOLATION = "per_app_isolation"
    """Each app has circuits, or a process, of its own."""


class Gap(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A capability that is not there; `why` is a sentence for the operator."""

    capability: Capability
    why: str


class BackendReport(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One backend as found. available: a version we can use runs here. advice: what an operator should know besides.

    `capabilities` and the `gaps`' capabilities together are all there are, and have none in common.
    """

    name: str
    available: bool
    path: str | None
    version: str | None
    capabilities: frozenset[Capability]
    gaps: tuple[Gap, ...]
    advice: tuple[str, ...] = ()


def detect(tor_binary: str = "tor", arti_binary: str = "arti") -> tuple[BackendReport, BackendReport]:
    """`binary-tor` and `arti` as this host has them; program names or paths. Never raises for what is missing.

    Runs each program up to three times and waits 10 s for an answer: blocks, so call it in a thread.
    """
    return detect_tor(tor_binary), detect_arti(arti_binary)


def require(report: BackendReport, *needed: Capability) -> None:
    """Raises `RonError` (Unsupported) for the first of `needed` that the backend has not; its reason is the hint."""
    gaps = {gap.capability: gap.why for gap in report.gaps}
    for capability in needed:
        if capability not in report.capabilities:
            why = gaps.get(capability, "it does not say why")
            raise RonError(ErrorCode.UNSUPPORTED, f"{report.name} cannot do {capability.value}", hint=why)


def detect_tor(name: str) -> BackendReport:
    """tor as a program of its own, driven over its control port. Blocks."""
    path = shutil.which(name)
    if path is None:
        return _absent("binary-tor", None, None, "tor is not installed: sudo apt-get install tor")
    version = parse_version(_ask(path, "--version") or "")
    if version is None:
        return _absent("binary-tor", path, None, f"{path} does not run, or is no tor")
    spoken = _dotted(version)
    if version[:3] < MINIMUM:
        return _absent("binary-tor", path, spoken, f"tor {spoken} is too old; {_dotted(MINIMUM)} or newer is needed")
    modules = frozenset(re.findall(r"^(\w+): yes$", _ask(path, "--list-modules") or "", re.MULTILINE))
    options = frozenset((_ask(path, "--list-torrc-options") or "").split())
    gaps = _tor_gaps(version, modules, options, has_gencert=_has_gencert(path))
    return _report("binary-tor", path, spoken, gaps, _advice(version, pow_works=Capability.ONION_POW not in gaps))


def detect_arti(name: str) -> BackendReport:
    """arti, which nothing here drives yet: found and described, and nothing is promised of it. Blocks."""
    path = shutil.which(name)
    if path is None:
        return _absent("arti", None, None, "arti is not installed")
    match = re.match(r"Arti (\d{1,6})\.(\d{1,6})\.(\d{1,6})\b", _ask(path, "--version") or "")
    if match is None:
        return _absent("arti", path, None, f"{path} does not run, or is no arti")
    version = tuple(map(int, match.groups()))
    onions = "hss" in (_ask(path, "help") or "").split()
    return _report("arti", path, _dotted(version), _arti_gaps(version, hosts_onions=onions), (_ARTI_ADVICE,))


_CONTROL = (Capability.ONION_V3, Capability.ADD_ONION_DETACHED, Capability.CONTROL_EVENTS, Capability.AMNESIA)
_NO_CONTROL = "its options do not include ControlPort, over which onions are made"


def _tor_gaps(
    version: tuple[int, ...], modules: frozenset[str], options: frozenset[str], *, has_gencert: bool
) -> dict[Capability, str]:
    gaps: dict[Capability, str] = {}
    if "ControlPort" not in options:
        gaps |= dict.fromkeys(_CONTROL, _NO_CONTROL)
    for capability, option in (
        (Capability.CLIENT_AUTH, "ClientOnionAuthDir"),
        (Capability.INTRODUCTION_STATS, "MetricsPort"),
        (Capability.PER_APP_ISOLATION, "SocksPort"),
    ):
        if option not in options:
            gaps[capability] = f"its options do not include {option}"
    if (why := _no_pow(version, modules)) is not None:
        gaps[Capability.ONION_POW] = why
    lacking = [module for module in ("relay", "dirauth") if module not in modules]
    if lacking:
        gaps[Capability.PRIVATE_NETWORK] = f"it was built without the module {lacking[0]} (tor --list-modules)"
    elif not has_gencert:
        gaps[Capability.PRIVATE_NETWORK] = "tor-gencert is missing, which makes the authorities' keys"
    return gaps


def _no_pow(version: tuple[int, ...], modules: frozenset[str]) -> str | None:
    if "pow" not in modules:
        return "it was built without the module pow (configure --enable-gpl)"
    if version < POW_VERSION:
        return f"ADD_ONION takes proof of work since tor {_dotted(POW_VERSION)}; before, only the torrc did"
    return None


def _advice(version: tuple[int, ...], *, pow_works: bool) -> tuple[str, ...]:
    """From tor's own change log; only for the series whose fixes it lists."""
    advice = []
    if pow_works and version < POW_SOUND_VERSION:
        advice.append("TROVE-2026-020: an onion with proof of work can crash tor; fixed in 0.4.9.9")
    if (0, 4, 9) <= version < (0, 4, 9, 11):
        advice.append("tor issue 41297: a rendezvous point may impersonate an onion; fixed in 0.4.9.11")
    return tuple(advice)


# As of arti 2.5.0: its manifest crates/arti/Cargo.toml and its change log. To be read again with each new series.
_ARTI_ADVICE = "arti's state was read at versions 1.0.0 to 1.5.0 and 2.5.0; the onion runtime has no driver for it"
_ARTI_GAPS = {
    Capability.ADD_ONION_DETACHED: "arti has no control port; its onions come from its configuration file",
    Capability.CLIENT_AUTH: "arti has restricted discovery (feature restricted-discovery, off by default), "
    "set in its configuration file only",
    Capability.ONION_POW: "arti's proof of work (feature hs-pow-full) is marked experimental and off by default",
    Capability.PRIVATE_NETWORK: "arti is no directory authority or relay for us yet; both are being written",
    Capability.CONTROL_EVENTS: "arti has no control port and so no HS_DESC or CIRC events; its RPC (feature rpc) is "
    "a protocol of its own",
    Capability.INTRODUCTION_STATS: "arti's metrics (feature metrics) are marked experimental and off by default",
    Capability.AMNESIA: "we have no way to hand arti an onion key; by default it makes its own and keeps them on disk",
    Capability.PER_APP_ISOLATION: "nothing here runs an arti per app, or gives apps SOCKS logins of it",
}


# The first version whose manifest has anything of it, and what; read from every release from 1.0.0 to 1.5.0.
_ARTI_ONIONS, _ARTI_HSS = (1, 1, 10), (1, 1, 12)
_ARTI_SINCE = {
    Capability.CLIENT_AUTH: ((1, 2, 7), "restricted discovery"),
    Capability.ONION_POW: ((1, 5, 0), "proof of work for onions that it hosts"),
    Capability.INTRODUCTION_STATS: ((1, 4, 3), "metrics"),
}
_ARTI_OF_ONIONS = (Capability.ONION_V3, Capability.ADD_ONION_DETACHED, Capability.AMNESIA, *_ARTI_SINCE)


def _arti_gaps(version: tuple[int, ...], *, hosts_onions: bool) -> dict[Capability, str]:
    gaps = {Capability.ONION_V3: _arti_onions(version, hosts_onions=hosts_onions), **_ARTI_GAPS}
    for capability, (since, what) in _ARTI_SINCE.items():
        if version < since:
            gaps[capability] = f"arti {_dotted(version)} has no {what}; arti has since {_dotted(since)}"
    if version < _ARTI_ONIONS:
        gaps |= dict.fromkeys(_ARTI_OF_ONIONS, f"arti {_dotted(version)} hosts no onions; arti does since 1.1.10")
    return gaps


def _arti_onions(version: tuple[int, ...], *, hosts_onions: bool) -> str:
    if hosts_onions:
        return "it hosts onions from its configuration file; the onion runtime does not drive it"
    if version < _ARTI_HSS:
        return f"arti {_dotted(version)} does not tell whether this build hosts onions; the onion runtime drives none"
    return "this build hosts no onions (feature onion-service-service, off by default)"


def _report(
    name: str, path: str, version: str, gaps: Mapping[Capability, str], advice: tuple[str, ...]
) -> BackendReport:
    return BackendReport(
        name=name,
        available=True,
        path=path,
        version=version,
        capabilities=frozenset(Capability) - gaps.keys(),
        gaps=tuple(Gap(capability=c, why=gaps[c]) for c in Capability if c in gaps),
        advice=advice,
    )


def _absent(name: str, path: str | None, version: str | None, why: str) -> BackendReport:
    gaps = tuple(Gap(capability=capability, why=why) for capability in Capability)
    return BackendReport(
        name=name, available=False, path=path, version=version, capabilities=frozenset(), gaps=gaps, advice=()
    )


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _has_gencert(tor: str) -> bool:
    """Where `ron.tor.binary` looks for it."""
    return bool(shutil.which("tor-gencert", path=str(Path(tor).parent)) or shutil.which("tor-gencert"))


def _ask(program: str, *arguments: str) -> str | None:
    """What `program` prints; None when it does not run, fails, says too much or says nothing for 10 s."""
    try:
        process = subprocess.Popen(
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except OSError:
        return None
    # Reading ends when the program and all it started have closed the pipe, or have been killed for being late.
    late = threading.Timer(ASK_TIMEOUT_S, _kill, [process])
    late.start()
    try:
        assert process.stdout is not None  # noqa: S101 - asked for above
        with process.stdout as stdout:
            answer = stdout.read(MAX_ANSWER_BYTES + 1)
    finally:
        late.cancel()
    try:
        status = process.wait(timeout=ASK_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        _kill(process)
        status = process.wait()
    return answer.decode("utf-8", "replace") if status == 0 and len(answer) <= MAX_ANSWER_BYTES else None


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


class PowSettings(Protocol):
    """tor's proof of work for one onion (HiddenServicePoWDefensesEnabled and its queue); tor's defaults are 250, 2500.

    queue_rate: rendezvous requests served a second, 0 for no limit. queue_burst: at once, at least the rate: tor wants
    that of a torrc, and does not look in ADD_ONION.
    """

    @property
    def enabled(self) -> bool: ...
    @property
    def queue_rate(self) -> int: ...
    @property
    def queue_burst(self) -> int: ...


def pow_arguments(settings: PowSettings) -> str:
    """What ADD_ONION is told (tor 0.4.9.2 or newer; others refuse the words); empty when it is off.

    Raises `RonError` (BadRequest) unless 0 ≤ rate ≤ burst ≤ 1 000 000.
    """
    if not settings.enabled:
        return ""
    if not 0 <= settings.queue_rate <= settings.queue_burst <= MAX_POW_QUEUE:
        raise bad_request(
            "the onion's proof-of-work queue has a rate or burst out of range",
            hint=f"0 <= rate <= burst <= {MAX_POW_QUEUE}",
        )
    return f"PoWDefensesEnabled=1 PoWQueueRate={settings.queue_rate} PoWQueueBurst={settings.queue_burst}"


class OnionFigures(NamedTuple):
    """One onion in tor's metrics: counters since tor's start, times in milliseconds summed up beside their number.

    `intro_circuits` and `rendezvous_open` are what stands now. `pow_effort` is the effort suggested to clients, 0 while
    there is no need, and `pow_queue` the requests that wait; tor shows both as 0 also where proof of work is off.
    """

    introductions: int = 0
    introductions_rejected: int = 0
    intro_circuits: int = 0
    intro_build_ms: int = 0
    intro_builds: int = 0
    rendezvous: int = 0
    rendezvous_failed: int = 0
    rendezvous_open: int = 0
    rendezvous_build_ms: int = 0
    rendezvous_builds: int = 0
    bytes_from_app: int = 0
    bytes_to_app: int = 0
    pow_effort: int = 0
    pow_queue: int = 0


_FIGURES = {
    "tor_hs_intro_num_total": "introductions",
    "tor_hs_intro_rejected_intro_req_count": "introductions_rejected",
    "tor_hs_intro_established_count": "intro_circuits",
    "tor_hs_intro_circ_build_time_sum": "intro_build_ms",
    "tor_hs_intro_circ_build_time_count": "intro_builds",
    "tor_hs_rdv_num_total": "rendezvous",
    "tor_hs_rdv_error_count": "rendezvous_failed",
    "tor_hs_rdv_established_count": "rendezvous_open",
    "tor_hs_rend_circ_build_time_sum": "rendezvous_build_ms",
    "tor_hs_rend_circ_build_time_count": "rendezvous_builds",
    "tor_hs_app_read_bytes_total": "bytes_from_app",
    "tor_hs_app_write_bytes_total": "bytes_to_app",
    "tor_hs_pow_suggested_effort": "pow_effort",
    "tor_hs_rdv_pow_pqueue_count": "pow_queue",
}
_NAME = re.compile(r"[{ ]")
_SERVICE_ID = re.compile(r"[a-z2-7]{56}")
_MAX_VALUE = 2**63


def parse_metrics(text: str) -> dict[str, OnionFigures]:
    """`<id>.onion` → figures, from what tor's MetricsPort serves at `/metrics`; other metrics are passed over.

    Reasons and ports are summed up. Takes over a millisecond an onion: belongs in a thread. Raises `RonError`:
    TooLarge, or Internal for what no tor writes. A tor with DisableNetwork 1 has its MetricsPort closed.
    """
    if len(text) > MAX_METRICS_CHARS:
        raise too_large(f"tor's metrics are longer than {MAX_METRICS_CHARS} characters")
    # Only our lines, without their comments: those make the parser rename counters that do not end in _total.
    ours = "\n".join(line for line in text.split("\n") if _NAME.split(line, 1)[0] in _FIGURES)
    figures: dict[str, dict[str, int]] = {}
    try:
        for family in text_string_to_metric_families(ours):
            for sample in family.samples:
                onion, value = sample.labels["onion"], float(sample.value)
                if not _SERVICE_ID.fullmatch(onion) or not 0 <= value < _MAX_VALUE:
                    raise ValueError(sample.name)
                mine = figures.setdefault(f"{onion}.onion", {})
                field = _FIGURES[sample.name]
                mine[field] = mine.get(field, 0) + int(value)
    except (ValueError, KeyError, IndexError):
        raise RonError(ErrorCode.INTERNAL, "tor's metrics cannot be read") from None
    return {onion: OnionFigures(**counted) for onion, counted in figures.items()}
