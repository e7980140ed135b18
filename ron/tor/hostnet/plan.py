"""Who is in the network and how it votes: the manifest `network.json`, and the rules it obeys. Pure.

In: `NAME=HOST[:ORPORT[:DIRPORT]]` and durations. Out: `Node`, `Manifest`; `RonError` (BadRequest, Conflict) otherwise.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

import msgspec

from ron.kernel.units import DAY_S, HOUR_S, MINUTE_S
from ron.proto.errors import RonError, bad_request, conflict, not_found

FORMAT = 1
Role = Literal["authority", "relay"]
CLIENT = "client"
DEFAULT_OR_PORT: dict[Role, int] = {"authority": 9001, "relay": 9101}
DEFAULT_DIR_PORT = 9030
MIN_AUTHORITIES, MAX_AUTHORITIES, MIN_NODES, MAX_NODES = 3, 9, 5, 250
# tor takes no interval under 10 s even in a testing network, and wants it to divide a day
MIN_INTERVAL_S, MAX_INTERVAL_S = 10, HOUR_S
USUAL_INTERVAL_S = 5 * MINUTE_S
# Authorities that have seen no consensus yet vote this often; tor wants it to divide half an hour.
FIRST_INTERVAL_MAX_S, FIRST_INTERVAL_DIVIDES_S = 30, 30 * MINUTE_S
MAX_DELAY_S = 20
# vanguards-lite keeps four layer-2 relays; with fewer nodes than this too few remain for the other hops (measured on 5)
VANGUARDS_FROM_NODES = 12
_NAME = re.compile(r"[a-zA-Z0-9]{1,19}", re.ASCII)
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)
_HINT = "write NAME=ADDRESS, NAME=ADDRESS:ORPORT, or for an authority NAME=ADDRESS:ORPORT:DIRPORT"


class Timing(NamedTuple):
    """When authorities vote, in whole seconds: usually, and before there is a consensus."""

    interval_s: int
    delay_s: int
    first_interval_s: int
    first_delay_s: int


class Node(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An authority or relay. address: IPv4. fingerprint, v3ident: 40 hex, empty until keys are made.

    certificate_expires: end of the authority's certificate. region: the operator's word for where it stands.
    """

    name: str
    role: Role
    address: str
    or_port: int
    dir_port: int | None = None
    fingerprint: str = ""
    v3ident: str | None = None
    certificate_expires: datetime | None = None
    region: str | None = None


class Member(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an authority knows of a node of the network: name, 40 hex, and where its ORPort is."""

    name: str
    fingerprint: str
    address: str
    or_port: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The network. generation: counts changes, so that an older bundle is not taken for news. Holds no secret."""

    format: int
    network_id: str
    generation: int
    voting_interval_s: int
    nodes: tuple[Node, ...]
    retired: tuple[Node, ...] = ()

    def authorities(self) -> tuple[Node, ...]:
        """Those that vote."""
        return tuple(node for node in self.nodes if node.role == "authority")

    def node(self, name: str) -> Node:
        """The node called `name`. Raises NotFound."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise not_found(f"the network has no node {name}; it has {', '.join(n.name for n in self.nodes)}")

    def members(self) -> tuple[Member, ...]:
        """Every node, as authorities know it."""
        return tuple(
            Member(name=node.name, fingerprint=node.fingerprint, address=node.address, or_port=node.or_port)
            for node in self.nodes
        )

    def timing(self) -> Timing:
        """How its authorities vote."""
        return timing(self.voting_interval_s)


def parse_node(role: Role, text: str, region: str | None = None) -> Node:
    """`NAME=ADDRESS[:ORPORT[:DIRPORT]]` as a node without keys. Raises BadRequest saying what is wrong with it."""
    name, _, place = text.partition("=")
    address, *ports = place.split(":")
    if not place or len(ports) > (2 if role == "authority" else 1):
        raise bad_request(f"{text!r} does not say where {role} {name!r} runs", _HINT)
    numbers = [_port(port, text) for port in ports]
    dir_port = (numbers[1] if len(numbers) > 1 else DEFAULT_DIR_PORT) if role == "authority" else None
    return Node(
        name=check_name(name),
        role=role,
        address=_address(address, text),
        or_port=numbers[0] if numbers else DEFAULT_OR_PORT[role],
        dir_port=dir_port,
        region=check_region(region) if region is not None else None,
    )


def check_name(name: str) -> str:
    """`name`, which tor takes as a nickname and we as part of a file name. Raises BadRequest."""
    if not _NAME.fullmatch(name):
        raise bad_request(f"{name!r} is no node name", "1 to 19 letters and digits, as tor wants nicknames")
    if name.lower() in {CLIENT, "unnamed"}:
        raise bad_request(f"a node cannot be called {name}", "choose another name")
    return name


def check_region(region: str) -> str:
    """`region`. Raises BadRequest."""
    if not _REGION.fullmatch(region):
        raise bad_request(f"{region!r} is no region label", "up to 32 of a-z, 0-9 and -, for example eu-west")
    return region


def check_interval(seconds: float) -> int:
    """A voting interval tor accepts, in whole seconds. Raises BadRequest."""
    whole = int(seconds)
    if whole != seconds or not MIN_INTERVAL_S <= whole <= MAX_INTERVAL_S or DAY_S % whole:
        raise bad_request(
            f"authorities cannot vote every {seconds:g} s",
            f"between {MIN_INTERVAL_S} s and {MAX_INTERVAL_S} s, and a whole number of times a day: 20s, 5m, 30m",
        )
    return whole


def timing(interval_s: int) -> Timing:
    """How authorities vote every `interval_s`. Both delays together stay under half the interval, as tor demands."""
    first = max(n for n in range(1, min(interval_s, FIRST_INTERVAL_MAX_S) + 1) if FIRST_INTERVAL_DIVIDES_S % n == 0)
    return Timing(interval_s, min(MAX_DELAY_S, interval_s // 5), first, first // 5)


def check_nodes(nodes: Sequence[Node]) -> None:
    """Raises BadRequest or Conflict unless `nodes` make a network: enough, each with a name and ports of its own.

    Three authorities, because two of three still agree when one is lost; five nodes, because an onion circuit has four
    hops that must differ.
    """
    count = sum(node.role == "authority" for node in nodes)
    if not MIN_AUTHORITIES <= count <= MAX_AUTHORITIES:
        raise bad_request(
            f"a network has {MIN_AUTHORITIES} to {MAX_AUTHORITIES} authorities, not {count}",
            "with three, the network outlives the loss of one: give --authority three times",
        )
    if not MIN_NODES <= len(nodes) <= MAX_NODES:
        raise bad_request(
            f"a network has {MIN_NODES} to {MAX_NODES} authorities and relays together, not {len(nodes)}",
            "circuits to onion services take four different hops: add --relay",
        )
    _refuse_twice("name", (node.name.lower() for node in nodes), "give every node a name of its own")
    _refuse_twice(
        "address and port", (place for node in nodes for place in places(node)), "give one of the two another port"
    )


def places(node: Node) -> tuple[str, ...]:
    """`address:port` of each port `node` listens on."""
    ports = (node.or_port,) if node.dir_port is None else (node.or_port, node.dir_port)
    return tuple(f"{node.address}:{port}" for port in ports)


def grown(manifest: Manifest, added: Sequence[Node], retired: Sequence[Node] = ()) -> Manifest:
    """The next generation: without `retired`, with `added`. Raises as `check_nodes`, and Conflict for an old name."""
    for node in added:
        if node.name.lower() in {old.name.lower() for old in (*manifest.nodes, *manifest.retired)}:
            raise conflict(f"the network has or had a node {node.name}", "choose a new name")
    gone = {node.name for node in retired}
    nodes = (*(node for node in manifest.nodes if node.name not in gone), *added)
    check_nodes(nodes)
    return msgspec.structs.replace(
        manifest, generation=manifest.generation + 1, nodes=nodes, retired=(*manifest.retired, *retired)
    )


def recertified(manifest: Manifest, expires: dict[str, datetime]) -> Manifest:
    """The next generation: the same nodes, with new certificates for those in `expires`."""
    nodes = tuple(
        msgspec.structs.replace(node, certificate_expires=expires.get(node.name, node.certificate_expires))
        for node in manifest.nodes
    )
    return msgspec.structs.replace(manifest, generation=manifest.generation + 1, nodes=nodes)


def read_manifest(content: bytes) -> Manifest:
    """The manifest in `network.json`. Raises BadRequest when it is damaged or of another format."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
        if manifest.format != FORMAT:
            raise bad_request(f"network.json has format {manifest.format}, this is {FORMAT}", "use the other version")
        for node in manifest.nodes:
            parse_node(node.role, f"{node.name}={':'.join(map(str, (node.address, node.or_port)))}", node.region)
        check_nodes(manifest.nodes)
        check_interval(manifest.voting_interval_s)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise bad_request(f"network.json is damaged: {error}", "restore it from a backup") from None
    except RonError as error:
        raise bad_request(f"network.json is wrong: {error.message}", error.hint) from None
    return manifest


def _port(text: str, whole: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) or not 1 <= int(text) <= 65535:
        raise bad_request(f"{text!r} in {whole!r} is no port", _HINT)
    return int(text)


def _address(text: str, whole: str) -> str:
    """An IPv4 address another host can reach; tor's DirAuthority lines hold nothing else."""
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        raise bad_request(
            f"{text!r} in {whole!r} is no IPv4 address", "name the address; tor's DirAuthority lines hold no host names"
        ) from None
    if address.is_loopback or address.is_unspecified or address.is_multicast or address == _BROADCAST:
        raise bad_request(
            f"other hosts cannot reach {address}", "name the host's own address; on one host use: ronctl tornet up"
        )
    return str(address)


_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def _refuse_twice(what: str, values: Iterable[str], hint: str) -> None:
    for value, times in Counter(values).items():
        if times > 1:
            raise conflict(f"two nodes have the {what} {value}", hint)
