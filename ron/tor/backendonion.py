"""Backend onions: services of a tor that answer for other addresses too (ob_config), and what tor tells of them.

In: folders with keys, master addresses, ports. Out: running services, their own descriptors, events of circuits taken
apart. All of a tor's are set at once: SETCONF names every service, and one that it does not name is gone, with all its
circuits. RELOAD would drop all of them, since no torrc names them.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from stem.descriptor.hidden_service import HiddenServiceDescriptorV3
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeadlineError
from txtorcon import TorControlProtocol
from txtorcon.torcontrolprotocol import TorDisconnectError, TorProtocolError

from ron.kernel.files import private_dir, write_private
from ron.proto.errors import ErrorCode, RonError, bad_request
from ron.tor.control import TorSilent, answered, ask
from ron.tor.descriptor.intropoints import MAX_DESCRIPTOR_BYTES

OB_CONFIG = "ob_config"
# SOCKS user names stand in CIRC events, and whoever chose one may have written keywords into it.
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"?')
_KEYWORD = re.compile(r"([A-Z_]{1,32})=(\S{0,256})\Z")
_CIRCUIT_ID = re.compile(r"[A-Za-z0-9]{1,16}\Z")
_ONION = re.compile(r"[a-z2-7]{56}\.onion\Z")
_FINGERPRINT = re.compile(r"[0-9A-F]{40}\Z")
_LISTENER = re.compile(r'"(127\.0\.0\.1:\d{1,5})"')


class BackendOnion(msgspec.Struct, frozen=True, kw_only=True):
    """A service as tor is to run it. folder: its keys and `ob_config`. ports: `80 127.0.0.1:8080`, `80 unix:/path`."""

    folder: Path
    ports: tuple[str, ...]

    def options(self) -> str:
        """Its part of SETCONF. Raises `RonError` for what would break the line."""
        ports = [f"HiddenServicePort={_quoted(port)}" for port in self.ports]
        lines = [f"HiddenServiceDir={_quoted(str(self.folder))}", "HiddenServiceOnionBalanceInstance=1", *ports]
        return " ".join(lines)


class CircuitLine(NamedTuple):
    """A CIRC or CIRC_MINOR event, or a line of `circuit-status`. onion: `<56 characters>.onion`, or empty: tor does not
    say in LAUNCHED whose circuit it is."""

    circuit: str
    status: str
    purpose: str
    state: str
    onion: str


def prepare(folder: Path, masters: Sequence[str]) -> None:
    """Make `folder` (0700) answer for `masters`, addresses with `.onion`; tor reads it when it is set. Blocks.

    Raises `RonError` for what is no address, or for none: tor refuses an empty file.
    """
    if not masters or not all(_ONION.match(master) for master in masters):
        raise bad_request("a backend onion answers for one master address at least, each <56 characters>.onion")
    lines = "".join(f"MasterOnionAddress {master}\n" for master in masters)
    write_private(private_dir(folder) / OB_CONFIG, lines.encode())


def address_in(folder: Path) -> str:
    """The address of a service that tor has made there. Blocks. Raises `RonError` (Internal) when there is none."""
    try:
        text = (folder / "hostname").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        text = ""
    if not _ONION.match(text):
        raise RonError(ErrorCode.INTERNAL, "tor has made no onion in the folder of the backend")
    return text


async def set_onions(reactor: Any, control: TorControlProtocol, onions: Sequence[BackendOnion]) -> None:
    """tor's services from files are `onions` from now on. One that it has already keeps its introduction points and its
    visitors, and the masters it knows: others take effect with its next descriptor only, hours later. The circuits
    of one that is left out are closed. Raises `TorSilent`, and `RonError` when tor refuses."""
    options = " ".join(onion.options() for onion in onions) or "HiddenServiceDir"
    await told(reactor, control, f"SETCONF {options}")


async def folders_set(reactor: Any, control: TorControlProtocol) -> frozenset[Path]:
    """Folders of the services that tor has. Raises `TorSilent`, and `RonError` when tor refuses."""
    try:
        found = await answered(reactor, control.get_conf("HiddenServiceOptions"))
    except TorProtocolError as error:
        raise RonError(ErrorCode.INTERNAL, f"tor refused: error {error.code}") from None
    values = found.get("HiddenServiceDir", [])
    return frozenset(Path(value) for value in ([values] if isinstance(values, str) else values))


async def own_descriptor(reactor: Any, control: TorControlProtocol, onion: str) -> str | None:
    """What tor would upload for `onion` in the older of its two periods; None before there is any. Nothing is fetched.

    It is encrypted anew each time, so two answers differ though they say the same: see `edition`. Until the
    first upload it has no introduction points; afterwards those that were established at the last upload.
    """
    try:
        text = await ask(reactor, control, f"hs/service/desc/id/{onion.removesuffix('.onion')}")
    except TorProtocolError:
        return None
    except (DeadlineError, TorDisconnectError):
        raise TorSilent from None
    return text.strip("\n") + "\n" if text.strip() else None


def edition(text: str) -> str:
    """Equal for two texts of one descriptor: its signing certificate and its revision counter."""
    return text.partition("\nsuperencrypted")[0]


def count_points(text: str, onion: str) -> int:
    """Introduction points in a descriptor that our own tor has made. Blocks for 10 ms; 0 for what is unreadable."""
    if len(text) > MAX_DESCRIPTOR_BYTES:
        return 0
    try:
        return len(HiddenServiceDescriptorV3.from_str(text, validate=False).decrypt(onion).introduction_points)
    except Exception:  # noqa: BLE001 - stem raises whatever its parsing and the cryptography below it do
        return 0


def read_circuit(text: str) -> CircuitLine | None:
    """`<id> <status> … PURPOSE=… HS_STATE=… REND_QUERY=…`; None for what is no such line."""
    words = _QUOTED.sub("", text).split()
    if len(words) < 2 or not _CIRCUIT_ID.match(words[0]):
        return None
    keys = {found[1]: found[2] for found in map(_KEYWORD.match, words[2:]) if found}
    query = f"{keys.get('REND_QUERY', '')}.onion"
    onion = query if _ONION.match(query) else ""
    return CircuitLine(words[0], words[1], keys.get("PURPOSE", ""), keys.get("HS_STATE", ""), onion)


async def metrics_address(reactor: Any, control: TorControlProtocol) -> str:
    """`host:port` of this tor's MetricsPort; it is opened on a free port of loopback when there is none.

    Every program on this host can read it. Raises `TorSilent`, and `RonError` when tor refuses.
    """
    found = await _listener(reactor, control)
    if found is None:
        with socket.socket() as probe:  # tor takes no `auto` here
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        await told(
            reactor, control, f'SETCONF MetricsPort="127.0.0.1:{port}" MetricsPortPolicy="accept 127.0.0.1,reject *"'
        )
        found = await _listener(reactor, control)
    if found is None:
        raise RonError(ErrorCode.UNSUPPORTED, "this tor opens no MetricsPort")
    return found


async def _listener(reactor: Any, control: TorControlProtocol) -> str | None:
    try:
        found = _LISTENER.search(await ask(reactor, control, "net/listeners/metrics"))
    except TorProtocolError:
        return None
    except (DeadlineError, TorDisconnectError):
        raise TorSilent from None
    return found[1] if found else None


async def vanguards_lite(reactor: Any, control: TorControlProtocol) -> str:
    """Whether this tor chooses second hops to keep: 0, 1 or auto. Raises `TorSilent`."""
    answer: Deferred[dict[str, Any]] = control.get_conf("VanguardsLiteEnabled")
    found = (await answered(reactor, answer))["VanguardsLiteEnabled"]
    return found if found in ("0", "1") else "auto"


async def set_guards(
    reactor: Any, control: TorControlProtocol, layer2: Sequence[str], layer3: Sequence[str], *, otherwise: str
) -> None:
    """Second and third hops of this tor's onion circuits are among these relays (fingerprints of 40 hex digits);
    an empty layer is tor's own choice again.

    otherwise: `vanguards_lite` as it was before. A tor that has it at 0, as on a small network, takes HSLayer2Nodes and
    HSLayer3Nodes and goes by neither (0.4.9). Raises BadRequest, `TorSilent`, and `RonError` when tor refuses.
    """
    if not all(_FINGERPRINT.match(one) for one in (*layer2, *layer3)):
        raise bad_request("a relay's fingerprint has 40 hex digits, upper case")
    layers = {"HSLayer2Nodes": layer2, "HSLayer3Nodes": layer3}
    values = [f'{name}="{",".join(f"${one}" for one in nodes)}"' if nodes else name for name, nodes in layers.items()]
    # all in one: a circuit that is built in between would be kept with half of it
    values.append(f"VanguardsLiteEnabled={'1' if layer2 or layer3 else otherwise}")
    await told(reactor, control, " ".join(["RESETCONF", *values]))


async def told(reactor: Any, control: TorControlProtocol, command: str) -> None:
    """tor has done it. Raises `TorSilent`, and `RonError` when tor refuses."""
    answer: Deferred[Any] = control.queue_command(command)
    try:
        await answered(reactor, answer)
    except TorProtocolError as error:
        raise RonError(ErrorCode.INTERNAL, f"tor refused a setting: {error.text[:200]}") from None


def _quoted(value: str) -> str:
    if not value.isprintable() or '"' in value or "\\" in value:
        raise bad_request("a folder or a target holds a quote, a backslash or a control character")
    return f'"{value}"'
